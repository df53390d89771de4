import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from test_page import data_of

import jaxcircuits as jc


@pytest.fixture
def micro(tmp_path):
    """A micro model's folder and a task file for it."""
    jc.save(micro_model("gpt2"), tmp_path / "micro")
    micro_pairs().save(tmp_path / "micro.npz")
    return tmp_path


@pytest.mark.mission
def test_discover_draws_what_it_finds_and_report_draws_it_again(run, micro):
    page, again, out, kept = (micro / name for name in ("page.html", "again.html", "circuit.json", "inspection.json"))
    command = ["discover", micro / "micro.npz", "--model", micro / "micro", "--threshold", 0.01, "--batch", 4]
    code, printed, _ = run(*command, "--size", 3, "--out", out, "--report", page)
    assert code == 0 and f"report written to {page}" in printed
    data, circuit = data_of(page.read_text()), jc.Circuit.load(out)
    assert len(data["prompts"]) == 3 and len(data["circuits"][0]["effects"]) == circuit.num_edges > 0
    assert data["prompts"][0]["tokens"] == [str(token) for token in micro_pairs().clean[0]]

    code, printed, _ = run("report", out, "--out", again, "--keep", kept)
    assert code == 0 and f"written to {again}" in printed
    same = data_of(again.read_text())
    assert same["patterns"] == data["patterns"]
    np.testing.assert_allclose(same["circuits"][0]["effects"], data["circuits"][0]["effects"], rtol=1e-3, atol=1e-6)
    assert jc.Inspection.load(kept).edges == circuit.edges
    assert run("report", out, "--out", page, "--inspection", kept)[0] == 0
    assert len(data_of(page.read_text())["prompts"]) == 3


def test_a_sweep_is_one_page(run, micro):
    page, out = micro / "page.html", micro / "sweep"
    command = ["sweep", micro / "micro.npz", "--model", micro / "micro", "--batch", 4, "--thresholds", "1,0.01"]
    assert run(*command, "--size", 3, "--out", out, "--report", page)[0] == 0
    kept = [len(circuit["kept"]) for circuit in data_of(page.read_text())["circuits"]]
    files = sorted(out.glob("*.json"))
    assert sorted(kept) == sorted(jc.Circuit.load(file).num_edges for file in files) and len(kept) == 2
    assert run("report", *files, "--out", page, "--no-model")[0] == 0
    data = data_of(page.read_text())
    assert [circuit["run"]["threshold"] for circuit in data["circuits"]] == [1, 0.01] and data["prompts"] == []
    code, _, error = run("report", *files, "--out", micro / "circuit.svg")
    assert code == 1 and "shows one circuit" in error


@pytest.mark.mission
def test_an_evaluation_and_tests_are_drawn_with_the_circuit_that_they_judge(run, micro):
    files = circuit, evaluated, tests = [micro / name for name in ("circuit.json", "evaluation.json", "tests.json")]
    command = ["discover", micro / "micro.npz", "--model", micro / "micro", "--threshold", 0.01, "--batch", 4]
    assert run(*command, "--size", 3, "--out", circuit)[0] == 0
    assert run("evaluate", circuit, "--no-controls", "--out", evaluated)[0] == 0
    assert run("test", circuit, "--random", 5, "--permutations", 9, "--out", tests)[0] == 0
    page = micro / "page.html"
    pages = []
    for given in (files, [tests, evaluated]):
        assert run("report", *given, "--out", page, "--no-model")[0] == 0
        pages.append(data_of(page.read_text()))
    assert pages[0]["judged"] == pages[1]["judged"] and pages[0]["circuits"] == pages[1]["circuits"]
    assert len(pages[0]["judged"]["tests"]) == 5 and pages[0]["judged"]["measures"][0]["name"] == "Faithfulness"
    (micro / "moved").mkdir()
    for file in (circuit, evaluated):
        file.rename(micro / "moved" / file.name)
    assert run("report", micro / "moved" / evaluated.name, "--out", page, "--no-model")[0] == 0
    for given, said in (
        ([tests], "is not there: give it as well"),
        ([micro / "moved" / circuit.name, tests], "a page"),
    ):
        code, _, error = run("report", *given, "--out", micro / "circuit.svg")
        assert code == 1 and said in error and error.count("\n") == 1


