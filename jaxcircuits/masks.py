"""What a mask may be: an array of numbers from 0 to 1, or a circuit."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

from .finite import check_finite
from .graph import Graph

BEYOND = 1e-3
"""How far a mask's numbers may lie beyond 0 and 1: slopes there are also taken by a small step to either side."""


def mask_of(mask: Any, graph: Graph) -> ArrayLike:
    """The mask that something is: an array, or that of a circuit.

    Raises ValueError for scores, which choose no edges, for a circuit of another graph, and for values that are no
    numbers from 0 to 1. Of a traced mask these are not known.
    """
    if hasattr(mask, "graph"):
        if hasattr(mask, "values"):
            raise ValueError("mask: scores choose no edges; take Circuit.select(scores, edges=...)")
        if mask.graph != graph:
            shapes = f"{graph.shape}, got one of {mask.graph.shape}"
            raise ValueError(f"mask: expected a circuit of the model's graph, {shapes}")
        mask = mask.mask
    if isinstance(mask, Tracer):
        return mask
    array = np.asarray(mask)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise ValueError(f"mask: expected an array of numbers from 0 to 1, or a circuit, got {mask!r:.60}")
    check_finite("mask", array)
    if array.dtype != bool and array.size and not -BEYOND <= array.min() <= array.max() <= 1 + BEYOND:
        raise ValueError(f"mask: expected numbers from 0 to 1, got {array.min()} to {array.max()}")
    return mask if hasattr(mask, "dtype") else array
