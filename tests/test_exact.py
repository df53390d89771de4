"""Exact patching against single masks, one by one, and against published numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import expected, micro_model, micro_pairs, reference_pairs

import jaxcircuits as jc


def micro(model="gpt2", metric="kl", reference="resample", kind="positions", **options):
    return jc.Objective(micro_model(model, dtype=jnp.float64), micro_pairs(kind=kind), metric, reference, **options)


def one_by_one(objective, masks):
    return np.asarray(objective.many(np.stack(masks))) - float(objective(objective.graph.valid))


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2-untied-relu", "attention-only", "one-head")]


@pytest.mark.mission
@pytest.mark.parametrize("model", ["gpt2", "no-norm", "shortformer", *OTHERS])
def test_exact_is_a_loop_over_masks_with_one_zero(model, x64):
    objective = micro(model, reference="zero" if model == "no-norm" else "resample")
    graph = objective.graph
    masks = [graph.valid & ~graph.mask_of([graph.edge_name(*edge)]) for edge in graph.edges]
    effects = one_by_one(objective, masks)
    scores = jc.exact(objective, width=4)
    np.testing.assert_allclose(scores.values[graph.valid], effects, rtol=1e-9, atol=1e-14)
    assert np.abs(effects).max() > 1e-3 and scores.signed
    assert (scores.run["forward_passes"], scores.run["backward_passes"]) == (graph.num_edges + 2, 0)


@pytest.mark.mission
def test_exact_nodes_is_a_loop_over_masks_with_an_empty_row(x64):
    objective = micro(reference="mean")
    graph = objective.graph
    masks = [graph.valid & (np.arange(len(graph.senders)) != sender)[:, None] for sender in range(len(graph.senders))]
    np.testing.assert_allclose(jc.exact_nodes(objective, width=3), one_by_one(objective, masks), rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_neither_width_nor_microbatch_changes_a_score(x64):
    whole = jc.exact(micro(), width=16)
    np.testing.assert_allclose(jc.exact(micro(microbatch=2), width=3).values, whole.values, rtol=1e-9, atol=1e-14)


@eqx.filter_jit
def loss_without(objective, sender, receiver, position):
    """The masked run in which one receiver reads the reference of one sender, at one position alone."""
    graph, model = objective.graph, objective.model

    def one(prompt):
        tokens, reference, *rest = prompt
        change = reference[sender, position] - model.sender_values(tokens)[sender, position]
        offsets = jnp.zeros((graph.shape[1], *reference.shape[1:])).at[receiver, position].set(change)
        return objective._score(model.masked_run(tokens, objective.full_mask(), reference, offsets)[0], *rest)

    return jax.vmap(one)(objective._prompts()).mean()


@pytest.mark.quick(1)
@pytest.mark.parametrize("edge", ["input->a0.h1<v>", "a0.h0->a1.h1<k>", "a0.h1->m0", "m0->m1", "input->logits"])
def test_at_one_position_the_others_stay_clean(edge, x64):
    objective = micro(metric="nll")
    sender, receiver = objective.graph.edge_index(edge)
    scores = jc.exact(objective, positions=[2, (3, 6)])
    effect = float(loss_without(objective, sender, receiver, 2) - objective(objective.graph.valid))
    assert abs(effect) > 1e-7
    np.testing.assert_allclose(scores.at(0).of(edge), effect, rtol=1e-7)


@pytest.mark.mission
def test_exact_equals_published_edge_patching(x64_reference):
    scores = jc.exact(jc.Objective(x64_reference.model, reference_pairs("induction"), "logit_diff"))
    golden = expected("induction-exact-logit_diff")["scores"]
    worst = max(abs(scores.of(edge) - score) for edge, score in golden.items())
    assert len(golden) == scores.graph.num_edges and worst <= 1e-10 * max(map(abs, golden.values()))


def test_what_is_refused():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs())
    with pytest.raises(ValueError, match="width"):
        jc.exact(objective, width=0)
    with pytest.raises(ValueError, match="width"):
        jc.exact_nodes(objective, width=0)
    with pytest.raises(ValueError, match="positions"):
        jc.exact(objective, positions=[9])
