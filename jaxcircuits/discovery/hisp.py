"""Scores of nodes from the gradient with respect to a node mask: HISP, node attribution, integrated gradients."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ..graph import Graph
from ..nodes import NodeObjective, edge_scores
from ..objective import Objective
from ..scores import Scores


def hisp(objective: Objective) -> Scores:
    """Head importance score for pruning (Michel et al. 1905.10650, section 4.1, as ACDC 2304.14997 compares with it).

        score_n = mean_i |df_i/dz_n| / max(|scores of the layer|_2, 1e-6)     at z = 1, the mask multiplying

    so `|<x, df_i/dx>|`, absolute before the mean over prompts, whatever the objective's reference. Nodes are the
    queries, keys and values of every head and the MLP outputs; a layer's norm runs over all of them. Pruning goes in
    ascending order, cumulatively: any threshold on the result is one stage of it. `run["nodes"]` has the nodes' scores.

    Raises ValueError for KL and for L2 to the model's own output, whose gradient at the whole model is zero.
    """
    _refuse_flat(objective, "HISP")
    nodes = NodeObjective(objective)
    sizes = np.abs(_float64(nodes.gradient_per_example(nodes.full_mask()))).mean(0)
    return _scores(nodes, "hisp", _layer_normed(objective.graph, sizes), signed=False)


def node_attribution(objective: Objective) -> Scores:
    """Attribution patching of nodes: `<x_ref - x, df/dx>` at the whole model, `-df/dz` at ones, mean over prompts.

    x_ref is what the node computes from the objective's reference values. Raises ValueError as `hisp`.
    """
    _refuse_flat(objective, "node attribution")
    nodes = NodeObjective(objective, "edges")
    return _scores(nodes, "node-attribution", -_float64(nodes.value_and_gradient(nodes.full_mask())[1]), signed=True)


def node_ig(objective: Objective, *, steps: int = 10) -> Scores:
    """Integrated gradients of nodes: the mean of `-df/dz` over masks `z = (k + 1/2) / steps` of all nodes.

    Complete: as `steps` grows the nodes' scores sum to `f(no nodes) - f(all nodes)`, x_ref as in `node_attribution`.
    Raises ValueError for fewer than 1 step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    nodes = NodeObjective(objective, "edges")
    points = [nodes.value_and_gradient(nodes.full_mask() * (k + 0.5) / steps)[1] for k in range(steps)]
    return _scores(nodes, "node-ig", -np.mean([_float64(point) for point in points], 0), signed=True, steps=steps)


def _scores(
    nodes: NodeObjective, method: str, scores: Float[np.ndarray, " node"], *, signed: bool, **options: Any
) -> Scores:
    run = {**nodes.describe(), **options, "nodes": dict(zip(nodes.names, scores.tolist(), strict=True))}
    return Scores(nodes.graph, edge_scores(nodes.graph, scores), signed, method, run)


def _layer_normed(graph: Graph, scores: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    layers = np.array([int(name[1:].split(".")[0]) for name in graph.receivers[:-1]])
    norms = np.sqrt(np.bincount(layers, scores**2))
    return scores / np.maximum(norms, 1e-6)[layers]


def _float64(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64)


def _refuse_flat(objective: Objective, method: str) -> None:
    if objective.metric_name == "kl" or (objective.metric_name == "l2" and objective.labels.target is None):
        raise ValueError(
            f"{method} scores by the gradient at the whole model, where {objective.metric_name} to the model's own "
            "output has its minimum: all scores would be 0. Choose another metric, e.g. logit_diff or nll"
        )
