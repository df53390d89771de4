"""Circuits against a known one: ROC points and their area.

One point a circuit: (false positive rate, true positive rate) of the known circuit's edges, or nodes. Points that
another beats strictly in both are dropped, (0, 0) and (1, 1) are added, and the rest is sorted. Between two points the
curve is a step that rises at the right end (`pessimistic`, the ACDC paper's, 2304.14997), at the left end
(`optimistic`), or a line (`trapezoid`, the mean of the two):

    pessimistic = sum_i (1 - x_{i+1}) (y_{i+1} - y_i)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from ..arguments import checked
from ..circuit import Circuit
from ..graph import Graph
from ..masks import edges_of
from ..scores import Scores
from ..types import EdgeBools, MaskLike
from .records import Record

LEVELS = ("edge", "node")
CONVENTIONS = ("library", "original")
NUM_SIZES = 64  # circuits that `roc_of_scores` takes by default

Rates = Float[np.ndarray, "point 2"]


@dataclasses.dataclass(frozen=True)
class ROC(Record):
    """Points (false positive rate, true positive rate), one a circuit, and the areas under them.

    - `level`, `convention`: what is counted, see `roc`. `positives` of `universe` edges or nodes are in the truth.
    - `edges`: the size of each circuit, in the order of the points.
    """

    kind: ClassVar[str] = "roc"
    level: str
    convention: str
    points: tuple[tuple[float, float], ...]
    edges: tuple[int, ...]
    positives: int
    universe: int
    pessimistic: float
    trapezoid: float
    optimistic: float
    run: dict[str, Any] = dataclasses.field(default_factory=dict)


@checked
def roc(circuits: Sequence[Circuit], truth: MaskLike, *, level: str = "edge", convention: str = "library") -> ROC:
    """The ROC of a sweep's circuits against the known circuit `truth`, or its mask, bool [sender, receiver].

    - `level`: "edge" or "node".
    - `convention`: "library" counts the graph's edges, or its nodes. "original" counts as the ACDC paper does: an
      internal edge besides from each q, k or v input to its head, present if an edge into that input and one out of
      the head are; as nodes the inputs and outputs of q, k and v and the result of every head, each MLP once, the
      embedding and the logits: 1,022 for GPT-2 small.

    Raises ValueError for no circuits, circuits of several graphs, unknown names, and a truth without edges or with all.
    """
    if not circuits or any(circuit.graph != circuits[0].graph for circuit in circuits):
        raise ValueError("roc: expected at least one circuit, all of one graph")
    graph = circuits[0].graph
    real = members(graph, edges_of(truth, graph, "truth"), level=level, convention=convention)
    if real.all() or not real.any():
        raise ValueError(f"truth: expected some of the {real.size} {level}s, got {real.sum()}")
    found = np.array([members(graph, circuit.mask, level=level, convention=convention) for circuit in circuits])
    points = np.stack([found[:, ~real].mean(1), found[:, real].mean(1)], 1)
    areas = roc_areas(points)
    return ROC(
        level=level,
        convention=convention,
        points=tuple((float(x), float(y)) for x, y in points),
        edges=tuple(circuit.num_edges for circuit in circuits),
        positives=int(real.sum()),
        universe=real.size,
        **areas,
        run={"circuits": [circuit.run for circuit in circuits]},
    )


@checked
def roc_of_scores(
    scores: Scores | Circuit,
    truth: MaskLike,
    *,
    sizes: Sequence[int] | None = None,
    rank: str = "signed",
    level: str = "edge",
    convention: str = "library",
) -> ROC:
    """`roc` of the circuits of the best edges, dead ends dropped.

    - `sizes`: numbers of edges; None: 64 from 1 to all, in even steps of their logarithm.

    Raises ValueError as `roc` and `Circuit.select` do.
    """
    most = scores.graph.num_edges
    even = np.geomspace(1, most, NUM_SIZES).round().astype(int) if sizes is None else sizes
    circuits = [Circuit.select(scores, edges=int(size), rank=rank) for size in sorted(set(even))]
    result = roc(circuits, truth, level=level, convention=convention)
    return dataclasses.replace(result, run={"scores": scores.run, "rank": rank})


def roc_areas(points: Rates) -> dict[str, float]:
    """`pessimistic`, `trapezoid` and `optimistic` areas under points (false, true positive rate)."""
    ends = np.array([[0.0, 0.0], [1.0, 1.0]])
    points = np.unique(np.concatenate([points, ends]), axis=0)  # sorted by both
    x, y = points[:, 0], points[:, 1]
    left = np.searchsorted(x, x)  # how many points have a smaller x
    best = np.concatenate([[-1.0], np.maximum.accumulate(y)])[left]  # the largest y among these
    x, y = x[best <= y], y[best <= y]
    rises = np.diff(y)
    low, high = float(np.sum((1 - x[1:]) * rises)), float(np.sum((1 - x[:-1]) * rises))
    return {"pessimistic": low, "trapezoid": (low + high) / 2, "optimistic": high}


def members(graph: Graph, mask: EdgeBools, *, level: str, convention: str = "library") -> Bool[np.ndarray, " item"]:
    """Which edges, or nodes, are in a circuit, as `roc` counts them. Raises ValueError for unknown names."""
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if convention == "library":
        return mask[graph.valid] if level == "edge" else graph.edges_to_nodes(mask)
    fed, internal, sends = _insides(graph, mask & graph.valid)
    if level == "edge":
        return np.concatenate([mask[graph.valid], internal])
    heads = np.array([sender.kind == "head" for sender in graph.sender_table] + [False])
    touched = graph.edges_to_nodes(mask)
    return np.concatenate([fed, internal, sends, touched[~heads]])


def _insides(graph: Graph, mask: EdgeBools) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every q, k, v input: is it fed, is its internal edge present; of every head: does it send."""
    heads = [row for row, sender in enumerate(graph.sender_table) if sender.kind == "head"]
    columns = [int(column) for row in heads for column in graph.inputs(graph.senders[row])]
    owners = [row for row in heads for _ in graph.inputs(graph.senders[row])]
    fed, sends = np.asarray(mask.any(0))[columns], np.asarray(mask.any(1))
    return fed, fed & sends[owners], sends[heads]
