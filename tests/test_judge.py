"""`evaluate`, `test` and `compare` on the command line."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """A micro model's folder, its prompts, a scores file, and a circuit of them."""
    folder = tmp_path_factory.mktemp("micro")
    jc.save(micro_model("gpt2"), folder / "model")
    micro_pairs().save(folder / "task.npz")
    objective = jc.Objective(jc.load(str(folder / "model")).model, micro_pairs(), "kl")
    named = {"task": "task.npz", "model": str(folder / "model"), "seed": 3, "metric": "kl"}
    config = {"task": str(folder / "task.npz"), "model": str(folder / "model")}
    scores = jc.Circuit.of(jc.random_scores(objective, seed=3), d_model=8, config=config, **named)
    scores.save(folder / "scores.json")
    jc.Circuit.select(scores, edges=20).save(folder / "circuit.json")
    return folder


@pytest.mark.mission
def test_a_circuit_is_judged_where_its_file_says(run, micro, tmp_path):
    """Task, model, metric and method come from the record; controls stand beside the numbers."""
    out = tmp_path / "evaluation.json"
    code, printed, _ = run("evaluate", micro / "circuit.json", "--random", 5, "--out", out)
    assert code == 0
    record = jc.read_record(out)
    assert record["kind"] == "evaluation" and record["random"]["circuits"] == 5
    assert record["run"]["metric"] == "kl" and record["run"]["seed"] == 3 and record["run"]["prompts"] == 5
    assert record["run"]["config"]["command"] == "evaluate"
    assert record["reset"]["method"] == "random" and record["reset"]["on_reset"]["loss"]["count"] == 5
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    expected = jc.faithfulness(objective, jc.Circuit.load(micro / "circuit.json")).value
    assert record["faithfulness"]["value"] == pytest.approx(expected, rel=1e-5)
    for part in ("faithfulness", "random circuits", "reset network", "incompleteness", "CPR", f"written to {out}"):
        assert part in printed


def test_a_model_that_a_file_names_is_said_before_it_is_loaded(run, micro, tmp_path):
    value = json.loads((micro / "circuit.json").read_text())
    value["run"]["source"]["model"] = value["run"]["model"] = "no/such\x1b[2J/folder"
    (tmp_path / "circuit.json").write_text(json.dumps(value))
    for command in (["evaluate"], ["test"], ["report", "--out", tmp_path / "page.html"]):
        code, printed, error = run(*command, tmp_path / "circuit.json")
        assert code == 1 and printed == "the file names the model no/such\\x1b[2J/folder\n"
        assert error.count("\n") == 1 and "\x1b" not in error
    assert not (tmp_path / "page.html").exists()


def test_a_foreign_circuit_needs_a_task_and_a_model(run, micro, tmp_path):
    """As EAP-IG writes it: no run record; judged with an ablation in other parts."""
    value = json.loads((micro / "circuit.json").read_text())
    del value["run"], value["format"]
    (tmp_path / "foreign.json").write_text(json.dumps(value))
    code, _, error = run("evaluate", tmp_path / "foreign.json")
    assert code == 1 and "give --task and --model" in error and error.count("\n") == 1
    named = ["--task", micro / "task.npz", "--model", micro / "model", "--metric", "kl"]
    parts = ["--direction", "restore", "--granularity", "node", "--set", "complement", "--component", "heads"]
    out = tmp_path / "evaluation.json"
    code, printed, error = run(
        "evaluate", tmp_path / "foreign.json", *named, *parts, "--no-controls", "--size", 3, "--out", out
    )
    assert code == 0 and "random circuits" not in printed and "random:" not in printed and error == ""
    ablation = jc.read_record(out)["run"]["ablation"]
    assert (ablation["direction"], ablation["granularity"], ablation["set"]) == ("restore", "node", "complement")
    assert ablation["component"] == "heads" and ablation["value"] == "clean prompts"
    assert ablation["positions"] == "all"


@pytest.mark.mission
def test_the_ablation_may_be_at_some_positions(run, micro, tmp_path):
    out = tmp_path / "evaluation.json"
    code, *_ = run("evaluate", micro / "circuit.json", "--positions", "1,3:5", "--no-controls", "--out", out)
    record = jc.read_record(out)
    assert code == 0 and record["run"]["ablation"]["positions"] == [[1, 2], [3, 5]]
    judged = jc.ablated(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), positions=[1, (3, 5)])
    expected = jc.faithfulness(judged, jc.Circuit.load(micro / "circuit.json")).value
    assert record["faithfulness"]["value"] == pytest.approx(expected, rel=1e-5)


