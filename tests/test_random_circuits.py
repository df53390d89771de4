"""Random circuits: exactly so many edges, all of them alive, from any graph."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.evaluation.random_circuits import random_walks

GRAPHS = [
    jc.Graph.transformer(2, 2),
    jc.Graph.transformer(2, 2, mlps=False),
    jc.Graph.transformer(3, 1, mlps=(False, True, False)),
    jc.Graph.transformer(2, 4, groups=2),
    jc.Graph.transformer(2, 1, embeddings=("tok", "pos")),
]


@given(st.sampled_from(GRAPHS), st.floats(0, 1), st.integers(0, 99))
def test_every_edge_is_alive_and_the_number_is_exact(graph, share, seed):
    edges = 1 + int(share * (graph.num_edges - 1))
    circuits = jc.random_circuits(graph, edges, 3, seed=seed)
    for circuit in circuits:
        assert circuit.sum() == edges
        np.testing.assert_array_equal(graph.drop_dead_ends(circuit), circuit)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_walks_go_from_an_embedding_to_logits(graph):
    for walk in itertools.islice(random_walks(graph, np.random.default_rng(0)), 300):
        assert graph.senders[walk[0][0]] in graph.embeddings
        assert graph.receivers[walk[-1][1]] == "logits"
        for (_, column), (row, _) in itertools.pairwise(walk):
            assert row in graph.readers(column)
        assert all(graph.valid[edge] for edge in walk)


def test_the_first_step_is_uniform():
    """Each of the receivers, from `input`: counts within 5 standard deviations."""
    graph = GRAPHS[0]
    walks = itertools.islice(random_walks(graph, np.random.default_rng(0)), 15000)
    counts = np.bincount([walk[0][1] for walk in walks], minlength=graph.shape[1])
    mean = 15000 / graph.shape[1]
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_uniform_edges_of_gpt2_small_are_mostly_dead():
    """500 leave about 11, which is why walks are the default."""
    graph = jc.Graph.transformer(12, 12)
    drawn = jc.random_circuits(graph, 500, 20, kind="uniform")
    assert (drawn.sum((1, 2)) == 500).all() and (drawn & ~graph.valid).sum() == 0
    alive = np.mean([graph.drop_dead_ends(circuit).sum() for circuit in drawn])
    assert 5 < alive < 25


def test_the_seed_decides():
    first, again, other = (jc.random_circuits(GRAPHS[0], 12, 4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()


def test_what_is_refused():
    with pytest.raises(ValueError, match="kind: expected one of walks, uniform"):
        jc.random_circuits(GRAPHS[0], 3, 1, kind="shuffled")
    for edges, count in ((0, 1), (GRAPHS[0].num_edges + 1, 1), (3, 0)):
        with pytest.raises(ValueError, match="edges and at least 1 circuit"):
            jc.random_circuits(GRAPHS[0], edges, count)
