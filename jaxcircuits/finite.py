"""NaN and infinity stop where they arise: refused by the name of their place, before anything is decided or written."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

REMEDY = "NaN or infinity decides nothing: look for its origin, or for a number too large for this dtype (float64)"


def check_finite(what: str, values: ArrayLike, **axes: Sequence[str] | None) -> None:
    """Raises ValueError for NaN or infinity, naming the first place.

    - `axes`: what the leading axes of `values` are, in their order, and the names along them (None: numbers).
    """
    values = np.asarray(values)
    if values.dtype.kind in "biu" or (finite := np.isfinite(values)).all():
        return
    place = tuple(int(index) for index in np.argwhere(~finite)[0])
    named = zip(axes.items(), place, strict=False)
    where = ", ".join(f"{axis} {index if names is None else names[index]}" for (axis, names), index in named)
    at = f" ({where})" if where else ""
    got = f"{(~finite).sum()} that are NaN or infinite, first {values[place]}{at}" if values.shape else values[()]
    raise ValueError(f"{what}: expected finite numbers, got {got}; {REMEDY}")


def check_weights(model: Any, are_finite: Bool[ArrayLike, " weight"]) -> None:
    """Raises ValueError naming the first weight of a model with NaN or infinity; see `weights_are_finite`."""
    bad = np.flatnonzero(~np.asarray(are_finite))
    if len(bad):
        where, weight = _weights(model)[bad[0]]
        values = np.asarray(weight)
        index = np.argwhere(~np.isfinite(values))[0].tolist()
        path = jax.tree_util.keystr(where).lstrip(".")
        raise ValueError(f"weight {path}{index}: expected a finite number, got {values[tuple(index)]}; {REMEDY}")


def weights_are_finite(model: Any) -> Bool[Array, " weight"]:
    """Whether each of a model's arrays of numbers is finite everywhere."""
    return jnp.stack([jnp.isfinite(weight).all() for _, weight in _weights(model)] or [jnp.array(True)])


def _weights(model: Any) -> list[tuple[Any, Array]]:
    return jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_inexact_array))[0]
