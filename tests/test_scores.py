"""The record of scores, and ensembles of them."""

import numpy as np
import pytest

import jaxcircuits as jc

GRAPH = jc.Graph.transformer(2, 2)


def scores(values=None, signed=True, method="made up", **options):
    values = np.arange(float(np.prod(GRAPH.shape))).reshape(GRAPH.shape) if values is None else values
    return jc.Scores(GRAPH, values, signed, method, {"metric": "kl"}, **options)


def test_entries_that_are_no_edge_are_zero_and_the_record_names_the_method():
    made = scores(np.ones(GRAPH.shape, np.float32))
    assert made.values.dtype == np.float64
    np.testing.assert_array_equal(made.values, GRAPH.valid)
    assert made.run == {"metric": "kl", "method": "made up", "signed": True}
    assert made.of("input->m0") == 1.0
    with pytest.raises(AttributeError):
        made.method = "other"


def test_a_circuit_file_of_scores_comes_back(tmp_path):
    made = scores()
    jc.Circuit.of(made, d_model=8, task="ioi").save(tmp_path / "scores.json")
    back = jc.Circuit.load(tmp_path / "scores.json")
    np.testing.assert_array_equal(back.scores, made.values)
    assert back.num_edges == GRAPH.num_edges and back.run["signed"] is True and back.run["task"] == "ioi"


def test_scores_at_positions():
    values = np.stack([np.full(GRAPH.shape, 1.0), np.full(GRAPH.shape, 2.0)])
    made = scores(values, positions=((0, 1), (1, 4)))
    assert made.run["positions"] == [[0, 1], [1, 4]]
    np.testing.assert_array_equal(made.at(1).scores, 2.0 * GRAPH.valid)
    assert made.at(1).run["positions"] == [[1, 4]]
    np.testing.assert_array_equal(made.total().scores, 3.0 * GRAPH.valid)
    with pytest.raises(ValueError, match=r"2 spans of positions: choose one, at\(i\)"):
        jc.Circuit.of(made)
    with pytest.raises(ValueError, match="one of 2 spans, got 2"):
        made.at(2)


def test_a_rank_ensemble_is_the_mean_place():
    first = np.zeros(GRAPH.shape)
    first[GRAPH.valid] = np.arange(GRAPH.num_edges)
    tied = np.where(GRAPH.valid, 5.0, 0.0)
    made = jc.ensemble([scores(first), scores(-first), scores(tied)])
    np.testing.assert_allclose(made.values[GRAPH.valid], 0.5)  # every place and its opposite; the tie in the middle
    np.testing.assert_allclose(
        jc.ensemble([scores(first)]).values[GRAPH.valid], np.arange(GRAPH.num_edges) / (GRAPH.num_edges - 1)
    )
    assert not made.signed and [part["method"] for part in made.run["parts"]] == ["made up"] * 3


def test_an_ensemble_ranks_only_edges_that_could_be_in():
    """An absent edge's 0 is not above what scores less; parts that lack other edges are no parts of one ensemble."""
    gone = GRAPH.names_of(GRAPH.valid)[:4]
    absent = GRAPH.mask_of(gone)
    first = np.where(GRAPH.valid & ~absent, -1.0 - np.arange(GRAPH.valid.size).reshape(GRAPH.shape), 0)
    part = jc.Scores(GRAPH, first, True, "made up", {"without": list(gone), "edges_within": GRAPH.num_edges - 4})
    made = jc.ensemble([part, part])
    chosen = jc.Circuit.select(made, edges=GRAPH.num_edges - 4)
    assert not (chosen.mask & absent).any() and (made.values[absent] == 0).all()
    np.testing.assert_allclose(np.sort(made.values[GRAPH.valid & ~absent]), np.linspace(0, 1, GRAPH.num_edges - 4))
    with pytest.raises(ValueError, match="ensemble: expected scores of the same edges"):
        jc.ensemble([part, scores(first)])


def test_a_norm_ensemble_is_the_mean_of_unit_vectors():
    random = np.random.default_rng(0)
    values = random.normal(size=(2, *GRAPH.shape)) * GRAPH.valid
    made = jc.ensemble([scores(values[0]), scores(1e3 * values[1])], scale="norm")
    units = [value / np.linalg.norm(value) for value in values]
    np.testing.assert_allclose(made.values, np.mean(units, axis=0), rtol=1e-12)
    assert made.signed
    for far in (1e200, 1e-200, 1e-320):
        parts = [scores(values[0] * far), scores(values[1])]
        np.testing.assert_allclose(jc.ensemble(parts, scale="norm").values, np.mean(units, axis=0), atol=1e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected shape"):
        scores(np.zeros((2, 2)))
    broken = np.zeros(GRAPH.shape)
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 that are NaN or infinite"):
        scores(broken)
    with pytest.raises(ValueError, match="at least one part"):
        jc.ensemble([])
    with pytest.raises(ValueError, match="of one graph"):
        other = jc.Graph.transformer(1, 2)
        jc.ensemble([scores(), jc.Scores(other, np.zeros(other.shape), True, "eap", {})])
    with pytest.raises(ValueError, match="'rank' or 'norm', got 'z'"):
        jc.ensemble([scores()], scale="z")
    with pytest.raises(ValueError, match="unsigned"):
        jc.ensemble([scores(), scores(signed=False)])
