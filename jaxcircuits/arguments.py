"""Numbers that callers and files give, checked at the door."""

import functools
import inspect
import math
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

Function = TypeVar("Function", bound=Callable[..., Any])


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number of at most 63 bits, `least` or more; True and 2.0 are none."""
    return bool(isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= value < 1 << 63)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number; True is none."""
    if isinstance(value, int | np.integer):
        return not isinstance(value, bool) and abs(int(value)) <= sys.float_info.max
    return isinstance(value, float | np.floating) and math.isfinite(float(value))


MOST = (1 << 31) - 1
"""The largest count that compiled functions hold."""

MOST_DRAWN = 100_000
"""The largest number of prompts, replicates or random circuits that is drawn: nobody means more, and all are kept."""


def check_count(name: str, value: Any, least: int = 0, most: int | None = None) -> None:
    """Raises ValueError, naming the argument, for what is no whole number of at least `least`, at most `most`."""
    if not is_count(value, least) or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: expected a whole number, {span}, got {value!r:.60}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises ValueError, naming the argument, for what is no finite number from `low` to `high`."""
    if not is_number(value) or not low <= value <= high:
        span = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a finite number{span}, got {value!r:.60}")


def key_of(seed: int) -> PRNGKeyArray:
    """JAX's key of a seed, of all its 63 bits: `jax.random.key` takes 32 of them."""
    key = jax.random.key(seed % 2**32)
    return jax.random.fold_in(key, np.uint32(seed >> 32)) if seed >> 32 else key


def checked(function: Function) -> Function:
    """A function that refuses arguments of another kind than its annotations state, by name and as ValueError.

    These are whole numbers (True and 2.0 are none; `seed` is at least 0), finite numbers, truth values, texts, paths,
    this library's records, and unions of them. What is annotated otherwise, the function checks itself. NumPy's whole
    numbers become Python's, which compiled functions do not trace. It is one that goes on where memory does not do, see
    `fitting`.
    """
    fits = fitting(function)
    annotations = {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()}
    kinds = {name: found for name, annotation in annotations.items() if (found := _kinds(annotation))}

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        for name, value in (*zip(annotations, given, strict=False), *named.items()):
            if name in kinds and not any(_is_of(name, value, kind) for kind in kinds[name]):
                expected = " or ".join(_said(name, kind) for kind in kinds[name])
                plain = isinstance(value, bool | int | float | str | None)
                got = f"{value!r:.60}" if plain else getattr(type(value), "said", f"a {type(value).__name__}")
                raise ValueError(f"{name}: expected {expected}, got {got}")
        taken = [_plain(value, kinds.get(name, ())) for name, value in zip(annotations, given, strict=False)]
        rest = given[len(taken) :]
        return fits(*taken, *rest, **{name: _plain(value, kinds.get(name, ())) for name, value in named.items()})

    return typing.cast(Function, called)


def fitting(function: Function) -> Function:
    """A function of objectives that begins anew with half as many prompts at once where the device's memory is full.

    It says so in a warning. Where prompts are computed one by one already, the device's error stays.
    """

    @functools.wraps(function)
    def fits(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except RuntimeError as error:
            made = function.__name__ == "__init__"  # then the first is what is being made
            fewer = {id(value): value.halved() for value in (*given[made:], *named.values()) if _is_divisible(value)}
            if not fewer or not is_memory_full(error):
                raise
        least = min(value.microbatch for value in fewer.values())
        warnings.warn(
            f"the memory is full: goes on with {least} prompts at once, as microbatch={least} does", stacklevel=3
        )
        given = tuple(fewer.get(id(value), value) for value in given)
        return fits(*given, **{name: fewer.get(id(value), value) for name, value in named.items()})

    return typing.cast(Function, fits)


def is_memory_full(error: Exception) -> bool:
    """Whether a device said so."""
    return "RESOURCE_EXHAUSTED" in str(error)


def _is_divisible(value: Any) -> bool:
    return hasattr(value, "halved") and value.microbatch > 1


KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text", type(None): "None"}


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The kinds that an annotation states; none if there is one among them that is not known."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    known = (isinstance(kind, type) and (kind in KINDS or _is_record(kind)) for kind in kinds)
    return kinds if all(known) else ()


def _is_record(kind: type) -> bool:
    return kind is os.PathLike or kind.__module__.startswith(f"{__package__}.")


def _is_of(name: str, value: Any, kind: type) -> bool:
    if isinstance(value, Tracer):
        return False
    if getattr(value, "shape", None) == () and kind in (int, float, bool):
        value = np.asarray(value)[()]
    if kind is int:
        return is_count(value, 0 if name == "seed" else -(1 << 63))
    if kind is float:
        return is_number(value)
    return isinstance(value, bool | np.bool_ if kind is bool else kind)


def _plain(value: Any, kinds: tuple[type, ...]) -> Any:
    """Python's own number in place of a whole one, or a truth value, of NumPy or JAX."""
    kind = {"i": int, "u": int, "b": bool}.get(getattr(getattr(value, "dtype", None), "kind", ""))
    return kind(value) if kind in kinds else value  # type: ignore[misc]


def _said(name: str, kind: type) -> str:
    if name == "seed" and kind is int:
        return "a whole number of at least 0"
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return KINDS.get(kind, "a path" if kind is os.PathLike else f"{article} {kind.__name__}")
