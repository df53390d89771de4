"""What absent edges carry: the senders' values of a reference run, by name, as given, or of another model."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int

from . import batching
from .batching import PROMPTS, constrain, place
from .data import PromptPairs
from .types import Model

REFERENCES = ("resample", "zero", "mean")


def name_of(reference: str | ArrayLike | Model) -> str:
    """The name of a reference in a record."""
    if isinstance(reference, str):
        return reference
    return "resample from another model" if isinstance(reference, eqx.Module) else "array"


def reference_values(
    reference: str | ArrayLike | Model,
    model: Model,
    pairs: PromptPairs,
    zeros: Float[Array, "sender batch position width"],
    size: int,
    mesh: Mesh | None,
) -> Float[Array, "sender batch position width"]:
    """What each sender of `model` is replaced by, on the devices of `mesh`.

    - `zeros`: the reference "zero". `size`: prompts computed at once.

    Raises ValueError for an array of another shape and for a model of another graph.
    """
    if isinstance(reference, str) and reference == "zero":
        return zeros
    if isinstance(reference, eqx.Module):
        if getattr(reference, "graph", None) != model.graph:
            raise ValueError("reference: expected a model with the same graph as the objective's")
        model = batching.place_weights(reference, mesh)
    elif not isinstance(reference, str):
        values = place(reference, None).astype(model.dtype)
        if values.shape != zeros.shape:
            raise ValueError(
                f"reference: expected shape {zeros.shape} (sender, batch, position, width), got {values.shape}"
            )
        return place(values, mesh, None, PROMPTS)
    values = sender_values(model, place(pairs.corrupt, mesh, PROMPTS), size)
    if isinstance(reference, str) and reference == "mean":
        return _mean_reference(values, place(pairs.inside(), mesh, PROMPTS), mesh)
    return values


@eqx.filter_jit
def _mean_reference(values: Array, inside: Array, mesh: Mesh | None) -> Float[Array, "sender batch position width"]:
    """For every prompt, the mean of all prompts at each position; padding does not count."""
    mean = mean_inside(values, inside, (1,))
    return constrain(jnp.broadcast_to(mean, values.shape), mesh, None, PROMPTS)


def mean_inside(values: Array, inside: Array, axes: tuple[int, ...]) -> Float[Array, "sender _ _ width"]:
    """The mean of [sender, batch, position, width] over prompts, or these and positions, those inside alone."""
    inside = inside[None, :, :, None]
    counts = jnp.maximum(inside.sum(axes, keepdims=True), 1).astype(values.dtype)
    return jnp.where(inside, values, 0).sum(axes, keepdims=True) / counts


def sender_values(model: Model, tokens: Int[Array, "batch position"], size: int) -> Float[Array, "sender batch ..."]:
    """What every node of the clean run writes, [sender, batch, position, width]; `size` prompts at a time."""
    return recorded(model, tokens, size)[1]


@eqx.filter_jit
def recorded(
    model: Model, tokens: Int[Array, "batch position"], size: int
) -> tuple[Float[Array, "moment batch position width"], Float[Array, "sender batch position width"]]:
    """What every moment of the clean run reads, and what every node writes: one program, whoever asks for either."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), batching.chunked_vmap(model.recorded, tokens, size))
