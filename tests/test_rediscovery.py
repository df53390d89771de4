"""What is found without a circuit's edges: networks with two ways, whose answers are made by hand."""

import json

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.report.judged import judged


@pytest.fixture(scope="module")
def twice():
    """`or` of two units that are both the input: either way alone gives the whole answer."""
    network = jc.Gates.build([["x"], ["one", "two"], ["or"]], [[[1, 1]], [[1], [1]]], [[-0.5, -0.5], [-0.5]])
    ones = np.ones((3, 1), np.int32)
    return jc.Objective(network, jc.PromptPairs(clean=ones, corrupt=0 * ones), "l2", "zero")


FIRST, SECOND = ("x->one", "one->or"), ("x->two", "two->or")


@pytest.mark.quick(1)
@pytest.mark.parametrize("method", [lambda objective: jc.acdc(objective, 0.5), jc.exact], ids=["acdc", "exact"])
def test_the_other_way_is_found(twice, method):
    found = jc.Circuit.of(jc.acdc(twice, 0.5))
    ways = {*FIRST, *SECOND}
    assert set(found.edges) - {"or->logits"} in (set(FIRST), set(SECOND))
    first = jc.Circuit(
        twice.graph,
        found.mask & ~twice.graph.mask_of(["or->logits"]),
        found.scores,
        found.run | {"selection": {"edges": 3}},
    )
    record = jc.rediscover(twice, first, method)
    assert set(record.edges) - {"or->logits"} == ways - set(first.edges)
    assert set(record.shared_nodes) == {"x", "or"}


def test_faithfulness_of_both(twice):
    """Each alone has all of it, and so have both; without `or->logits`, which all need, nothing is left to find."""
    graph = twice.graph
    whole = lambda way: jc.Circuit(graph, graph.mask_of([*way, "or->logits"]), np.zeros(graph.shape), {})  # noqa: E731
    assert jc.faithfulness(twice, whole(FIRST)).value == 1
    record = jc.rediscover(twice, whole(FIRST), lambda objective: whole((*SECOND, *FIRST)))
    assert set(record.edges) == set(SECOND)  # what is gone stays gone
    assert (record.first.value, record.second.value, record.union.value) == (1, 0, 1)
    assert record.union.edges == 5


@pytest.mark.mission
def test_scores_are_selected_alike_and_evaluations_hold_it(tmp_path):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    circuit = jc.Circuit.select(jc.eap(objective), edges=20, rank="absolute", greedy=True)
    scores = jc.eap(jc.without(objective, circuit))
    wanted = jc.Circuit.select(scores, edges=20, rank="absolute", greedy=True, within=~circuit.mask)
    record = jc.rediscover(objective, circuit, jc.eap)
    assert record.edges == wanted.edges and not (wanted.mask & circuit.mask).any() and record.method == "eap"
    values = [jc.faithfulness(objective, mask).value for mask in (wanted.mask, wanted.mask | circuit.mask)]
    assert [record.second.value, record.union.value] == values
    evaluation = jc.evaluate(objective, circuit, random=0, rediscovered=jc.eap)
    assert evaluation.again.edges == wanted.edges
    written = json.loads(json.dumps(evaluation.to_json()))
    [measure] = [one for one in judged([written])["measures"] if one["name"] == "Found again"]
    assert [measure["value"], measure["beside"][0]["value"]] == values
    assert f"by eap without its edges: {wanted.num_edges} edges" in measure["note"]
    for wrong in (objective.graph.valid, np.zeros(objective.graph.shape, bool)):
        with pytest.raises(ValueError, match="rediscover: expected a circuit of some of the edges"):
            jc.rediscover(objective, jc.Circuit(objective.graph, wrong, wrong.astype(float), {}), jc.eap)
    with pytest.raises(ValueError, match="an objective without some edges"):
        jc.rediscover(objective, circuit, jc.information_flow_routes)


def test_selection_within_some_edges():
    graph = jc.Graph.transformer(2, 2)
    random = np.random.default_rng(0)
    values, within = random.normal(size=graph.shape) - 1, random.random(graph.shape) < 0.5
    scores = jc.Scores(graph, values, True, "given", {})
    count = int((within & graph.valid).sum())
    for greedy in (False, True):
        few = jc.Circuit.select(scores, edges=count, within=within, greedy=greedy)
        assert few.num_edges and not (few.mask & ~within).any()
    chosen = jc.Circuit.select(scores, edges=9, within=within).run["edges_with_dead_ends"]
    assert (
        chosen == 9
        and jc.Circuit.select(scores, edges=graph.num_edges, within=within).run["edges_with_dead_ends"] == count
    )
