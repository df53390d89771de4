"""Scores of nodes from the gradient with respect to a node mask: HISP, node attribution, integrated gradients.

`backward` names the rules by which gradients are taken (`models/backward.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ..arguments import check_count, checked
from ..graph import Graph
from ..nodes import NodeObjective, edge_scores
from ..objective import Objective
from ..scores import Scores
from .measure import refuse_flat, ruled, scored


@checked
def hisp(objective: Objective, *, backward: str = "plain") -> Scores:
    """Head importance score for pruning (Michel et al. 1905.10650, section 4.1, as ACDC 2304.14997 compares with it).

        score_n = mean_i |df_i/dz_n| / max(|scores of the layer|_2, 1e-6)     at z = 1, the mask multiplying

    so `|<x, df_i/dx>|`, absolute before the mean over prompts, whatever the objective's reference. Nodes are the
    queries, keys and values of every head and the MLP outputs; a layer's norm runs over all of them. Pruning goes in
    ascending order, cumulatively: any threshold on the result is one stage of it. `run["nodes"]` has the nodes' scores.

    Raises ValueError for KL and for L2 to the model's own output, whose gradient at the whole model is zero.
    """
    nodes = NodeObjective(ruled(objective, backward))
    refuse_flat(objective, "hisp")

    def values() -> np.ndarray:
        sizes = np.abs(_float64(nodes.gradient_per_example(nodes.full_mask()))).mean(0)
        return _layer_normed(objective.graph, sizes)

    return _scores(nodes, "hisp", values, passes=(1, 1), signed=False, backward=backward)


@checked
def node_attribution(objective: Objective, *, backward: str = "plain") -> Scores:
    """Attribution patching of nodes: `<x_ref - x, df/dx>` at the whole model, `-df/dz` at ones, mean over prompts.

    x_ref is what the node computes from the objective's reference values. Raises ValueError as `hisp`.
    """
    nodes = NodeObjective(ruled(objective, backward), "edges")
    refuse_flat(objective, "node-attribution")

    def values() -> np.ndarray:
        return -_float64(nodes.value_and_gradient(nodes.full_mask())[1])

    return _scores(nodes, "node-attribution", values, passes=(1, 1), signed=True, backward=backward)


@checked
def node_ig(objective: Objective, *, steps: int = 10, backward: str = "plain") -> Scores:
    """Integrated gradients of nodes: the mean of `-df/dz` over masks `z = (k + 1/2) / steps` of all nodes.

    Complete: as `steps` grows the nodes' scores sum to `f(no nodes) - f(all nodes)`, x_ref as in `node_attribution`.
    Raises ValueError for fewer than 1 step.
    """
    check_count("steps", steps, 1)
    m = int(steps)
    nodes = NodeObjective(ruled(objective, backward), "edges")
    refuse_flat(objective, "node-ig", at_clean=False)

    def values() -> np.ndarray:
        points = [nodes.value_and_gradient(nodes.full_mask() * (k + 0.5) / m)[1] for k in range(m)]
        return -np.mean([_float64(point) for point in points], 0)

    return _scores(nodes, "node-ig", values, passes=(m, m), signed=True, steps=m, backward=backward)


def _scores(
    nodes: NodeObjective,
    method: str,
    node_scores: Callable[[], np.ndarray],
    *,
    passes: tuple[int, int],
    signed: bool,
    **options: Any,
) -> Scores:
    """The nodes' scores as scores of edges, and by name in the record."""
    by_name: dict[str, float] = {}

    def values() -> np.ndarray:
        found = node_scores()
        by_name.update(zip(nodes.names, found.tolist(), strict=True))
        return edge_scores(nodes.graph, found)

    result = scored(nodes, method, values, passes=passes, signed=signed, **options)
    return dataclasses.replace(result, run={**result.run, "nodes": by_name})


def _layer_normed(graph: Graph, scores: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    layers = np.array([receiver.layer for receiver in graph.receiver_table[:-1]])
    norms = np.sqrt(np.bincount(layers, scores**2))
    return scores / np.maximum(norms, 1e-6)[layers]


def _float64(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64)
