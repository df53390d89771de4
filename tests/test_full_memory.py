"""A device whose memory is full: half as many prompts at once, the same answers, and it is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits import batching

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.")
PROMPTS = 7


@pytest.fixture
def small_device(monkeypatch):
    """Has room for so many prompts at once, in programs that are not compiled yet."""
    chunked = batching.chunked_vmap

    def room_for(most):
        def limited(f, xs, size):
            if any(x.shape[0] == PROMPTS for x in jax.tree.leaves(xs)) and size > most:
                raise FULL
            return chunked(f, xs, size)

        monkeypatch.setattr(batching, "chunked_vmap", limited)

    return room_for


def made(**options):
    model = micro_model("one-head", dtype=jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)
    return jc.Objective(model, micro_pairs(batch=PROMPTS), "logit_diff", **options)


CALLS = {
    "per_example": lambda o: o.per_example(o.graph.valid),
    "many": lambda o: o.many(np.stack([o.graph.valid] * 3), width=2),
    "gradient": lambda o: o.gradient(o.graph.valid / 2),
    "nodes": lambda o: jc.NodeObjective(o).gradient_per_example(np.ones(len(o.graph.receivers) - 1)),
    "eap_ig_inputs": lambda o: jc.eap_ig_inputs(o, steps=2).values,
    "eap_gp": lambda o: jc.eap_gp(o, steps=2).values,
    "exact": lambda o: jc.exact(o).values,
    "atp_star": lambda o: jc.atp_star(o, grad_drop=False).values,
    "acdc": lambda o: jc.acdc(o, 0.02).scores,
    "subnetwork_probing": lambda o: jc.subnetwork_probing(o, steps=2).scores,
    "ablated": lambda o: jc.ablated(o).losses(o.graph.valid[None]),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", CALLS)
def test_half_as_many_prompts_at_once(name, small_device, x64):
    expected = CALLS[name](made(microbatch=4))
    objective = made()
    small_device(4)
    with pytest.warns(UserWarning, match="the memory is full: goes on with 4 prompts at once"):
        found = CALLS[name](objective)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_what_is_made_and_found_says_how_many(small_device, monkeypatch):
    expected = jc.random_scores(made(microbatch=4)).run
    jax.clear_caches()
    small_device(4)
    with pytest.warns(UserWarning, match="goes on with 4 prompts"):
        objective = made()
    assert objective.microbatch == 4
    assert jc.random_scores(objective).run["microbatch"] == expected["microbatch"] == 4


def test_what_cannot_fit_is_the_devices_error(small_device):
    objective = made(microbatch=2)
    small_device(0)
    with pytest.warns(UserWarning, match="goes on with 1 "), pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        objective.clean_gradient()


def test_other_errors_are_not_of_memory(monkeypatch):
    objective = made()

    def broken(f, xs, size):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(batching, "chunked_vmap", broken)
    jax.clear_caches()
    with pytest.raises(RuntimeError, match="INTERNAL: broken"):
        objective.clean_gradient()
