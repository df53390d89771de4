import base64
import dataclasses
import functools
import hashlib
import json
import re

import numpy as np
import pytest
from conftest import micro_model

import jaxcircuits as jc
from jaxcircuits.evaluation import Outcome, Spread
from jaxcircuits.report import render_page, write_page

GRAPH = jc.Graph.transformer(2, 2)
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
    page = render_page([hostile], inspections=[inspection(hostile)], judgements=[evaluation(None, hostile)])
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


FORMS = {
    **{f"a.h<{port}>": port for port in "qkv"},
    **{"a.h": "head", "a": "attention", "m": "mlp", "m.n": "neurons", "b": "block", "logits": "logits"},
}
"""What reads, by its receiver's name without numbers."""


@pytest.mark.parametrize(
    ("units", "kinds"),
    [
        ("split", "q k v mlp logits"),
        ("ungrouped", "q k v mlp logits"),
        ("unsplit", "head mlp logits"),
        ("layers", "attention mlp logits"),
        ("blocks", "block logits"),
        ("neurons:4", "q k v neurons logits"),
        ("neurons:4@1", "q k v mlp neurons logits"),
        ("split 0:2,3:5", "q k v mlp logits"),
    ],
)
def test_it_says_what_reads_and_what_writes(units, kinds):
    """Of any units; heads stand in a row, also where they are fewer than the groups of neurons."""
    graph = jc.with_units(micro_model("gpt2"), *units.split()).graph
    data = data_of(render_page([jc.Circuit(graph, graph.valid, graph.valid.astype(float), {})]))["graph"]
    assert data["kinds"] == [FORMS[re.sub(r"\d", "", name)] for name in data["receivers"]]
    assert list(dict.fromkeys(data["kinds"]))[:-1] == kinds.split()[:-1] and data["kinds"][-1] == "logits"
    heads = [name for name, node in data["nodes"].items() if node["kind"] == "head"]
    assert not heads or [name for row in data["rows"] for name in row] == heads
    assert {name: node["span"] for name, node in data["nodes"].items()} == {
        name: name.partition("@")[2] for name in data["senders"]
    }


@pytest.mark.parametrize("embeddings", [("input",), ("tok", "pos")])
def test_it_says_which_nodes_are_one_of_several(embeddings):
    graph = jc.Graph.transformer(1, 2, embeddings=embeddings)
    nodes = data_of(render_page([jc.Circuit(graph, graph.valid, graph.valid.astype(float), {})]))["graph"]["nodes"]
    alone = {node["kind"]: node["isAlone"] for node in nodes.values()}
    assert alone == {"embedding": len(embeddings) == 1, "head": False, "mlp": True}


def spread(*values):
    return Spread.of(np.array(values, float))


def faithful(value, edges=2, **parts):
    """F of a circuit on three prompts; None is refused."""
    losses = spread(0, 1, 5), spread(0, 4, 8), spread(0, 0, 0)
    refused = None if value is not None else "that is noise <b>"
    ratios = None if value is None else spread(value, 1)
    return jc.Faithfulness(value, refused, ratios, *losses, edges, float(edges), **parts)


def evaluation(value=0.8, of=ONE):
    """An evaluation with every part: of a circuit, at three sizes, with both controls."""
    points = tuple(faithful(None if value is None else y, edges) for y, edges in ((0.0, 0), (0.5, 2), (1.0, 30)))
    areas = (None, None) if value is None else (0.7, 0.2)
    curve = jc.FaithfulnessCurve((0.1, 0.2, 1.0), (3, 6, GRAPH.num_edges), points, points, *areas, {}, 0.4)
    values = None if value is None else (spread(0, 0.2), spread(0.2, 0.4), spread(1))
    some = None if value is None else spread(0.1, 0.3)
    knock_outs = jc.evaluation.Completeness((), 0.3, "a0.h1", 2, {})
    return jc.Evaluation(
        faithfulness=faithful(value),
        curve=curve,
        completeness=knock_outs,
        random=jc.RandomControl(some, spread(3, 4), None if value is None else 0.05, 20, 2, "walks", 0),
        random_curve=jc.RandomCurve((0.1, 0.2, 1.0), (0, 2, 30), values, some, some, 10, "walks", 0),
        reset=jc.ResetControl("eap", faithful(0.4), faithful(value and 0.1), curve, 1),
        run={"circuit": of.run},
        necessity=jc.NecessityCurve(curve.shares, curve.chosen, points, areas[1], {}),
    )


def five_tests(of=ONE):
    """One outcome of each sort."""
    outcome = functools.partial(Outcome, null="it is so", level=0.05)
    return jc.HypothesisTests(
        (
            outcome("equivalence", rejecting_is="bad", statistic=None, p_value=None, rejected=None, reason="all ties"),
            outcome("independence", rejecting_is="bad", statistic=0.02, p_value=0.4, rejected=False),
            outcome(
                "minimality",
                rejecting_is="bad",
                statistic=3.0,
                p_value=1e-9,
                rejected=True,
                details={"superfluous": ["a0.h1->logits"]},
            ),
            outcome("sufficiency", rejecting_is="good", statistic=1.0, p_value=0.001, rejected=True),
            outcome("partial necessity", rejecting_is="good", statistic=0.3, p_value=1.0, rejected=False),
        ),
        2,
        100,
        {"circuit": of.run},
    )


