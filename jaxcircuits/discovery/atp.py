"""AtP* (Kramar et al., 2403.00745): attribution patching without its two known kinds of false negatives.

1. QK fix. A saturated softmax has no slope. For edges into queries and keys the attention pattern A is recomputed
   with the receiver reading `reference_s - clean_s` more, and the effect is `<dL/dA, A' - A>`.
2. GradDrop. Direct and indirect effects may cancel. One backward pass for each layer l, in which no gradient passes
   what layer l writes; the score is the mean of the absolute values, per prompt, over the layers other than the
   receiver's own (whose own pass gives 0), so it has no sign.

The paper scores nodes. `atp_nodes` does: all edges into a query, key, value or MLP at once, at all positions. Choices
of the edge version `atp_star`: a layer norm before a query or key is recomputed too; values, MLPs and logits are
linear, as in EAP.
"""

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
    graph = objective.graph
    if not grad_drop:
        return jnp.zeros((1, graph.shape[0]), bool)
    if graph.num_layers < 2:
        raise ValueError(f"{method}: GradDrop needs at least 2 layers, got {graph.num_layers}; use grad_drop=False")
    layers = (graph.sender_times + 1) // 2 - 1  # -1: the embeddings
    return jnp.asarray(layers[None] == np.arange(graph.num_layers)[:, None])


@eqx.filter_jit
def _edges(objective: Objective, drops: Bool[Array, "run sender"], qk_fix: bool) -> Float[Array, "sender receiver"]:
    model, graph = objective.model, objective.graph

    def one(prompt):
        change, streams, slopes = _runs(objective, drops, prompt)
        with jax.default_matmul_precision(model.precision):
            scores = jnp.einsum("std,grtd->gsr", change, slopes)
        if qk_fix:
            effects = _attention(objective, streams, lambda layer: change, slopes)  # [layer, run, sender, kv, head]
            columns = effects[:, :, :, :2].transpose(1, 2, 0, 3, 4).reshape(*scores.shape[:2], -1)
            scores = scores.at[:, :, _head_inputs(objective, 2)].set(columns)
        return _over_runs(objective, scores)

    each = batching.chunked_vmap(one, objective._prompts(), objective.microbatch)
    return jnp.where(jnp.asarray(graph.valid), each.mean(0), 0)


@eqx.filter_jit
def _nodes(objective: Objective, drops: Bool[Array, "run sender"]) -> Float[Array, " receiver"]:
    graph = objective.graph
    is_written = jnp.asarray(graph.sender_times, jnp.int32)
    mlps = np.flatnonzero([name.startswith("m") for name in graph.receivers])
    rows = [graph.sender_index(graph.receivers[column]) for column in mlps]

    def one(prompt):
        change, streams, slopes = _runs(objective, drops, prompt)

        def all_senders(layer):
            return jnp.where((is_written <= 2 * layer)[:, None, None], change, 0).sum(0, keepdims=True)

        effects = _attention(objective, streams, all_senders, slopes)[:, :, 0]  # [layer, run, kv, head]
        scores = jnp.zeros((len(drops), graph.shape[1]), change.dtype)
        scores = scores.at[:, _head_inputs(objective, 3)].set(effects.transpose(1, 0, 2, 3).reshape(len(drops), -1))
        for column, row in zip(mlps, rows, strict=True):
            after = _slopes_after(objective, slopes, is_written[row])
            scores = scores.at[:, column].set(jnp.einsum("td,gtd->g", change[row], after))
        return _over_runs(objective, scores)

    return batching.chunked_vmap(one, objective._prompts(), objective.microbatch).mean(0)


def _runs(objective: Objective, drops, prompt) -> tuple[Array, Array, Array]:
    """Each sender's change to the reference, what every half-layer reads, and every run's slopes at the receivers."""
    tokens, reference, *rest = prompt
    model = objective.model
    written, streams = model.sender_values(tokens), model.receiver_streams(tokens)

    def run(dropped):
        return model.receiver_slopes(tokens, lambda x: objective._score(x, *rest), Held(dropped, written))[1]

    return reference - written, streams, jax.lax.map(run, drops)


def _attention(
    objective: Objective, streams: Array, changes, slopes: Array
) -> Float[Array, "layer run change kv head"]:
    def at_layer(layer):
        after = _slopes_after(objective, slopes, 2 * layer + 1)
        return objective.model.attention_effects(layer, streams[2 * layer], changes(layer), after)

    return jax.lax.map(at_layer, jnp.arange(objective.graph.num_layers, dtype=jnp.int32))


def _slopes_after(objective: Objective, slopes: Array, time: Array) -> Float[Array, "run position width"]:
    """The gradient at what is written at `time`: the sum of those at all inputs that read it."""
    reads = jnp.asarray(objective.graph.receiver_times, jnp.int32) >= time
    return jnp.einsum("r,grtd->gtd", reads.astype(slopes.dtype), slopes)


def _head_inputs(objective: Objective, kinds: int) -> np.ndarray:
    """Columns of queries, keys (and values) by layer, kind and head."""
    endings = tuple(f"<{kind}>" for kind in "qkv"[:kinds])
    return np.flatnonzero([name.endswith(endings) for name in objective.graph.receivers])


def _over_runs(objective: Objective, scores: Float[Array, "run *sender receiver"]) -> Float[Array, "*sender receiver"]:
    """The plain score of one run; the mean size over GradDrop's runs but the receiver's own."""
    if scores.shape[0] == 1:
        return scores[0]
    graph = objective.graph
    counts = np.where(graph.receiver_times < 2 * graph.num_layers, graph.num_layers - 1, graph.num_layers)
    return jnp.abs(scores).sum(0) / jnp.asarray(counts, scores.dtype).reshape((1,) * (scores.ndim - 2) + (-1,))
