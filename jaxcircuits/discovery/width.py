"""How many steps, of how many searches, ACDC tries at once: fixed, or what the decisions so far say is best; never by
the clock.

A chain's width shows in the last bits of its metrics, so that a width chosen by time would make two runs differ.
"""

import jax

WIDTHS = (1, 4, 16, 64)
"""Batch widths that are compiled; a chain of another length is padded to the next."""

FREE = {"cpu": 4}
"""By platform, else `FREE_OF_ACCELERATORS`: how many candidates cost as much as a call does without any."""

FREE_OF_ACCELERATORS = 16

LARGEST = {"cpu": 4}
"""By platform: the widest chain, on all devices. Beyond it a candidate costs no less, and another program is compiled.
"""

LARGEST_OF_A_DEVICE = 16
"""As `LARGEST`, of the candidates of a chain on one device, on any platform."""

TOKENS = {"tpu": 8192}
"""By platform: as `LARGEST_OF_A_DEVICE`, of these candidates' tokens (by what the compiler says of a v5e)."""

SEARCHES = {"cpu": 1}
"""By platform, else `SEARCHES_OF_ACCELERATORS`: how many searches take one call together."""

SEARCHES_OF_ACCELERATORS = 16


def searches_at_once() -> int:
    """What this platform takes."""
    return SEARCHES.get(jax.default_backend(), SEARCHES_OF_ACCELERATORS)


def largest_width(tokens: int = 1, devices: int = 1) -> int:
    """The widest chain worth compiling here, of candidates of so many tokens that are spread over devices.

    A device computes 4 candidates at least: a call is the host's work too.
    """
    platform = jax.default_backend()

    def is_worth_it(width: int) -> bool:
        own = width if width % devices else width // devices
        return own <= 4 or (own <= LARGEST_OF_A_DEVICE and own * tokens <= TOKENS.get(platform, own * tokens))

    widest = max(width for width in WIDTHS if is_worth_it(width))
    return min(widest, LARGEST.get(platform, WIDTHS[-1]))


def bucket(count: int) -> int:
    """The compiled width that holds `count` steps."""
    return next(width for width in WIDTHS if width >= count)


class FixedWidth:
    """Always the same number of steps, of at most `searches` searches."""

    def __init__(self, width: int, searches: int = 1):
        self.width, self.searches = width, searches

    def next(self, right: float) -> int:
        """How many steps to try, where a share `right` of guesses comes true: ignored."""
        return self.width

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.width = max(1, width // 4)


class ExpectedWidth:
    """The width w with the most expected decisions for its cost, E(w) / (1 + w / K).

    With p the share of guesses that come true, a chain of w steps decides E(w) = (1 - p^w) / (1 - p) of them; K is the
    platform's in `FREE`. At most `searches` searches go at once; w is at most `largest`.
    """

    def __init__(self, free: int | None = None, searches: int = 1, largest: int | None = None):
        self.searches = searches
        self.free = free or FREE.get(jax.default_backend(), FREE_OF_ACCELERATORS)
        self.largest = largest or (WIDTHS[-1] if free else largest_width())

    def next(self, right: float) -> int:
        """How many steps to try, where a share `right` of guesses comes true."""

        def gain(width: int) -> float:
            return sum(right**ahead for ahead in range(width)) / (1 + width / self.free)

        return max((width for width in WIDTHS if width <= self.largest), key=gain)

    def limit(self, width: int) -> None:
        """A chain of `width` did not fit the memory."""
        self.largest = max(1, width // 4)
