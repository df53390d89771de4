"""A clean run with one input displaced: everything before that input is clean, and is not computed again."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..graph import Graph
from ..layout import Nodes
from ..types import SenderValues
from . import runs

Streams = Float[Array, "moment position width"]


class Place(eqx.Module):
    """A receiver, and the nodes that read through it.

    - `nodes`: its group of equal nodes (None: it is `logits`). `moment`: when it reads. `layer`, `index`: as of a
      `Receiver`; `port`: which of the nodes' inputs it is.
    - `readers`: numbers of the nodes in their layer; `rows`: of what they write, in the senders' order.
    """

    nodes: Nodes | None = eqx.field(static=True)
    moment: Int[Array, ""]
    layer: Int[Array, ""]
    port: Int[Array, ""]
    index: Int[Array, ""]
    readers: Int[Array, " reader"]
    rows: Int[Array, " row"]


def place_of(graph: Graph, column: int) -> Place:
    """The place of a mask's column."""
    receiver = graph.receiver_table[column]
    readers = [graph.sender_table[row] for row in receiver.readers]
    nodes = graph.blocks[readers[0].block] if readers else None
    port = 0 if nodes is None else [port for port, _ in nodes.inputs].index(receiver.port)
    numbers = receiver.reads, receiver.layer, port, receiver.index
    indices = list(dict.fromkeys(reader.index for reader in readers)), list(receiver.readers)
    return Place(nodes, *map(jnp.int32, numbers), *(jnp.asarray(np.array(x, np.int32)) for x in indices))


def displaced_residual(
    model: Any, place: Place, streams: Streams, written: SenderValues, offset: Float[Array, "position width"]
) -> Float[Array, "position width"]:
    """The last residual of the clean run whose receiver at `place` reads `offset` more."""
    if place.nodes is None:
        return streams[-1] + offset
    new = _rewritten(model, place, streams[place.moment], offset)
    change = new.sum(0) - written[place.rows].sum(0)
    return residual_from(model, streams[place.moment + 1] + change, place.moment + 1)


def _rewritten(
    model: Any, place: Place, x: Float[Array, "position width"], offset: Float[Array, "position width"]
) -> Float[Array, "reader position width"]:
    """What the nodes that read through a place write when it reads `offset` more than `x`."""
    nodes, at = place.nodes, runs.positions_of(x)
    assert nodes is not None

    def computed(number: int, node: Array) -> Array:
        port, inputs = nodes.inputs[number]
        index = jnp.asarray(np.array(inputs, np.int32))[node]
        is_here = (place.port == number) & (place.index == index)
        return model.read(port, place.layer, index, x + jnp.where(is_here, offset, 0), at)

    def ys(node: Array) -> tuple[Array, ...]:
        return tuple(computed(number, node) for number in range(len(nodes.inputs)))

    if nodes.is_joint:
        return model.write(nodes.kind, place.layer, place.readers, jax.vmap(ys)(place.readers), at)
    return jax.vmap(lambda node: model.write(nodes.kind, place.layer, node, ys(node), at))(place.readers)


def change_effects(
    model: Any,
    place: Place,
    x: Float[Array, "position width"],
    changes: Float[Array, "change position width"],
    slopes: Float[Array, "run position width"],
) -> Float[Array, "run change"]:
    """`<slope, new output - output>` of the nodes that read through a place, for each change of what it reads."""
    clean = _rewritten(model, place, x, jnp.zeros_like(x)).sum(0)

    def effect(change):
        return jnp.einsum("gtd,td->g", slopes, _rewritten(model, place, x, change).sum(0) - clean)

    return jax.vmap(effect, out_axes=1)(changes)


def residual_from(
    model: Any, x: Float[Array, "position width"], moment: Int[Array, ""]
) -> Float[Array, "position width"]:
    """The last residual of the plain run that reads `x` at a moment."""
    branches, which, layers, layer = [], [], [], 0
    for stack in model.layout.stacks:
        count = len(stack.moments)
        which += [len(branches) + number for number in range(count)] * stack.layers
        layers += np.repeat(np.arange(layer, layer + stack.layers), count).tolist()
        branches += [_branch(model, stack, number) for number in range(count)]
        layer += stack.layers

    def step(now, x):
        where = jnp.asarray(np.array([which, layers], np.int32))[:, now]
        return jax.lax.switch(where[0], branches, where[1], x)

    return jax.lax.fori_loop(moment, jnp.int32(len(which)), step, x)


def _branch(model: Any, stack: Any, number: int):
    return lambda layer, x: runs.after(model, stack, number, layer, x)
