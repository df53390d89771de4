"""Methods side by side: each number is that of the method alone, on the prompts that the others do not see."""

import json

import numpy as np
import pytest
from conftest import chain_model
from test_judging import behaving

import jaxcircuits as jc


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


@pytest.mark.mission
def test_the_command(run, tmp_path):
    file = tmp_path / "table.json"
    arguments = ["compare-methods", "ioi", "--size", "9", "--methods", "random,eap", "--option", "random:seed=3"]
    code, printed, error = run(*arguments, "--out", file, "--plot", tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
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