def test_pictures_and_texts(run, tmp_path):
    graph = jc.Graph.transformer(2, 2)
    mask = graph.mask_of(["input->m1", "m1->logits"])
    file = tmp_path / "circuit.json"
    jc.Circuit(graph, mask, mask.astype(float), {}).save(file)
    for ending, start in ((".svg", b"<?xml"), (".pdf", b"%PDF"), (".dot", b"digraph"), (".md", b"# Circuit")):
        assert run("report", file, "--out", tmp_path / f"out{ending}")[0] == 0
        assert (tmp_path / f"out{ending}").read_bytes().startswith(start)


def test_wrong_use_ends_with_one_line(run, tmp_path):
    graph = jc.Graph.transformer(2, 2)
    file, page = tmp_path / "circuit.json", tmp_path / "page.html"
    jc.Circuit(graph, graph.valid, np.zeros(graph.shape), {"task": "ioi"}).save(file)
    odd, odder = tmp_path / "odd.json", tmp_path / "odder.json"
    odd.write_text('{"format": "jaxcircuits-evaluation/1", "kind": "evaluation", "run": []}')
    odder.write_text('{"format": "jaxcircuits-evaluation/1", "kind": "evaluation", "run": {"config": 3}}')
    wrong = {
        "names no model": [file, "--out", page],
        "expected a file ending": [file, "--out", tmp_path / "page.txt"],
        "no circuit file": [tmp_path / "nothing.json", "--out", page],
        "expected one file": [file, file, "--out", page, "--keep", tmp_path / "kept.json"],
        "does not exist": [file, "--out", tmp_path / "nowhere" / "page.html"],
        "nothing to keep": [file, "--out", page, "--no-model", "--keep", tmp_path / "kept.json"],
        "--keep and --inspection: expected an --out": [file, "--out", tmp_path / "a.md", "--keep", tmp_path / "kept"],
        "got a.svg": [file, "--out", "a.svg", "--inspection", tmp_path / "kept"],
        "run: expected a json object": [odd, "--out", page],
        "and one as its config": [odder, "--out", page],
    }
    for said, arguments in wrong.items():
        code, _, error = run("report", *arguments)
        assert code == 1 and said in error.lower() and error.count("\n") == 1, error
    code, _, error = run("discover", "ioi", "--report", tmp_path / "page.pdf")
    assert code == 1 and "ending in .html" in error
    assert not page.exists()


def test_what_a_file_says_does_not_reach_the_terminal_as_orders(run, tmp_path):
    graph = jc.Graph.transformer(1, 2)
    said = {"task": "\x1b[2J\rerror: fake\n\x07", "model": "m\u202e", "metric": "\x9b31m", "method": "x"}
    jc.Circuit(graph, graph.valid, np.zeros(graph.shape), said).save(tmp_path / "c.json")
    code, printed, error = run("show", tmp_path / "c.json")
    assert code == 0 and error == ""
    assert printed.splitlines()[0] == "\\x1b[2J error: fake \\x07 on m\\u202e, x, \\x9b31m"
    for ending in ("md", "dot"):
        run("report", tmp_path / "c.json", "--no-model", "--out", tmp_path / f"c.{ending}")
        text = (tmp_path / f"c.{ending}").read_text()
        assert text.replace("\n", "").isprintable()
    assert "metric | \\\\x9b31m |" in (tmp_path / "c.md").read_text()


def test_a_record_with_parts_of_its_cost_is_shown(run, tmp_path):
    graph = jc.Graph.transformer(1, 2)
    cost = {"evaluations": 5, "evaluations_wasted": 1, "device_calls": 3, "seconds": 1.5, "threshold": "inf"}
    for record, said in ((cost, False), ({**cost, "seconds_compiling": "nan"}, True)):
        jc.Circuit(graph, graph.valid, np.zeros(graph.shape), record).save(tmp_path / "c.json")
        code, printed, error = run("show", tmp_path / "c.json")
        assert code == 0 and error == "" and printed.startswith("threshold inf\n")
        assert ("1.5 s (nan s compiling)" in printed) == said
