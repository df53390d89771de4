"""A circuit as a matplotlib figure, for papers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..circuit import Circuit
from ..graph import Graph
from .export import kept_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE = "#1f5fbf", "#c2541b"
STYLES = {"q": (0, (5, 2)), "k": (0, (1, 1.5)), "v": "solid", "": "solid"}
PORTS = {"q": -0.2, "k": 0.0, "v": 0.2, "": 0.0}


def plot(circuit: Circuit) -> "Figure":
    """Draws a circuit by layer (upwards) and head or unit; lines are as thick as their scores.

    Blue lines score above 0, orange ones below. Edges into queries are dashed, into keys dotted.
    `plot(circuit).savefig("circuit.pdf")` writes it.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    graph = circuit.graph
    places = _places(graph)
    size = (1.2 + 0.62 * (_widest(graph) + 1), 1.6 + 0.8 * graph.num_layers)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    edges = kept_edges(circuit)
    most = max((abs(score) for *_, score in edges), default=0.0) or 1.0
    for sender, node, kind, score in sorted(edges, key=lambda edge: abs(edge[-1])):
        _draw_edge(axes, places[sender], places[node], kind, score, most)
    for name in circuit.nodes:
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "#3c4454", "linewidth": 0.8}
        axes.text(*places[name], name, ha="center", va="center", size=6.5, bbox=box, zorder=4)
    across, up = zip(*places.values(), strict=True)
    axes.set_xlim(min(across) - 0.8, max(across) + 0.8)
    axes.set_ylim(min(up) - 0.5, max(up) + 0.4)
    axes.set_yticks(range(graph.num_layers), [f"layer {layer}" for layer in range(graph.num_layers)], size=7)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    seen = {kind for _, _, kind, _ in edges if kind}
    kinds = [kind for kind in dict.fromkeys([*STYLES, *sorted(seen)]) if kind in seen]
    lines = [Line2D([], [], color="#3c4454", linestyle=STYLES.get(kind, "solid")) for kind in kinds]
    if kinds:
        axes.legend(lines, [f"into {kind}" for kind in kinds], loc="lower right", fontsize=6.5, frameon=False)
    return figure


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each node stands: heads or units in a row, the MLP to their right and half a row higher."""
    widest = _widest(graph)
    middle = (widest - 1) / 2
    places = {"logits": (middle, graph.num_layers + 0.1)}
    for number, name in enumerate(graph.embeddings):
        places[name] = (middle + 1.5 * (number - (len(graph.embeddings) - 1) / 2), -0.9)
    for layer, row in enumerate(graph.rows):
        start = middle - (len(row) - 1) / 2
        places |= {name: (start + number, float(layer)) for number, name in enumerate(row)}
        places |= {name: (float(widest + number), layer + 0.45) for number, name in enumerate(graph.beside[layer])}
    return places


def _widest(graph: Graph) -> int:
    """Nodes in the longest row."""
    return max(map(len, graph.rows))


def _draw_edge(
    axes: Any, sender: tuple[float, float], receiver: tuple[float, float], kind: str, score: float, most: float
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    strength = float(np.sqrt(abs(score) / most)) if score else 0.3
    (x1, y1), (x2, y2) = sender, receiver
    x2 += PORTS.get(kind, 0.0)
    reach = max(0.3, 0.45 * (y2 - y1))
    is_column = abs(x1 - x2) < 0.5 and y2 - y1 > 1.2  # a straight line would cross the nodes between
    bow = 0.6 if is_column else 0.0
    corners = [(x1, y1), (x1 + bow, y1 + reach), (x2 + bow, y2 - reach), (x2, y2)]
    path = Path(corners, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(
        PathPatch(
            path,
            facecolor="none",
            edgecolor=NEGATIVE if score < 0 else POSITIVE,
            linewidth=0.4 + 2.6 * strength,
            linestyle=STYLES.get(kind, "solid"),
            alpha=0.25 + 0.7 * strength,
        )
    )
