import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.batching import compile_clock
from jaxcircuits.discovery.edge_pruning import EdgePruning, binarise


def chain_objective(seed=0, **options):
    return jc.Objective(chain_model(), micro_pairs(seed, batch=8, width=5), "kl", **options)


def separated(scores, graph, names):
    """ROC area 1: every edge of the circuit scores above every other edge."""
    positives = graph.mask_of(names)
    return scores[positives].min() > scores[graph.valid & ~positives].max()


def test_the_chain_is_the_whole_circuit(x64):
    objective = jc.Objective(chain_model(dtype=jnp.float64), micro_pairs(batch=8, width=5), "kl")
    circuit = objective.graph.mask_of(CHAIN)
    assert abs(float(objective(circuit))) < 1e-12
    for name in CHAIN:
        assert float(objective(circuit & ~objective.graph.mask_of([name]))) > 0.05


@pytest.mark.quick(1)
@pytest.mark.parametrize("node_sparsity", [None, 0.2])
def test_it_finds_the_chain(node_sparsity, tmp_path):
    objective = chain_objective()
    graph = objective.graph
    result = jc.edge_pruning(objective, 1.0, node_sparsity=node_sparsity, steps=1000, batch=4)
    assert separated(result.scores, graph, CHAIN)
    assert set(graph.names_of(result.mask)) == set(CHAIN)
    assert result.run["metric_final"] < 1e-5 and result.run["edges_kept"] == 3
    history = result.history
    assert len(history["loss"]) == 1000 and np.isfinite(history["loss"]).all()
    penalties = np.asarray(history["loss"]) - np.asarray(history["metric"])  # of multipliers of their gap's sign
    assert penalties[0] == 0 and penalties[:50].min() > -0.01 and penalties[49] > 0.5
    assert history["sparsity"][0] < 0.1 and history["sparsity"][-1] > 0.8 and history["target"][-1] == 1
    circuit = jc.Circuit.of(result)
    assert circuit.run["method"] == "edge-pruning" and circuit.num_edges == 3
    circuit.save(tmp_path / "circuit.json")
    assert set(jc.Circuit.load(tmp_path / "circuit.json").edges) == set(CHAIN)
    assert (result.as_scores().values == result.scores).all() and not result.as_scores().signed


