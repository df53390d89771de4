"""The runs of any model, derived from what its receivers and nodes compute: plain, recorded, masked.

The masked forward. With `z_s` what sender s writes, `ref_s` what it wrote in the reference run and `mask_sr`
the edge, receiver r reads

    x_r = constants + sum_s [ mask_sr z_s + (1 - mask_sr) ref_s ]
        = base      + sum_s   mask_sr (z_s - ref_s),       base = constants + sum_s ref_s

so one buffer `delta[sender] = z - ref`, zero until its row is written, and one running sum `base` are all that
the layers hand on. Rows not yet written are zero, hence mask entries that are no edge have no effect. A mask may have a
third axis, position: `mask_srt`, with which position t of receiver r reads sender s.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ..layout import Layout, Moment, Nodes, Stack
from ..types import PositionedMask, ReceiverValues, SenderValues, Tokens
from .architecture import Layer

Computed = dict[str, Array]
"""What the receivers of a moment compute: of each port [receiver, position, ...]."""


class Held(eqx.Module):
    """Senders that write `values` whatever they read."""

    which: Bool[Array, " sender"]
    values: SenderValues


# --- one moment of one layer ---------------------------------------------------------------------


def positions_of(x: Float[Array, "*_ position width"]) -> Int[Array, " position"]:
    """All positions of a prompt."""
    return jnp.arange(x.shape[-2], dtype=jnp.int32)


def computed(model: Any, moment: Moment, layer: Layer, x: Float[Array, "*receiver position width"]) -> Computed:
    """What receivers compute; `x` is the same for all of them, or one a receiver."""
    at, ys, first = positions_of(x), {}, 0
    for port in moment.ports:
        own = x if x.ndim == 2 else x[first : first + port.count]
        ys[port.name] = model.read_all(port, layer, own, at)
        first += port.count
    return ys


def written(
    model: Any, moment: Moment, layer: Layer, ys: Computed, at: Int[Array, " position"]
) -> tuple[Float[Array, "sender position width"], Float[Array, "position width"]]:
    """What all nodes of the moment write, and the sum."""
    rows, sums = [], []
    for nodes in moment.nodes:
        new, total = model.write_all(nodes, layer, inputs_of(nodes, ys), at)
        rows.append(model.in_spans(new, at) if nodes.spans else new)
        sums.append(total)
    return (rows[0] if len(rows) == 1 else jnp.concatenate(rows)), sum(sums[1:], sums[0])


def inputs_of(nodes: Nodes, ys: Computed) -> tuple[Array, ...]:
    """What every node's receivers computed, of each port [node, position, ...]."""
    return tuple(
        ys[port] if inputs == tuple(range(len(ys[port]))) else ys[port][np.array(inputs)]
        for port, inputs in nodes.inputs
    )


def unit_rows(
    model: Any, nodes: Nodes, layer: ArrayLike, at: Int[Array, " position"], index: Array, ys: tuple[Array, ...]
) -> Float[Array, "row position width"]:
    """What the senders that are computed at once write: those of one node, or of all joint ones; see `model.write`."""
    new = model.write(nodes.kind, layer, index, ys, at)
    rows = new if nodes.is_joint else new[None]
    return model.in_spans(rows, at) if nodes.spans else rows


def plus_constant(model: Any, x: Float[Array, "position width"], layer: Layer, moment: int) -> Array:
    """`x` with what belongs to no node."""
    constant = model.constant(layer, moment)
    return x if constant is None else x + constant[None]


def after(model: Any, stack: Stack, number: int, layer: Layer, x: Float[Array, "position width"]) -> Array:
    """The stream after a moment whose receivers all read `x`."""
    return with_written(model, stack, number, layer, x, computed(model, stack.moments[number], layer, x))


def with_written(model: Any, stack: Stack, number: int, layer: Layer, x: Array, ys: Computed) -> Array:
    """`x` with what the nodes of a moment write, whose receivers computed `ys`, and with what belongs to no node."""
    total = written(model, stack.moments[number], layer, ys, positions_of(x))[1]
    return plus_constant(model, x + total, layer, number)


# --- all layers ----------------------------------------------------------------------------------


