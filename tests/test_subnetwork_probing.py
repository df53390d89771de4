import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_model, micro_pairs, stop_after

import jaxcircuits as jc
from jaxcircuits.batching import compile_clock
from jaxcircuits.discovery import hard_concrete
from jaxcircuits.discovery.subnetwork_probing import SubnetworkProbing, _tensor_shares

SETTINGS = {"steps": 300, "rate": 0.05}


def chain_objective(seed=0):
    return jc.Objective(chain_model(), micro_pairs(seed, batch=8, width=5), "kl")


@pytest.fixture(scope="module")
def objective():
    return chain_objective()


def test_on_edges_it_finds_the_chain(objective):
    graph, circuit = objective.graph, objective.graph.mask_of(CHAIN)
    result = jc.subnetwork_probing(objective, 1.0, on="edges", **SETTINGS)
    np.testing.assert_array_equal(result.mask, circuit)
    assert result.scores[circuit].min() > result.scores[graph.valid & ~circuit].max()  # ROC area 1
    assert result.run["metric_final"] < 1e-5
    again = jc.subnetwork_probing(objective, 1.0, on="edges", **SETTINGS)
    np.testing.assert_array_equal(again.scores, result.scores)
    other = jc.subnetwork_probing(objective, 1.0, on="edges", **SETTINGS, seed=1)
    assert not np.array_equal(other.scores, result.scores)


@pytest.mark.mission
def test_on_nodes_it_finds_the_two_value_outputs_of_the_chain(objective):
    result = jc.subnetwork_probing(objective, 1.0, **SETTINGS)
    kept = {name for name, score in result.run["nodes"].items() if score >= 0.5}
    assert kept == {"a0.h0<v>", "a1.h1<v>"} and result.run["metric_nodes"] < 1e-5
    senders, receivers = {"input", "a0.h0", "a1.h1"}, {*kept, "logits"}
    edges = {
        name
        for name in objective.graph.names_of(objective.graph.valid)
        if name.split("->")[0] in senders and name.split("->")[1] in receivers
    }
    assert set(objective.graph.names_of(result.mask)) == edges
    assert jc.Circuit.of(result).run["ablation"]["granularity"] == "node"


@pytest.mark.mission
def test_enough_penalty_removes_everything(objective):
    """Embeddings and logits are never removed: one edge is left."""
    result = jc.subnetwork_probing(objective, 1e4, **SETTINGS)
    assert objective.graph.names_of(result.mask) == ("input->logits",)
    assert not jc.subnetwork_probing(objective, 1e4, on="edges", **SETTINGS).mask.any()


@pytest.mark.mission
def test_it_resumes(objective, tmp_path):
    through = jc.subnetwork_probing(objective, 1.0, **SETTINGS, batch=3)
    stop_after(20, jc.subnetwork_probing, objective, 1.0, **SETTINGS, batch=3, checkpoint=tmp_path)
    resumed = jc.subnetwork_probing(objective, 1.0, **SETTINGS, batch=3, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.scores, through.scores)
    np.testing.assert_array_equal(resumed.history["loss"], through.history["loss"])


def test_the_penalty_is_the_mean_over_tensors_of_their_means():
    """As a transcription: q, k and v of a layer are vectors over heads, an MLP is a number of its own."""
    graph = jc.Graph.transformer(2, 3)
    kept = np.random.default_rng(0).random(len(graph.receivers) - 1)
    tensors = [part for layer in kept.reshape(2, 10) for part in np.split(layer, [3, 6, 9])]
    np.testing.assert_allclose(np.sum(_tensor_shares(graph) * kept), np.mean([part.mean() for part in tensors]))


@pytest.mark.mission
def test_a_run_has_that_penalty(x64):
    """Not one over all nodes: the two MLPs weigh as much as the two heads of a layer's queries together."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    result = jc.subnetwork_probing(objective, 1.0, steps=1)
    weights = [1 / 8 if name.startswith("m") else 1 / 16 for name in objective.graph.receivers[:-1]]
    np.testing.assert_allclose(result.state.learner.weights, weights)


@pytest.mark.mission
def test_saturated_masks_give_f_at_the_rounded_mask(x64):
    nodes = jc.NodeObjective(jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "nll"), "edges")
    kept = np.random.default_rng(1).random(len(nodes.names)) < 0.5
    weights = jnp.full(len(kept), 1 / len(kept))
    learner = jax.tree.map(jnp.asarray, SubnetworkProbing(weights, 2.0, 0.1, 1.6))
    loss, seen = eqx.filter_jit(learner.loss)(jnp.where(kept, 50.0, -50.0), nodes, jax.random.key(0), jnp.asarray(0))
    np.testing.assert_allclose(seen["metric"], nodes(kept), rtol=1e-12)
    np.testing.assert_allclose(loss, nodes(kept) + 2 * kept.mean(), rtol=1e-10)
    np.testing.assert_allclose(seen["sparsity"], 1 - kept.mean(), rtol=1e-10)


@pytest.mark.mission
def test_the_gradient_of_the_loss(x64):
    nodes = jc.NodeObjective(jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "nll"), "edges")
    weights = jnp.asarray(_tensor_shares(nodes.graph))
    learner = jax.tree.map(jnp.asarray, SubnetworkProbing(weights, 2.0, 0.1, hard_concrete.log_alpha_of(0.9)))
    random = np.random.default_rng(0)
    log_alpha, direction = (jnp.asarray(random.normal(size=weights.shape)) for _ in range(2))

    @eqx.filter_jit
    def loss(log_alpha):
        return learner.loss(log_alpha, nodes, jax.random.key(1), jnp.asarray(0))[0]

    finite = (loss(log_alpha + 1e-6 * direction) - loss(log_alpha - 1e-6 * direction)) / 2e-6
    slope = jnp.sum(eqx.filter_jit(jax.grad(loss))(log_alpha) * direction)
    np.testing.assert_allclose(slope, finite, rtol=1e-6)


@pytest.mark.mission
def test_a_sweep_compiles_once(objective):
    def run(seed, strength):
        jc.subnetwork_probing(chain_objective(seed), strength, steps=60, rate=0.1 * (seed + 1), seed=seed)

    run(0, 1.0)
    with compile_clock() as clock:
        run(1, 20.0)
    assert clock.compilations == 0


def test_what_it_refuses(objective):
    for settings in ({"on": "heads"}, {"strength": -1.0}, {"rate": 0.0}, {"keep": 1.0}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            jc.subnetwork_probing(objective, **{"strength": 1.0, **settings})
