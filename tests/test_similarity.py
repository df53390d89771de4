"""Similarity of circuits and rankings, by hand and against brute force."""

import numpy as np
import pytest
from conftest import random_mask

import jaxcircuits as jc

GRAPH = jc.Graph.transformer(2, 2)


def scored(seed, mask=None):
    scores = np.random.default_rng(seed).normal(size=GRAPH.shape) * GRAPH.valid
    return jc.Circuit(GRAPH, random_mask(GRAPH, seed) if mask is None else mask, scores, {"seed": seed})


def test_jaccard_by_hand():
    one = scored(0, GRAPH.mask_of(["input->m0", "m0->logits", "input->logits"]))
    other = scored(1, GRAPH.mask_of(["input->m1", "m1->logits", "input->logits"]))
    assert jc.jaccard(one, other) == 1 / 5
    assert jc.jaccard(one, other, level="node") == 2 / 4
    empty = scored(2, np.zeros(GRAPH.shape, bool))
    assert jc.jaccard(empty, empty) is None


@pytest.mark.parametrize("rank", ["signed", "absolute"])
def test_top_overlap_and_correlation_by_brute_force(rank):
    one, other = scored(0), scored(1)
    values = [circuit.scores[GRAPH.valid] for circuit in (one, other)]
    values = [np.abs(v) if rank == "absolute" else v for v in values]
    best = [set(np.argsort(-v)[:10]) for v in values]
    assert jc.top_overlap(one, other, 10, rank=rank) == len(best[0] & best[1]) / 10
    places = [np.argsort(np.argsort(v)) for v in values]  # no ties
    assert jc.rank_correlation(one, other, rank=rank) == pytest.approx(np.corrcoef(*places)[0, 1])


def test_a_circuit_is_like_itself():
    one = scored(0)
    record = jc.similarity(one, one)
    assert (record.jaccard_edges, record.jaccard_nodes, record.shared) == (1, 1, one.num_edges)
    assert record.rank_correlation == pytest.approx(1) and record.rank_correlation_absolute == pytest.approx(1)
    assert record.top_overlap == tuple((size, 1.0) for size in (10, 30))
    assert record.to_json()["run"]["first"] == {"seed": 0}


def test_constant_scores_have_no_correlation():
    flat = jc.Circuit(GRAPH, GRAPH.valid, np.zeros(GRAPH.shape), {})
    assert jc.rank_correlation(flat, scored(0)) is None


def test_what_is_refused():
    other = jc.Circuit(
        jc.Graph.transformer(1, 2), jc.Graph.transformer(1, 2).valid, np.zeros(jc.Graph.transformer(1, 2).shape), {}
    )
    for call in (jc.jaccard, jc.similarity, jc.rank_correlation):
        with pytest.raises(ValueError, match="one graph"):
            call(scored(0), other)
    with pytest.raises(ValueError, match="size: expected 1 to"):
        jc.top_overlap(scored(0), scored(1), 0)
    with pytest.raises(ValueError, match="rank: expected one of"):
        jc.rank_correlation(scored(0), scored(1), rank="best")
