"""What ACDC's loop needs of `f`, and the oracle that answers it with whole masks; `live.py` has the fast one."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from .. import batching
from ..live import Edges
from ..lockstep import bucket
from ..objective import Objective
from ..types import EdgeBools


@runtime_checkable
class Evaluator(Protocol):
    """What the loop needs of `f`; the live and the dense one give the same answers.

    - `memory`: bytes of each program compiled so far, by its name and shapes.
    """

    memory: dict[tuple, int]

    def values(self) -> Float[np.ndarray, " prompt"]:
        """Each prompt's share of the metric of the current circuit; the metric is their mean."""
        ...

    def fork(self) -> "Evaluator":
        """A second evaluator at the same point."""
        ...

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, "step prompt"]:
        """Row i: `values` of the current circuit after guesses 1..i-1 are applied, with step i removed.

        Raises MemoryError if a chain of this width does not fit, before any compute.
        """
        ...

    @staticmethod
    def together(
        searches: Sequence[Any], steps: Sequence[Sequence[Edges]], guesses: Sequence[Sequence[bool]], width: int
    ) -> list[Float[np.ndarray, "step prompt"]]:
        """`chain` of several searches, forks of one, in one call."""
        ...

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs to be at this point again, to the last bit."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes to the point of a `state` of the same objective."""
        ...


class DenseEvaluator:
    """The oracle: `f` over whole masks, batched; from `start` on (None: all edges)."""

    def __init__(self, objective: Objective, start: EdgeBools | None = None):
        self.objective = objective
        self.mask: EdgeBools = objective.graph.valid.copy() if start is None else objective.graph.valid & start
        self.steps: Sequence[Edges] = ()
        self.memory: dict[tuple, int] = {}

    def values(self) -> Float[np.ndarray, " prompt"]:
        """Each prompt's share of the metric of the current circuit; the metric is their mean."""
        return np.asarray(self.objective.per_example(self.mask))

    def fork(self) -> "DenseEvaluator":
        """A second evaluator at the same point."""
        copy = DenseEvaluator(self.objective, self.mask)
        copy.steps, copy.memory = self.steps, self.memory
        return copy

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, "step prompt"]:
        """Row i: `values` of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        return self.together([self], [steps], [guesses], width)[0]

    @staticmethod
    def together(
        searches: "Sequence[DenseEvaluator]",
        steps: Sequence[Sequence[Edges]],
        guesses: Sequence[Sequence[bool]],
        width: int,
    ) -> list[Float[np.ndarray, "step prompt"]]:
        """`chain` of several searches, forks of one, in one call."""
        first, rows = searches[0], width * bucket(len(searches))
        if (rows,) not in first.memory:
            first.memory[rows,] = first.objective.memory_needed(rows)
            batching.check_fits(first.memory[rows,], f"a batch of {rows} circuits")
        asked = zip(steps, guesses, strict=True)
        masks = np.concatenate([each._masks(*own, width) for each, own in zip(searches, asked, strict=True)])
        masks = np.resize(masks, (rows, *masks.shape[1:]))
        values = np.asarray(first.objective.per_example_many(masks, width=rows))
        return [values[n * width :][: len(own)] for n, own in enumerate(steps)]

    def _masks(
        self, steps: Sequence[Edges], guesses: Sequence[bool], width: int
    ) -> Bool[np.ndarray, "candidate sender receiver"]:
        self.steps = steps
        masks = np.repeat(self.mask[None], width, axis=0)
        current = self.mask.copy()
        for row, (edges, is_removed) in enumerate(zip(steps, guesses, strict=True)):
            masks[row] = current
            masks[row, edges[:, 0], edges[:, 1]] = False
            if is_removed:
                current = masks[row].copy()
        return masks

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        for edges, is_removed in zip(self.steps, removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False

    def state(self) -> dict[str, np.ndarray]:
        """The mask."""
        return {"mask": self.mask}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes the mask."""
        self.mask = state["mask"].copy()
