"""AtP* where it is exact, where it is EAP, and against GradDrop spelled out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


def micro(model="gpt2", metric="nll", reference="resample", pairs=None):
    return jc.Objective(micro_model(model, dtype=jnp.float64), pairs or micro_pairs(), metric, reference)


def one_layer(model):
    """The first layer alone."""
    blocks = jax.tree.map(lambda leaf: leaf[:1], model.blocks)
    return dataclasses.replace(model, blocks=blocks, config=dataclasses.replace(model.config, n_layer=1))


@pytest.mark.parametrize("reference", ["resample", pytest.param("zero", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["no-norm", "shortformer"])
def test_the_qk_fix_is_exact_where_only_the_pattern_is_not_linear(name, reference, x64):
    """One layer, no norm, logit difference: the loss is linear in what heads write, and EAP errs only in q and k."""
    model = one_layer(micro_model(name, dtype=jnp.float64))
    blocks = dataclasses.replace(model.blocks, attention_norm=None)
    model = dataclasses.replace(model, blocks=blocks, final_norm=None)
    objective = jc.Objective(model, micro_pairs(), "logit_diff", reference)
    exact = jc.exact(objective).values
    np.testing.assert_allclose(jc.atp_star(objective, grad_drop=False).values, exact, rtol=1e-9, atol=1e-13)
    wrong = np.abs(jc.eap(objective).values - exact).max(0)
    assert [name for name, error in zip(objective.graph.receivers, wrong, strict=True) if error > 1e-6] == [
        name for name in objective.graph.receivers if name.endswith(("<q>", "<k>"))
    ]
    nodes = jc.atp_nodes(objective, grad_drop=False)  # every edge of this graph is the only one into its receiver
    heads = np.array([name != "logits" for name in objective.graph.receivers])
    np.testing.assert_allclose(nodes[heads], exact[0, heads], rtol=1e-9, atol=1e-13)


def test_without_its_fixes_it_is_eap_and_the_fix_changes_queries_and_keys_alone(x64):
    objective = micro(reference="mean")
    eap = jc.eap(objective)
    plain = jc.atp_star(objective, qk_fix=False, grad_drop=False)
    np.testing.assert_allclose(plain.values, eap.values, rtol=1e-9, atol=1e-14)
    assert plain.signed
    changed = np.abs(jc.atp_star(objective, grad_drop=False).values - eap.values).max(0) > 1e-7
    assert set(np.array(eap.graph.receivers)[changed]) == {r for r in eap.graph.receivers if r.endswith(("<q>", "<k>"))}


@pytest.mark.slow
def test_grad_drop_is_the_mean_size_over_layers_that_no_gradient_passes(x64):
    """Prompt by prompt; the receiver's own layer is not counted."""
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=2)
    total = 0.0
    for row in range(2):
        objective = jc.Objective(model, pairs[row : row + 1], "nll")
        graph = objective.graph
        heads_and_mlp = graph.sender_groups[1::2] | graph.sender_groups[2::2]
        each = [np.asarray(objective.displacement_gradient(held[None], np.ones(1))) for held in heads_and_mlp]
        in_layer = np.where(graph.reads < 4, 1, 2)
        total = total + np.abs(each).sum(0) / in_layer / 2
    scores = jc.atp_star(micro(pairs=pairs), qk_fix=False)
    np.testing.assert_allclose(scores.values, total, rtol=1e-9, atol=1e-14)
    assert not scores.signed and scores.run["backward_passes"] == 2


@pytest.mark.slow
def test_nodes_of_mlps_are_the_slope_at_their_output(x64):
    """An MLP's output reaches the loss through its edges, so its node score is the sum of their EAP scores."""
    objective = micro()
    nodes = jc.atp_nodes(objective, grad_drop=False)
    eap = jc.eap(objective)
    graph = objective.graph
    for name in ("m0", "m1"):
        edges = eap.values[graph.sender_index(name)].sum()
        np.testing.assert_allclose(nodes[graph.receiver_index(name)], edges, rtol=1e-9)
    assert nodes[-1] == 0 and np.abs(nodes[:-1]).min() > 0
    dropped = jc.atp_nodes(objective)
    assert (dropped[:-1] > 0).all() and dropped.shape == nodes.shape


def test_what_is_refused(x64):
    with pytest.raises(ValueError, match="least at the clean run"):
        jc.atp_star(micro(metric="kl"))
    with pytest.raises(ValueError, match="least at the clean run"):
        jc.atp_nodes(micro(metric="kl"))
    with pytest.raises(ValueError, match="at least 2 layers"):
        model = one_layer(micro_model("gpt2", dtype=jnp.float64))
        jc.atp_star(jc.Objective(model, micro_pairs(), "nll"))
