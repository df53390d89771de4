"""What a mask may be, an array of numbers from 0 to 1 or a circuit; how it is checked, cast and put on devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from .arguments import check_count
from .batching import CANDIDATES, place
from .finite import check_finite, real_array, untraced
from .graph import Graph
from .types import EdgeBools, MaskLike, PositionedMask

BEYOND = 1e-3
"""How far a mask's numbers may lie beyond 0 and 1: slopes there are also taken by a small step to either side."""


def mask_of(mask: Any, graph: Graph | None = None, name: str = "mask") -> ArrayLike:
    """The mask that something is, the argument `name`: an array, or that of a circuit of `graph` (None: of any).

    Raises ValueError for scores, which choose no edges, for a circuit of another graph, and for values that are no
    numbers from 0 to 1. Of a traced mask these are not known.
    """
    if hasattr(mask, "graph"):
        if hasattr(mask, "values"):
            raise ValueError(f"{name}: scores choose no edges; take Circuit.select(scores, edges=...)")
        if graph is not None and mask.graph != graph:
            shapes = f"{graph.shape}, got one of {mask.graph.shape}"
            raise ValueError(f"{name}: expected a circuit of the model's graph, {shapes}")
        mask = mask.mask
    return from_0_to_1(mask, name, "numbers from 0 to 1, or a circuit")


def from_0_to_1(values: Any, name: str, expected: str = "numbers from 0 to 1") -> ArrayLike:
    """An array of numbers from 0 to 1, or of truth values. Raises ValueError for others; traced ones are not known."""
    if isinstance(values, Tracer):
        return values
    array = real_array(name, np.asarray(values) if isinstance(values, jax.Array) else values, expected)
    check_finite(name, array)
    if array.dtype != bool and array.size and not -BEYOND <= array.min() <= array.max() <= 1 + BEYOND:
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {array.min()} to {array.max()}")
    return values if hasattr(values, "dtype") else array


def edges_of(mask: Any, graph: Graph, name: str = "mask") -> EdgeBools:
    """`masks_of` of one circuit or mask."""
    found = masks_of(mask, graph, name)
    if len(found) != 1:
        raise ValueError(f"{name}: expected one circuit, got {len(found)}")
    return found[0]


def masks_of(masks: Any, graph: Graph, name: str = "circuits") -> Bool[np.ndarray, "circuit sender receiver"]:
    """Which edges are in a circuit, or in a mask that says yes or no of each; or in several, in a list or an array.

    - `name`: the argument that it is.

    Raises ValueError for an empty list, another shape, other numbers than 0 and 1, and as `mask_of` does.
    """
    is_several = isinstance(masks, list | tuple) and all(hasattr(one, "graph") or np.ndim(one) > 1 for one in masks)
    each = [untraced(name, mask_of(one, graph, name)) for one in (masks if is_several else [masks])]
    if not each:
        raise ValueError(f"{name}: expected at least one circuit, got none")
    for array in each:
        if array.shape[-2:] != graph.shape or array.ndim > 3:
            raise ValueError(
                f"{name}: expected shape {graph.shape} (senders, receivers), or several, got {array.shape}"
            )
        if not ((array == 0) | (array == 1)).all():
            raise ValueError(f"{name}: expected True or False, or 1 or 0, for each edge, got other numbers")
    return np.concatenate([array.reshape(-1, *graph.shape) for array in each]).astype(bool)


def cast(objective: Any, mask: MaskLike, *, positioned: bool = False) -> PositionedMask:
    """A mask, also [sender, receiver, position] where it may be `positioned`, as numbers of the model's type.

    Raises ValueError for another shape, and as `mask_of` does.
    """
    mask, shape = mask_of(mask, objective.graph), objective.graph.shape
    if mask.shape != shape and not (positioned and mask.shape == _positioned_shape(objective)):
        raise ValueError(f"mask: expected shape {shape} (senders, receivers), got {mask.shape}")
    return placed(objective, mask.astype(np.dtype(objective.model.dtype)))


def cast_many(objective: Any, masks: MaskLike, width: int) -> tuple[Array, int]:
    """Masks [circuit, sender, receiver, *position], or a list of them, and how many to take at once.

    Raises ValueError for another shape, for a width below 1, and as `mask_of` does.
    """
    graph = objective.graph
    if isinstance(masks, list | tuple):
        each: list[Any] = [mask_of(mask, graph) for mask in masks]
        masks = jnp.stack(each) if any(isinstance(mask, Tracer) for mask in each) else np.stack(each)
    masks = placed(objective, mask_of(masks, graph))
    if masks.shape[1:] not in (graph.shape, _positioned_shape(objective)):
        raise ValueError(f"masks: expected shape (circuits, *{graph.shape}), got {masks.shape}")
    check_count("width", width, 1)
    return masks, rounded_width(objective, int(width))


def cast_spans(objective: Any, spans: ArrayLike | None) -> Float[Array, "span position"] | None:
    """Spans of positions [span, position]; None: all positions at once. Raises ValueError for another shape."""
    if spans is None:
        return None
    spans, length = jnp.asarray(from_0_to_1(spans, "spans")), objective.clean.shape[1]
    if spans.ndim != 2 or spans.shape[1] != length:
        raise ValueError(f"spans: expected shape (spans, {length} positions), got {spans.shape}")
    return spans.astype(objective.model.dtype)


def placed(objective: Any, x: ArrayLike) -> Array:
    """An array on the objective's devices; one of JAX's stays where it is."""
    return x if isinstance(x, jax.Array) else place(x, objective.mesh)


def rounded_width(objective: Any, width: int) -> int:
    """A number of circuits that spreads evenly over the devices."""
    devices = 1 if objective.mesh is None else objective.mesh.shape[CANDIDATES]
    return -(-width // devices) * devices


def _positioned_shape(objective: Any) -> tuple[int, int, int]:
    return *objective.graph.shape, objective.clean.shape[1]
