"""The paper's tables: what they compute where the answer is known, that they go on, what they need."""

import csv
import importlib
import json

import jax
import numpy as np
import pytest
from conftest import gpt2_tokenizer

import jaxcircuits as jc
from jaxcircuits.discovery.methods import METHODS
from jaxcircuits.reproduce import TABLES, Settings, by_name
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
    next((folder / "circuits").glob("*acdc*")).unlink()
    assert TABLES["tracr"](Settings(folder, **FEW, on_step=again.append)).rows == table.rows and len(again) == 1
    with pytest.raises(ValueError, match="was made with .* take another --out"):
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
    for settings, threshold in ((second, 0.1), (first, 0.2)):
        with pytest.raises(ValueError, match="was made with .* take another --out"):
            settings.kept("search", lambda: found, threshold=threshold)


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