def test_the_five_tests_are_printed_and_saved(run, micro, tmp_path):
    out = tmp_path / "tests.json"
    code, printed, _ = run("test", micro / "circuit.json", "--random", 20, "--permutations", 50, "--out", out)
    assert code == 0
    record = jc.read_record(out)
    names = [outcome["name"] for outcome in record["outcomes"]]
    assert names == ["equivalence", "independence", "minimality", "sufficiency", "partial necessity"]
    for name in names:
        assert name in printed
    circuit = jc.Circuit.load(micro / "circuit.json")
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    again = jc.hypothesis_tests(objective, circuit, random=20, permutations=50, seed=3)
    assert [o["rejected"] for o in record["outcomes"]] == [o.rejected for o in again.outcomes]


def test_two_circuits_are_compared(run, micro, tmp_path):
    code, printed, _ = run("compare", micro / "circuit.json", micro / "scores.json", "--out", tmp_path / "similar.json")
    record = jc.read_record(tmp_path / "similar.json")
    assert code == 0 and "Jaccard" in printed and record["kind"] == "similarity"
    assert record["rank_correlation"] == pytest.approx(1) and record["shared"] == record["edges"][0]


def test_wrong_uses_end_with_one_line(run, micro, tmp_path):
    other = jc.Circuit(
        jc.Graph.transformer(1, 2), jc.Graph.transformer(1, 2).valid, np.zeros(jc.Graph.transformer(1, 2).shape), {}
    )
    other.save(tmp_path / "other.json")
    wrong = [
        (["compare", micro / "circuit.json", tmp_path / "other.json"], "one graph"),
        (["evaluate", tmp_path / "missing.json"], "no circuit file"),
        (["evaluate", micro / "circuit.json", "--out", tmp_path / "no" / "x.json"], "does not exist"),
        (["evaluate", micro / "circuit.json", "--granularity", "neuron", "--no-controls"], "granularity"),
        (["evaluate", micro / "circuit.json", "--positions", "3-5", "--no-controls"], "a span, as 3:7"),
        (["evaluate", micro / "circuit.json", "--positions", "3:9", "--no-controls"], "expected positions 0 to 5"),
        (["test", micro / "circuit.json", "--random", 0], "random: expected a whole number, from 1"),
    ]
    for command, message in wrong:
        code, _, error = run(*command)
        assert code == 1 and message in error and error.count("\n") == 1, command


@pytest.mark.mission
def test_acdc_is_run_on_the_reset_network_with_its_own_threshold(micro):
    from jaxcircuits.cli.judge import _method_of

    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    found = jc.Circuit.of(jc.acdc(objective, 0.05, order="first_last", width=4))
    again = _method_of(found)(objective)
    np.testing.assert_array_equal(again.mask, found.mask)
    for run in ({}, {"method": "acdc"}, {**found.run, "edges_within": 3}):
        assert _method_of(dataclasses.replace(found, run=run)) is None
    weights = [1, 0, 3, 0, 1]
    weighed = jc.Circuit.of(jc.acdc(objective, 0.05, prompt_weights=weights, order="first_last", width=4))
    assert not np.array_equal(weighed.mask, found.mask)
    np.testing.assert_array_equal(_method_of(weighed)(objective).mask, weighed.mask)
    with pytest.raises(ValueError, match="found on 5 weighed prompts, got 3: .* --no-controls"):
        _method_of(weighed)(objective.take(np.arange(3)))


@pytest.mark.mission
def test_scores_of_some_positions_are_those_on_the_reset_network_too(micro):
    from jaxcircuits.cli.judge import _method_of

    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl", "zero")
    for method in (jc.exact, jc.random_scores):
        scores = method(objective, positions=[(1, 3)]).at(0) if method is jc.exact else method(objective, seed=2)
        again = _method_of(jc.Circuit.of(scores))(objective)
        np.testing.assert_array_equal(again.values, scores.values)


def test_a_record_of_another_kind_than_a_method_takes_is_refused(run, micro, tmp_path):
    value = json.loads((micro / "circuit.json").read_text())
    for odd in ({"method": "acdc", "threshold": 0.1, "order_seed": []}, {"method": "mask-ig", "steps": "many"}):
        (tmp_path / "odd.json").write_text(json.dumps({**value, "run": {**value["run"], **odd}}))
        code, _, error = run("evaluate", tmp_path / "odd.json", "--random", 1)
        assert code == 1 and "expected a whole number" in error and error.count("\n") == 1


@pytest.mark.parametrize("weights, is_said", [([1.0, 0.0, 2.0, 0.0, 1.0], True), ([1.0] * 5, False)])
def test_a_circuit_of_weighed_prompts_is_said_to_be_judged_on_all_alike(weights, is_said, run, micro, tmp_path):
    circuit = jc.Circuit.load(micro / "circuit.json")
    dataclasses.replace(circuit, run={**circuit.run, "prompt_weights": weights}).save(tmp_path / "weighed.json")
    code, _, errors = run("compare", "--paired", micro / "circuit.json", tmp_path / "weighed.json")
    assert code == 0 and ("found on 3 of 5 prompts, weighed unequally" in " ".join(errors.split())) == is_said
