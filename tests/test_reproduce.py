"""The paper's tables: what they compute where the answer is known, that they go on, what they need."""

import csv
import importlib
import json

import jax
import numpy as np
import pytest
from conftest import gpt2_tokenizer, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.methods import METHODS
from jaxcircuits.reproduce import TABLES, Settings, by_name
from jaxcircuits.reproduce.searches import acdc_circuits, probed_circuits
from jaxcircuits.reproduce.settings import powers
from jaxcircuits.reproduce.table import Curve, Row

pytestmark = pytest.mark.filterwarnings("ignore:.*prompts do not differ")  # the original's permuted rows

FEW = {"thresholds": (0.001, 0.01), "strengths": (1.0,), "steps": 3}


def computed(table, system, method, quantity):
    [row] = [row for row in table.rows if (row.system, row.method, row.quantity) == (system, method, quantity)]
    return row.computed


@pytest.fixture(scope="module")
def tracr(tmp_path_factory):
    """The table of the compiled programs at two thresholds, where it was kept, and what was searched for."""
    folder, steps = tmp_path_factory.mktemp("tracr"), []
    return TABLES["tracr"](Settings(folder, **FEW, on_step=steps.append)), folder, steps


@pytest.mark.slow
@pytest.mark.parametrize("program", ["tracr-reverse", "tracr-proportion"])
def test_acdc_finds_the_compiled_programs(tracr, program):
    table, _, _ = tracr
    assert computed(table, f"{program}-zero", "ACDC", "edge area") == 1
    assert computed(table, f"{program}-zero", "ACDC", "node area") == 1
    known = {"tracr-reverse": 15, "tracr-proportion": 10}[program]
    assert computed(table, f"{program}-corrupted", "ACDC", f"edges kept of {known}") == 9
    assert computed(table, f"{program}-corrupted", "ACDC", "edge area") == pytest.approx(9 / known)
    assert 0 <= computed(table, f"{program}-zero", "SP", "edge area") <= 1


@pytest.mark.slow
def test_a_quantity_that_is_not_defined_is_no_number(tracr):
    rows = [row for row in tracr[0].rows if row.method == "HISP"]
    assert rows and all(row.computed is None and "no slope" in row.note for row in rows)


@pytest.mark.slow
def test_what_was_found_is_not_searched_again(tracr):
    table, folder, steps = tracr
    assert len(steps) == 4 * (2 + 1)
    again = []
    assert TABLES["tracr"](Settings(folder, **FEW, on_step=again.append)).rows == table.rows and again == []
    next((folder / "circuits").glob("*acdc*.json")).unlink()
    assert TABLES["tracr"](Settings(folder, **FEW, on_step=again.append)).rows == table.rows and len(again) == 1
    with pytest.raises(ValueError, match="seed was 0, now 1.* take another --out"):
        TABLES["tracr"](Settings(folder, **FEW, seed=1))


@pytest.mark.slow
def test_a_table_is_written_as_text_numbers_record_and_picture(tracr, tmp_path):
    table, _, _ = tracr
    paths = table.save(tmp_path)
    assert [path.name for path in paths] == ["tracr.md", "tracr.csv", "tracr.json", "tracr.png"]
    assert "| tracr-reverse-zero | ACDC | edge area | 1 | 1 |" in paths[0].read_text()
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert len(rows) == len(table.rows) and rows[0].keys() >= {"published", "computed"}
    record = json.loads(paths[2].read_text())
    assert record["format"] == "jaxcircuits-table/1" and record["run"]["settings"]["steps"] == 3
    assert paths[3].read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_methods_are_judged_where_they_are_defined(tmp_path, monkeypatch):
    """A method that refuses a loss is judged by the next one; methods that learn are in test_recovery.py."""
    module = importlib.import_module("jaxcircuits.reproduce.methods")
    monkeypatch.setattr(module, "LEARNT", {})
    monkeypatch.setattr(module, "METHODS", {name: METHODS[name] for name in ("exact", "eap", "clean-corrupted")})
    table = TABLES["methods"](Settings(tmp_path))
    for program in ("tracr-reverse", "tracr-proportion"):
        for reference in ("zero", "resample"):
            assert computed(table, f"{program}-{reference}", "acdc", "area, l2") == 1
            assert computed(table, f"{program}-{reference}", "exact", "area, l2") == 1
            assert 0.9 < computed(table, f"{program}-{reference}", "eap", "area, alignment") <= 1
        [refused] = [row for row in table.rows if (row.system, row.method) == (f"{program}-zero", "clean-corrupted")]
        assert refused.computed is None and "expected reference 'resample'" in refused.note
        assert computed(table, f"{program}-resample", "clean-corrupted", "area, l2") == 1
    with pytest.raises(ValueError, match="neither --model nor --task"):
        TABLES["methods"](Settings(tmp_path, task="ioi"))


