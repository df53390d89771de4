import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.report import plot_pareto
from jaxcircuits.report.pareto import pareto_front


def circuit(edges, metric):
    graph = jc.Graph.transformer(2, 2)
    mask = np.zeros(graph.shape, bool)
    mask[tuple(graph.edges[:edges].T)] = True
    return jc.Circuit(graph, mask, np.zeros(graph.shape), {"metric": "kl", "metric_final": metric, "threshold": 0.1})


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_front_is_what_no_point_beats(points):
    beaten = {a for a in points if any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points)}
    assert set(pareto_front(points)) == set(points) - beaten


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot_is_a_picture(ending, tmp_path):
    path = tmp_path / f"pareto.{ending}"
    plot_pareto([circuit(3, 0.5), circuit(9, 0.1), circuit(5, 0.7)], path)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


def test_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="ending"):
        plot_pareto([circuit(1, 0.1)], tmp_path / "pareto.txt")
    with pytest.raises(ValueError, match="metric_final"):
        plot_pareto([], tmp_path / "pareto.png")
