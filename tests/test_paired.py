"""Two circuits on the same prompts."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


@pytest.fixture
def objective(x64):
    return jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=6), "kl")


def circuit_of(objective, seed):
    scores = jc.random_scores(objective, seed=seed)
    return jc.Circuit.select(scores, edges=objective.graph.num_edges * 2 // 3)


def test_the_difference_its_interval_and_its_p_are_those_of_the_prompts_losses(objective):
    first, second = circuit_of(objective, 0), circuit_of(objective, 1)
    record = jc.paired(objective, first, second, count=3000)
    losses = np.array([objective.per_example(circuit) for circuit in (first, second)])
    difference = losses[0] - losses[1]
    assert abs(record.difference.mean - difference.mean()) < 1e-12
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    flipped = np.abs((signs * difference).mean(1))
    exact = (flipped >= np.abs(difference.mean()) * (1 - 1e-12)).mean()
    assert abs(record.p - exact) < 1e-12
    rng = np.random.default_rng(5)
    means = difference[rng.integers(0, 6, (20_000, 6))].mean(1)
    np.testing.assert_allclose(record.interval, np.quantile(means, [0.025, 0.975]), atol=0.1 * difference.std())
    full, empty = (
        np.asarray(objective.per_example(mask)) for mask in (objective.graph.valid, np.zeros_like(first.mask))
    )
    expected = [(one - empty).mean() / (full - empty).mean() for one in losses]
    np.testing.assert_allclose(record.faithfulness, expected, atol=1e-12)
    rows = rng.integers(0, 6, (20_000, 6))
    ratios = difference[rows].mean(1) / (full - empty)[rows].mean(1)
    ends = np.quantile(ratios, [0.025, 0.975])
    np.testing.assert_allclose(record.faithfulness_interval, ends, atol=0.1 * np.ptp(ends))


def test_a_circuit_is_as_good_as_itself(objective):
    record = jc.paired(objective, circuit_of(objective, 0), circuit_of(objective, 0), count=50)
    assert record.interval == (0, 0) and record.p == 1 and record.difference.mean == 0


@pytest.mark.mission
def test_one_that_is_worse_on_every_prompt_is_so_surely(objective):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=12), "kl")
    whole = jc.Circuit.select(jc.random_scores(objective), edges=objective.graph.num_edges)
    record = jc.paired(objective, circuit_of(objective, 1), whole)
    assert record.p < 0.001 and record.interval[0] > 0


@pytest.mark.mission
def test_the_command(run, tmp_path):
    for edges in (20, 100):
        assert run("score", "ioi", "--size", 4, "--out", tmp_path / "scores.json")[0] == 0
        code, *_ = run("prune", tmp_path / "scores.json", "--edges", edges, "--out", tmp_path / f"{edges}.json")
        assert code == 0
    files = tmp_path / "20.json", tmp_path / "100.json"
    code, printed, _ = run("compare", *files, "--paired", "--out", tmp_path / "paired.json")
    assert code == 0 and "on 4 prompts" in printed and "faithfulness:" in printed
    assert jc.read_record(tmp_path / "paired.json")["kind"] == "paired"
    code, _, said = run("compare", *files, "--size", 8)
    assert code == 1 and "--paired" in said
