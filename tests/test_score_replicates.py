"""Scores with intervals: every prompt is scored once, and replicates are the scores of their prompts."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from test_units import make

import jaxcircuits as jc

METHODS = {
    "eap": (jc.eap, {}),
    "eap-ig": (jc.eap_ig_inputs, {"steps": 3}),
    "eap-gp": (jc.eap_gp, {"steps": 2}),
    "exact": (jc.exact, {}),
    "atp": (jc.atp_star, {}),
}


def objective_of(name="gpt2", **pairs):
    model = micro_model(name, dtype=jnp.float64) if name == "gpt2" else make(name)
    return jc.Objective(model, micro_pairs(**pairs), "logit_diff")


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gpt2", "grouped"])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact", "eap-gp"])
def test_a_replicate_is_the_method_on_its_prompts(method, name, x64):
    objective, (score, options) = objective_of(name), METHODS[method]
    found = jc.score_replicates(objective, score, count=4, seed=2, **options)
    np.testing.assert_allclose(found.table(found.each.mean(0)), score(objective, **options).values, atol=1e-11)
    for counts in found.counts:
        copied = score(objective.take(np.repeat(np.arange(5), counts)), **options)
        weighed = counts @ found.each / counts.sum()
        np.testing.assert_allclose(weighed, copied.values[found.graph.valid], atol=1e-11)


@pytest.mark.parametrize("size", [1e-9, -1, 1e9])
def test_a_mean_over_prompts_is_one_whatever_its_unit(size, x64):
    """Rounding is measured by the largest score; by default the draws are those of seed 0."""

    def measured(score):
        def method(objective):
            found = score(objective)
            return dataclasses.replace(found, values=size * found.values)

        return method

    found = jc.score_replicates(objective_of(), measured(jc.eap), count=2)
    same = jc.score_replicates(objective_of(), jc.eap, count=2, seed=0)
    assert found.seed == 0 and (found.counts == same.counts).all()
    np.testing.assert_allclose(found.each, size * same.each, rtol=1e-12)
    with pytest.raises(ValueError, match="no mean over prompts"):
        jc.score_replicates(objective_of(), measured(of_sizes), count=2)


def of_sizes(objective):
    """A method that is no mean: sizes of slopes."""
    found = jc.eap(objective)
    return dataclasses.replace(found, values=np.abs(found.values))


def test_a_score_that_is_always_0_does_not_exclude_it(x64):
    found = jc.score_replicates(objective_of(), jc.eap, count=3)
    silent = dataclasses.replace(found, each=0 * found.each)
    assert not silent.excludes_zero.any() and not np.any(silent.intervals)


def test_intervals_and_ranks_are_those_of_the_replicates(x64, monkeypatch):
    found = jc.score_replicates(objective_of(), jc.eap, count=60, seed=1)
    replicates = found.counts @ found.each / 5
    low, high = found.intervals
    np.testing.assert_allclose([low, high], np.quantile(replicates, [0.025, 0.975], axis=0), atol=1e-12)
    one_sign = (replicates > 0).mean(0)
    assert (
        found.excludes_zero[(one_sign == 1) | (one_sign == 0)].all() and not found.excludes_zero[one_sign == 0.5].any()
    )
    assert 0 < found.excludes_zero.sum() < found.graph.num_edges
    best = np.argsort(-replicates, axis=1)[:, :3]
    np.testing.assert_allclose(found.top(3), [(best == edge).any(1).mean() for edge in range(found.graph.num_edges)])
    order = np.argsort(np.argsort(found.each.mean(0)))
    first = np.corrcoef(np.argsort(np.argsort(replicates[0])), order)[0, 1]
    assert abs(found.rank_correlations[0] - first) < 1e-12
    monkeypatch.setattr(sys.modules[jc.ScoreReplicates.__module__], "AT_ONCE", 7)
    again = jc.score_replicates(objective_of(), jc.eap, count=60, seed=1)
    np.testing.assert_allclose(again.intervals, found.intervals, atol=1e-12)


@pytest.mark.mission
def test_intervals_cover_the_mean_of_all_prompts_there_are(x64):
    """Of a hundred prompts, whose mean is known; percentile intervals of 20 of them cover a little too little."""
    whole = jc.score_replicates(objective_of(batch=100), jc.eap, count=2)
    truth, rng, covered = whole.each.mean(0), np.random.default_rng(0), []
    for seed in range(60):
        rows = rng.integers(0, 100, 20)
        some = jc.ScoreReplicates(whole.full, whole.each[rows], rng.multinomial(20, [1 / 20] * 20, size=300), seed)
        low, high = some.intervals
        covered.append(((low <= truth) & (truth <= high)).mean())
    assert 0.88 < np.mean(covered) < 0.98


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("objective", "method", "options", "said"),
    [
        (objective_of, jc.hisp, {}, "scores edges|no mean over prompts"),
        (objective_of, jc.subnetwork_probing, {"steps": 1}, "scores edges"),
        (objective_of, jc.eap, {"positions": [0]}, "all positions together"),
        (lambda: objective_of(kind="positions"), jc.eap, {}, "average='per_prompt'"),
    ],
)
def test_what_is_no_mean_over_prompts_is_refused(objective, method, options, said, x64):
    with pytest.raises(ValueError, match=said):
        jc.score_replicates(objective(), method, count=3, **options)


@pytest.mark.mission
def test_the_command_gives_intervals(run, tmp_path):
    file = tmp_path / "scores.json"
    code, printed, _ = run("score", "ioi", "--size", 4, "--replicates", 50, "--out", file)
    assert code == 0 and "50 bootstrap replicates: the 95% intervals of" in printed and " to " in printed
    record = jc.Circuit.load(file).run["score_replicates"]
    assert len(record["low"]) == len(record["high"]) == 1519 and record["count"] == 50
    code, _, said = run("score", "ioi", "--size", 4, "--replicates", 5, "--method", "random")
    assert code == 1 and "without a seed" in said
