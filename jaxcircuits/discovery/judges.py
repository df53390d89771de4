"""Who decide in a search: thresholds and weights of the prompts, as many at once as have decided alike so far."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float


@dataclasses.dataclass(frozen=True)
class Judges:
    """Each says of a trial whether its edges go: where the metric rises by less than the judge's threshold.

    - `thresholds`: one a judge. `weights`: of the prompts; a judge's metric is `weights @ values`, the values one a
      prompt.
    - `absolute`: whether it is the size of the change that must be below the threshold.
    - `numbers`: which judges they are, of those that began.
    """

    thresholds: Float[np.ndarray, " judge"]
    weights: Float[np.ndarray, "judge prompt"]
    absolute: bool
    numbers: np.ndarray

    @classmethod
    def of(cls, thresholds: Any, weights: Any, absolute: bool) -> "Judges":
        """Judges numbered from 0 on; one row of weights for all thresholds, or one threshold for all rows."""
        weights = np.atleast_2d(np.asarray(weights, np.float64))
        thresholds = np.asarray(thresholds, np.float64)
        count = max(len(weights), thresholds.size)
        thresholds = np.broadcast_to(thresholds, count)
        return cls(thresholds, np.broadcast_to(weights, (count, weights.shape[1])), absolute, np.arange(count))

    def __len__(self) -> int:
        return len(self.thresholds)

    def take(self, chosen: Any) -> "Judges":
        """Some of them: by a bool each, or by their places."""
        return Judges(self.thresholds[chosen], self.weights[chosen], self.absolute, self.numbers[chosen])

    def metrics(self, values: Float[np.ndarray, "*trial prompt"]) -> Float[np.ndarray, "*trial judge"]:
        """What each makes of the prompts' values."""
        return np.asarray(values, np.float64) @ self.weights.T

    def increments(self, before: np.ndarray, after: np.ndarray) -> Float[np.ndarray, "*trial judge"]:
        """By how much each one's metric rises from one trial to another."""
        change = self.metrics(after) - self.metrics(before)
        return np.abs(change) if self.absolute else change

    def removing(self, before: np.ndarray, after: np.ndarray) -> Bool[np.ndarray, " judge"]:
        """Who lets the edges go."""
        return self.increments(before, after) < self.thresholds
