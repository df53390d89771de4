"""The gradient at every receiver's input of a GPT-2's clean run, in one backward pass and without a buffer of senders.

In the clean run all heads of a layer read the same `x`, so the gradient at the input of one query, key or value is
the pull-back of the gradient at what it is projected to:

    dL/dx_r = J_norm(x)^T W_r dL/d(x_r W_r),

and the forward and backward passes are those of the plain model. Zeros added at the projections, at the MLPs' inputs
and at the last residual are what is differentiated with respect to.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..types import ReceiverValues, SenderValues


class Held(eqx.Module):
    """Senders that write `values` whatever they read."""

    which: Bool[Array, " sender"]
    values: SenderValues


class _Taps(eqx.Module):
    """Zeros, to differentiate with respect to."""

    projections: Float[Array, "layer kv head position key"]
    mlps: Float[Array, "layer position width"] | None
    logits: Float[Array, "position width"]


def receiver_slopes(
    model: Any,
    embeddings: Float[Array, "embedding position width"],
    score: Callable[[Float[Array, "position width"]], Float[Array, ""]],
    held: Held | None,
) -> tuple[SenderValues, ReceiverValues]:
    """What every node writes, and `d score(residual) / d(what each receiver reads)`."""

    def loss(taps):
        residual, streams, written = _run(model, embeddings, taps, held)
        return score(residual), (streams, written)

    slopes, (streams, written) = jax.grad(loss, has_aux=True)(_zeros(model, embeddings.shape[1]))
    heads = jax.vmap(_pull_back)(model.blocks, streams, slopes.projections)
    layers = heads if slopes.mlps is None else jnp.concatenate([heads, slopes.mlps[:, None]], axis=1)
    return written, jnp.concatenate([layers.reshape(-1, *slopes.logits.shape), slopes.logits[None]])


def _zeros(model: Any, positions: int) -> _Taps:
    layers, heads, width, key = model.blocks.attention.query.shape
    return _Taps(
        projections=jnp.zeros((layers, 3, heads, positions, key), model.dtype),
        mlps=None if model.blocks.mlp is None else jnp.zeros((layers, positions, width), model.dtype),
        logits=jnp.zeros((positions, width), model.dtype),
    )


def _run(
    model: Any, embeddings: Float[Array, "embedding position width"], taps: _Taps, held: Held | None
) -> tuple[Array, Array, SenderValues]:
    """The plain run: the last residual, what each layer's heads read, what every node writes."""

    def step(x, layer):
        block, scale, projections, mlp_offset, held = layer
        normed = block.attention_input(x)
        query, key, value = block.attention.project(normed, normed, normed) + projections
        mixed = block.attention.attend(query, key, value, scale)
        heads = block.attention.heads(jax.lax.stop_gradient(mixed))  # for the result; the stream gets their sum
        after = x + block.attention.output_bias[None]
        if held is not None:
            is_held = held.which[: heads.shape[0], None, None]
            heads = _hold(heads, held, slice(None, heads.shape[0]))
            mixed, after = jnp.where(is_held, 0, mixed), after + jnp.where(is_held, heads, 0).sum(0)
        after = after + block.attention.sum_of_heads(mixed)
        if block.mlp is None:
            return after, (x, heads)
        written = block.mlp_output(after + mlp_offset)[None]
        if held is not None:
            written = _hold(written, held, slice(-1, None))
        return after + written[0], (x, jnp.concatenate([heads, written]))

    layers, first = model.config.n_layer, embeddings.shape[0]
    scales = jnp.asarray(model.config.attention_scales, model.dtype)
    each = None if held is None else jax.tree.map(lambda leaf: leaf[first:].reshape(layers, -1, *leaf.shape[1:]), held)
    if held is not None:
        embeddings = _hold(embeddings, held, slice(None, first))
    layered = model.blocks, scales, taps.projections, taps.mlps, each
    last, (streams, written) = jax.lax.scan(step, embeddings.sum(0), layered)
    written = jnp.concatenate([embeddings, written.reshape(-1, *embeddings.shape[1:])])
    return last + taps.logits, streams, written


def _hold(written: Array, held: Held, rows: slice) -> Array:
    return jnp.where(held.which[rows, None, None], held.values[rows], written)


def _pull_back(
    block: Any, x: Float[Array, "position width"], slopes: Float[Array, "kv head position key"]
) -> Float[Array, "input position width"]:
    """Gradients at the projections to those at the inputs that were projected, before the layer norm."""
    attention = block.attention
    weights = (attention.query, attention.key, attention.value)
    normed = jnp.concatenate(
        [jnp.einsum("htk,hdk->htd", slope, weight) for slope, weight in zip(slopes, weights, strict=True)]
    )
    return normed if block.attention_norm is None else block.attention_norm.pull_back(x, normed)


def attention_effects(
    model: Any,
    layer: Int[Array, ""],
    x: Float[Array, "position width"],
    changes: Float[Array, "change position width"],
    slopes: Float[Array, "run position width"],
) -> Float[Array, "run change kv head"]:
    """`<slope, new output - output>` of every head, for each change of what its query, key or value reads."""
    block = jax.tree.map(lambda leaf: leaf[layer], model.blocks)
    scale = jnp.asarray(model.config.attention_scales, model.dtype)[layer]
    attention = block.attention

    def project(x):
        normed = block.attention_input(x)
        return attention.project(normed, normed, normed)

    query, key, value = project(x)
    pattern = attention.pattern(query, key, scale)
    mixed_slopes = jnp.einsum("gtd,hkd->ghtk", slopes, attention.output)
    pattern_slopes = jnp.einsum("ghtk,huk->ghtu", mixed_slopes, value)
    value_slopes = jnp.einsum("ghtk,htu->ghuk", mixed_slopes, pattern)

    def effects(change):
        new_query, new_key, new_value = project(x + change)
        from_query = attention.pattern(new_query, key, scale) - pattern
        from_key = attention.pattern(query, new_key, scale) - pattern
        both = [jnp.einsum("ghtu,htu->gh", pattern_slopes, difference) for difference in (from_query, from_key)]
        return jnp.stack([*both, jnp.einsum("ghuk,huk->gh", value_slopes, new_value - value)], axis=1)

    return jnp.moveaxis(jax.vmap(effects)(changes), 0, 1)
