"""How alike two circuits, or two methods' scores, are."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ..arguments import checked
from ..circuit import RANKS, Circuit
from ..scores import Scores
from .records import Record
from .roc import members

SIZES = (10, 30, 100, 300, 1000)


@dataclasses.dataclass(frozen=True)
class Similarity(Record):
    """Two scored circuits of one graph.

    - `edges`: of each. `shared`: in both.
    - `jaccard_edges`, `jaccard_nodes`: shared over all that are in either; None where both are empty.
    - `top_overlap`: pairs of a size n and the share of the n best edges that the two have in common, by absolute score.
    - `rank_correlation`: Spearman's of all edges' signed scores, `rank_correlation_absolute` of their sizes; None
      where one of them is constant.
    """

    kind: ClassVar[str] = "similarity"
    edges: tuple[int, int]
    shared: int
    jaccard_edges: float | None
    jaccard_nodes: float | None
    top_overlap: tuple[tuple[int, float], ...]
    rank_correlation: float | None
    rank_correlation_absolute: float | None
    run: dict[str, Any]


@checked
def similarity(first: Circuit, second: Circuit) -> Similarity:
    """Everything that tells two circuits of one graph apart. Raises ValueError for different graphs."""
    _same_graph(first, second)
    sizes = [size for size in SIZES if size <= first.graph.num_edges]
    return Similarity(
        edges=(first.num_edges, second.num_edges),
        shared=int((first.mask & second.mask).sum()),
        jaccard_edges=jaccard(first, second),
        jaccard_nodes=jaccard(first, second, level="node"),
        top_overlap=tuple((size, top_overlap(first, second, size, rank="absolute")) for size in sizes),
        rank_correlation=rank_correlation(first, second),
        rank_correlation_absolute=rank_correlation(first, second, rank="absolute"),
        run={"first": first.run, "second": second.run},
    )


@checked
def jaccard(first: Circuit, second: Circuit, *, level: str = "edge") -> float | None:
    """`|A and B| / |A or B|` of two circuits' edges or nodes; None where both are empty.

    Raises ValueError for different graphs and an unknown level.
    """
    _same_graph(first, second)
    one, other = (members(circuit.graph, circuit.mask, level=level) for circuit in (first, second))
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else None


@checked
def top_overlap(first: Scores | Circuit, second: Scores | Circuit, size: int, *, rank: str = "signed") -> float:
    """The share of the `size` best edges that two rankings have in common; ties by edge order.

    Raises ValueError for different graphs, an unknown rank, and sizes below 1 or above the number of edges.
    """
    _same_graph(first, second)
    if not 1 <= size <= first.graph.num_edges:
        raise ValueError(f"size: expected 1 to {first.graph.num_edges} edges, got {size}")
    best = [set(np.argsort(-_ranked(scores, rank), kind="stable")[:size].tolist()) for scores in (first, second)]
    return len(best[0] & best[1]) / size


@checked
def rank_correlation(first: Scores | Circuit, second: Scores | Circuit, *, rank: str = "signed") -> float | None:
    """Spearman's rank correlation of all edges' scores; None where one of them is constant.

    Raises ValueError for different graphs and an unknown rank.
    """
    _same_graph(first, second)
    one, other = _ranked(first, rank), _ranked(second, rank)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    from scipy import stats

    correlation: Any = stats.spearmanr(one, other)
    return float(correlation.statistic)


def _ranked(scores: Scores | Circuit, rank: str) -> np.ndarray:
    if rank not in RANKS:
        raise ValueError(f"rank: expected one of {', '.join(RANKS)}, got {rank!r}")
    values = scores.scores[scores.graph.valid]
    return np.abs(values) if rank == "absolute" else values


def _same_graph(first: Scores | Circuit, second: Scores | Circuit) -> None:
    if first.graph != second.graph:
        raise ValueError(
            f"expected two results of one graph, got {first.graph}, and {second.graph}: "
            "were both found with the same --units and --spans?"
        )
