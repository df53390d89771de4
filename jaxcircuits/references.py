"""What absent edges carry: the senders' values of a reference run, by name, as given, or of another model."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from . import batching
from .batching import PROMPTS, constrain, place
from .finite import real_array
from .types import Model

REFERENCES = ("resample", "zero", "mean")

SpanAt = Int[Array, "batch position"] | None
"""Which of the spans that a model is divided at each position of each prompt is in; None: it is not."""


def name_of(reference: str | ArrayLike | Model) -> str:
    """The name of a reference in a record."""
    if isinstance(reference, str):
        return reference
    return "resample from another model" if isinstance(reference, eqx.Module) else "array"


def reference_values(
    reference: str | ArrayLike | Model,
    model: Model,
    prompts: tuple[Int[Array, "batch position"], Bool[Array, "batch position"]],
    zeros: Float[Array, "sender batch position width"],
    span_at: SpanAt,
    size: int,
    mesh: Mesh | None,
) -> Float[Array, "sender batch position width"]:
    """What each sender of `model` is replaced by, on the devices of `mesh`.

    - `prompts`: the corrupt ones, and which positions are inside. `zeros`: the reference "zero".
    - `span_at`: of a model that is divided at spans of the prompts. `size`: prompts computed at once.

    Of a sender that is a node at a span of positions, an array and the mean of the node count inside of the span.

    Raises ValueError for an array of another shape or of no numbers.
    """
    if isinstance(reference, str) and reference == "zero":
        return zeros
    if isinstance(reference, eqx.Module):
        model = batching.place_weights(reference, mesh)
    elif not isinstance(reference, str):
        values = place(real_array("reference", reference), None).astype(model.dtype)
        if values.shape != zeros.shape:
            raise ValueError(
                f"reference: expected shape {zeros.shape} (sender, batch, position, width), got {values.shape}"
            )
        return within_spans(model, place(values, mesh, None, PROMPTS), span_at)
    corrupt, inside = prompts
    values = sender_values(model, corrupt, size, span_at)
    if isinstance(reference, str) and reference == "mean":
        return divided(model, mean_reference(values, inside, mesh), span_at)
    return values


def within_spans(
    model: Model, values: Float[Array, "sender batch position width"], span_at: SpanAt
) -> Float[Array, "sender batch position width"]:
    """Values of senders that are nodes at spans of positions, 0 elsewhere; of a model without spans all of them."""
    return values if model.spans_text is None else _within(values, _inside(model, values, span_at), is_whole=True)


def written_at(
    model: Model, inside: Bool[Array, "batch position"], span_at: SpanAt
) -> Bool[Array, "sender batch position"]:
    """Where each sender is a node: in its prompt, and of a model that is divided at spans in its own."""
    ones = jnp.broadcast_to(inside[None, ..., None].astype(model.dtype), (model.graph.shape[0], *inside.shape, 1))
    return within_spans(model, ones, span_at)[..., 0] > 0


def divided(
    model: Model, values: Float[Array, "sender batch position width"], span_at: SpanAt
) -> Float[Array, "sender batch position width"]:
    """Values of other prompts, whose spans lie elsewhere, at each prompt's own spans: whole nodes', divided there."""
    return values if span_at is None else _within(values, _inside(model, values, span_at), is_whole=False)


def _inside(model: Model, values: Array, span_at: SpanAt) -> Bool[Array, "span _ position"]:
    """Which positions lie in each span: of each prompt, or of all alike."""
    if span_at is None:
        return model.inside(jnp.arange(values.shape[2], dtype=jnp.int32))[:, None]
    return span_at[None] == jnp.arange(len(model.span_names) + 1, dtype=span_at.dtype)[:, None, None]


@eqx.filter_jit
def _within(values: Array, inside: Array, is_whole: bool) -> Float[Array, "sender batch position width"]:
    """A node is so many senders behind each other, in the order of the spans; `is_whole`: each has all."""
    each = values.reshape(-1, len(inside), *values.shape[1:])
    each = each if is_whole else each.sum(1, keepdims=True)
    return jnp.where(inside[None, ..., None], each, 0).reshape(values.shape)


@eqx.filter_jit
def mean_reference(values: Array, inside: Array, mesh: Mesh | None) -> Float[Array, "sender batch position width"]:
    """For every prompt, the mean of all prompts at each position; padding does not count."""
    mean = mean_inside(values, inside, (1,))
    return constrain(jnp.broadcast_to(mean, values.shape), mesh, None, PROMPTS)


def mean_inside(values: Array, inside: Array, axes: tuple[int, ...]) -> Float[Array, "sender _ _ width"]:
    """The mean of [sender, batch, position, width] over prompts, or these and positions, those inside alone.

    - `inside`: bool [batch, position], or one a sender, see `written_at`.
    """
    inside = inside.reshape(-1, *inside.shape[-2:], 1)
    counts = jnp.maximum(inside.sum(axes, keepdims=True), 1).astype(values.dtype)
    return jnp.where(inside, values, 0).sum(axes, keepdims=True) / counts


def sender_values(
    model: Model, tokens: Int[Array, "batch position"], size: int, span_at: SpanAt = None
) -> Float[Array, "sender batch position width"]:
    """What every node of the clean run writes; `size` prompts at a time."""
    return recorded(model, tokens, size, span_at)[1]


@eqx.filter_jit
def recorded(
    model: Model, tokens: Int[Array, "batch position"], size: int, span_at: SpanAt = None
) -> tuple[Float[Array, "moment batch position width"], Float[Array, "sender batch position width"]]:
    """What every moment of the clean run reads, and what every node writes: one program, whoever asks for either."""

    def one(prompt: tuple) -> tuple[Array, Array]:
        return model.of_prompt(prompt[1]).recorded(prompt[0])

    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), batching.chunked_vmap(one, (tokens, span_at), size))
