"""Learnt masks within some edges, and without the others: these stay out, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import chain_model, micro_model, micro_pairs, stop_after

import jaxcircuits as jc
from jaxcircuits.conditional import narrowed
from jaxcircuits.discovery.learning import first_order
from jaxcircuits.discovery.ugs import masks_at

LEARN = {
    "edge_pruning": (jc.edge_pruning, {"sparsity": 0.5, "rate": 0.3}),
    "ugs": (jc.ugs, {"samples": 2, "rate": 0.1}),
    "mattr": (jc.mattr, {}),
    "subnetwork_probing": (jc.subnetwork_probing, {"on": "edges", "rate": 0.1}),
}


@pytest.fixture(scope="module")
def objective():
    return jc.Objective(chain_model(), micro_pairs(batch=4, width=5), "kl")


def half_of(graph):
    """Every other edge."""
    mask = np.zeros(graph.shape, bool)
    mask[tuple(graph.edges[::2].T)] = True
    return mask


@pytest.mark.quick(1, rest="slow")
@pytest.mark.parametrize("name", LEARN)
def test_the_other_edges_are_never_in_and_score_lowest(name, objective, tmp_path):
    learn, options = LEARN[name]
    options = {**options, "steps": 20, "batch": 2}
    graph, half = objective.graph, half_of(objective.graph)
    result = learn(objective, **options, within=jc.Circuit(graph, half, half.astype(float), {}))
    assert result.run["edges_within"] == half.sum() and result.mask.any() and not result.mask[~half].any()
    assert result.scores[half].min() > result.scores[graph.valid & ~half].max() == 0
    np.testing.assert_allclose(result.run["metric_final"], objective(result.mask & half), rtol=1e-6)
    stop_after(5, learn, objective, **options, within=half, checkpoint=tmp_path)
    again = learn(objective, **options, within=half, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.scores, result.scores)
    for other in (None, graph.valid & ~half):
        with pytest.raises(ValueError, match="kept edges was .*, now"):
            learn(objective, **options, within=other, checkpoint=tmp_path)


BOTH = {"mattr's cmd": (jc.mattr, {"loss": "cmd"}), "mattr's slopes": (jc.mattr, {"optimiser": "none"}), **LEARN}


@pytest.mark.quick(2, rest="slow")
@pytest.mark.parametrize("name", BOTH)
def test_without_the_others_is_the_same_run(name, objective, tmp_path):
    learn, options = BOTH[name]
    options = {**options, "steps": 4, "batch": 2, "checkpoint": tmp_path}
    half = half_of(objective.graph)
    kept = learn(objective, **options, within=half)
    rest = jc.without(objective, objective.graph.valid & ~half)
    for again in (learn(rest, **options), learn(rest, **{**options, "checkpoint": None})):
        for one, other in zip(jax.tree.leaves(kept.state), jax.tree.leaves(again.state), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(again.scores, kept.scores)
        np.testing.assert_array_equal(again.mask, kept.mask)
        assert {**again.run, "seconds": 0} == {**kept.run, "seconds": 0}
    assert kept.run["edges_within"] == half.sum() and kept.scores[half].any() and not kept.scores[~half].any()
    assert "size" not in kept.history or kept.history["size"].max() <= half.sum()


def test_the_record_names_the_fewer_and_they_come_last(objective):
    graph, half = objective.graph, half_of(objective.graph)
    few = np.where(np.cumsum(half).reshape(half.shape) <= 6, half, False)
    within, given = narrowed(objective, few).describe(), jc.without(objective, few).describe()
    assert within["within"] == given["without"] == list(graph.names_of(few))
    assert "without" not in within and "within" not in given
    assert given["edges_within"] == graph.num_edges - few.sum() and within["edges_within"] == few.sum() == 6
    for run, absent in ((within, graph.valid & ~few), (given, few)):
        values = np.where(absent, 0, np.random.default_rng(0).normal(size=graph.shape))
        scores = jc.Scores(graph, values, True, "mattr", run)
        some = jc.Circuit.select(scores, edges=run["edges_within"])
        assert some.run["edges_with_dead_ends"] == run["edges_within"] and not (some.mask & absent).any()
        assert not (jc.ilp.select_connected(scores, graph.num_edges).mask & absent).any()
        assert jc.Circuit.select(scores, edges=graph.num_edges).run["edges_with_dead_ends"] == graph.num_edges
        assert not jc.Circuit.select(scores, threshold=-1e9).mask[absent].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARN)
def test_within_all_edges_is_the_plain_run(name, objective):
    learn, options = LEARN[name]
    plain, whole = (learn(objective, **options, steps=5, within=within) for within in (None, objective.graph.valid))
    for one, other in zip(jax.tree.leaves(plain.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(plain.scores, whole.scores)
    np.testing.assert_array_equal(plain.mask, whole.mask)
    assert plain.run.keys() == whole.run.keys()


@pytest.mark.mission
def test_a_loss_within_is_that_of_the_mask_and_its_slope_is_masked(x64):
    whole = jc.Objective(micro_model("attention-only", dtype=jnp.float64), micro_pairs(), "kl")
    half, mask = half_of(whole.graph), np.random.default_rng(0).random(whole.graph.shape)
    value, slopes = narrowed(whole, half).value_and_gradient(jnp.asarray(mask))
    expected = np.asarray(whole.gradient(mask * half))
    np.testing.assert_allclose(value, whole(mask * half), rtol=1e-12)
    np.testing.assert_allclose(slopes, expected * half, rtol=1e-12, atol=1e-15)
    assert np.abs(expected[whole.graph.valid & ~half]).max() > 1e-3 and np.abs(slopes).max() > 1e-3


@pytest.mark.mission
def test_steps_are_those_of_masked_gradients(x64):
    """UGS on all edges, whose masks are cut and whose gradients are masked, by hand."""
    whole = jc.Objective(chain_model(dtype=jnp.float64), micro_pairs(batch=4, width=5), "kl")
    half, strength = half_of(whole.graph), 0.01
    found = jc.ugs(whole, strength, steps=6, samples=2, rate=0.1, batch=4, within=half)
    optimiser = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(0.1, b2=0.995))
    theta = jnp.ones(whole.graph.shape)
    state = optimiser.init(theta)

    def loss(theta, key):
        u = jax.random.uniform(key, (2, *theta.shape), theta.dtype)
        values = [first_order(whole.value_and_gradient, mask * half) for mask in masks_at(u, theta)]
        return sum(values) / 2 + strength * jnp.sum(jax.nn.sigmoid(theta) * half)

    for step in range(6):
        draw = jax.random.split(jax.random.fold_in(jax.random.key(0), step))[1]
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(jax.grad(loss)(theta, draw) * half, state, theta)
        theta = theta + updates
    np.testing.assert_allclose(found.scores[half], jax.nn.sigmoid(theta)[half], rtol=1e-9)
    assert np.ptp(np.asarray(theta)[half]) > 0.1 and (np.asarray(theta)[~half] == 1).all()


@pytest.mark.mission
def test_the_command_takes_the_circuit_of_prune(run, tmp_path):
    scores, best, learnt = (tmp_path / f"{name}.json" for name in ("scores", "best", "learnt"))
    assert run("score", "ioi", "--size", "2", "--method", "random", "--out", scores)[0] == 0
    assert run("prune", scores, "--edges", "300", "--out", best)[0] == 0
    options = ["--option", "steps=2", "--option", "warm_up=1", "--within", best, "--out", learnt]
    code, _, errors = run("score", "ioi", "--size", "2", "--method", "edge-pruning", *options)
    assert (code, errors) == (0, "")
    found, start = jc.Circuit.load(learnt), jc.Circuit.load(best)
    assert found.run["edges_within"] == start.num_edges and not (found.mask & ~start.mask).any()
    code, _, errors = run("score", "ioi", "--size", "2", "--within", best)
    assert code == 1 and "--within: eap scores every edge alone" in errors


def test_what_it_refuses(objective):
    shape = objective.graph.shape
    for within, said in (
        (np.ones((2, 2), bool), "within: expected a mask of shape"),
        (np.full(shape, 0.5), "within: expected a mask .* got shares of edges"),
        (np.zeros(shape, bool), "expected at least one edge that can be in"),
    ):
        with pytest.raises(ValueError, match=said):
            jc.ugs(objective, steps=1, within=within)
    half = half_of(objective.graph)
    with pytest.raises(ValueError, match="expected on='edges'"):
        jc.subnetwork_probing(objective, steps=1, within=half)
    with pytest.raises(ValueError, match="expected on='edges'"):
        jc.subnetwork_probing(jc.without(objective, half), steps=1)
    with pytest.raises(ValueError, match="expected at least one edge that can be in"):
        jc.mattr(jc.without(objective, half), steps=1, within=half)
