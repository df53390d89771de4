import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import pytest
from conftest import GOLDEN, expected, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits import cli

REFERENCE = str(GOLDEN / "ref-4l")


@pytest.fixture
def micro(tmp_path):
    """A micro model's folder and a task file for it."""
    jc.save(micro_model("gpt2"), tmp_path / "micro")
    micro_pairs().save(tmp_path / "micro.npz")
    return tmp_path


def program(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "jaxcircuits_program", *map(str, arguments)], **options)


@pytest.mark.mission
def test_the_worked_example_gives_the_originals_answer(tmp_path):
    """15 edges, 136 evaluations, KL 0.1024357649, from the command line in float64."""
    out = tmp_path / "c.json"
    command = ["discover", GOLDEN / "ref-4l" / "greater_than.npz", "--model", REFERENCE]
    options = ["--threshold", 0.02, "--metric", "kl", "--dtype", "float64", "--out", out]
    assert program(*command, *options).wait(500) == 0
    run = json.loads(out.read_text())["run"]
    original = expected("greater_than-kl-0.02")
    assert run["edges_kept"] == 15 and run["evaluations"] == 136
    assert abs(run["metric_final"] - 0.1024357649) < 1e-9
    assert sorted(jc.Circuit.load(out).edges) == sorted(original["kept_edges"])
    assert [d[0] for d in run["decisions"]] == [trial[0] for trial in original["trace"]]


def test_discover_writes_what_it_prints(run, micro):
    out = micro / "circuit.json"
    code, printed, _ = run(
        "discover", micro / "micro.npz", "--model", micro / "micro", "--threshold", 0.05, "--metric", "logit_diff",
        "--reference", "zero", "--batch", 4, "--size", 3, "--out", out,
    )  # fmt: skip
    assert code == 0
    circuit = jc.Circuit.load(out)
    run_record = circuit.run
    for key in (
        "threshold metric reference evaluations evaluations_wasted device_calls seconds seconds_compiling metric_full "
        "metric_final edges_total edges_kept groups_kept decisions versions task model seed dtype precision device "
        "ablation order head_order smallest_margin noise"
    ).split():
        assert key in run_record, key
    assert run_record["prompts"] == 3 and run_record["reference"] == "zero" and run_record["threshold"] == 0.05
    assert f"{circuit.num_edges} of {circuit.graph.num_edges} edges" in printed
    assert printed.count("<- ") == len({edge.split("->")[1] for edge in circuit.edges})
    code, shown, _ = run("show", out)
    assert code == 0 and shown.strip() == printed.replace(f"written to {out}", "").strip()


def test_sweep_writes_a_circuit_for_each_threshold_a_table_and_a_plot(run, micro):
    out = micro / "sweep"
    command = ["sweep", micro / "micro.npz", "--model", micro / "micro", "--batch", 4]
    code, printed, _ = run(*command, "--thresholds", "1,0.1,0.01", "--out", out)
    assert code == 0
    names = {"circuit-1.json", "circuit-0.1.json", "circuit-0.01.json", "table.csv", "pareto.png"}
    assert {path.name for path in out.iterdir()} == names
    header, *rows = (out / "table.csv").read_text().splitlines()
    assert header == "threshold,edges,kl" and len(rows) == 3
    for row in rows:
        threshold, edges, metric = row.split(",")
        circuit = jc.Circuit.load(out / f"circuit-{float(threshold):g}.json")
        assert circuit.num_edges == int(edges) and circuit.run["metric_final"] == float(metric)
        assert f"{edges:>8}" in printed
    code, _, error = run(*command, "--thresholds", "1,x")
    assert code == 1 and "numbers separated by commas" in error and error.count("\n") == 1
    code, _, error = run(*command, "--thresholds", "1", "--out", micro / "micro.npz")
    assert code == 1 and "is a file" in error


