"""Each prompt's own circuit, and clusters of prompts."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.per_prompt import _labels, silhouette


@pytest.mark.mission
def test_each_prompt_and_each_cluster_has_the_circuit_of_its_prompts_alone(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=6), "kl")
    found = jc.per_prompt(objective, 0.05, clusters=2)
    for prompt, mask in enumerate(found.masks):
        np.testing.assert_array_equal(mask, jc.acdc(objective.take(np.array([prompt])), 0.05).mask)
    assert len(found.circuits) == 2 and len(found.prompts(0)) >= len(found.prompts(1)) > 0
    for number, circuit in enumerate(found.circuits):
        alone = jc.acdc(objective.take(found.prompts(number)), 0.05)
        np.testing.assert_array_equal(circuit.mask, alone.mask)
    np.testing.assert_array_equal(found.full.mask, jc.acdc(objective, 0.05).mask)
    both, either = (found.masks[0] & found.masks[1]).sum(), (found.masks[0] | found.masks[1]).sum()
    assert abs(found.distances[0, 1] - (1 - both / either)) < 1e-12


def by_hand(distances, labels):
    values = []
    for i, own in enumerate(labels):
        mine = [distances[i, j] for j, other in enumerate(labels) if other == own and j != i]
        others = [np.mean([distances[i, j] for j, o in enumerate(labels) if o == label]) for label in {*labels} - {own}]
        values.append((min(others) - np.mean(mine)) / max(min(others), np.mean(mine)) if mine else 0.0)
    return np.mean(values)


def test_the_silhouette_is_rousseeuws():
    points = np.random.default_rng(0).normal(size=(9, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    for labels in ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1], [3, 5, 3, 5, 3, 5, 3, 5, 3]):
        assert abs(silhouette(distances, np.array(labels)) - by_hand(distances, labels)) < 1e-12
    assert silhouette(distances, np.zeros(9, int)) == 0


def test_clusters_that_there_are_are_found_the_largest_first():
    place = np.array([5.0, 0.0, 0.1, 5.1, 5.2, 9.0, 0.2, 5.3])
    labels, silhouettes = _labels(np.abs(place[:, None] - place[None]), None)
    assert labels.tolist() == [0, 1, 1, 0, 0, 2, 1, 0] and max(silhouettes, key=silhouettes.get) == 3
    assert _labels(np.zeros((4, 4)), None)[0].tolist() == [0] * 4
    assert len(set(_labels(np.abs(place[:, None] - place[None]), 2)[0])) == 2


WRONG = [({"clusters": 9}, "at most 5"), ({"clusters": 0}, "clusters"), ({"prompt_weights": [1]}, "alone")]


@pytest.mark.parametrize("options, said", WRONG)
def test_what_makes_no_clusters_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        jc.per_prompt(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), 0.05, **options)


@pytest.mark.mission
def test_two_prompts_are_enough_one_is_not(x64):
    two = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=2), "kl")
    found = jc.per_prompt(two, 0.05, clusters=2)
    assert sorted(found.prompts(number).tolist() for number in range(2)) == [[0], [1]]
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        jc.per_prompt(two.take(np.array([0])), 0.05)


@pytest.mark.mission
def test_the_command_prints_and_writes_each_cluster(run, tmp_path):
    options = "--size", 4, "--threshold", 1, "--per-prompt", "--clusters", 2
    code, printed, _ = run(
        "discover", "ioi", *options, "--out", tmp_path / "c.json", "--report", tmp_path / "page.html"
    )
    assert code == 0 and "cluster 1: " in printed and "cluster 2: " in printed and "of 4 prompts" in printed
    found = [jc.Circuit.load(tmp_path / f"c-{number}.json").run for number in (1, 2)]
    clusters = [record["cluster"]["prompts"] for record in found]
    assert [np.flatnonzero(record["prompt_weights"]).tolist() for record in found] == clusters
    assert f"{len(clusters[0])} of 4 prompts, acdc" in printed
    assert sorted(itertools.chain(*clusters)) == [0, 1, 2, 3]


def test_options_that_would_do_nothing_are_refused_before_anything_is_loaded(run, tmp_path):
    (tmp_path / "c-2.json").mkdir()
    for options, message in (
        (["--per-prompt", "--replicates", 3], "no --replicates besides"),
        (["--clusters", 2], "--clusters: expected --per-prompt"),
        (["--resample", "keep"], "--resample: expected --replicates"),
        (["--resample", "jackknife", "--replicates", 2], "--resample: expected one of bootstrap, keep"),
        (["--left-out", 0.5, "--replicates", 2], "--left-out: expected --resample keep"),
        (["--per-prompt", "--out", tmp_path / "c.json"], "c-2.json"),
        (
            ["--per-prompt", "--out", tmp_path / "d.html", "--report", tmp_path / "d-1.html"],
            "--report and --out 1: exp",
        ),
    ):
        code, _, said = run("discover", "ioi", "--model", "no such model", *options)
        assert code == 1 and message in said, said
