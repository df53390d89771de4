"""ROC: areas by hand and by brute force, and both conventions of what is counted."""

import itertools

import numpy as np
import pytest
from conftest import random_mask
from hypothesis import given
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.evaluation.roc import members

GRAPH = jc.Graph.transformer(2, 2)
SMALL = jc.Graph.transformer(12, 12)
TRUTH = GRAPH.mask_of(["input->a0.h0<v>", "a0.h0->a1.h1<q>", "a1.h1->m1", "m1->logits"])


def circuit(mask):
    return jc.Circuit(GRAPH, mask, np.zeros(GRAPH.shape), {"threshold": 0.1})


@pytest.mark.parametrize(
    "points, pessimistic, optimistic",
    [
        ([], 0.0, 1.0),
        ([(0.0, 1.0)], 1.0, 1.0),
        ([(0.5, 0.5)], 0.25, 0.75),
        ([(0.25, 0.5), (0.5, 0.75)], 0.25 * 0.5 + 0.5 * 0.75, 0.25 * 0.5 + 0.25 * 0.75 + 0.5),
        ([(0.25, 0.5), (0.5, 0.25)], 0.75 * 0.5, 0.25 * 0.5 + 0.75),  # the second is beaten in both
        ([(0.25, 0.5), (0.5, 0.5)], 0.75 * 0.5, 0.25 * 0.5 + 0.25 * 0.5 + 0.5),  # not beaten strictly
        ([(0.5, 0.25), (0.5, 0.75)], 0.5 * 0.75, 0.5 * 0.25 + 0.5),  # one above the other
    ],
)
def test_areas_by_hand(points, pessimistic, optimistic):
    areas = jc.roc_areas(np.array(points, np.float64).reshape(-1, 2))
    assert areas["pessimistic"] == pytest.approx(pessimistic)
    assert areas["optimistic"] == pytest.approx(optimistic)
    assert areas["trapezoid"] == pytest.approx((pessimistic + optimistic) / 2)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_areas_by_brute_force(points):
    """The formula as it is stated, on sorted lists; and the trapezoid by numpy."""
    points = [(x / 6, y / 6) for x, y in points]
    everything = [*points, (0.0, 0.0), (1.0, 1.0)]
    kept = sorted(p for p in everything if not any(q[0] < p[0] and q[1] > p[1] for q in everything))
    stated = sum((1 - after[0]) * (after[1] - before[1]) for before, after in itertools.pairwise(kept))
    areas = jc.roc_areas(np.array(points, np.float64).reshape(-1, 2))
    assert areas["pessimistic"] == pytest.approx(stated)
    assert areas["trapezoid"] == pytest.approx(np.trapezoid([y for _, y in kept], [x for x, _ in kept]))
    assert areas["pessimistic"] <= areas["trapezoid"] <= areas["optimistic"]


def test_points_count_edges_and_nodes():
    found = GRAPH.mask_of(["input->a0.h0<v>", "a0.h0->a1.h1<q>", "input->m0", "m0->logits"])
    edges = jc.roc([circuit(found)], TRUTH)
    assert edges.points == ((2 / (GRAPH.num_edges - 4), 2 / 4),)
    assert (edges.positives, edges.universe, edges.edges) == (4, GRAPH.num_edges, (4,))
    nodes = jc.roc([circuit(found)], TRUTH, level="node")
    # true: input a0.h0 a1.h1 m1 logits; found: input a0.h0 a1.h1 m0 logits; of 8 nodes
    assert nodes.points == ((1 / 3, 4 / 5),) and (nodes.positives, nodes.universe) == (5, 8)


def test_the_papers_counts_of_gpt2_small():
    """32,923 edges and 1,022 nodes: with 3LH internal edges, and seven nodes a head."""
    assert members(SMALL, SMALL.valid, level="edge", convention="original").size == 32923
    assert members(SMALL, SMALL.valid, level="node", convention="original").size == 1022
    assert members(SMALL, SMALL.valid, level="edge").size == 32491
    assert members(SMALL, SMALL.valid, level="node").size == 158


def test_internal_edges_need_both_ends():
    mask = GRAPH.mask_of(["input->a0.h0<v>", "input->a0.h0<q>", "input->a0.h1<k>", "a0.h0->m1", "m1->logits"])
    edges = members(GRAPH, mask, level="edge", convention="original")
    assert edges.sum() == mask.sum() + 2  # v and q of a0.h0; a0.h1 sends nothing
    nodes = members(GRAPH, mask, level="node", convention="original")
    assert nodes.sum() == 3 + 2 + 1 + 3  # fed inputs, outputs of a0.h0's q and v, its result, input, m1, logits


@pytest.mark.parametrize("convention", ["library", "original"])
@pytest.mark.parametrize("level", ["edge", "node"])
def test_the_truth_itself_has_area_1(level, convention):
    result = jc.roc([circuit(TRUTH)], TRUTH, level=level, convention=convention)
    assert result.points == ((0.0, 1.0),) and result.pessimistic == 1
    chance = jc.roc([circuit(~TRUTH & GRAPH.valid)], TRUTH, level=level, convention=convention)
    assert chance.pessimistic < 0.5


def test_scores_are_swept_by_size():
    """Scores that put the truth first reach (0, 1); sizes and dead ends as `Circuit.select`."""
    scores = jc.Scores(GRAPH, TRUTH + 0.5 * random_mask(GRAPH, 0), True, "given", {"seed": 7})
    result = jc.roc_of_scores(scores, TRUTH, sizes=[4, GRAPH.num_edges])
    assert result.points == ((0.0, 1.0), (1.0, 1.0)) and result.pessimistic == 1
    assert result.run["scores"]["seed"] == 7
    assert jc.roc_of_scores(scores, TRUTH).optimistic == 1
    reversed_scores = jc.Scores(GRAPH, -scores.values, True, "given", {})
    assert jc.roc_of_scores(reversed_scores, TRUTH).pessimistic < 0.1
    assert jc.roc_of_scores(reversed_scores, TRUTH, rank="absolute", sizes=[4]).pessimistic == 1


def test_what_is_refused():
    one = circuit(TRUTH)
    with pytest.raises(ValueError, match="at least one circuit"):
        jc.roc([], TRUTH)
    with pytest.raises(ValueError, match="truth: expected shape"):
        jc.roc([one], SMALL.valid)
    with pytest.raises(ValueError, match="expected some of the"):
        jc.roc([one], np.zeros(GRAPH.shape, bool))
    with pytest.raises(ValueError, match="level: expected one of edge, node"):
        jc.roc([one], TRUTH, level="head")
    with pytest.raises(ValueError, match="convention: expected one of library, original"):
        jc.roc([one], TRUTH, convention="paper")
