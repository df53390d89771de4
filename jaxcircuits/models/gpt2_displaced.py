"""A GPT-2's clean run with one input displaced: everything before that input is clean, and is not computed again."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..types import SenderValues

Streams = Float[Array, "time position width"]


class Place(eqx.Module):
    """A receiver: an input of a head (`kv` 0 query, 1 key, 2 value), of an MLP, or `logits`."""

    kind: str = eqx.field(static=True)
    layer: Int[Array, ""]
    kv: Int[Array, ""]
    head: Int[Array, ""]

    @classmethod
    def of(cls, layers: int, heads: int, has_mlp: bool, receiver: int) -> "Place":
        """The place of a mask's column."""
        layer, index = divmod(receiver, 3 * heads + has_mlp)
        kind = "logits" if layer == layers else "head" if index < 3 * heads else "mlp"
        return cls(kind, *(jnp.int32(number) for number in (layer, index // heads, index % heads)))


def displaced_residual(
    model: Any, place: Place, streams: Streams, written: SenderValues, offset: Float[Array, "position width"]
) -> Float[Array, "position width"]:
    """The last residual of the clean run whose receiver at `place` reads `offset` more.

    `streams`, `written`: of the clean run, as `receiver_streams` and `sender_values` give them.
    """
    if place.kind == "logits":
        return streams[-1] + offset
    layer = place.layer
    middle = streams[2 * layer + 1]
    if place.kind == "mlp":
        return residual_from(model, middle + model.mlp_output(layer, middle + offset), 2 * layer + 2)
    x = streams[2 * layer]
    inputs = (model.head_projection(kv, layer, place.head, x + jnp.where(place.kv == kv, offset, 0)) for kv in range(3))
    changed = model.head_output(layer, place.head, *inputs, jnp.arange(x.shape[0], dtype=jnp.int32))
    first = model.num_embeddings
    row = first + layer * ((written.shape[0] - first) // model.config.n_layer) + place.head
    return residual_from(model, middle + changed - written[row], 2 * layer + 1)


def residual_from(
    model: Any, x: Float[Array, "position width"], time: Int[Array, ""]
) -> Float[Array, "position width"]:
    """The last residual of the plain run that reads `x` at a half-layer: 2l the heads of layer l, 2l + 1 its MLP."""
    scales = jnp.asarray(model.config.attention_scales, model.dtype)

    def attention(block, scale, x):
        return x + block.attention.sum_of_heads(block.mix(x, scale)) + block.attention.output_bias[None]

    def mlp(block, _, x):
        return x if block.mlp is None else x + block.mlp_output(x)

    def half_layer(now, x):
        block = jax.tree.map(lambda leaf: leaf[now // 2], model.blocks)
        return jax.lax.cond(now % 2 == 0, attention, mlp, block, scales[now // 2], x)

    return jax.lax.fori_loop(time, jnp.int32(2 * model.config.n_layer), half_layer, x)
