"""What ACDC says: its decisions, its progress, its circuit with what it cost."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import Graph
from ..types import EdgeBools, EdgeScores


@dataclasses.dataclass(frozen=True)
class Decision:
    """One trial: an edge, or a group named by its receiver; the metric before and without it; whether it went."""

    name: str
    before: float
    after: float
    removed: bool


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback gets after every round."""

    edges_done: int
    edges_total: int
    edges_kept: int
    evaluations: int
    metric: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class ACDCResult:
    """The circuit, every decision that led to it, and what it cost.

    - `evaluations`: trials whose decision counted; `evaluations_wasted`: tried behind a wrong guess.
    - `device_calls_by_width`: of each width of a batch. `memory_planned`: bytes of the largest program.
    - `smallest_margin`: least distance of an increment to the threshold. `noise`: error of the metric as
      measured in the run, by rounding and the model's `precision`; `undecided`: trials with a margin below twice it.
    - `scores`: the increment of each edge's own trial, 0 where it was never tried alone.
    """

    graph: Graph
    mask: EdgeBools
    scores: EdgeScores
    decisions: tuple[Decision, ...]
    kept_groups: tuple[str, ...]
    metric_full: float
    metric_final: float
    evaluations: int
    evaluations_wasted: int
    device_calls: int
    device_calls_by_width: dict[int, int]
    memory_planned: int
    smallest_margin: float | None
    noise: float
    undecided: tuple[str, ...]
    seconds: float
    seconds_compiling: float
    options: dict[str, Any]

    @property
    def seconds_warm(self) -> float:
        """The run without what JAX spent tracing and compiling."""
        return self.seconds - self.seconds_compiling

    @property
    def run(self) -> dict[str, Any]:
        """The record of the run, as it stands in a circuit file."""
        taken = ("graph", "mask", "scores", "options", "decisions", "undecided", "kept_groups")
        return {
            "method": "acdc",
            "signed": True,
            **self.options,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in taken},
            "seconds_warm": self.seconds_warm,
            "edges_total": self.graph.num_edges,
            "edges_kept": int(self.mask.sum()),
            "groups_kept": len(self.kept_groups),
            "kept_groups": list(self.kept_groups),
            "undecided": list(self.undecided),
            "decisions": [list(dataclasses.astuple(decision)) for decision in self.decisions],
        }


def scores_of(graph: Graph, decisions: Sequence[Decision]) -> EdgeScores:
    """The increment of each edge's own trial, 0 where it was never tried alone."""
    scores = np.zeros(graph.shape)
    for decision in decisions:
        if "->" in decision.name:
            scores[graph.edge_index(decision.name)] = decision.after - decision.before
    return scores
