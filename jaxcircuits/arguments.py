"""Numbers that callers and files give, checked at the door."""

import math
import sys
from typing import Any

import numpy as np


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number of at most 63 bits, `least` or more; True and 2.0 are none."""
    return bool(isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= value < 1 << 63)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number; True is none."""
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)


def check_count(name: str, value: Any, least: int = 0) -> None:
    """Raises ValueError, naming the argument, for what is no whole number of at least `least`."""
    if not is_count(value, least):
        raise ValueError(f"{name}: expected a whole number, at least {least}, got {value!r:.60}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises ValueError, naming the argument, for what is no finite number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:
        span = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a finite number{span}, got {value!r:.60}")
