"""AtP* (Kramar et al., 2403.00745): attribution patching without its two known kinds of false negatives.

1. QK fix. A saturated softmax has no slope. For edges into queries and keys the attention pattern A is recomputed
   with the receiver reading `reference_s - clean_s` more, and the effect is `<dL/dA, A' - A>`.
2. GradDrop. Direct and indirect effects may cancel. One backward pass for each layer l, in which no gradient passes
   what layer l writes; the score is the sum of the absolute values, per prompt, over L - 1: the pass of the receiver's
   own layer gives 0. `logits` is in no layer, and its edges are divided by L. The score has no sign.

The paper scores nodes. `atp_nodes` does: all edges into a query, key, value or MLP at once, at all positions. Choices
of the edge version `atp_star`: a layer norm before a query or key is recomputed too; values, MLPs and logits are
linear, as in EAP.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import batching
from ..arguments import checked
from ..finite import check_finite
from ..gradients import score_of
from ..graph import Graph
from ..objective import Held, Objective
from ..precision import products
from ..scores import Scores
from .measure import refuse_flat, ruled, scored

QUERIES_AND_KEYS = ("q", "k")
"""Ports through which a pattern is read, where saturation hides effects."""


@checked
def atp_star(objective: Objective, *, qk_fix: bool = True, grad_drop: bool = True, backward: str = "plain") -> Scores:
    """AtP* of every edge. With neither fix it is EAP; without GradDrop its scores have a sign.

    `backward`: the rules of its gradients, see `attribution.py`. Nodes that read once (unsplit heads, layers) have no
    queries and keys that could be fixed; the record says so. What is fixed is no gradient any more: rules that scale
    those of queries and keys ("gim", "attn-lrp": 1/4) do not scale it, as they do those of values (1/2).

    Raises ValueError where the gradient at the clean run is zero (KL), and for GradDrop on a single layer.
    """
    drops = _drops(objective, "atp-star", grad_drop)
    own = ruled(objective, backward)
    return scored(
        objective,
        "atp-star",
        lambda: _edges(own, drops, qk_fix),
        passes=(len(drops) + 2, len(drops)),
        signed=not grad_drop,
        qk_fix=qk_fix and bool(_ports(objective.graph, QUERIES_AND_KEYS)),
        grad_drop=grad_drop,
        backward=backward,
    )


@checked
def atp_nodes(
    objective: Objective, *, grad_drop: bool = True, backward: str = "plain"
) -> Float[np.ndarray, " receiver"]:
    """AtP* of every query, key and value of a head and of every MLP, in the order of receivers; `logits` is 0.

    A query or key takes the value it has where the head reads what all senders write in the reference. Raises
    ValueError as `atp_star` does, and for NaN or infinity, naming the receiver.
    """
    drops = _drops(objective, "atp-star", grad_drop)
    values = np.asarray(_nodes(ruled(objective, backward), drops), np.float64)
    check_finite("scores of nodes (atp-star)", values, receiver=objective.graph.receivers)
    return values


def _drops(objective: Objective, method: str, grad_drop: bool) -> Bool[Array, "run sender"]:
    """The senders that no gradient passes, for each backward pass."""
    refuse_flat(objective, method)
    graph = objective.graph
    if not grad_drop:
        return jnp.zeros((1, graph.shape[0]), bool)
    if graph.num_layers < 2:
        raise ValueError(f"{method}: GradDrop needs at least 2 layers, got {graph.num_layers}; use grad_drop=False")
    layers = np.array([sender.layer for sender in graph.sender_table])
    return jnp.asarray(layers[None] == np.arange(graph.num_layers)[:, None])


@eqx.filter_jit
def _edges(objective: Objective, drops: Bool[Array, "run sender"], qk_fix: bool) -> Float[Array, "sender receiver"]:
    graph = objective.graph

    def one(objective, prompt):
        change, streams, scores, slopes = _runs(objective, drops, prompt)
        for columns in _ports(graph, QUERIES_AND_KEYS) if qk_fix else ():
            effects = _effects(objective, columns, streams, lambda place: change, slopes)
            scores = scores.at[:, np.array(columns)].set(effects.T)
        return scores

    each = batching.over_prompts(objective, one, objective._prompts())
    return jnp.where(jnp.asarray(graph.valid), each.mean(0), 0) / _counted_runs(objective, drops)


@eqx.filter_jit
def _nodes(objective: Objective, drops: Bool[Array, "run sender"]) -> Float[Array, " receiver"]:
    graph = objective.graph
    written = jnp.asarray(graph.written, jnp.int32)
    recomputed = [columns for columns in _ports(graph, None) if _is_recomputed(graph, columns[0])]
    alone = sorted(set(range(graph.shape[1] - 1)) - {column for columns in recomputed for column in columns})

    def one(objective, prompt):
        change, streams, _, slopes = _runs(objective, drops, prompt)

        def all_senders(place):
            return jnp.where((written <= place.moment)[:, None, None], change, 0).sum(0, keepdims=True)

        scores = jnp.zeros(graph.shape[1], change.dtype)
        for columns in recomputed:
            effects = _effects(objective, columns, streams, all_senders, slopes)
            scores = scores.at[np.array(columns)].set(effects[:, 0])
        for column in alone:
            rows = list(graph.receiver_table[column].readers)
            each = jnp.einsum("td,gtd->g", change[np.array(rows)].sum(0), slopes[:, written[rows[0]]])
            scores = scores.at[column].set(_over_runs(each))
        return scores

    each = batching.over_prompts(objective, one, objective._prompts())
    return each.mean(0) / _counted_runs(objective, drops)[0]


def _runs(objective: Objective, drops: Array, prompt: tuple) -> tuple[Array, Array, Array, Array]:
    """What the scores of one prompt are made of.

    Each sender's change to the reference, what every moment reads, EAP over the runs [sender, receiver], and every
    run's gradient at what is written before each moment [run, moment, position, width], 0 where it is dropped.
    """
    tokens, reference, *rest = prompt
    model, graph = objective.model, objective.graph
    written, streams = model.sender_values(tokens), model.receiver_streams(tokens)
    change = reference - written
    moments = np.arange(graph.reads[-1] + 1)[:, None]
    reads, writes = jnp.asarray(graph.reads >= moments, change.dtype), jnp.asarray(graph.written == moments)

    def run(total, dropped):
        _, slopes = model.receiver_slopes(tokens, score_of(objective, *rest), Held(dropped, written))
        with products(model.precision):
            scores = jnp.einsum("std,rtd->sr", change, slopes)
            total = total + (scores if len(drops) == 1 else jnp.abs(scores))
            passes = ~(writes & dropped[None]).any(1)
            return total, jnp.where(passes[:, None, None], jnp.einsum("wr,rtd->wtd", reads, slopes), 0)

    zeros = jnp.zeros(graph.shape, change.dtype)
    scores, slopes = jax.lax.scan(run, zeros, drops)
    return change, streams, scores, slopes


def _effects(
    objective: Objective, columns: Sequence[int], streams: Array, changes: Callable[[Any], Array], slopes: Array
) -> Float[Array, "receiver change"]:
    """What changed inputs do with their nodes recomputed, over the runs; all receivers are of one port."""
    model = objective.model

    def at_place(place):
        after = slopes[:, place.moment + 1]
        return _over_runs(model.change_effects(place, streams[place.moment], changes(place), after))

    places = [model.place(column) for column in columns]
    return jax.lax.map(at_place, jax.tree.map(lambda *leaves: jnp.stack(leaves), *places))


def _is_recomputed(graph: Graph, column: int) -> bool:
    """Whether what a receiver's node writes is not its own alone: it has other inputs, or nodes that it meets."""
    row = graph.receiver_table[column].owners[0]
    return len(graph.inputs(graph.senders[row])) > 1 or graph.blocks[graph.sender_table[row].block].is_joint


def _ports(graph: Graph, names: tuple[str, ...] | None) -> list[list[int]]:
    """Columns of the receivers of nodes, by port (`names`: of these alone), where all have as many readers."""
    ports: dict[tuple, list[int]] = {}
    for column, receiver in enumerate(graph.receiver_table[:-1]):
        if names is None or receiver.port in names:
            kind = graph.sender_table[receiver.readers[0]].kind
            ports.setdefault((receiver.port, kind, len(receiver.readers)), []).append(column)
    return list(ports.values())


def _over_runs(scores: Float[Array, "run ..."]) -> Float[Array, "..."]:
    """The score of the one run there is; of GradDrop's several, the sum of sizes."""
    return scores[0] if scores.shape[0] == 1 else jnp.abs(scores).sum(0)


def _counted_runs(objective: Objective, drops: Array) -> Float[Array, "1 receiver"]:
    """How many runs a receiver's mean is over: all but the one that drops its own layer."""
    graph = objective.graph
    in_layer = graph.reads < graph.reads[-1]
    counts = np.where(in_layer, graph.num_layers - 1, graph.num_layers) if len(drops) > 1 else np.ones(len(in_layer))
    return jnp.asarray(counts, objective.model.dtype)[None]
