"""Methods side by side: each number is that of the method alone, on the prompts that the others do not see."""

import json
import re
from xml.etree import ElementTree as xml

import numpy as np
import pytest
from conftest import chain_model
from test_judging import behaving
from test_page import HOSTILE, faithful

import jaxcircuits as jc
from jaxcircuits.evaluation.comparison import Compared
from jaxcircuits.report import render_comparison


@pytest.mark.mission
def test_every_row_is_what_the_method_gives_alone():
    model = chain_model()
    pairs = behaving(model)
    fit, judge = (jc.Objective(model, part, "logit_diff") for part in (pairs[:4], pairs[4:]))
    methods = {"eap": jc.eap, "mattr": lambda objective: jc.mattr(objective, optimiser="none", steps=3)}
    record = jc.compare_methods(fit, judge, {**methods, "flat": lambda objective: jc.eap(refused(objective))})
    for row in record.methods[:2]:
        result = methods[row.name](fit)
        scores = result if isinstance(result, jc.Scores) else result.as_scores()
        assert row.curve.cpr == jc.faithfulness_curve(judge, scores).cpr is not None
        assert row.necessity.area == jc.necessity_curve(judge, scores).area
        assert row.curve.run["prompts"] == 20 and row.run["prompts"] == 4
        assert row.seconds > 0 and row.peak_bytes > 2**20
    assert record.methods[2].curve is None and "least at the clean run" in record.methods[2].refused
    assert [row["name"] for row in json.loads(json.dumps(record.to_json()))["methods"]] == ["eap", "mattr", "flat"]
    with pytest.raises(ValueError, match="at least one method"):
        jc.compare_methods(fit, judge, {})


def refused(objective):
    return jc.Objective(objective.model, behaving(objective.model), "kl")


def comparison():
    """Two methods and one that refused, whose names and reasons are hostile; of the last that ran F is refused."""

    def judged(values):
        points = tuple(faithful(value, edges) for edges, value in enumerate(values))
        area = None if None in values else 0.5
        curve = jc.FaithfulnessCurve((0.01, 0.1, 1.0), (1, 2, 3), points, points, area, area, {}, 0.25)
        return curve, jc.NecessityCurve((0.01, 0.1, 1.0), (1, 2, 3), points, area, {})

    rows = [
        Compared("eap", None, *judged((-0.5, 0.5, 1.0)), 1.5, 2**30, {"method": "eap", "note": HOSTILE}),
        Compared("mask-ig", None, *judged((0.2, 0.5, 2.0)), 0.5, 2**31, {}),
        Compared("noise", None, *judged((None, None, None)), 0.5, 2**31, {}),
        Compared(HOSTILE[0], "".join(HOSTILE)),
    ]
    run = {"task": HOSTILE[1], "model": "m", "metric": "logit_diff", "reference": "zero", "prompts": 3}
    return jc.Comparison(tuple(rows), run, run)


def test_the_page_holds_every_method_as_text_alone():
    page = render_comparison(comparison())
    assert "<script" not in page and "http" not in re.sub('<meta http-equiv="Content-Security-Policy"', "", page)
    assert (
        not re.search(r'(src|href)="(?!#|data:,)', page)
        and "default-src 'none'" in page
        and "{{" not in page.replace("{{script}}", "")
    )
    tree = xml.fromstring(
        re.sub(r"<meta[^>]*>|<link[^>]*>|<!doctype html>|<style>.*?</style>", "", page, flags=re.DOTALL)
    )
    rows = [[cell for cell in row] for row in tree.find(".//tbody")]
    assert [row[0].text for row in rows] == ["eap", "mask-ig", "noise", HOSTILE[0]]
    assert ["".join(cell.itertext()) for cell in rows[0][1:]] == ["0.5", "0.5", "0.25", "0.5", "1", "1.5", "1024"]
    assert [cell.find("b") is not None for cell in rows[1]][6] and rows[0][6].find("b") is None  # fewer seconds
    assert rows[2][1].text == "–" and rows[3][1].text == "refused: " + "".join(HOSTILE)
    first, second = tree.findall(".//figure")
    for figure in (first, second):
        assert len(figure.findall(".//polyline")) == 2 and len(figure.findall(".//circle")) == 6
    heights = [float(circle.get("cy")) for circle in first.findall(".//circle")]
    assert heights[0] > heights[3] > heights[1] == heights[4] > heights[2] > heights[5]
    assert json.loads(tree.findall(".//pre")[2].text)["note"] == list(HOSTILE)
    nothing = render_comparison(
        jc.Comparison((Compared("eap", "no"),), {"prompts": 1}, {"metric": 1, "reference": 1, "prompts": 1})
    )
    assert nothing.count("Faithfulness is refused") == 2


@pytest.mark.mission
def test_the_command(run, tmp_path):
    file = tmp_path / "table.json"
    arguments = ["compare-methods", "ioi", "--size", "9", "--methods", "random,eap", "--option", "random:seed=3"]
    code, printed, error = run(
        *arguments, "--out", file, "--plot", tmp_path / "curves.svg", "--report", tmp_path / "page.html"
    )
    text = (tmp_path / "curves.svg").read_text()
    page = (tmp_path / "page.html").read_text()
    assert page.count("<polyline") == 4 and "ioi on" in page
    assert (
        (code, error) == (0, "")
        and text.count("<use ") >= 4 * 10
        and "scored on 6 prompts, judged on 3 others" in printed
    )
    record = json.loads(file.read_text())
    assert [row["run"]["seed"] for row in record["methods"][:1]] == [3] and record["run"]["config"]["size"] == 9
    line = next(line for line in printed.splitlines() if line.startswith("eap "))
    assert np.isclose(float(line.split()[1]), record["methods"][1]["curve"]["cpr"], atol=1e-3)
    for wrong, message in (
        (["--methods", "eap,eap"], "each method once"),
        (["--methods", "eap", "--option", "mattr:steps=3"], "METHOD:NAME=VALUE of one of eap"),
        (["--methods", "eap", "--size", "3", "--held-out", "3"], "expected 1 to 2 of 3 prompts, got 3"),
        (["--methods", "eap", "--plot", tmp_path / "curves.txt"], "expected a picture ending in .png, .svg or .pdf"),
    ):
        code, _, error = run("compare-methods", "ioi", *wrong)
        assert code == 1 and message in error