def test_thresholds_that_print_alike_have_their_own_files(run, micro):
    thresholds = 0.1, 0.1 + 1e-9, 0.1 + 2e-9
    command = "sweep", micro / "micro.npz", "--model", micro / "micro", "--thresholds", ",".join(map(repr, thresholds))
    assert run(*command, "--out", micro / "sweep")[0] == 0
    files = sorted((micro / "sweep").glob("*.json"))
    assert sorted(jc.Circuit.load(file).run["threshold"] for file in files) == list(thresholds)


def test_a_sweep_writes_each_circuit_as_soon_as_it_is_known(run, micro, monkeypatch):
    """A search that fails after its first result leaves that one."""
    from jaxcircuits.discovery.search import Search

    real, results = Search.result, []

    def second_fails(self, *given):
        if results:
            raise ValueError("the second fails")
        results.append(real(self, *given))
        return results[0]

    monkeypatch.setattr(Search, "result", second_fails)
    command = "sweep", micro / "micro.npz", "--model", micro / "micro", "--thresholds", "1,0.01"
    code, _, error = run(*command, "--out", micro / "sweep")
    assert code == 1 and "the second fails" in error
    [file] = (micro / "sweep").iterdir()
    np.testing.assert_array_equal(jc.Circuit.load(file).mask, results[0].mask)


