"""One record, one reader: judging a saved file is judging the object that it holds."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.run import Source, digest, extended

LAW = {  # task, model, seed of the prompts, options of the objective
    "other prompts": ("ioi", "tiny-gpt2", 4, {"metric": "logit_diff"}),
    "a mean reference": ("greater_than", "tiny-gpt2", 1, {"metric": "prob_diff", "reference": "mean"}),
    "prompt by prompt": ("micro.npz", "micro", 0, {"metric": "nll", "average": "per_prompt"}),
    "zero": ("micro.npz", "micro", 0, {"metric": "kl", "reference": "zero"}),
    "float64": ("ioi", "tiny-gpt2", 2, {"metric": "logit_diff", "dtype": "float64"}),
    "a compiled program": ("tracr_reverse", "tracr-reverse", 0, {"metric": "l2", "reference": "zero"}),
}


@pytest.fixture
def back_to_float32():
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def micro(tmp_path, monkeypatch):
    """A folder with a micro model and prompts of several scored positions, as the working directory."""
    monkeypatch.chdir(tmp_path)
    jc.save(micro_model("gpt2"), "micro")
    micro_pairs(kind="positions").save("micro.npz")
    return tmp_path


def made(task, model, seed, options):
    """An objective in Python, and its checkpoint."""
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    jax.config.update("jax_enable_x64", dtype == "float64")
    loaded = jc.load(model, dtype=dtype)
    if task.endswith(".npz"):
        return jc.Objective(loaded.model, jc.PromptPairs.load(task), **options), loaded
    return jc.Objective(
        loaded.model, jc.tasks.by_name(task).generate(loaded.tokenizer, seed=seed, size=3), **options
    ), loaded


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", LAW)
@pytest.mark.parametrize("by", ["python", "command line"])
def test_judging_a_saved_file_is_judging_the_object(name, by, run, micro, back_to_float32):
    """The method's seed is another one than the prompts'."""
    task, model, seed, options = LAW[name]
    objective, loaded = made(task, model, seed, options)
    if by == "python":
        scores = jc.Circuit.of(jc.random_scores(objective, seed=5), task=task, model=loaded.source, seed=seed)
        jc.Circuit.select(scores, edges=objective.graph.num_edges // 2).save("circuit.json")
    else:
        typed = [part for option in options for part in (f"--{option}", options[option])]
        command = "score", task, "--model", model, "--method", "random", "--option", "seed=5", "--seed", seed
        assert run(*command, *([] if task.endswith(".npz") else ["--size", 3]), *typed, "--out", "scores.json")[0] == 0
        assert run("prune", "scores.json", "--edges", objective.graph.num_edges // 2, "--out", "circuit.json")[0] == 0
        assert jc.Circuit.load("scores.json").run["seed"] == 5
    expected = jc.faithfulness(objective, jc.Circuit.load("circuit.json"))
    jax.config.update("jax_enable_x64", False)
    code, _, error = run("evaluate", "circuit.json", "--no-controls", "--out", "evaluation.json")
    assert code == 0, error
    record = jc.read_record("evaluation.json")
    for part in ("loss", "loss_empty", "loss_full"):
        assert record["faithfulness"][part]["mean"] == pytest.approx(getattr(expected, part).mean, rel=1e-5, abs=1e-6)
    for part in ("metric", "reference", "average", "dtype"):
        assert record["run"][part] == objective.describe()[part]
    assert record["run"]["source"]["digest_of_pairs"] == objective.describe()["source"]["digest_of_pairs"]


@pytest.mark.mission
def test_tests_read_the_record_as_evaluations_do(run, micro):
    task, model, seed, options = LAW["prompt by prompt"]
    objective, loaded = made(task, model, seed, options)
    circuit = jc.Circuit.of(jc.random_scores(objective, seed=5), task=task, model=loaded.source, seed=seed)
    jc.Circuit.select(circuit, edges=20).save("circuit.json")
    expected = jc.hypothesis_tests(objective, jc.Circuit.load("circuit.json"), random=9, permutations=9)
    assert run("test", "circuit.json", "--random", 9, "--permutations", 9, "--out", "tests.json")[0] == 0
    record = jc.read_record("tests.json")
    assert [o["statistic"] for o in record["outcomes"]] == pytest.approx([o.statistic for o in expected.outcomes])
    assert record["run"]["average"] == "per_prompt"


@pytest.mark.mission
def test_what_is_typed_goes_before_the_record(run, micro):
    objective, loaded = made("micro.npz", "micro", 0, {"metric": "nll", "average": "per_prompt"})
    jc.Circuit.of(jc.random_scores(objective), task="micro.npz", model=loaded.source).save("scores.json")
    command = "evaluate", "scores.json", "--no-controls", "--out", "evaluation.json"
    assert run(*command, "--average", "together", "--metric", "kl", "--size", 2)[0] == 0
    record = jc.read_record("evaluation.json")["run"]
    assert (record["average"], record["metric"], record["prompts"]) == ("together", "kl", 2)


@pytest.mark.mission
def test_other_prompts_than_the_records_are_refused(run, micro):
    """A seed that the record does not name; a file of prompts that has changed."""
    objective, loaded = made("ioi", "tiny-gpt2", 7, {"metric": "logit_diff"})
    jc.Circuit.of(jc.random_scores(objective), task="ioi", model=loaded.source).save("unnamed.json")
    objective, loaded = made("micro.npz", "micro", 0, {})
    jc.Circuit.of(jc.random_scores(objective), task="micro.npz", model=loaded.source).save("changed.json")
    files = ["unnamed.json", "changed.json"]
    micro_pairs(seed=1, kind="positions").save("micro.npz")
    for part in ("corrupt", "positions"):
        objective, loaded = made("micro.npz", "micro", 0, {})
        pairs = jc.PromptPairs.load("micro.npz")
        changed = getattr(pairs, part).copy()
        changed[0, -1] = ~changed[0, -1] if changed.dtype == bool else (changed[0, -1] + 1) % 11
        assert not np.array_equal(changed, getattr(pairs, part))
        name = f"{part}.npz"
        pairs.save(name)
        files.append(f"{part}.json")
        jc.Circuit.of(jc.random_scores(objective), task=name, model=loaded.source).save(files[-1])
        dataclasses.replace(pairs, **{part: changed}).save(name)
    for file in files:
        code, _, error = run("evaluate", file, "--no-controls")
        assert code == 1 and "are others than the record's" in error and error.count("\n") == 1
    assert run("evaluate", "unnamed.json", "--no-controls", "--seed", 7)[0] == 0


def test_a_users_metric_of_a_built_ins_name_is_not_the_built_in(run, micro):
    def nll(logits, labels):
        return -logits[labels.answer[0]]

    objective = jc.Objective(jc.load("micro").model, micro_pairs(), metric=nll)
    assert jc.Objective(jc.load("micro").model, micro_pairs(), metric=jc.metrics.nll).metric_name == "nll"
    jc.Circuit.of(jc.random_scores(objective), task="micro.npz", model="micro").save("own.json")
    code, _, error = run("evaluate", "own.json", "--no-controls")
    assert code == 1 and "unknown metric 'nll (another function than the built-in)'" in error


@pytest.mark.parametrize("folded", [{}, {"fold_layer_norms": True}, {"fold_value_biases": True}])
def test_a_checkpoints_source_names_it(folded, micro):
    for name in ("tiny-gpt2", "micro"):
        loaded = jc.load(name, **folded)
        again = jc.load(loaded.source)
        assert again.source == loaded.source
        for one, other in zip(jax.tree.leaves(loaded.model), jax.tree.leaves(again.model), strict=True):
            np.testing.assert_array_equal(one, other)
    assert jc.load("bundled gate-xor").source == "bundled gate-xor"


def test_files_of_earlier_versions_are_read():
    """From the command line, where `seed` was the prompts'; from Python; and of other tools."""
    old = {"task": "x.npz", "model": "bundled m", "seed": 3, "prompts": 4, "metric": "kl", "average": "per_prompt"}
    typed = {**old, "config": {"task": "folder/x.npz", "model": "m", "seed": 3}}
    assert Source.of(old) == Source("bundled m", "x.npz", 3, None, 4, "kl", None, "per_prompt")
    assert Source.of(typed) == Source("m", "folder/x.npz", 3, None, 4, "kl", None, "per_prompt")
    assert Source.of({}) == Source()
    assert Source.of({"source": {"task": "x.npz", "digest": "of the clean prompts alone"}}).digest is None
    assert Source.of(extended(old, {"model": "other"})).seed == 3