@pytest.mark.slow
def test_the_headline_on_a_model_of_gpt2_smalls_shape(tmp_path):
    """Random weights, so the number of edges is no target; published and computed stand side by side."""
    config = jc.GPT2Config(n_positions=32, n_embd=24)
    jc.save(jc.GPT2.random(config, jax.random.key(0)), tmp_path / "gpt2-shaped", gpt2_tokenizer())
    model = str(tmp_path / "gpt2-shaped")
    table = TABLES["greater-than-68"](Settings(tmp_path / "out", model=model, size=2))
    edges, _, types = table.rows
    assert edges.published == 68 and types.published == 5 and types.computed is not None and types.computed <= 5
    assert edges.computed is not None and edges.computed >= 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "title"),
    [
        ("greater-than-68", None, "Greater-Than"),
        ("roc", "ioi", "ioi: area under the ROC"),
        ("induction-pareto", None, "Induction"),
    ],
)
def test_a_bundled_model_rehearses(name, task, title, tmp_path):
    settings = Settings(tmp_path, model="tiny-gpt2", task=task, size=3, thresholds=(0.1,), strengths=(1.0,), steps=3)
    table = TABLES[name](settings)
    assert table.title.startswith(title) and all(row.published is None for row in table.rows)
    assert any(row.computed is not None for row in table.rows) and len(table.save(tmp_path)) == 4


def test_what_was_found_on_another_model_is_not_taken(tmp_path):
    graph = jc.Graph.transformer(1, 1)
    found = jc.Circuit(graph, graph.valid, np.zeros(graph.shape), {})
    first, second = (Settings(tmp_path, model=f"{folder}/gpt2") for folder in ("one", "other"))
    assert first.kept("search", lambda: found, threshold=0.1).edges == found.edges
    assert first.kept("search", lambda: pytest.fail("searched again"), threshold=0.1).edges == found.edges
    for settings, threshold, said in ((second, 0.1, "model was "), (first, 0.2, "threshold was 0.1, now 0.2")):
        with pytest.raises(ValueError, match=f"is of another run: {said}.*; take another --out"):
            settings.kept("search", lambda: found, threshold=threshold)


@pytest.mark.mission
def test_a_search_on_other_weights_or_prompts_is_another(tmp_path):
    settings, pairs = Settings(tmp_path), micro_pairs()
    acdc_circuits(settings, "micro", jc.Objective(micro_model("gpt2"), pairs), [0.1])
    others = {
        "objective.model": jc.Objective(micro_model("gpt2", seed=1), pairs),
        "objective.data": jc.Objective(micro_model("gpt2"), micro_pairs(seed=1)),
        "objective.metric": jc.Objective(micro_model("gpt2"), pairs, "nll"),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"is of another run: .*{name} was "):
            acdc_circuits(settings, "micro", other, [0.1])


def test_what_was_kept_and_is_damaged_is_refused(tmp_path):
    """A bit changed here and there; without its checksum, as after a kill, the search is made again."""
    found = jc.Circuit.select(jc.random_scores(jc.Objective(micro_model("gpt2"), micro_pairs())), edges=12)
    settings, path = Settings(tmp_path), tmp_path / "circuits" / "search.json"
    circuit = settings.kept("search", lambda: found)
    whole = path.read_bytes()
    for index in range(0, len(whole), 7):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(ValueError, match="search.json is damaged"):
            settings.kept("search", lambda: pytest.fail("searched again"))
    path.write_bytes(whole)
    path.with_name("search.sha256").unlink()
    steps, searched = [], []
    again = Settings(tmp_path, on_step=steps.append).kept("search", lambda: searched.append(1) or found)
    assert again.edges == circuit.edges and steps == ["search"] and searched == [1]
    assert settings.kept("search", lambda: pytest.fail("searched again")).edges == circuit.edges


