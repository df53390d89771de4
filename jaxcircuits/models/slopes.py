"""The gradient at every receiver's input of a clean run, in one backward pass and without a buffer of senders.

In the clean run all receivers of a moment read the same `x`, so the gradient at the input of one of them is the
pull-back of the gradient at what it computes, `dL/dx_r = J_read(x)^T dL/dy_r`, and the forward and backward passes are
those of the plain model. Zeros added at what receivers compute are what is differentiated with respect to; where a port
has a single receiver (an MLP) they are added at what it reads, which saves computing it again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..types import ReceiverValues, SenderValues, Tokens
from . import runs
from .runs import Held


def receiver_slopes(
    model: Any, tokens: Tokens, score: Callable[[Float[Array, "position width"]], Float[Array, ""]], held: Held | None
) -> tuple[SenderValues, ReceiverValues]:
    """What every node writes, and `d score(residual) / d(what each receiver reads)`."""
    layout, embeddings = model.layout, model.embeddings(tokens)

    def loss(taps):
        residual, streams, rows = _run(model, embeddings, taps, held)
        return score(residual), (streams, rows)

    zeros = _zeros(model, embeddings[0]), jnp.zeros_like(embeddings[0])
    (taps, last), (streams, rows) = jax.grad(loss, has_aux=True)(zeros)

    def pull_back(stack, carry, inputs):
        layer, (streams, taps) = inputs
        slopes = [
            _pulled(model, port, layer, streams[number], taps[number][port.name])
            for number, moment in enumerate(stack.moments)
            for port in moment.ports
        ]
        return carry, jnp.concatenate(slopes)

    each = runs.over_layers(layout, pull_back, None, list(zip(streams, taps, strict=True)))[1]
    return rows, jnp.concatenate([runs.joined(each), last[None]])


def _pulled(model: Any, port: Any, layer: Array, x: Array, slopes: Array) -> Float[Array, "receiver position width"]:
    """Gradients at what the receivers of a port compute to those at what they read."""
    if port.count == 1:
        return slopes[None]

    def one(index, slope):
        return jax.vjp(lambda x: model.read(port.name, layer, index, x, runs.positions_of(x)), x)[1](slope)[0]

    return jax.vmap(one)(jnp.arange(port.count, dtype=jnp.int32), slopes)


def _zeros(model: Any, x: Float[Array, "position width"]) -> list[tuple[runs.Computed, ...]]:
    """Of each stack, of each moment, of each port: zeros [layer, receiver, position, ...] to differentiate by."""
    taps = []
    for stack in model.layout.stacks:
        ys = [
            jax.eval_shape(partial(runs.computed, model, moment, jnp.int32(0)), x)
            | {port.name: x for port in moment.ports if port.count == 1}
            for moment in stack.moments
        ]
        taps.append(jax.tree.map(lambda y, n=stack.layers: jnp.zeros((n, *y.shape), y.dtype), tuple(ys)))
    return taps


def _run(
    model: Any, embeddings: Float[Array, "embedding position width"], taps: tuple, held: Held | None
) -> tuple[Array, list[Array], SenderValues]:
    """The plain run: the last residual, each stack's streams [layer, moment, ...], what every node writes."""
    layout, first = model.layout, len(embeddings)
    kept = runs.nothing(layout)
    if held is not None:
        which, values = (runs.split(layout, x[first:], "num_senders") for x in (held.which, held.values))
        kept = list(zip(which, values, strict=True))
        embeddings = runs.hold(embeddings, held.which[:first], held.values[:first])

    def step(stack, x, inputs):
        layer, (taps, held) = inputs
        streams, rows = [], []
        for number, moment in enumerate(stack.moments):
            streams.append(x)
            ys = {}
            for port in moment.ports:
                one = moment._replace(ports=(port,))
                tap = taps[number][port.name]
                if port.count == 1:
                    ys |= runs.computed(model, one, layer, x + tap)
                else:
                    ys[port.name] = runs.computed(model, one, layer, x)[port.name] + tap
            new, total = runs.written(model, moment, layer, ys, runs.positions_of(x))
            if held is None:  # the rows are for the result; the stream gets their sum
                rows.append(jax.lax.stop_gradient(new))
            else:
                rows.append(runs.hold(new, held[0][number], held[1][number]))
                total = rows[-1].sum(0)
            x = runs.plus_constant(model, x + total, layer, number)
        return x, (jnp.stack(streams), jnp.concatenate(rows))

    last, outputs = runs.over_layers(layout, step, embeddings.sum(0), list(zip(taps[0], kept, strict=True)))
    streams, rows = zip(*outputs, strict=True)
    return last + taps[1], list(streams), jnp.concatenate([embeddings, runs.joined(rows)])
