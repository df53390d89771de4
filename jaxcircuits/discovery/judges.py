"""Who decide in a search: thresholds and weights of the prompts, as many at once as have decided alike so far."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ..finite import on_host
from ..objective import Objective


@dataclasses.dataclass(frozen=True)
class Judges:
    """Each says of a trial whether its edges go: where the metric rises by less than the judge's threshold.

    - `thresholds`: one a judge. `counts`: how much each prompt counts, as a user gives it; None: all alike.
    - `weights`: the same as numbers with which a judge's metric is `weights @ values`, the values one a prompt.
    - `absolute`: whether it is the size of the change that must be below the threshold.
    - `numbers`: which judges they are, of those that began.
    """

    thresholds: Float[np.ndarray, " judge"]
    counts: Float[np.ndarray, "judge prompt"] | None
    weights: Float[np.ndarray, "judge prompt"]
    absolute: bool
    numbers: np.ndarray

    @classmethod
    def of(cls, objective: Objective, thresholds: Any, counts: Any = None, *, absolute: bool = False) -> "Judges":
        """Judges numbered from 0 on; one row of counts for all thresholds, or one threshold for all rows.

        Raises ValueError for counts that are not one finite number, 0 or more, a prompt, or that are 0 in all.
        """
        weights = _weights(objective, np.ones(objective.num_prompts) if counts is None else counts)
        thresholds = np.asarray(thresholds, np.float64)
        shape = max(len(weights), thresholds.size), weights.shape[1]
        given = None if counts is None else np.broadcast_to(np.asarray(counts, np.float64), shape)
        thresholds = np.broadcast_to(thresholds, shape[0])
        return cls(thresholds, given, np.broadcast_to(weights, shape), absolute, np.arange(shape[0]))

    def __len__(self) -> int:
        return len(self.thresholds)

    def take(self, chosen: Any) -> "Judges":
        """Some of them: by a bool each, or by their places."""
        counts = None if self.counts is None else self.counts[chosen]
        return Judges(self.thresholds[chosen], counts, self.weights[chosen], self.absolute, self.numbers[chosen])

    def weighing(self) -> dict[str, list[float]]:
        """How the first one weighs the prompts, for a result's record; nothing where all count alike."""
        return {} if self.counts is None else {"prompt_weights": self.counts[0].tolist()}

    def metrics(self, values: Float[np.ndarray, "*trial prompt"]) -> Float[np.ndarray, "*trial judge"]:
        """What each makes of the prompts' values: the same to the last bit, whatever trials and judges are beside.

        (A matrix product would add in an order of its own for each shape.)
        """
        return (np.asarray(values, np.float64)[..., None, :] * self.weights).sum(-1)

    def increments(self, before: np.ndarray, after: np.ndarray) -> Float[np.ndarray, "*trial judge"]:
        """By how much each one's metric rises from one trial to another."""
        change = self.metrics(after) - self.metrics(before)
        return np.abs(change) if self.absolute else change

    def removing(self, before: np.ndarray, after: np.ndarray) -> Bool[np.ndarray, " judge"]:
        """Who lets the edges go."""
        return self.increments(before, after) < self.thresholds


def _weights(objective: Objective, counts: Any) -> Float[np.ndarray, "judge prompt"]:
    """A prompt's value is the sum over its scored positions, each by its weight: a mean divides by theirs."""
    counts, prompts = np.atleast_2d(np.asarray(counts, np.float64)), objective.num_prompts
    if counts.shape[1] != prompts or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"prompt_weights: expected {prompts} numbers, 0 or more, got {counts.tolist()!r:.60}")
    if not counts.any(1).all():
        raise ValueError("prompt_weights: expected one above 0, got none")
    # below 1, so that no sum is infinite; by powers of 2, which change no bit of what follows
    counts = np.ldexp(counts, -np.frexp(counts.max(1, keepdims=True))[1])
    return counts / (counts @ on_host(objective.weights).astype(np.float64).sum(1))[:, None]
