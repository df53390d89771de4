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

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import batching
from ..objective import Held, Objective
from ..scores import Scores
from .measure import refuse_flat, scored


def atp_star(objective: Objective, *, qk_fix: bool = True, grad_drop: bool = True) -> Scores:
    """AtP* of every edge. With neither fix it is EAP; without GradDrop its scores have a sign.

    Raises ValueError where the gradient at the clean run is zero (KL), and for GradDrop on a single layer.
    """
    drops = _drops(objective, "atp-star", grad_drop)
    return scored(
        objective,
        "atp-star",
        lambda: _edges(objective, drops, qk_fix),
        passes=(len(drops) + 2, len(drops)),
        signed=not grad_drop,
        qk_fix=qk_fix,
        grad_drop=grad_drop,
    )


def atp_nodes(objective: Objective, *, grad_drop: bool = True) -> Float[np.ndarray, " receiver"]:
    """AtP* of every query, key and value of a head and of every MLP, in the order of receivers; `logits` is 0.

    A query or key takes the value it has where the head reads what all senders write in the reference. Raises
    ValueError as `atp_star` does.
    """
    return np.asarray(_nodes(objective, _drops(objective, "atp-star", grad_drop)), np.float64)


def _drops(objective: Objective, method: str, grad_drop: bool) -> Bool[Array, "run sender"]:
    """The senders that no gradient passes, for each backward pass."""
    refuse_flat(objective, method)
    objective.require(method, "attention_effects", remedy="choose a method without attention (eap, exact)")
    graph = objective.graph
    if not grad_drop:
        return jnp.zeros((1, graph.shape[0]), bool)
    if graph.num_layers < 2:
        raise ValueError(f"{method}: GradDrop needs at least 2 layers, got {graph.num_layers}; use grad_drop=False")
    layers = (graph.sender_times + 1) // 2 - 1  # -1: the embeddings
    return jnp.asarray(layers[None] == np.arange(graph.num_layers)[:, None])


@eqx.filter_jit
def _edges(objective: Objective, drops: Bool[Array, "run sender"], qk_fix: bool) -> Float[Array, "sender receiver"]:
    graph = objective.graph

    def one(prompt):
        change, streams, scores, slopes = _runs(objective, drops, prompt)
        if qk_fix:
            effects = _attention_effects(objective, streams, lambda layer: change, slopes)[:, :, :2]
            columns = effects.transpose(1, 0, 2, 3).reshape(change.shape[0], -1)
            scores = scores.at[:, _head_inputs(objective, "qk")].set(columns)
        return scores

    each = batching.chunked_vmap(one, objective._prompts(), objective.microbatch)
    return jnp.where(jnp.asarray(graph.valid), each.mean(0), 0) / _counted_runs(objective, drops)


@eqx.filter_jit
def _nodes(objective: Objective, drops: Bool[Array, "run sender"]) -> Float[Array, " receiver"]:
    graph = objective.graph
    times = jnp.asarray(graph.sender_times, jnp.int32)
    mlps = [(graph.receiver_index(name), row) for row, name in enumerate(graph.senders) if name.startswith("m")]

    def one(prompt):
        change, streams, _, slopes = _runs(objective, drops, prompt)

        def all_senders(layer):
            return jnp.where((times <= 2 * layer)[:, None, None], change, 0).sum(0, keepdims=True)

        effects = _attention_effects(objective, streams, all_senders, slopes)
        scores = jnp.zeros(graph.shape[1], change.dtype).at[_head_inputs(objective, "qkv")].set(effects.reshape(-1))
        for column, row in mlps:
            each = jnp.einsum("td,gtd->g", change[row], slopes[:, times[row]])
            scores = scores.at[column].set(_over_runs(each))
        return scores

    each = batching.chunked_vmap(one, objective._prompts(), objective.microbatch)
    return each.mean(0) / _counted_runs(objective, drops)[0]


def _runs(objective: Objective, drops: Array, prompt: tuple) -> tuple[Array, Array, Array, Array]:
    """What the scores of one prompt are made of.

    Each sender's change to the reference, what every half-layer reads, EAP over the runs [sender, receiver], and every
    run's gradient at what is written at each time [run, time, position, width], 0 where it is dropped.
    """
    tokens, reference, *rest = prompt
    model, graph = objective.model, objective.graph
    written, streams = model.sender_values(tokens), model.receiver_streams(tokens)
    change = reference - written
    times = np.arange(2 * graph.num_layers + 1)[:, None]
    reads, writes = jnp.asarray(graph.receiver_times >= times, change.dtype), jnp.asarray(graph.sender_times == times)

    def run(total, dropped):
        _, slopes = model.receiver_slopes(tokens, lambda x: objective._score(x, *rest), Held(dropped, written))
        with jax.default_matmul_precision(model.precision):
            scores = jnp.einsum("std,rtd->sr", change, slopes)
            total = total + (scores if len(drops) == 1 else jnp.abs(scores))
            passes = ~(writes & dropped[None]).any(1)
            return total, jnp.where(passes[:, None, None], jnp.einsum("wr,rtd->wtd", reads, slopes), 0)

    zeros = jnp.zeros(graph.shape, change.dtype)
    scores, slopes = jax.lax.scan(run, zeros, drops)
    return change, streams, scores, slopes


def _attention_effects(
    objective: Objective, streams: Array, changes: Callable[[Array], Array], slopes: Array
) -> Float[Array, "layer change kv head"]:
    """What changed inputs of queries, keys and values do with the pattern recomputed, over the runs."""

    def at_layer(layer):
        after = slopes[:, 2 * layer + 1]
        return _over_runs(objective.model.attention_effects(layer, streams[2 * layer], changes(layer), after))

    return jax.lax.map(at_layer, jnp.arange(objective.graph.num_layers, dtype=jnp.int32))


def _head_inputs(objective: Objective, kinds: str) -> np.ndarray:
    """Columns of heads' inputs of some kinds, by layer, kind and head."""
    endings = tuple(f"<{kind}>" for kind in kinds)
    return np.flatnonzero([name.endswith(endings) for name in objective.graph.receivers])


def _over_runs(scores: Float[Array, "run ..."]) -> Float[Array, "..."]:
    """The score of the one run there is; of GradDrop's several, the sum of sizes."""
    return scores[0] if scores.shape[0] == 1 else jnp.abs(scores).sum(0)


def _counted_runs(objective: Objective, drops: Array) -> Float[Array, "1 receiver"]:
    """How many runs a receiver's mean is over: all but the one that drops its own layer."""
    graph = objective.graph
    in_layer = graph.receiver_times < 2 * graph.num_layers
    counts = np.where(in_layer, graph.num_layers - 1, graph.num_layers) if len(drops) > 1 else np.ones(len(in_layer))
    return jnp.asarray(counts, objective.model.dtype)[None]
