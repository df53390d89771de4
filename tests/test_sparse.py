"""Circuits at the cost of their live nodes: the same losses as the dense objective gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits import sparse

CASES = [
    ("gpt2", "kl", "resample", "last"),
    ("gpt2-untied-relu", "logit_diff", "zero", "positions"),
    ("attention-only", "kl", "mean", "lengths"),
]


@pytest.mark.mission
@pytest.mark.parametrize("name, metric, reference, kind", CASES)
def test_losses_are_those_of_the_dense_objective(name, metric, reference, kind, x64):
    """Random circuits, random masks with dead ends on either side, no edge, and every edge."""
    objective = jc.Objective(micro_model(name, dtype=jnp.float64), micro_pairs(kind=kind), metric, reference)
    graph = objective.graph
    walks = [jc.random_circuits(graph, edges, 3, seed=edges) for edges in (1, 5, 15)]
    others = [random_mask(graph, seed, share) & graph.valid for seed, share in enumerate((0.05, 0.1, 0.2, 0.5))]
    masks = np.concatenate([*walks, np.stack([*others, np.zeros(graph.shape, bool), graph.valid])])
    dense = objective.per_example_many(masks, 5)
    evaluator = jc.SparseEvaluator(objective)
    np.testing.assert_allclose(evaluator.per_example_many(masks, 15), dense, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(evaluator.per_example_many(masks[:7], 4), dense[:7], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [1, 1 << 15])
def test_any_number_of_nodes_at_once(positions, x64, monkeypatch):
    """One at a time, as a CPU does with long prompts, and all of a step, as accelerators do."""
    monkeypatch.setattr(sparse, "POSITIONS_AT_ONCE", {"cpu": positions})
    jax.clear_caches()
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    masks = jc.random_circuits(objective.graph, 15, 6)
    found = jc.SparseEvaluator(objective).per_example_many(masks, 4)
    jax.clear_caches()
    np.testing.assert_allclose(found, objective.per_example_many(masks, 4), rtol=1e-10, atol=1e-12)


def test_what_is_refused():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    evaluator = jc.SparseEvaluator(objective)
    for masks in (objective.graph.valid, np.ones((2, 3, 4), bool), np.ones((1, *objective.graph.shape))):
        with pytest.raises(ValueError, match="masks: expected bool"):
            evaluator.per_example_many(masks)
    with pytest.raises(ValueError, match="width"):
        evaluator.per_example_many(objective.graph.valid[None], 0)
