"""How records show themselves in notebooks: small HTML tables, and pandas frames of edges."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .graph import Graph
from .types import EdgeBools, EdgeScores

if TYPE_CHECKING:
    import pandas

TOP = 10  # edges that a record shows
RECORDED = ("task", "model", "method", "metric", "reference", "threshold", "metric_final", "prompts")


def graph_html(graph: Graph) -> str:
    """Its sizes."""
    rows = [
        *graph.sizes.items(),
        ("senders, receivers", f"{len(graph.senders)}, {len(graph.receivers)}"),
        ("edges", f"{graph.num_edges:,}"),
    ]
    return _table("Graph", rows)


def edges_html(title: str, graph: Graph, kept: EdgeBools, scores: EdgeScores, run: dict[str, Any]) -> str:
    """What determined a record, and its strongest edges with their scores."""
    recorded = [(name, run[name]) for name in RECORDED if name in run]
    edges = np.argwhere(kept)
    best = edges[np.argsort(-np.abs(scores[kept]), kind="stable")[:TOP]]
    strongest = [(graph.edge_name(s, r), f"{scores[s, r]:+.4g}") for s, r in best]
    return _table(title, recorded) + _table(f"strongest {len(best)} of {len(edges):,} edges", strongest)


def edges_frame(graph: Graph, kept: EdgeBools, scores: EdgeScores) -> "pandas.DataFrame":
    """One row an edge of the graph, in edge order: edge, sender, receiver, kind ("q", "k", "v" or ""), score, kept.

    Raises ImportError without pandas (`pip install 'jaxcircuits[notebook]'`).
    """
    import pandas

    senders, receivers = graph.edges.T
    columns = {
        "edge": [graph.edge_name(s, r) for s, r in graph.edges],
        "sender": [graph.senders[s] for s in senders],
        "receiver": [" ".join(graph.owners(r)) for r in receivers],
        "kind": [graph.input_kind(r) for r in receivers],
        "score": scores[senders, receivers],
        "kept": kept[senders, receivers],
    }
    return pandas.DataFrame(columns)


def _table(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(str(name))}</th>'
        f'<td style="text-align:left">{escape(f"{value:.6g}" if isinstance(value, float) else str(value))}</td></tr>'
        for name, value in rows
    )
    return f'<table><caption style="text-align:left"><b>{escape(title)}</b></caption>{cells}</table>'