@pytest.mark.mission
def test_a_search_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """What an earlier run kept of a search is taken, and goes when its circuit is written."""
    objective, settings = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff"), Settings(tmp_path, steps=3)
    whole = jc.acdc(objective, 0.05, checkpoint=settings.part("micro-acdc-0.05"))
    probed = jc.subnetwork_probing(objective, 1.0, steps=3, seed=0, checkpoint=settings.part("micro-sp-1"))
    never = pytest.fail
    monkeypatch.setattr("jaxcircuits.LiveEvaluator.__init__", lambda *_: never("searched again"))
    monkeypatch.setattr("jaxcircuits.discovery.learning._advance", lambda *_: never("learnt again"))
    monkeypatch.setattr("jaxcircuits.reproduce.searches.STRENGTHS", (1.0,))
    [circuit] = acdc_circuits(settings, "micro", objective, [0.05])
    assert (circuit.mask == whole.mask).all() and circuit.run["metric_final"] == whole.metric_final
    [circuit] = probed_circuits(settings, "micro", objective)
    np.testing.assert_array_equal(circuit.scores, probed.scores)
    assert {path.suffix for path in (tmp_path / "circuits").iterdir()} == {".json", ".sha256"}


def test_numbers_that_print_alike_are_searched_apart(tmp_path):
    objective, settings = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff"), Settings(tmp_path)
    acdc_circuits(settings, "micro", objective, [0.1, 0.1000000001])
    names = sorted(path.name for path in (tmp_path / "circuits").glob("*.json"))
    assert names == ["micro-acdc-0.1.json", "micro-acdc-0.1000000001.json"]


def test_numbers_that_no_search_takes_are_refused_before_any(run, tmp_path):
    for options, said in (
        (["--thresholds", "0.1,nan"], "thresholds: expected a finite number"),
        (["--strengths", "inf"], "strengths: expected a finite number"),
        (["--strengths=-1"], "strengths: expected a finite number from 0"),
        (["--steps", 0], "steps: expected a whole number, at least 1"),
        (["--size", 0], "size: expected a whole number, at least 1"),
        (["--seed=-1"], "seed: expected a whole number, at least 0"),
    ):
        code, printed, error = run("reproduce", "tracr", "--out", tmp_path / "out", *options)
        assert code == 1 and said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_printed_table_has_its_notes_below_it_each_once(run, tmp_path, monkeypatch):
    def compute(settings):
        rows = [Row("a-system-with-a-long-name", "ACDC", "edge area", 0.5, None, "not defined here") for _ in range(2)]
        curve = Curve("s", "ACDC", ((0.0, 0.0), (1.0, 1.0)))
        return settings.table("tracr", rows, [curve], title="Areas", source="a paper", axes=("false", "true"))

    monkeypatch.setitem(TABLES, "tracr", compute)
    code, printed, _ = run("reproduce", "tracr", "--out", tmp_path / "out")
    assert code == 0 and printed.count("see 1") == 2 and printed.count("1: not defined here") == 1
    assert "a-system-with-a-long-name" in printed and "published: a paper" in printed
    assert (tmp_path / "out" / "tracr.md").read_text().count("not defined here") == 2


def test_thresholds_are_even_powers_of_ten():
    assert powers(-2, 0, 3) == (0.01, 0.1, 1.0)


def test_what_a_table_needs_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="unknown table 'tracer': expected one of tracr, greater-than-68"):
        by_name("tracer")
    with pytest.raises(ValueError, match="needs a task: --task with one of ioi, greater_than, docstring"):
        TABLES["roc"](Settings(tmp_path))
    with pytest.raises(ValueError, match="expected neither --model nor --task"):
        TABLES["tracr"](Settings(tmp_path, model="tiny-gpt2"))
    with pytest.raises(ValueError, match="needs the weights of nowhere/gpt2.*--model tiny-gpt2"):
        TABLES["greater-than-68"](Settings(tmp_path, model="nowhere/gpt2"))
    for name in ("greater-than-68", "induction-pareto"):
        with pytest.raises(ValueError, match="its own task"):
            TABLES[name](Settings(tmp_path, model="tiny-gpt2", task="ioi"))
