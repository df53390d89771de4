"""How many steps ACDC tries at once: a fixed number, or what the decisions so far say is best; never by the clock.

A chain's width shows in the last bits of its metrics, so that a width chosen by time would make two runs differ.
"""

import jax

WIDTHS = (1, 4, 16, 64)
"""Batch widths that are compiled; a chain of another length is padded to the next."""

FREE = {"cpu": 4}
"""By platform, else `FREE_OF_ACCELERATORS`: how many candidates cost as much as a call does without any."""

FREE_OF_ACCELERATORS = 16

LARGEST = {"cpu": 4}
"""By platform, else the last of `WIDTHS`: beyond it a candidate costs no less, and a second program is compiled."""


def bucket(count: int) -> int:
    """The compiled width that holds `count` steps."""
    return next(width for width in WIDTHS if width >= count)


class FixedWidth:
    """Always the same number of steps."""

    def __init__(self, width: int):
        self.width = width

    def next(self, right: float) -> int:
        """How many steps to try, where a share `right` of guesses comes true: ignored."""
        return self.width

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.width = max(1, width // 4)


class ExpectedWidth:
    """The width w with the most expected decisions for its cost, E(w) / (1 + w / K).

    With p the share of guesses that come true, a chain of w steps decides E(w) = (1 - p^w) / (1 - p) of them; K is the
    platform's in `FREE`.
    """

    def __init__(self, free: int | None = None):
        self.free = free or FREE.get(jax.default_backend(), FREE_OF_ACCELERATORS)
        self.largest = WIDTHS[-1] if free else LARGEST.get(jax.default_backend(), WIDTHS[-1])

    def next(self, right: float) -> int:
        """How many steps to try, where a share `right` of guesses comes true."""

        def gain(width: int) -> float:
            return sum(right**ahead for ahead in range(width)) / (1 + width / self.free)

        return max((width for width in WIDTHS if width <= self.largest), key=gain)

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.largest = max(1, width // 4)
