"""The laws of the design over a pairwise cover of models, prompts, metrics and references."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits.metrics import METRICS

AXES = {
    "model": ["gpt2", "gpt2-untied-relu", "shortformer", "no-norm"],
    "prompts": ["last", "positions", "lengths"],
    "metric": list(METRICS),
    "reference": ["resample", "zero", "mean"],
}


def pairwise_cover(axes):
    """Combinations in which every pair of values of two axes occurs, chosen greedily."""
    names = list(axes)

    def pairs(combination):
        return set(itertools.combinations(zip(names, combination, strict=True), 2))

    every = [combination for combination in itertools.product(*axes.values())]
    missing = set().union(*map(pairs, every))
    cover = []
    while missing:
        best = max(every, key=lambda combination: len(pairs(combination) & missing))
        cover.append(best)
        missing -= pairs(best)
    return cover


COVER = pairwise_cover(AXES)


def test_the_cover_is_small_and_covers_every_pair():
    assert len(COVER) <= 40
    for (_, first), (_, second) in itertools.combinations(AXES.items(), 2):
        for pair in itertools.product(first, second):
            assert any(set(pair) <= set(combination) for combination in COVER)


def as_parameter(combination):
    """A combination under its name; those of two models run with the long tests."""
    marks = [pytest.mark.mission] if combination[0] in ("gpt2-untied-relu", "no-norm") else []
    return pytest.param(combination, marks=marks, id="-".join(combination))


@pytest.fixture(params=[as_parameter(combination) for combination in COVER])
def objective(request, x64):
    model, prompts, metric, reference = request.param
    return jc.Objective(micro_model(model, dtype=jnp.float64), micro_pairs(kind=prompts), metric, reference)


@pytest.mark.quick(1)
def test_laws(objective):
    """Laws 1 (ends of the mask), 2 (gradient), 4 (batched = one at a time) and 5 (removed edges)."""
    model, graph = objective.model, objective.graph
    metric = objective.metric_name

    # 1. f(ones) is the clean run.
    clean = objective(np.ones(graph.shape))
    expected = _score(objective, objective.clean)
    np.testing.assert_allclose(clean, expected, rtol=1e-10, atol=1e-12)
    if metric in ("kl", "match_nll"):
        assert abs(float(clean)) < 1e-12

    # 2. The contraction equals a finite difference of f in a random direction, at a random soft mask.
    random = np.random.default_rng(0)
    soft, direction = random.random(graph.shape), random.normal(size=graph.shape) * graph.valid
    if metric not in ("accuracy", "logit_diff_max"):
        slope = np.sum(np.asarray(objective.gradient(soft)) * direction)
        step = 1e-5
        finite = (objective(soft + step * direction) - objective(soft - step * direction)) / (2 * step)
        np.testing.assert_allclose(slope, finite, rtol=1e-5, atol=1e-8)

    # 4. Batched = one at a time, at any width.
    masks = np.stack([random_mask(graph, seed) for seed in range(3)])
    np.testing.assert_allclose(objective.many(masks, 2), [objective(m) for m in masks], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(objective.per_example(masks[0]).mean(), objective(masks[0]), rtol=1e-12, atol=1e-14)

    # 5. A removed edge has no effect: entries outside the graph do nothing either.
    outside = np.where(graph.valid, masks[0], random.random(graph.shape))
    np.testing.assert_allclose(objective(outside), objective(masks[0].astype(float)), rtol=1e-12, atol=1e-14)
    assert model.dtype == np.float64


def _score(objective, tokens):
    """The metric of plain runs of the model, one prompt and one position at a time."""
    import equinox as eqx
    import jax

    total = 0.0
    forward = eqx.filter_jit(objective.model)
    for row, prompt in enumerate(tokens):
        logits = forward(prompt)
        for place, weight in enumerate(np.asarray(objective.weights[row])):
            if weight > 0:
                labels = jax.tree.map(lambda x, i=row, j=place: x[i, j], objective.labels)
                total += weight * float(objective.metric(logits[objective.scored[row, place]], labels))
    return total / len(tokens)


@pytest.mark.quick(3)
@pytest.mark.parametrize("metric", METRICS)
def test_no_edges_under_resample_are_the_corrupt_run(metric, x64):
    """Law 1, the other end."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), metric)
    corrupt = _score(objective, jnp.asarray(micro_pairs().corrupt))
    np.testing.assert_allclose(objective(np.zeros(objective.graph.shape)), corrupt, rtol=1e-10, atol=1e-12)


@pytest.mark.quick(1)
@pytest.mark.parametrize("sender", ["a0.h1", "m0", "input"])
def test_a_sender_without_edges_can_write_anything(sender, x64):
    """Law 5: with all its edges masked, the clean output of a sender has no effect."""
    import equinox as eqx

    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs()
    reference = jc.Objective(model, pairs, "logit_diff").reference
    mask = random_mask(model.graph, 1, share=0.7)
    mask[model.graph.sender_index(sender)] = False
    where = {
        "a0.h1": lambda m: m.blocks.attention.output,
        "m0": lambda m: m.blocks.mlp.w_out,
        "input": lambda m: m.position_embedding,
    }[sender]
    row = {"a0.h1": (0, 1), "m0": 0, "input": ...}[sender]
    changed = eqx.tree_at(where, model, where(model).at[row].add(0.7))
    before = jc.Objective(model, pairs, "logit_diff", reference)(mask)
    after = jc.Objective(changed, pairs, "logit_diff", reference)(mask)
    np.testing.assert_allclose(after, before, rtol=1e-12)
    mask[model.graph.sender_index(sender)] = True
    assert abs(float(jc.Objective(changed, pairs, "logit_diff", reference)(mask) - before)) > 1e-6


@pytest.mark.mission
def test_thresholds_prompts_and_weights_compile_nothing_new():
    """Law 7 for a whole run."""
    from jaxcircuits.batching import compile_clock

    def run(seed, threshold):
        objective = jc.Objective(micro_model("gpt2", seed), micro_pairs(seed), "logit_diff")
        return jc.acdc(objective, threshold, width=16)

    run(0, 0.1)
    with compile_clock() as clock:
        results = run(1, 0.01), run(2, 0.3)
    assert clock.compilations == 0 and results[0].evaluations != results[1].evaluations