def over_layers(layout: Layout, step: Callable, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """`jax.lax.scan` of `step(stack, carry, (layer, x))` over the layers of each stack; `xs`: of each stack.

    A backward pass takes the weights of a layer again: scans would keep a copy of those of all layers. All that is
    computed is kept, so that no carry (the buffer of `masked`) is held to compute it again.
    """
    outputs, first = [], 0
    for stack, own in zip(layout.stacks, xs, strict=True):
        layers = jnp.arange(first, first + stack.layers, dtype=jnp.int32)
        body = jax.checkpoint(partial(step, stack), prevent_cse=False, policy=_is_kept)
        carry, output = jax.lax.scan(body, carry, (layers, own))
        outputs.append(output)
        first += stack.layers
    return carry, outputs


_MOVED = ("dynamic_slice", "gather", "squeeze", "reshape", "broadcast_in_dim", "transpose", "convert_element_type")


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a backward pass keeps what a primitive computed; what is only moved, as weights are, is moved again."""
    return primitive.name not in _MOVED


def nothing(layout: Layout) -> list[None]:
    """`xs` of layers that take none."""
    return [None] * len(layout.stacks)


def split(layout: Layout, x: Array, of: str) -> list[tuple[Array, ...]]:
    """Rows in graph order to [layer, own, ...] of each moment of each stack; `of`: "num_senders" or "num_receivers".

    Embeddings and `logits` are left out before.
    """
    parts, first = [], 0
    for stack in layout.stacks:
        sizes = [getattr(moment, of) for moment in stack.moments]
        rows = x[first : first + stack.layers * sum(sizes)].reshape(stack.layers, sum(sizes), *x.shape[1:])
        parts.append(tuple(jnp.split(rows, np.cumsum(sizes)[:-1].tolist(), axis=1)))
        first += stack.layers * sum(sizes)
    return parts


def joined(parts: Sequence[Array]) -> Float[Array, "_ position width"]:
    """What each stack's scan gave of its layers, [layer, own, position, width], as rows in graph order."""
    return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def hold(rows: SenderValues, which: Bool[Array, " _"], values: SenderValues) -> SenderValues:
    """What senders write, those of them that are held their constants."""
    return jnp.where(which[:, None, None], values, rows)


def residual(model: Any, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
    """What `logits` reads in the plain run whose embeddings sum to `x`."""

    def step(stack, x, inputs):
        for number in range(len(stack.moments)):
            x = after(model, stack, number, inputs[0], x)
        return x, None

    return over_layers(model.layout, step, x, nothing(model.layout))[0]


def recorded(model: Any, tokens: Tokens) -> tuple[Float[Array, "moment position width"], SenderValues]:
    """What each moment of the clean run reads (last `logits`), and what every node writes."""
    embeddings = model.embeddings(tokens)

    def step(stack, x, inputs):
        streams, rows = [], []
        for number, moment in enumerate(stack.moments):
            streams.append(x)
            rows.append(written(model, moment, inputs[0], computed(model, moment, inputs[0], x), positions_of(x))[0])
            x = plus_constant(model, x + rows[-1].sum(0), inputs[0], number)
        return x, (jnp.stack(streams), jnp.concatenate(rows))

    last, outputs = over_layers(model.layout, step, embeddings.sum(0), nothing(model.layout))
    streams, rows = zip(*outputs, strict=True)
    return jnp.concatenate([joined(streams), last[None]]), jnp.concatenate([embeddings, joined(rows)])


def masked(
    model: Any,
    tokens: Tokens,
    mask: PositionedMask,
    reference: SenderValues,
    offsets: ReceiverValues | None,
    held: Held | None = None,
) -> tuple[Float[Array, "position width"], SenderValues]:
    """What `logits` reads in a circuit, and what its nodes wrote minus the reference."""
    layout, embeddings = model.layout, model.embeddings(tokens)
    first = len(embeddings)
    at = positions_of(reference)
    masks = split(layout, jnp.moveaxis(mask[:, :-1], 0, 1), "num_receivers")
    references = split(layout, reference[first:], "num_senders")
    moved = nothing(layout) if offsets is None else split(layout, offsets[:-1], "num_receivers")
    constant = nothing(layout)
    if held is not None:
        which, values = (split(layout, x[first:], "num_senders") for x in (held.which, held.values))
        constant = list(zip(which, values, strict=True))
        embeddings = hold(embeddings, held.which[:first], held.values[:first])

    def step(stack, carry, inputs):
        base, delta, row = carry
        layer, (masks, references, moved, constant) = inputs
        for number, moment in enumerate(stack.moments):
            x = base[None] + jnp.einsum("rs...,s...d->r...d", masks[number], delta)
            x = x if moved is None else x + moved[number]
            new = written(model, moment, layer, computed(model, moment, layer, x), at)[0]
            new = new if constant is None else hold(new, constant[0][number], constant[1][number])
            delta = jax.lax.dynamic_update_slice_in_dim(delta, new - references[number], row, 0)
            base = plus_constant(model, base + references[number].sum(0), layer, number)
            row = row + moment.num_senders
        return (base, delta, row), None

    delta = jnp.zeros_like(reference).at[:first].set(embeddings - reference[:first])
    start = reference[:first].sum(0), delta, jnp.int32(first)
    (base, delta, _), _ = over_layers(layout, step, start, list(zip(masks, references, moved, constant, strict=True)))
    x = base + jnp.einsum("s...,s...d->...d", mask[:, -1], delta)
    return x if offsets is None else x + offsets[-1], delta


def patterns(model: Any, tokens: Tokens) -> Float[Array, "layer head position position"]:
    """How much each position of the clean run reads of each other, in every head of every layer."""

    def step(stack, x, inputs):
        layer, found = inputs[0], []
        for number, moment in enumerate(stack.moments):
            ys = computed(model, moment, layer, x)
            for nodes in moment.nodes:
                if nodes.kind == "head":
                    own = inputs_of(nodes, ys)
                    run = lambda index, *ys: model.pattern(layer, index, ys)  # noqa: E731
                    run = run if nodes.is_joint else jax.vmap(run)
                    found.append(run(jnp.arange(nodes.count, dtype=jnp.int32), *own))
            x = with_written(model, stack, number, layer, x, ys)
        return x, jnp.concatenate(found)

    layout = model.layout
    return jnp.concatenate(over_layers(layout, step, model.embeddings(tokens).sum(0), nothing(layout))[1])
