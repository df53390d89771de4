import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.report import render_page, write_page

GRAPH = jc.Graph(2, 2)
HOSTILE = ("<script>alert(1)</script>", "</script><b>", "<!--", "\"quotes'", "🙂 \u2028", "&lt;", "{{script}}")


def circuit(edges, **run):
    mask = GRAPH.mask_of(list(edges))
    return jc.Circuit(GRAPH, mask, np.where(mask, 0.123456789, 0.0), run)


ONE = circuit(("input->a0.h1<v>", "a0.h1->logits"), decisions=[["m1->logits", 0.0, 0.1, True]], threshold=0.1)


def inspection(of, tokens=HOSTILE):
    heads = tuple(name for name in of.nodes if ".h" in name)
    length = len(tokens)
    pattern = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    return jc.Inspection(
        metric="kl",
        tokens=(tokens,),
        answers=((tokens[0],),),
        wrong=((),),
        loss_full=np.array([0.0]),
        loss_circuit=np.array([0.5]),
        loss_empty=np.array([2.0]),
        edges=of.edges,
        effects=np.linspace(1, -1, of.num_edges)[:, None],
        heads=heads,
        patterns=(np.tile(pattern, (len(heads), 1, 1)),),
    )


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_records():
    data = data_of(render_page([ONE], inspections=[inspection(ONE)]))
    names = [
        f"{data['graph']['senders'][s]}->{data['graph']['receivers'][r]}"
        for s, r in zip(data["edges"]["sender"], data["edges"]["receiver"], strict=True)
    ]
    [entry] = data["circuits"]
    assert tuple(names[place] for place in entry["kept"]) == ONE.edges and data["ranking"] is None
    assert entry["scores"] == [0.123457] * 2 and entry["effects"] == [[1.0], [-1.0]]
    assert entry["run"]["decisions"] == ONE.run["decisions"]
    shades = np.frombuffer(base64.b64decode(data["patterns"]["a0.h1"][0]), np.uint8).reshape(len(HOSTILE), -1)
    np.testing.assert_allclose(shades / 255, inspection(ONE).patterns[0][0], atol=1 / 255)


def test_whatever_comes_from_data_is_no_markup():
    hostile = dataclasses.replace(ONE, run={**ONE.run, "task": HOSTILE[0], "model": HOSTILE[1]})
    page = render_page([hostile], inspections=[inspection(hostile)], evaluation={"note": HOSTILE[2]})
    harmless = render_page([ONE])
    for mark in ("<script", "</script", "<!--", "<b>"):
        assert page.count(mark) == harmless.count(mark), mark
    data = data_of(page)
    assert tuple(data["prompts"][0]["tokens"]) == HOSTILE and data["circuits"][0]["run"]["task"] == HOSTILE[0]
    assert "<title>&lt;script&gt;" in page


def test_the_page_loads_nothing_and_runs_its_own_script_only():
    page = render_page([ONE])
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!#|data:,)', page)
    assert "innerHTML" not in page and "http://www.w3.org/2000/svg" in page


def test_only_measured_edges_are_in_it():
    other = circuit(("input->logits",), decisions=[], threshold=1.0)
    data = data_of(render_page([other, ONE]))
    assert len(data["edges"]["sender"]) == 3 and data["ranking"] is None
    values = np.where(GRAPH.valid, 0.5, 0.0)
    scores = jc.Scores(GRAPH, values, True, "eap", {})
    data = data_of(render_page([scores]))
    assert len(data["edges"]["sender"]) == GRAPH.num_edges and data["ranking"] == "signed"
    best = jc.Circuit.select(scores, edges=20, rank="absolute")
    assert data_of(render_page([best]))["ranking"] == "absolute"
    assert data_of(render_page([circuit(("input->logits",))]))["ranking"] is None


def test_the_curve_of_an_evaluation_is_drawn():
    evaluation = {"curve": {"edges": [0, 5], "faithfulness": [0.0, 1.0]}}
    assert data_of(render_page([ONE], evaluation=evaluation))["curve"][1] == {"edges": 5, "faithfulness": 1.0}


def test_numbers_that_json_cannot_hold_are_named():
    record = circuit(("input->logits",), metric_final=float("inf"), noise=np.float32(0.5))
    [entry] = data_of(render_page([record]))["circuits"]
    assert entry["run"] == {"metric_final": "inf", "noise": 0.5}


def test_a_written_page_is_the_rendered_one(tmp_path):
    write_page(tmp_path / "page.html", [ONE], title="Mine & yours")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == render_page([ONE], title="Mine & yours") and "<title>Mine &amp; yours</title>" in page


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        render_page([])
    other = jc.Graph(3, 2)
    with pytest.raises(ValueError, match="all of one graph"):
        render_page([ONE, jc.Circuit(other, other.valid, np.zeros(other.shape), {})])
    with pytest.raises(ValueError, match="one for each of 1 circuits"):
        render_page([ONE], inspections=[inspection(ONE)] * 2)
    with pytest.raises(ValueError, match="inspect this circuit"):
        render_page([ONE], inspections=[inspection(circuit(("input->logits",)))])
    with pytest.raises(ValueError, match="same prompts"):
        render_page([ONE, ONE], inspections=[inspection(ONE), inspection(ONE, ("other",))])
