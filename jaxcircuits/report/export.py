"""A circuit for other programs: Graphviz, networkx, Markdown."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..circuit import Circuit
from ..files import visible
from ..graph import Graph

if TYPE_CHECKING:
    import networkx

TOP = 20  # edges that a summary lists
RECORDED = ("task", "model", "method", "metric", "reference", "threshold", "prompts", "seed", "dtype", "device")


def kept_edges(circuit: Circuit) -> list[tuple[str, str, str, float]]:
    """(sender, reading node, "q", "k", "v" or "", score) of every edge, in edge order; one for each node that reads."""
    graph = circuit.graph
    return [
        (graph.senders[sender], node, graph.input_kind(receiver), float(circuit.scores[sender, receiver]))
        for sender, receiver in np.argwhere(circuit.mask)
        for node in graph.owners(receiver)
    ]


def to_dot(circuit: Circuit) -> str:
    """Graphviz DOT: nodes of a layer side by side, lines as thick as their scores, q, k and v as labels."""
    edges = kept_edges(circuit)
    most = max((abs(score) for *_, score in edges), default=0.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT;", '  node [shape=box, style=rounded, fontname="Helvetica"];']
    for group in _same_time(circuit.graph, set(circuit.nodes)):
        lines.append(f"  {{ rank=same; {' '.join(_quoted(name) + ';' for name in group)} }}")
    for sender, node, kind, score in edges:
        width = 0.5 + 4.5 * abs(score) / most
        color = "#c2541b" if score < 0 else "#1f5fbf"
        options = f'penwidth={width:.2f}, color="{color}", tooltip="{score:+.4g}"'
        label = f', label="{kind}", fontsize=9' if kind else ""
        lines.append(f"  {_quoted(sender)} -> {_quoted(node)} [{options}{label}];")
    return "\n".join([*lines, "}", ""])


def to_networkx(circuit: Circuit) -> "networkx.MultiDiGraph":
    """A multigraph whose edges are keyed by "q", "k", "v" or "", with their `score`; the record is its `run`."""
    import networkx

    network = networkx.MultiDiGraph(run=circuit.run)
    network.add_nodes_from(circuit.nodes)
    for sender, node, kind, score in kept_edges(circuit):
        network.add_edge(sender, node, key=kind, score=score)
    return network


def to_markdown(circuit: Circuit) -> str:
    """A summary: sizes, what determined the result, and the strongest edges."""
    run, graph = circuit.run, circuit.graph
    title = f"{run['task']} on {run['model']}" if {"task", "model"} <= run.keys() else "Circuit"
    lines = [
        f"# {_cell(title)}",
        "",
        f"{circuit.num_edges} of {graph.num_edges} edges, {len(circuit.nodes)} of {len(graph.nodes)} nodes.",
    ]
    if {"metric", "metric_full", "metric_final"} <= run.keys():
        full, final = float(run["metric_full"]), float(run["metric_final"])
        lines.append(f"{_cell(run['metric'])}: {full:.6g} whole model, {final:.6g} circuit; lower is better.")
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(run[name])} |" for name in RECORDED if name in run]
    kept = [(graph.senders[s], graph.receivers[r], float(circuit.scores[s, r])) for s, r in np.argwhere(circuit.mask)]
    best = sorted(kept, key=lambda edge: -abs(edge[-1]))[:TOP]
    lines += ["", f"The strongest {len(best)} edges:", "", "| sender | receiver | score |", "|---|---|---:|"]
    for sender, receiver, score in best:
        lines.append(f"| `{sender}` | `{receiver}` | {score:+.4g} |")
    return "\n".join([*lines, ""])


def _same_time(graph: Graph, kept: set[str]) -> list[list[str]]:
    """The kept senders that are written at one moment, then `logits`."""
    names = np.array(graph.senders)
    moments = (names[graph.written == now] for now in np.unique(graph.written))
    groups = [[str(name) for name in moment if name in kept] for moment in moments]
    return [group for group in [*groups, ["logits"]] if group]


def _quoted(name: str) -> str:
    return '"' + visible(name).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _cell(value: Any) -> str:
    """Text that stays in its place in Markdown."""
    text = visible(" ".join(str(value).split())).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|#" else character for character in text)