@pytest.mark.parametrize("entry", [{"task": 3}, {"model": ["m"]}, {"digest_of_pairs": 4}, {"seed": 1e9}, {"seed": -1}])
def test_a_source_of_other_types_is_refused_by_its_entry(entry, run, micro):
    [name] = entry
    graph = micro_model("gpt2").graph
    record = {"task": "micro.npz", "model": "micro", "source": entry}
    value = {"graph": graph, "mask": graph.valid, "scores": np.zeros(graph.shape), "run": record}
    jc.Circuit(**value).save("odd.json")
    for command in (["evaluate"], ["test"], ["report", "--out", "page.html"]):
        code, _, error = run(command[0], "odd.json", *command[1:])
        assert code == 1 and f"run: source: {name}: expected a" in error and error.count("\n") == 1


def test_the_methods_seed_and_the_prompts_have_their_own_places(micro):
    objective, _ = made("micro.npz", "micro", 0, {})
    circuit = jc.Circuit.of(jc.random_scores(objective, seed=5), task="micro.npz", model="micro", seed=2)
    circuit.save("circuit.json")
    saved = json.loads((micro / "circuit.json").read_text())["run"]
    assert saved["seed"] == 5 and saved["source"]["seed"] == 2 and Source.of(saved) == Source.of(circuit.run)


def test_a_digest_is_of_shape_type_and_bits():
    numbers = np.arange(6)
    different = [[numbers], [numbers.reshape(2, 3)], [numbers.astype(np.int32)], [numbers + 1], [numbers, numbers]]
    assert len({digest(arrays) for arrays in different}) == len(different)
    assert digest([numbers]) == digest([numbers.copy()])