def test_numbers_stand_beside_their_controls():
    judged = data_of(render_page([ONE], judgements=[evaluation()]))["judged"]
    measures = {measure["name"]: measure for measure in judged["measures"]}
    assert list(measures) == [
        "Faithfulness",
        "Prompt by prompt",
        "CPR",
        "CMD",
        "acc-AUC",
        "Without the best",
        "Incompleteness",
    ]
    own = measures["Faithfulness"]
    assert own["value"] == 0.8 and "2 edges on 3 prompts" in own["note"]
    beside = [(control["name"], control["value"]) for control in own["beside"]]
    assert beside == [
        ("20 random circuits of its size", pytest.approx(0.2)),
        ("eap on a reset network, there", 0.4),
        ("that circuit in the model", 0.1),
    ]
    assert own["beside"][0]["spread"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert own["beside"][0]["note"] == "5 % of them as faithful"
    assert [control["value"] for control in measures["CPR"]["beside"]] == pytest.approx([0.2, 0.7])
    assert measures["Incompleteness"]["note"].endswith("without a0.h1")
    assert [loss["name"] for loss in judged["losses"]][-1] == "20 random circuits, their means"
    assert judged["losses"][1]["quantiles"] == [0, 0.5, 1, 3, 5] and judged["tests"] == []
    kinds = {curve["kind"]: curve["points"] for curve in judged["curves"]}
    assert list(kinds) == ["signed", "absolute", "random", "reset"] and kinds["signed"][1] == {"x": 2, "y": 0.5}
    low, high = kinds["random"][0]["low"], kinds["random"][0]["high"]
    assert (low + high) / 2 == pytest.approx(0.1) and high - low == pytest.approx(2 * np.std([0, 0.2], ddof=1))


def test_refused_ratios_stay_refused_with_their_reason():
    judged = data_of(render_page([ONE], judgements=[evaluation(None).to_json()]))["judged"]
    for measure in judged["measures"][:4]:
        assert measure["value"] is None and "noise" in measure["refused"], measure["name"]
    control = judged["measures"][0]["beside"][0]
    assert control["value"] is None and "noise" in control["refused"] and judged["curves"] == []


def test_of_scores_only_the_curve_tells():
    whole = dataclasses.replace(
        evaluation(), faithfulness=faithful(1.0, GRAPH.num_edges), completeness=None, random=None
    )
    judged = data_of(render_page([ONE], judgements=[whole]))["judged"]
    assert [measure["name"] for measure in judged["measures"]] == ["CPR", "CMD", "acc-AUC", "Without the best"]
    assert [loss["name"] for loss in judged["losses"]] == ["whole model", "no edges"]
    bare = dataclasses.replace(evaluation(), curve=None, random=None, random_curve=None, reset=None)
    judged = data_of(render_page([ONE], judgements=[bare]))["judged"]
    assert judged["measures"][0]["beside"] == [] and judged["curves"] == []


def test_what_each_test_says():
    page = data_of(render_page([ONE], judgements=[five_tests(), evaluation()]))
    rows = [(row["name"], row["verdict"], row["speaks"]) for row in page["judged"]["tests"]]
    assert rows == [
        ("equivalence", "undecided", None),
        ("independence", "not rejected", "for"),
        ("minimality", "rejected", "against"),
        ("sufficiency", "rejected", "for"),
        ("partial necessity", "not rejected", "against"),
    ]
    first, third = page["judged"]["tests"][0], page["judged"]["tests"][2]
    assert first["reason"] == "all ties" and third["superfluous"] == ["a0.h1->logits"]
    assert [record["kind"] for record in page["records"]] == ["hypothesis tests", "evaluation"]


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
    other = jc.Graph.transformer(3, 2)
    with pytest.raises(ValueError, match="all of one graph"):
        render_page([ONE, jc.Circuit(other, other.valid, np.zeros(other.shape), {})])
    with pytest.raises(ValueError, match="one for each of 1 circuits"):
        render_page([ONE], inspections=[inspection(ONE)] * 2)
    with pytest.raises(ValueError, match="inspect this circuit"):
        render_page([ONE], inspections=[inspection(circuit(("input->logits",)))])
    with pytest.raises(ValueError, match="same prompts"):
        render_page([ONE, ONE], inspections=[inspection(ONE), inspection(ONE, ("other",))])
    with pytest.raises(ValueError, match="expected one circuit, which they judge, got 2"):
        render_page([ONE, ONE], judgements=[evaluation()])
    with pytest.raises(ValueError, match="got 'evaluation' of another"):
        render_page([circuit(("input->logits",))], judgements=[evaluation()])
    with pytest.raises(ValueError, match="got a record of kind 'faithfulness'"):
        render_page([ONE], judgements=[faithful(1.0, run={"circuit": ONE.run})])
    with pytest.raises(ValueError, match="of kind 'evaluation', got two"):
        render_page([ONE], judgements=[evaluation()] * 2)
    with pytest.raises(ValueError, match="'curve' is missing"):
        render_page([ONE], judgements=[{"kind": "evaluation"}])
