"""Guesses of ACDC's decisions (branch prediction): a wrong one costs time, never correctness."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..finite import check_finite
from ..graph import Graph
from ..types import EdgeScores
from .schedule import Step


@runtime_checkable
class Predictor(Protocol):
    """What the search asks before a chain and tells after a decision."""

    def guess(self, step: Step, threshold: float) -> bool:
        """Whether the step is expected to be removed."""
        ...

    def saw(self, step: Step, removed: bool) -> None:
        """What was decided."""
        ...

    def fork(self) -> "Predictor":
        """A second predictor that knows the same."""
        ...


class AllRemoved:
    """Every edge is expected to go."""

    def guess(self, step: Step, threshold: float) -> bool:
        """True."""
        return True

    def saw(self, step: Step, removed: bool) -> None:
        """Nothing is learnt."""

    def fork(self) -> "AllRemoved":
        """Itself: it knows nothing."""
        return self


class History(AllRemoved):
    """An edge is expected to fare as its sender's last edges did, a group as the last groups of its kind (q, k, v).

    The share kept is a running mean with weight 1/2 on the newest, so that it takes a removal or two to forget.
    """

    def __init__(self, kept: dict[str, float] | None = None):
        self.kept = kept or {}

    def guess(self, step: Step, threshold: float) -> bool:
        """Whether less than half of the running mean was kept."""
        return self.kept.get(step.origin, 0.0) < 0.5

    def saw(self, step: Step, removed: bool) -> None:
        """Moves the running mean."""
        self.kept[step.origin] = (self.kept.get(step.origin, 0.0) + (not removed)) / 2

    def fork(self) -> "History":
        """A copy of the running means."""
        return History(dict(self.kept))


class FromScores(AllRemoved):
    """A step is expected to go if the scores of its edges sum to less than the threshold."""

    def __init__(self, scores: EdgeScores):
        self.scores = scores

    def guess(self, step: Step, threshold: float) -> bool:
        """Whether the score is below the threshold."""
        return bool(self.scores[step.edges[:, 0], step.edges[:, 1]].sum() < threshold)


class FromDecisions(AllRemoved):
    """What an earlier run decided is expected again; what it never tried is expected to go."""

    def __init__(self, removed: dict[str, bool]):
        self.removed = removed

    def guess(self, step: Step, threshold: float) -> bool:
        """The earlier decision."""
        return self.removed.get(step.name, True)


def predictor_of(source: Any, graph: Graph) -> Predictor:
    """The predictor that a user means: a name, scores of all edges, or an earlier result (with `decisions`)."""
    if isinstance(source, str):
        named = {"history": History, "all_removed": AllRemoved}
        if source not in named:
            raise ValueError(f"predictor: expected one of {', '.join(named)}, scores or a result, got {source!r}")
        return named[source]()
    if hasattr(source, "decisions"):
        return FromDecisions({decision.name: decision.removed for decision in source.decisions})
    scores = np.asarray(source)
    if scores.shape != graph.shape or scores.dtype.kind not in "biuf":
        got = f"{scores.shape} of {scores.dtype}"
        raise ValueError(f"predictor: expected numbers of shape {graph.shape} or a result, got {got}")
    check_finite("predictor", np.where(graph.valid, scores, 0), sender=graph.senders, receiver=graph.receivers)
    return FromScores(scores)
