"""How many steps ACDC tries at once: a fixed number, or whichever is measured to be fastest."""

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
    """The width w with the most expected decisions a second, E(w) / seconds(w), found by trying its neighbours.

    With p the share of guesses that come true, a chain of w steps decides E(w) = (1 - p^w) / (1 - p) of them.
    Seconds are those of the last rounds, without compiling: what a call costs changes along the walk, so a neighbour
    is compared with the rounds just before it. A try that fails is repeated ever more rarely, and no wider one is made
    that could not win even at the seconds of the width in use. In a distributed run the first process decides.
    """

    ROUNDS = 2
    """Timed rounds of a try."""
    GAIN = 1.1
    """How many times faster a width must be to be taken."""

    def __init__(self) -> None:
        self.index = 1  # of the width in use
        self.largest = WIDTHS[-1]
        self.right = 0.9
        self.seconds: dict[int, float] = {}  # a call of each width, running mean
        self.tried: dict[int, int] = {}  # timed rounds of each width in the try that goes on
        self.wait, self.patience = 4, 4  # rounds until the next try, and after that
        self.upward = True

    def next(self) -> int:
        """How many steps to try."""
        index = self.index if self.wait > 0 else self._neighbour()
        return from_first_process(WIDTHS[index])

    def record(self, width: int, right: int, accepted: int, seconds: float | None) -> None:
        """What came of a round: `right` of `accepted` guesses came true; None seconds if it compiled."""
        for ahead in range(accepted):
            self.right += 0.02 * ((ahead < right) - self.right)
        if seconds is None:
            return
        if width == WIDTHS[self.index]:
            self.seconds[width] = (self.seconds.get(width, seconds) + seconds) / 2
            self.wait -= 1
            return
        rounds = self.tried.get(width, 0)
        self.tried[width] = rounds + 1
        self.seconds[width] = seconds if rounds == 0 else min(self.seconds[width], seconds)
        if self.tried[width] >= self.ROUNDS:
            self._judge(width)

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.largest = max(1, width // 4)
        while WIDTHS[self.index] > self.largest:
            self.index -= 1
        self.wait, self.tried = self.patience, {}

    def _neighbour(self) -> int:
        """The next wider or narrower width that there is."""
        here = self._expected(WIDTHS[self.index])
        usable = [
            i for i, width in enumerate(WIDTHS) if width <= self.largest and self._expected(width) > self.GAIN * here
        ]
        up, down = min(self.index + 1, max(usable, default=self.index)), max(self.index - 1, 0)
        first, second = (up, down) if self.upward else (down, up)
        return first if first != self.index else second

    def _judge(self, width: int) -> None:
        """Moves to the width just tried if it decides more a second; else waits longer, then tries the other side."""
        is_better = self._rate(width) > self.GAIN * self._rate(WIDTHS[self.index])
        if is_better:
            self.index, self.patience = WIDTHS.index(width), 4
        else:
            self.upward, self.patience = not self.upward, 3 * self.patience
        self.wait, self.tried = self.patience, {}

    def _rate(self, width: int) -> float:
        return self._expected(width) / self.seconds[width]

    def _expected(self, width: int) -> float:
        """Decisions of a round."""
        return sum(self.right**ahead for ahead in range(width))
