"""What ACDC's loop needs of `f`, and the oracle that answers it with whole masks; `live.py` has the fast one."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ..live import Edges
from ..objective import Objective
from ..types import EdgeBools


@runtime_checkable
class Evaluator(Protocol):
    """What the loop needs of `f`; the live and the dense one give the same answers."""

    def metric(self) -> float:
        """The metric of the current circuit."""
        ...

    def fork(self) -> "Evaluator":
        """A second evaluator at the same point."""
        ...

    def bytes_per_candidate(self) -> int:
        """Memory that one more candidate in a chain takes, about."""
        ...

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, " step"]:
        """Metric i: of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        ...

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        ...


class DenseEvaluator:
    """The oracle: `f` over whole masks, batched."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.mask: EdgeBools = objective.graph.valid.copy()
        self.steps: Sequence[Edges] = ()

    def metric(self) -> float:
        """The metric of the current circuit."""
        return float(self.objective(self.mask))

    def fork(self) -> "DenseEvaluator":
        """A second evaluator at the same point."""
        copy = DenseEvaluator(self.objective)
        copy.mask, copy.steps = self.mask.copy(), self.steps
        return copy

    def bytes_per_candidate(self) -> int:
        """The buffer of sender outputs, for one microbatch of prompts."""
        reference = self.objective.reference
        return 4 * self.objective.microbatch * reference.nbytes // reference.shape[1]

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, " step"]:
        """Metric i: of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        self.steps = steps
        masks = np.repeat(self.mask[None], width, axis=0)
        current = self.mask.copy()
        for row, (edges, is_removed) in enumerate(zip(steps, guesses, strict=True)):
            masks[row] = current
            masks[row, edges[:, 0], edges[:, 1]] = False
            if is_removed:
                current = masks[row].copy()
        return np.asarray(self.objective.many(masks, width=width))[: len(steps)]

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        for edges, is_removed in zip(self.steps, removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False
