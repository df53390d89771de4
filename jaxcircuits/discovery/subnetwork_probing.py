"""Subnetwork Probing (Cao et al. 2104.03514, as ACDC 2304.14997 uses it): hard concrete masks with an L0 penalty.

    minimise over a:   f(z) + strength * penalty(a),   z one hard concrete draw a step

On nodes, as published, a mask scales every query, key, value and MLP output, and the penalty is the mean over mask
tensors (a layer's queries, keys, values; its MLP) of their mean P(z > 0). On edges it is the mean over edges.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..arguments import checked
from ..conditional import Conditional, kept_edges, narrowed
from ..graph import Graph
from ..nodes import NodeObjective, edge_scores
from ..objective import Objective
from ..types import MaskLike
from . import hard_concrete
from .learning import LearntMask, State, first_order, learn, result_of
from .measure import refuse_flat


class SubnetworkProbing(eqx.Module):
    """The hyperparameters. `weights`: each mask entry's share of the penalty. `log_alpha`: the start of all entries."""

    weights: Float[Array, "..."]
    strength: float
    rate: float
    log_alpha: float
    columns: ClassVar[tuple[str, ...]] = ("metric", "loss", "sparsity")

    def start(self, objective: Any, key: PRNGKeyArray) -> Float[Array, "..."]:
        """The same for all entries."""
        return jnp.zeros_like(self.weights) + self.log_alpha

    def optimiser(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.adam(self.rate)

    def loss(
        self, log_alpha: Float[Array, "..."], objective: Any, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The metric at one draw, plus the penalty."""
        metric = first_order(objective.value_and_gradient, hard_concrete.sample(key, log_alpha))
        kept = jnp.sum(self.weights * hard_concrete.expected_l0(log_alpha))
        loss = metric + self.strength * kept
        return loss, {"metric": metric, "loss": loss, "sparsity": 1 - kept}


@checked
def subnetwork_probing(
    objective: Objective | Conditional,
    strength: float = 1.0,
    *,
    on: str = "nodes",
    steps: int = 3000,
    rate: float = 1e-3,
    keep: float = 0.9,
    batch: int | None = None,
    seed: int = 0,
    within: MaskLike | None = None,
    progress: Callable[[State], object] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LearntMask:
    """Learns masks under which `f` stays low while few entries are kept; a sweep of `strength` gives the curve.

    - `strength`: of the penalty; ACDC sweeps 0.01 to 250. `on`: "nodes" (the published method) or "edges".
    - `rate`: Adam's. `keep`: every mask's value at the start. `batch`: prompts a step, default all.
    - `within`: on edges: as `edge_pruning`. `seed`, `progress`, `checkpoint`: as `learn`.

    Kept is what has a deterministic value of at least one half (the public code draws one sample). A removed q, k, v or
    MLP drops its incoming edges, a head without q, k and v or a removed MLP its outgoing ones. Scores are `sigmoid(a)`.
    On nodes `run["nodes"]` has each node's and `run["metric_nodes"]` the loss at the rounded node mask: an output
    mask is not an edge mask, so it differs from `metric_final`.

    Raises ValueError for settings out of range, a checkpoint of another run, and a run that diverged.
    """
    started = time.perf_counter()
    if on not in ("nodes", "edges"):
        raise ValueError(f"on: expected 'nodes' or 'edges', got {on!r}")
    if strength < 0 or rate <= 0 or not 0 < keep < 1:
        raise ValueError(f"expected strength >= 0, rate > 0, 0 < keep < 1; got {strength}, {rate}, {keep}")
    own: Any = narrowed(objective, within)
    if on == "nodes" and isinstance(own, Conditional):
        raise ValueError("within, without: expected on='edges', as nodes are no edges; got on='nodes'")
    refuse_flat(objective, "subnetwork-probing", at_clean=False)
    batch = int(objective.num_prompts) if batch is None else batch
    graph, dtype = objective.graph, objective.model.dtype
    nodes = NodeObjective(own, "edges") if on == "nodes" else None
    edges = kept_edges(own)
    weights = _tensor_shares(graph) if nodes else edges / edges.sum()
    learner = SubnetworkProbing(jnp.asarray(weights, dtype), strength, rate, hard_concrete.log_alpha_of(keep))
    state = learn(learner, nodes or own, steps=steps, batch=batch, seed=seed, progress=progress, checkpoint=checkpoint)
    log_alpha = np.asarray(state.parameters, np.float64)
    kept, scores = log_alpha >= 0, 1 / (1 + np.exp(-log_alpha))
    options = {"on": on, "strength": strength, "steps": steps, "rate": rate, "keep": keep, "batch": batch, "seed": seed}
    if nodes:
        options |= nodes.describe()
        options |= {"nodes": dict(zip(nodes.names, scores.tolist(), strict=True)), "metric_nodes": float(nodes(kept))}
        mask, scores = edge_scores(graph, kept.astype(float), always=1.0) > 0, edge_scores(graph, scores, always=1.0)
    else:
        mask, scores = kept & edges, np.where(edges, scores, 0)
    return result_of(state, own, mask, scores, method="subnetwork-probing", started=started, options=options)


def _tensor_shares(graph: Graph) -> Float[np.ndarray, " node"]:
    """Each node's share of a mean over tensors of their means; tensors: a layer's q, k, v (a vector each), its MLP."""
    tensors = [(receiver.layer, receiver.port) for receiver in graph.receiver_table[:-1]]
    sizes = Counter(tensors)
    return np.array([1 / (sizes[tensor] * len(sizes)) for tensor in tensors])
