"""NaN and infinity stop where they arise: refused by the name of their place, before anything is decided or written."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import Array, ArrayLike, Bool

REMEDY = "NaN or infinity decides nothing: look for its origin, or for a number that only float64 can hold"


def check_finite(what: str, values: ArrayLike, **axes: Sequence[str] | None) -> None:
    """Raises ValueError for NaN or infinity, naming the first place.

    - `axes`: what the leading axes of `values` are, in their order, and the names along them (None: numbers).
    """
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if values.dtype.kind in "biu" or all(are_finite([values])):
        return
    values = on_host(values)
    finite = np.isfinite(values)
    place = tuple(int(index) for index in np.argwhere(~finite)[0])
    named = zip(axes.items(), place, strict=False)
    where = ", ".join(f"{axis} {index if names is None else names[index]}" for (axis, names), index in named)
    at = f" ({where})" if where else ""
    got = f"{(~finite).sum()} that are NaN or infinite, first {values[place]}{at}" if values.shape else values[()]
    raise ValueError(f"{what}: expected finite numbers, got {got}; {REMEDY}")


def real_array(what: str, values: Any, expected: str = "finite numbers") -> Any:
    """An array of real numbers or truth values, traced ones too.

    Raises ValueError for texts, complex numbers, objects, lists of unequal lengths, and arrays with masked values.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{what}: expected an array of {expected}, got one with masked values: fill them in")
    if isinstance(values, jax.Array):
        array = values
    else:
        try:
            array = np.asarray(values)
        except ValueError:  # rows of unequal lengths
            array = np.asarray(None)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise ValueError(f"{what}: expected an array of {expected}, got {values!r:.60}")
    return array


def untraced(what: str, values: Any) -> np.ndarray:
    """An array whose values are known. Raises ValueError for a traced one."""
    if isinstance(values, Tracer):
        said = "got what JAX traces and does not know"
        raise ValueError(f"{what}: expected values, {said}: call this outside of jax.jit")
    return values if isinstance(values, np.ndarray) else np.asarray(values)


def check_weights(model: Any) -> None:
    """Raises ValueError naming the first of a model's weights with NaN or infinity."""
    weights = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_inexact_array))[0]
    for (where, weight), is_finite in zip(weights, are_finite([weight for _, weight in weights]), strict=True):
        if not is_finite:
            values = on_host(weight)
            index = np.argwhere(~np.isfinite(values))[0].tolist()
            path = jax.tree_util.keystr(where).lstrip(".")
            raise ValueError(f"weight {path}{index}: expected a finite number, got {values[tuple(index)]}; {REMEDY}")


def are_finite(arrays: Sequence[Array | np.ndarray]) -> list[bool]:
    """Whether each array is finite everywhere. Those in the host's memory are looked at there: nothing is compiled."""
    far = [array for array in arrays if not _is_in_host_memory(array)]
    there = iter(_are_finite_there(far).tolist() if far else ())
    return [_is_finite_here(array) if _is_in_host_memory(array) else next(there) for array in arrays]


def _is_in_host_memory(x: Array | np.ndarray) -> bool:
    return not isinstance(x, jax.Array) or (x.is_fully_addressable and {d.platform for d in x.devices()} == {"cpu"})


def _is_finite_here(x: ArrayLike) -> bool:
    """A sum without NaN or infinity has no such term; one that has some may have overflowed."""
    x = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(x.sum()) or np.isfinite(x).all())


@jax.jit
def _are_finite_there(arrays: Sequence[Array]) -> Bool[Array, " array"]:
    return jnp.array([jnp.isfinite(array).all() for array in arrays], bool)


def on_host(x: Array | np.ndarray) -> np.ndarray:
    """The whole array, also one that is spread over several processes."""
    is_spread = isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated
    return np.asarray(multihost_utils.process_allgather(x, tiled=True) if is_spread else x)