@pytest.mark.mission
def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    class Stopped(Exception):
        pass

    def stop(state):
        if int(state.step) > 100:
            raise Stopped

    objective = chain_objective()
    settings = dict(sparsity=0.9, node_sparsity=0.3, steps=150, batch=4, seed=5)
    through = jc.edge_pruning(objective, **settings)
    with pytest.raises(Stopped):
        jc.edge_pruning(objective, **settings, progress=stop, checkpoint=tmp_path)
    steps = []
    resumed = jc.edge_pruning(objective, **settings, checkpoint=tmp_path, progress=lambda s: steps.append(int(s.step)))
    assert 1 < steps[0] < 150
    for one, other in zip(jax.tree.leaves(through.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(through.scores, resumed.scores)
    again = jc.edge_pruning(objective, **settings, checkpoint=tmp_path, progress=pytest.fail)  # nothing left to do
    np.testing.assert_array_equal(again.scores, resumed.scores)
    other = jc.edge_pruning(objective, **{**settings, "seed": 6})
    assert not np.array_equal(other.scores, through.scores)

    for changed in ({"sparsity": 0.8}, {"seed": 1}, {"steps": 99}, {"node_sparsity": None}, {"batch": 3}):
        [name] = changed
        with pytest.raises(ValueError, match=f"{name} was {settings[name]}, now"):
            jc.edge_pruning(objective, **{**settings, **changed}, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="method was"):
        jc.ugs(objective, checkpoint=tmp_path)


@pytest.mark.mission
def test_the_gradient_of_the_lagrangian(x64):
    """Descent on log alpha, ascent on the multipliers, against finite differences of the loss."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    learner = EdgePruning(0.9, 0.5, 100, 80, 5, 0.8, 0.1, 0.01)
    learner = jax.tree.map(jnp.asarray, learner)
    random = np.random.default_rng(0)
    start = learner.start(objective, jax.random.key(0))
    parameters = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), start)
    key, step = jax.random.key(1), jnp.asarray(30)

    @eqx.filter_jit
    def loss(parameters):
        return learner.loss(parameters, objective, key, step)[0]

    slopes = eqx.filter_jit(jax.grad(loss))(parameters)
    for where, sign in (("log_alpha", 1), ("multipliers", -1)):
        for kind in ("edges", "nodes"):
            direction = jnp.asarray(random.normal(size=parameters[where][kind].shape))

            def moved(size, where=where, kind=kind, direction=direction):
                part = {**parameters[where], kind: parameters[where][kind] + size * direction}
                return loss({**parameters, where: part})

            finite = (moved(1e-6) - moved(-1e-6)) / 2e-6
            np.testing.assert_allclose(sign * jnp.sum(slopes[where][kind] * direction), finite, rtol=1e-5, atol=1e-9)


@pytest.mark.mission
def test_the_lagrangian_has_each_multiplier_times_its_gap(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    learner = jax.tree.map(jnp.asarray, EdgePruning(0.9, None, 100, 80, 5, 0.8, 0.1, 0.01))
    start = learner.start(objective, jax.random.key(0))
    parameters = {**start, "multipliers": {"edges": jnp.array([2.0, 3.0])}}
    loss, seen = eqx.filter_jit(learner.loss)(parameters, objective, jax.random.key(1), jnp.asarray(30))
    gap = seen["sparsity"] - seen["target"]
    assert abs(gap) > 0.01
    np.testing.assert_allclose(loss, seen["metric"] + 2 * gap + 3 * gap**2, rtol=1e-12)


@pytest.mark.mission
def test_saturated_parameters_give_f_at_the_rounded_mask(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    mask = np.random.default_rng(0).random(objective.graph.shape) < 0.6
    learner = jax.tree.map(jnp.asarray, EdgePruning(0.9, None, 100, 80, 5, 0.8, 0.1, 0.01))
    parameters = {
        "log_alpha": {"edges": jnp.where(mask, 40.0, -40.0)},
        "multipliers": {"edges": jnp.zeros(2)},
    }
    _, seen = eqx.filter_jit(learner.loss)(parameters, objective, jax.random.key(0), jnp.asarray(3))
    np.testing.assert_allclose(seen["metric"], objective(mask), rtol=1e-12)
    np.testing.assert_allclose(seen["sparsity"], 1 - mask[objective.graph.valid].mean(), rtol=1e-12)


def test_binarising_keeps_as_many_as_the_values_sum_to():
    log_alpha = np.array([12.0, -12.0, 11.0, -9.0, 0.4, 10.0, -1.9])
    kept = binarise(log_alpha)
    np.testing.assert_array_equal(kept, log_alpha > 0.1)
    assert binarise(np.full(5, 20.0)).all() and not binarise(np.full(5, -20.0)).any()


def test_binarising_counts_values_at_four_fifths_of_the_slope():
    """Those expected to be 0 go, the lowest first; as many stay as sigmoid(0.8 a / beta) of the others sums to."""
    log_alpha = np.random.default_rng(0).permutation(np.linspace(-3, 6, 300))
    zeros = round(sum(1 - 1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1)))) for a in log_alpha))
    highest = np.sort(log_alpha)[::-1]
    values = [1 / (1 + math.exp(-0.8 * a / (2 / 3))) for a in highest[: len(highest) - zeros]]
    np.testing.assert_array_equal(binarise(log_alpha), log_alpha >= highest[math.ceil(sum(values)) - 1])


@pytest.mark.mission
def test_other_targets_prompts_and_seeds_compile_nothing():
    def run(seed, sparsity):
        jc.edge_pruning(chain_objective(seed), sparsity, steps=60, batch=4, seed=seed)

    run(0, 0.5)
    with compile_clock() as clock:
        run(1, 0.9)
    assert clock.compilations == 0


def test_what_it_refuses():
    objective = chain_objective()
    for options in ({"sparsity": 0.0}, {"rate": -1.0}, {"steps": 0}, {"ramp": 0}, {"warm_up": 10_000}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(options)) if "steps" not in options else "steps"):
            jc.edge_pruning(objective, **options)
