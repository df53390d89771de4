"""How many steps ACDC tries at once: a fixed number, or whichever is measured to be fastest."""

import math

from ..batching import from_first_process

WIDTHS = (1, 4, 16, 64)
"""Batch widths that are compiled; a chain of another length is padded to the next."""


def bucket(count: int) -> int:
    """The compiled width that holds `count` steps."""
    return next(width for width in WIDTHS if width >= count)


class FixedWidth:
    """Always the same number of steps."""

    def __init__(self, width: int):
        self.width = width

    def next(self) -> int:
        """How many steps to try."""
        return self.width

    def record(self, width: int, right: int, accepted: int, seconds: float | None) -> None:
        """What came of a round; ignored."""

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.width = max(1, width // 4)


class MeasuredWidth:
    """The width w with the most expected decisions a second, E(w) / seconds(w).

    With p the share of guesses that come true, a chain of w steps decides E(w) = (1 - p^w) / (1 - p) of them.
    Seconds are measured in the run, without compiling, as `level * shape(w)`: the level follows how much is alive at
    this point of the walk, the shape what a wider chain costs beside a narrower one. A width never tried is assumed to
    cost twice the next smaller one. In a distributed run the first process decides.
    """

    def __init__(self) -> None:
        self.largest = WIDTHS[-1]
        self.level = 0.0  # logarithms, base e
        self.shape = {width: math.log(2) * step for step, width in enumerate(WIDTHS)}
        self.right = 0.9

    def next(self) -> int:
        """How many steps to try."""
        widths = [width for width in WIDTHS if width <= self.largest]

        def rate(width: int) -> float:
            return sum(self.right**ahead for ahead in range(width)) / math.exp(self.shape[width])

        return from_first_process(max(widths, key=rate))

    def record(self, width: int, right: int, accepted: int, seconds: float | None) -> None:
        """What came of a round: `right` of `accepted` guesses came true; None seconds if it compiled."""
        for ahead in range(accepted):
            self.right += 0.02 * ((ahead < right) - self.right)
        if seconds is not None:
            surprise = math.log(seconds) - self.level - self.shape[width]
            self.level += 0.5 * surprise
            self.shape[width] += 0.1 * surprise

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.largest = max(1, width // 4)