def test_results_that_would_be_lost_are_refused_before_anything_is_computed(run, micro, monkeypatch):
    def never(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr("jaxcircuits.cli.options.load", never)
    monkeypatch.setattr("jaxcircuits.cli.acdc.load", never)
    monkeypatch.setattr("jaxcircuits.cli.scores.load", never)
    (micro / "link.html").symlink_to(micro / "page.html")
    task = micro / "micro.npz"
    page, whole, linked = micro / "page.html", micro / "whole.json", micro / "linked.npz"
    whole.write_text("{}")
    linked.symlink_to(task)
    swept, taken = micro / "circuit-0.1.json", micro / "taken"
    swept.write_text("{}")
    (taken / "table.csv").mkdir(parents=True)
    options, found, folder = micro / "options.yaml", micro / "found.json", micro / "micro"
    options.write_text("{}\n")
    objective = jc.Objective(jc.load(folder).model, jc.PromptPairs.load(task), "kl")
    jc.Circuit.of(jc.random_scores(objective), task=str(task), model=str(folder)).save(found)
    before = {path: path.read_bytes() for path in (task, whole, swept, options, *folder.iterdir())}
    wrong = [
        (["discover", task, "--out", page, "--report", page], "expected different files"),
        (["discover", task, "--out", page, "--report", micro / "link.html"], "expected different files"),
        (["report", task, "--out", page, "--keep", page], "expected different files"),
        (["discover", task, "--out", task], "which is read: it would be lost"),
        (["discover", task, "--within", whole, "--out", whole], "which is read: it would be lost"),
        (["discover", task, "--config", options, "--out", options], "which is read: it would be lost"),
        (["discover", task, "--model", folder, "--out", folder / "config.json"], "which is read: it would be lost"),
        (["score", task, "--without", whole, "--out", whole], "which is read: it would be lost"),
        (["evaluate", found, "--out", task], "which is read: it would be lost"),
        (["test", found, "--out", folder / "model.safetensors"], "which is read: it would be lost"),
        (["backups", found, "--out", task], "which is read: it would be lost"),
        (["report", found, "--out", task], "which is read: it would be lost"),
        (["sweep", task, "--within", whole, "--report", whole], "which is read: it would be lost"),
        (["score", task, "--out", linked], "which is read: it would be lost"),
        (["prune", whole, "--edges", 3, "--out", whole], "which is read: it would be lost"),
        (["prune", found, "--edges", 3, "--config", options, "--out", options], "which is read: it would be lost"),
        (["prune", found, "--retain", 0.9, "--out", task], "which is read: it would be lost"),
        (["vary", task, "--out", task], "which is read: it would be lost"),
        (["compare-methods", task, "--out", task], "which is read: it would be lost"),
        (["evaluate", whole, "--out", whole], "which is read: it would be lost"),
        (["evaluate", whole, "--task", task, "--out", task], "which is read: it would be lost"),
        (["test", whole, "--out", whole], "which is read: it would be lost"),
        (["compare", task, whole, "--out", whole], "which is read: it would be lost"),
        (["report", task, whole, "--out", whole], "which is read: it would be lost"),
        (["report", task, "--inspection", whole, "--out", page, "--keep", whole], "which is read: it would be lost"),
        (["discover", task, "--out", "/dev/null"], "--out: /dev/null is a device"),
        (["discover", task, "--out", "/proc/circuit.json"], "--out: cannot write"),
        (["discover", task, "--report", "/proc/page.html"], "--report: cannot write"),
        (["score", task, "--out", "/proc/scores.json"], "--out: cannot write"),
        (["sweep", task, "--out", "/proc/sweep"], "--out: cannot write"),
        (
            ["sweep", task, "--within", swept, "--thresholds", "1,0.1", "--out", micro],
            "which is read: it would be lost",
        ),
        (["sweep", task, "--out", taken], "--out table.csv: "),
        (["sweep", task, "--out", micro, "--report", micro / "pareto.png"], "expected different files"),
        (["reproduce", "tracr", "--out", "/proc/table"], "--out: cannot write"),
    ]
    for arguments, said in wrong:
        code, _, error = run(*arguments)
        assert code == 1 and said in error and error.count("\n") == 1, (arguments, error)
    assert before == {path: path.read_bytes() for path in before}


def test_a_folder_of_programs_that_cannot_be_one_is_refused(run, micro):
    (micro / "cache").touch()
    code, _, error = run("discover", micro / "micro.npz", "--model", micro / "micro", "--cache", micro / "cache")
    assert code == 1 and "cache is a file: expected the name of a folder" in error and error.count("\n") == 1


def test_score_and_prune_write_what_they_print(run, micro):
    scores, out = micro / "scores.json", micro / "circuit.json"
    code, printed, _ = run(
        "score", micro / "micro.npz", "--model", micro / "micro", "--method", "eap-ig-inputs", "--steps", 2,
        "--option", "points=midpoint", "--metric", "nll", "--size", 3, "--out", scores,
    )  # fmt: skip
    assert code == 0 and "3 forward and 2 backward passes" in printed
    scored = jc.Circuit.load(scores)
    model = jc.load(micro / "micro").model
    direct = jc.eap_ig_inputs(jc.Objective(model, micro_pairs()[:3], "nll"), steps=2, points="midpoint")
    np.testing.assert_allclose(scored.scores, direct.values, rtol=1e-4, atol=1e-7)
    assert {
        "steps": 2,
        "points": "midpoint",
        "method": "eap-ig-inputs",
        "task": "micro.npz",
    }.items() <= scored.run.items()
    assert scored.run["config"]["command"] == "score" and scored.run["config"]["metric"] == "nll"
    best = direct.graph.edge_name(*np.unravel_index(direct.values.argmax(), direct.graph.shape))
    assert printed.splitlines()[1].split()[0] == best

    code, printed, _ = run("prune", scores, "--edges", 12, "--rank", "absolute", "--greedy", "--out", out)
    circuit = jc.Circuit.load(out)
    assert circuit.edges == jc.Circuit.select(direct, edges=12, rank="absolute", greedy=True).edges
    assert code == 0 and "12 edges chosen" in printed and f"{circuit.num_edges} of" in printed
    assert circuit.run["selection"] == {"rank": "absolute", "greedy": True, "edges": 12}
    assert circuit.run["config_of_selection"]["edges"] == 12 and circuit.d_model == 8

    command = "discover", micro / "micro.npz", "--model", micro / "micro", "--threshold", 0.01
    code, _, _ = run(*command, "--within", out, "--out", micro / "within.json")
    inside = jc.Circuit.load(micro / "within.json")
    assert code == 0 and inside.run["edges_within"] == circuit.num_edges and set(inside.edges) <= set(circuit.edges)

    command = "score", micro / "micro.npz", "--model", micro / "micro", "--metric", "nll"
    code, printed, _ = run(*command, "--without", out, "--out", micro / "without.json")
    others = scored.graph.num_edges - circuit.num_edges
    assert code == 0 and f"the best 10 of {others} edges" in printed
    assert not {line.split()[0] for line in printed.splitlines()[1:11]} & set(circuit.edges)
    code, _, error = run("prune", micro / "without.json", "--edges", others + 1)
    assert code == 1 and f"--edges: expected at most {others}" in error


@pytest.mark.mission
def test_scores_at_a_span_of_positions(run, micro):
    command = "score", micro / "micro.npz", "--model", micro / "micro", "--metric", "nll"
    code, _, _ = run(*command, "--positions", "1:3", "--out", micro / "span.json")
    objective = jc.Objective(jc.load(micro / "micro").model, micro_pairs(), "nll")
    np.testing.assert_allclose(
        jc.Circuit.load(micro / "span.json").scores, jc.eap(objective, positions=[(1, 3)]).values[0], atol=1e-6
    )
    for positions, method, message in (
        ("x", "eap", "expected a position, as 3"),
        ("1:99", "eap", "expected positions 0 to"),
        ("1", "random", "at all positions together"),
    ):
        code, _, error = run(*command, "--method", method, "--positions", positions)
        assert code == 1 and message in error and error.count("\n") == 1


def test_devices_that_are_not_there_are_refused(run, micro):
    command = "discover", micro / "micro.npz", "--model", micro / "micro"
    code, _, error = run(*command, "--devices", 9)
    assert code == 1 and "devices" in error and error.count("\n") == 1


@pytest.mark.mission
def test_eight_devices_find_the_circuit_of_one(micro):
    eight = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = "discover", micro / "micro.npz", "--model", micro / "micro", "--threshold", 0.01, "--dtype", "float64"
    runs = [program(*command, "--devices", n, "--out", micro / f"{n}.json", env=eight) for n in (1, 8)]
    assert [process.wait() for process in runs] == [0, 0]
    one, all_of_them = (jc.Circuit.load(micro / f"{n}.json") for n in (1, 8))
    assert one.edges == all_of_them.edges and len(one.edges) > 0
    assert np.prod(list(all_of_them.run["mesh"].values())) == 8


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_config_file_gives_what_is_not_typed(run, micro, form):
    values = {
        "task": str(micro / "micro.npz"),
        "model": str(micro / "micro"),
        "method": "mask-ig",
        "metric": "nll",
        "option": {"steps": 2},
        "out": str(micro / "scores.json"),
    }
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
    (micro / "config").write_text(json.dumps(values) if form == "json" else lines)
    code, _, error = run("score", "--config", micro / "config", "--metric", "logit_diff")
    record = jc.Circuit.load(micro / "scores.json").run
    assert code == 0 and not error
    assert record["metric"] == "logit_diff" and record["method"] == "mask-ig" and record["steps"] == 2
    assert record["config"]["metric"] == "logit_diff" and record["config"]["model"] == values["model"]


def test_acdc_takes_a_config_file_too(run, micro):
    (micro / "sweep.yaml").write_text(
        f"thresholds: [1, 0.1]\nhead-order: ascending\nout: {micro / 'sweep'}\nbatch: 4\n"
    )
    code, printed, _ = run("sweep", micro / "micro.npz", "--model", micro / "micro", "--config", micro / "sweep.yaml")
    assert code == 0 and len(printed.splitlines()) == 4
    record = jc.Circuit.load(micro / "sweep" / "circuit-0.1.json").run
    assert record["head_order"] == "ascending" and record["config"]["thresholds"] == "1,0.1"


@pytest.mark.mission
def test_a_config_file_gives_several_values_and_texts_as_they_stand(run, micro):
    """Lists of what may be repeated, flags, and positions that YAML's own numbers would take for minutes."""
    out, config = micro / "listed.json", micro / "listed.yaml"
    config.write_text(f"model: {micro / 'micro'}\nmethod: mask-ig\noption: [steps=3]\nout: {out}\n")
    assert run("score", micro / "micro.npz", "--config", config)[0] == 0
    assert jc.Circuit.load(out).run["steps"] == 3
    config.write_text(f"model: {micro / 'micro'}\nmethod: eap\npositions: 1:3\nseed: 010\nout: {out}\n")
    assert run("score", micro / "micro.npz", "--config", config)[0] == 0
    record = jc.Circuit.load(out).run
    assert record["positions"] == [[1, 3]] and record["config"]["seed"] == 10
    config.write_text(f"files: [{out}]\nout: {micro / 'listed.md'}\nmodel: false\n")
    assert run("report", "--config", config)[0] == 0 and (micro / "listed.md").exists()
    for wrong in ("seed: 2.5", "seed: true", "size: 3.5"):
        config.write_text(wrong)
        code, _, error = run("score", micro / "micro.npz", "--config", config)
        assert code == 2 and error.count("\n") == 1, (wrong, error)


def test_config_files_that_do_not_fit_end_with_one_line(run, micro):
    for text, said in (
        ("metrics: kl", "unknown names metrics; expected some of average"),
        ("- kl", "names and values"),
        ("metric: [", "config.yaml is malformed: expected a table of options in YAML"),
        ("metric: kl\nmetric: l2", "expected each name once"),
        ("metric: &a kl\nreference: *a", "got the alias *a: write it out"),
        ("metric: " + "[" * 5000, "within each other"),
        ("metric: kl" + " " * (1 << 16), "bytes: expected a table of options of at most 65,536"),
        ("steps: many", "steps"),
    ):
        (micro / "config.yaml").write_text(text)
        code, _, error = run("score", micro / "micro.npz", "--config", micro / "config.yaml")
        assert code != 0 and said in error and error.count("\n") == 1
    code, _, error = run("prune", "x.json", "--config", micro / "nothing.yaml")
    assert code == 1 and "no table of options" in error and error.count("\n") == 1


def test_tasks_are_shown(run, micro):
    code, printed, _ = run("tasks", "greater_than", "--show", 2, "--seed", 3)
    pairs = jc.tasks.by_name("greater_than").generate(jc.load("tiny-gpt2").tokenizer, seed=3, size=2)
    assert code == 0 and printed.count("greater_than ") == 2 and "greater_than 0: 10 tokens" in printed
    assert f"clean    '{jc.load('tiny-gpt2').tokenizer.decode(pairs.clean[0])}'" in printed
    later = (pairs.answer[0] >= 0).sum()
    assert f"'{pairs.year[0] + 1:02d}', " in printed and f" and {later - 6} more" in printed
    code, printed, _ = run("tasks", micro / "micro.npz", "--model", micro / "micro", "--show", 1)
    ids = " ".join(map(str, micro_pairs().clean[0]))
    assert code == 0 and f"clean    {ids}" in printed and "micro.npz 0: 6 tokens" in printed


@pytest.mark.mission
def test_tasks_are_checked(run, micro):
    code, printed, error = run("tasks", "check", "ioi", "--size", 6)
    assert code == 0 and not error
    assert "ioi on bundled tiny-gpt2: 6 prompts, 6 of them different" in printed
    assert "15 tokens, 3 of them corrupted; 6 scored positions in all" in printed
    assert "answer: 100.0% on clean, 0.0% on corrupt prompts" in printed
    loaded = jc.load("tiny-gpt2")
    pairs = jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=6)
    values = np.asarray(jc.Objective(loaded.model, pairs, "logit_diff").per_example(loaded.graph.valid))
    expected = (
        f"logit_diff (a loss: lower is better): {values.mean():.4g} +- {values.std(ddof=1) / 6**0.5:.2g} on clean"
    )
    assert expected in printed


