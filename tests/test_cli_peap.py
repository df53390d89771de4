"""PEAP on the command line: scores at spans, what is printed of them, a circuit, and what takes neither."""

import json

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a micro model, a task file for it, and the file of scores as the library writes it."""
    folder = tmp_path_factory.mktemp("peap")
    jc.save(micro_model("gpt2"), folder / "micro")
    micro_pairs().save(folder / "micro.npz")
    model = jc.with_units(jc.load(folder / "micro").model, spans=[(0, 2), (2, 5)])
    scores = jc.peap(jc.Objective(model, micro_pairs(), "logit_diff"))
    scores.save(folder / "scores.json")
    scores.circuit(9).save(folder / "circuit.json")
    return folder, scores


def command(folder, *options):
    return "score", folder / "micro.npz", "--model", folder / "micro", "--method", "peap", *options


def test_scores_are_written_shown_and_pruned(run, made, tmp_path):
    folder, scores = made
    out, best = tmp_path / "scores.json", tmp_path / "best.json"
    code, printed, error = run(*command(folder, "--spans", "0:2,2:5", "--out", out))
    assert (code, error) == (0, "")
    found = jc.Peap.load(out)
    np.testing.assert_array_equal(found.within.values, scores.within.values)
    np.testing.assert_array_equal(found.crossing, scores.crossing)
    assert found.run["task"] == "micro.npz" and found.run["config"]["spans"] == "0:2,2:5"
    [name, first], *_ = scores.best(10)
    assert f"{name:<28} {first:+.6g}" in printed and "72 between 0:2, 2:5, rest" in printed
    code, shown, _ = run("show", out)
    assert code == 0 and shown.strip() == printed.replace(f"written to {out}", "").strip()
    code, printed, error = run("prune", out, "--edges", 25, "--rank", "absolute", "--out", best)
    assert (code, error) == (0, "")
    circuit, expected = jc.PeapCircuit.load(best), scores.circuit(25, rank="absolute")
    assert circuit.nodes == expected.nodes and list(circuit.crossing.items()) == list(expected.crossing.items())
    np.testing.assert_array_equal(circuit.within.mask, expected.within.mask)
    assert circuit.within.run["config_of_selection"]["edges"] == 25
    inside, between = circuit.within.num_edges, len(circuit.crossing)
    assert inside + between == 25 and between and f"{inside} edges within spans, {between} between" in printed
    assert printed.count(" nodes") == 1 and f"{len(circuit.nodes)} nodes (component, span)" in printed
    assert all(f"{name:<28} {score:+.3g}" in printed for name, score in circuit.crossing.items())
    code, shown, _ = run("show", best)
    assert code == 0 and shown.strip() == printed.replace(f"written to {best}", "").strip()


def test_the_best_edges_are_those_of_both_kinds(made):
    _, scores = made
    named = {scores.graph.edge_name(*edge): scores.within.values[tuple(edge)] for edge in scores.graph.edges}
    expected = sorted([*named.items(), *scores.between.items()], key=lambda edge: -edge[1])
    assert scores.best(10**6) == expected and scores.best(7) == expected[:7]
    assert len(scores.between) == 2 * 2 * 3 * 6


def test_methods_lists_it(run):
    code, printed, _ = run("methods")
    assert code == 0 and "peap  " in printed and "2502.04577" in printed


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "expected --spans, and no --positions"),
        (["--spans", "0:2", "--positions", "1"], "expected --spans, and no --positions"),
        (["--spans", "0:2", "--without", "a0.h1"], "expected --spans, and no --positions, --without"),
        (["--spans", "0:2", "--replicates", "3"], "and --replicates"),
        (["--spans", "0:2", "--steps", "3"], "peap: unknown hyperparameter 'steps'"),
        (["--spans", "0:2", "--within", "x.json"], "--within: peap scores every edge alone"),
        (["--spans", "0:2", "--checkpoint", "kept"], "--checkpoint: peap has nothing to keep"),
        (["--spans", "0:2", "--metric", "kl"], "least at the clean run"),
    ],
)
def test_what_it_does_not_take_is_refused(run, made, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*command(made[0], *options))
    assert code == 1 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("file", ["scores.json", "circuit.json"])
def test_commands_for_circuits_of_edges_say_that_they_cannot_take_it(run, made, file, tmp_path):
    folder, _ = made
    path = folder / file
    for arguments in (
        ("evaluate", path),
        ("test", path),
        ("backups", path),
        ("compare", path, path),
        ("report", path, "--out", tmp_path / "page.html"),
        ("discover", "ioi", "--within", path),
        ("score", "ioi", "--without", path),
    ):
        code, _, error = run(*arguments)
        assert code == 1 and f"{path}: expected a circuit or scores of a graph's edges, got PEAP's" in error, arguments
    for name in ("compare-methods", "vary"):
        option = "--methods" if name == "compare-methods" else "--method"
        code, _, error = run(name, "ioi", "--size", "2", option, "peap")
        assert code == 1 and "only `score --method peap --spans ...` takes it" in error


def test_prune_takes_a_number_of_edges_of_scores_alone(run, made):
    folder, _ = made
    for options in (["--threshold", "0.1"], ["--edges", "3", "--greedy"], ["--edges", "3", "--select", "ilp"], []):
        code, _, error = run("prune", folder / "scores.json", *options)
        assert code == 1 and "expected a file of scores, and --edges (--rank) alone" in error
    code, _, error = run("prune", folder / "circuit.json", "--edges", "3")
    assert code == 1 and "expected a file of scores" in error


def test_a_circuits_file_that_is_damaged_is_refused(made, tmp_path):
    value = json.loads((made[0] / "circuit.json").read_text())
    for change, said in (
        ({"format": "jaxcircuits-peap/1"}, "format 'jaxcircuits-peap-circuit/1'"),
        ({"crossing": {"a1.h1@0:2->a1.h1@0:2<k>": 1.0}}, "scores of edges between spans"),
        ({"crossing": {"a1.h1@0:2->a1.h0@rest<k>": 1.0}}, "scores of edges between spans"),
        ({"crossing": {"m0@0:2->m0@rest<k>": 1.0}}, "scores of edges between spans"),
        ({"crossing": {"a1.h1@0:2->a1.h1@rest<k>": "1"}}, "a number for each edge"),
        ({"crossing": ["a1.h1@0:2->a1.h1@rest<k>"]}, "scores of edges between spans"),
        ({"nodes": ["a9.h1@0:2"]}, "got 'a9.h1@0:2'"),
        ({"nodes": [3]}, "nodes: expected a list of names"),
        ({"within": {}}, "expected a circuit"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=f"bad.json: .*{said}"):
            jc.PeapCircuit.load(tmp_path / "bad.json")
