"""Edges between positions (PEAP, position-aware edge attribution patching, 2502.04577), inside of attention heads.

A head's output at position i reads the keys and values of the positions j. With `G_i = dL/d(output at i)` in the clean
run, A the pattern, and ' what the head's receivers compute from the reference values:

| through | j to i |
|---|---|
| v | `<G_i, A_ij (v'_j - v_j) W_O>` |
| k | `<G_i, (A'_i - A_i) v W_O>`, A' the pattern with `k'_j` for `k_j` |
| q | `<G_i, (A'_ij - A_ij) v_j W_O>`, A' the pattern with `q'_i` for `q_i` |

Summed over the positions j of one span and i of another. All follow from the model's own `write`, which is linear in v.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..graph import Graph
from ..layout import Nodes
from ..types import ReceiverValues
from . import runs
from .node_runs import NodeValues

PORTS = ("q", "k", "v")


def check(graph: Graph) -> None:
    """Raises ValueError for a graph without spans, and for one whose heads do not write alone from q, k and v."""
    if not all(nodes.spans for nodes in graph.blocks):
        raise ValueError("peap: expected a model that is divided at spans, as `load(..., spans=...)`")
    heads = [nodes for nodes in graph.blocks if nodes.kind == "head"]
    if any(nodes.is_joint for nodes in heads):
        raise ValueError(
            "peap: expected heads that write alone, got heads that meet in a norm (OLMo 2, Gemma), where what one "
            "writes depends on all; choose another architecture, or eap with spans, which scores edges within them"
        )
    alike = {(nodes.count, tuple(port for port, _ in nodes.inputs)) for nodes in heads}
    if len(heads) != graph.num_layers or len(alike) != 1 or alike.pop()[1] != PORTS:
        raise ValueError("peap: expected as many heads in each layer, with q, k and v; choose units split or ungrouped")


class Heads(NamedTuple):
    """The heads of a stack: which moment of which stack they are, their layers, and the moments that they read at."""

    nodes: Nodes
    stack: int
    moment: int
    layers: Int[np.ndarray, " layer"]
    reads: Int[np.ndarray, " layer"]


def effects(
    model: Any, clean: NodeValues, other: NodeValues, slopes: ReceiverValues
) -> Float[Array, "layer head port span span"]:
    """Of every head, through q, k and v, from each span of keys to each span of queries, in one prompt.

    - `clean`, `other`: what receivers compute in the clean run, and from the reference values.
    - `slopes`: the gradient at what every receiver reads.
    """
    inside = model.inside(runs.positions_of(slopes)).astype(slopes.dtype)
    each = []
    for heads in _stacks(model):
        after = jnp.asarray(model.graph.reads[None] > heads.reads[:, None], slopes.dtype)
        pairs = jnp.einsum("lr,rtd->ltd", after, slopes), _computed(clean, heads), _computed(other, heads)
        each.append(_of_heads(model, heads, *pairs))
    return jnp.einsum("aj,lhjpi,bi->lhpab", inside, jnp.concatenate(each), inside)


def _stacks(model: Any) -> Iterator[Heads]:
    layer = now = 0
    for place, stack in enumerate(model.layout.stacks):
        for number, moment in enumerate(stack.moments):
            layers = np.arange(stack.layers, dtype=np.int32)
            for nodes in moment.nodes:
                if nodes.kind == "head":
                    yield Heads(nodes, place, number, layer + layers, now + number + layers * len(stack.moments))
        layer, now = layer + stack.layers, now + stack.layers * len(stack.moments)


def _computed(values: NodeValues, heads: Heads) -> tuple[Array, ...]:
    """Queries, keys and values of every head [layer, head, position, key]."""
    own = values[heads.stack][heads.moment]
    return tuple(own[port][:, np.array(inputs)] for port, inputs in heads.nodes.inputs)


def _of_heads(
    model: Any, heads: Heads, g: Float[Array, "layer position width"], ys: tuple[Array, ...], others: tuple[Array, ...]
) -> Float[Array, "layer head position port position"]:
    """From each position of keys, through each port, to each of queries."""
    numbers, at = jnp.arange(heads.nodes.count, dtype=jnp.int32), runs.positions_of(g)

    def of_layer(inputs):
        layer, g, ys, others = inputs

        def of_head(inputs):
            head, ys, others = inputs
            return _from_each(lambda *ys: model.write("head", layer, head, ys, at), g, ys, others)

        return jax.lax.map(of_head, (numbers, ys, others))

    return jax.lax.map(of_layer, (jnp.asarray(heads.layers), g, ys, others))


def _from_each(
    write: Callable[..., Array], g: Float[Array, "position width"], ys: tuple[Array, ...], others: tuple[Array, ...]
) -> Float[Array, "position port position"]:
    (q, k, v), (other_q, other_k, other_v) = ys, others
    clean, at = write(q, k, v), runs.positions_of(g)

    def from_key(j):
        here = (at == j)[:, None]
        alone = jnp.where(here, v, 0)
        changes = (
            write(other_q, k, alone) - write(q, k, alone),
            write(q, jnp.where(here, other_k, k), v) - clean,
            write(q, k, jnp.where(here, other_v - v, 0)),
        )
        return jnp.einsum("ptd,td->pt", jnp.stack(changes), g)

    return jax.lax.map(from_key, at)