@pytest.mark.mission
def test_a_task_that_the_model_does_not_do_is_said_so(run, micro):
    pairs = micro_pairs()
    jc.PromptPairs(pairs.clean, pairs.corrupt, pairs.answer).save(micro / "answers.npz")
    jc.PromptPairs(pairs.corrupt, pairs.clean).save(micro / "none.npz")
    check = ["tasks", "check", "--model", micro / "micro"]
    code, printed, error = run(*check, micro / "answers.npz")
    assert code == 0 and "nll (a loss" in printed and "warning: by nll the model does no better on clean" in error
    code, printed, error = run(*check, micro / "none.npz")
    assert code == 0 and "no answers" in printed and not error


def test_lists(run):
    code, printed, _ = run("tasks")
    assert code == 0 and all(task in printed for task in jc.tasks.TASKS)
    code, printed, _ = run("methods")
    assert code == 0 and all(method in printed for method in ("eap-ig-inputs", "atp-star", "2403.17806", "steps = 5"))
    code, printed, _ = run("models")
    assert code == 0 and "tiny-gpt2" in printed and "1519 edges" in printed
    code, printed, _ = run()
    assert code == 0 and "discover" in printed


WRONG = {
    "an unknown task": (["discover", "nothing"], "unknown task 'nothing'"),
    "a missing file": (["discover", "nothing.npz"], "no task file nothing.npz"),
    "an unknown option": (["discover", "ioi", "--fast"], "--fast"),
    "no number": (["discover", "ioi", "--threshold", "much"], "Invalid value for '--threshold': "),
    "an infinite threshold": (["discover", "ioi", "--threshold", "inf", "--size", "2"], "finite"),
    "an unknown metric": (["discover", "ioi", "--metric", "klx"], "unknown metric 'klx'"),
    "an unknown reference": (["discover", "ioi", "--reference", "noise", "--size", "2"], "unknown reference"),
    "an unknown dtype": (["discover", "ioi", "--dtype", "float16"], "float32 or float64"),
    "an unknown order": (["discover", "ioi", "--order", "shuffle", "--size", "2"], "last_first"),
    "an unknown average": (["discover", "ioi", "--average", "mean", "--size", "2"], "per_prompt"),
    "no prompts": (["discover", "ioi", "--size", "0"], "at least 1"),
    "no search in a call": (["discover", "ioi", "--together", "0", "--size", "2"], "together: expected 1 to 64"),
    "a batch of none": (["discover", "ioi", "--batch", "0", "--size", "2"], "width"),
    "an output folder that is not there": (["discover", "ioi", "--out", "nowhere/c.json"], "does not exist"),
    "a folder as output": (["discover", "ioi", "--out", "."], "is a folder"),
    "an unknown command": (["find"], "find"),
    "an unknown task to show": (["tasks", "iou"], "unknown task 'iou'"),
    "an unknown task to check": (["tasks", "check", "iou"], "unknown task 'iou'"),
    "nothing to check": (["tasks", "check"], "expected a built-in task or a .npz"),
    "two tasks": (["tasks", "ioi", "induction"], "only check takes a second name"),
    "nothing to show": (["tasks", "ioi", "--show", "0"], "at least 1, got 0"),
    "a task in other words": (["tasks", "gendered_pronoun"], "the model's tokenizer does not know 'So'"),
    "a missing circuit": (["show", "nothing.json"], "no circuit file"),
    "no file": (["show"], "FILE"),
    "an unknown method": (["score", "ioi", "--method", "acd"], "unknown method 'acd'"),
    "a method without steps": (["score", "ioi", "--steps", "3"], "unknown hyperparameter 'steps'"),
    "no slope": (["score", "ioi", "--metric", "kl", "--size", "2"], "least at the clean run"),
    "no threshold": (["discover", "no such task", "--threshold", "nan"], "threshold: expected a finite number"),
    "no thresholds": (["sweep", "no such task", "--thresholds", "1,1e999"], "thresholds: expected a finite number"),
    "no scores": (["prune", "nothing.json", "--edges", "3"], "no circuit file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_ends_with_one_line(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, said = WRONG[name]
    code, printed, error = run(*arguments)
    assert code != 0 and said.lower() in error.lower()
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in printed + error


def test_files_that_do_not_fit_end_with_one_line(run, micro):
    (micro / "broken.npz").write_bytes(b"PK\x03\x04 not an archive")
    (micro / "rows.jsonl").write_text('{"clean": "a b", "corrupt": "a"}\n')
    np.savez(micro / "big.npz", clean=np.full((2, 4), 999), corrupt=np.zeros((2, 4), int))
    for task, said in (
        ("broken.npz", "broken.npz is malformed"),
        ("big.npz", "vocabulary of 11"),
        ("rows.jsonl", "tokenizer"),
    ):
        code, _, error = run("discover", micro / task, "--model", micro / "micro")
        assert code == 1 and said in error and error.count("\n") == 1
    code, _, error = run("score", micro / "micro.npz", "--metric", "nll")  # the bundled model's vocabulary is larger
    assert code == 1 and "target: expected 340 values, the model's logits, got 11" in error and error.count("\n") == 1
    weights = micro / "micro" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, error = run("discover", micro / "micro.npz", "--model", micro / "micro")
    assert code == 1 and "model.safetensors" in error and "truncated" in error and error.count("\n") == 1


def test_a_failed_run_leaves_an_old_circuit_alone(run, micro):
    out = micro / "circuit.json"
    out.write_text("mine")
    code, _, _ = run("discover", micro / "micro.npz", "--model", micro / "micro", "--metric", "klx", "--out", out)
    assert code != 0 and out.read_text() == "mine"


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(tmp_path):
    out, cache = tmp_path / "c.json", tmp_path / "compiled"
    command = program(
        "discover", GOLDEN / "ref-4l" / "ioi.npz", "--model", REFERENCE, "--dtype", "float64", "--out", out,
        "--threshold", 1e-7, "--cache", cache, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while time.monotonic() < end and not (cache.is_dir() and any(cache.iterdir())):
        time.sleep(0.1)  # until the first program is compiled: the run has begun
    os.kill(command.pid, signal.SIGINT)
    _, error = command.communicate(timeout=60)
    assert command.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [cache]


def test_a_file_is_written_though_nobody_reads_what_is_printed(tmp_path):
    """As with `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    made = program("score", "ioi", "--size", 2, "--method", "random", "--out", tmp_path / "s.json", stdout=writing)
    os.close(writing)
    assert made.wait(timeout=120) == 0 and jc.Circuit.load(tmp_path / "s.json").num_edges


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_streams_that_are_closed_are_no_fault(closed, tmp_path):
    """Nor is a file that is opened then taken for one of them."""
    made = tmp_path / "s.json"
    command = f"{sys.executable} -m jaxcircuits_program score ioi --size 2 --method random --out {made} {closed}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stderr) == (0, "") and jc.Circuit.load(made).num_edges
    assert ("written to" in found.stdout) == (closed[0] != ">")


def test_the_version_is_the_packages(run):
    assert run("--version") == (0, f"jaxcircuits {metadata.version('jaxcircuits')}\n", "")


@pytest.mark.parametrize(
    "given", [None, "--xla_dump_to=x", "flags.txt", *(f"{flag}=x" for _, _, flag, _ in cli.COMPILER_FLAGS)]
)
@pytest.mark.parametrize("installed", ["xla_cuda13", "libtpu", None])
def test_what_a_devices_compiler_is_told_unless_the_user_says_otherwise(installed, given, monkeypatch):
    found = [metadata.EntryPoint(installed, "x", "jax_plugins")] if installed == "xla_cuda13" else []
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == "jax_plugins" else [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == installed else None)
    for variable in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.setenv(variable, given or "")
        if given is None:
            monkeypatch.delenv(variable)
    assert cli.run(["--version"]) == 0
    for driver, variable, flag in (
        ("xla_cuda13", "XLA_FLAGS", "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"),
        ("libtpu", "LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=8192"),
    ):
        is_set = driver == installed and flag.split("=")[0] not in (given or "") and given != "flags.txt"
        assert os.environ.get(variable) == (f"{given or ''} {flag}".strip() if is_set else given)


def test_every_xla_knows_the_flag_for_loops():
    """An unknown one would end the process."""
    flags = {**os.environ, "XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"}
    script = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    run = subprocess.run([sys.executable, "-c", script], env=flags, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == "2", run.stderr
