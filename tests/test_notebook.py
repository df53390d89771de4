import numpy as np
import pytest

import jaxcircuits as jc

GRAPH = jc.Graph.transformer(2, 2)


def hostile_circuit():
    mask = GRAPH.mask_of(["input->a0.h1<k>", "a0.h1->m0", "m0->logits"])
    scores = np.where(mask, -1.5, 0.0)
    scores[GRAPH.edge_index("m0->logits")] = 2.5
    return jc.Circuit(GRAPH, mask, scores, {"task": "<script>alert(1)</script>", "metric_final": 0.123456789})


def test_records_show_themselves_with_everything_escaped():
    shown = hostile_circuit()._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "3 of 46 edges" in shown and "0.123457" in shown
    assert shown.index("m0-&gt;logits") < shown.index("a0.h1-&gt;m0")  # the strongest first
    assert "+2.5" in shown and "46" in GRAPH._repr_html_()


def test_scores_at_spans_show_their_sum():
    values = np.stack([np.where(GRAPH.valid, 1.0, 0), np.where(GRAPH.valid, 0.25, 0)])
    scores = jc.Scores(GRAPH, values, True, "eap", {}, ((0, 2), (2, 4)))
    assert "+1.25" in scores._repr_html_() and "2 spans" in scores._repr_html_()
    with pytest.raises(ValueError, match="spans"):
        scores.to_pandas()


def test_a_frame_has_every_edge_in_edge_order():
    pytest.importorskip("pandas")
    circuit = hostile_circuit()
    frame = circuit.to_pandas()
    assert list(frame.edge) == list(GRAPH.names_of(GRAPH.valid))
    assert tuple(frame[frame.kept].edge) == circuit.edges
    row = frame.set_index("edge").loc["input->a0.h1<k>"]
    assert (row.sender, row.receiver, row.kind, row.score) == ("input", "a0.h1", "k", -1.5)
