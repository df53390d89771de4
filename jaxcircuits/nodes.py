"""The same loss as a function of a node mask: one number for each query, key, value and MLP output.

A node's output becomes `z x + (1 - z) x_ref`, everything that reads it reads that, and all edges are on. An output
mask is not an edge mask: a layer norm lies between what a head writes and what its readers compute from it.
Methods that work on nodes (HISP, Subnetwork Probing, node attribution) are transformations of this function;
`edge_scores` turns their results into edges.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from . import batching
from .arguments import checked, fitting
from .gradients import score_of
from .graph import Graph
from .masks import mask_of
from .models import NodeValues
from .objective import Objective
from .types import EdgeScores, Model, NodeMask

REFERENCES = ("zero", "edges")


class NodeObjective(eqx.Module):
    """An objective's loss as a function of a node mask: `nodes(node_mask)`, lower is better.

    `node_mask` has one entry a receiver except `logits`, in the order of `graph.receivers`: 1 keeps the output that
    the node computes from this input (a head's queries from `a0.h0<q>`, biases included), 0 takes its reference.
    """

    objective: Objective
    reference: NodeValues | None

    @checked
    def __init__(self, objective: Objective, reference: str = "zero"):
        """The objective's model, prompts and metric, with node masks.

        - `reference`: "zero": the mask multiplies the outputs. "edges": what the nodes compute when all that they read
          are the objective's reference values: under "resample" the corrupt run's outputs; zero if those are zero.

        Raises ValueError for another reference.
        """
        if reference not in REFERENCES:
            raise ValueError(f"node reference: expected {' or '.join(map(repr, REFERENCES))}, got {reference!r}")
        self.objective = objective
        zero = reference == "zero" or objective.reference_name == "zero"
        values = jnp.moveaxis(objective.reference, 1, 0)
        self.reference = None if zero else _node_values(objective.model, values, objective.microbatch)

    @property
    def graph(self) -> Graph:
        return self.objective.graph

    @property
    def num_prompts(self) -> int:
        return self.objective.num_prompts

    @property
    def names(self) -> tuple[str, ...]:
        """What each entry of a node mask is: `a0.h0<q>`, ..., `m0`, ..."""
        return self.graph.receivers[:-1]

    def __call__(self, node_mask: ArrayLike) -> Float[Array, ""]:
        """The loss, mean over the prompts. Raises ValueError for a mask of another shape."""
        return self.per_example(node_mask).mean()

    @fitting
    def per_example(self, node_mask: ArrayLike) -> Float[Array, " batch"]:
        """The loss on each prompt."""
        return _per_example(self, self._cast(node_mask))

    @fitting
    def gradient_per_example(self, node_mask: ArrayLike) -> Float[Array, "batch node"]:
        """`df_i/dz` on each prompt: `<x - x_ref, df_i/dx>` at the masked run."""
        return _values_and_gradients(self, self._cast(node_mask))[1]

    @fitting
    def value_and_gradient(self, node_mask: ArrayLike) -> tuple[Float[Array, ""], NodeMask]:
        """The loss and `df/dz`, means over the prompts."""
        values, gradients = _values_and_gradients(self, self._cast(node_mask))
        return values.mean(), gradients.mean(0)

    @property
    def microbatch(self) -> int:
        return self.objective.microbatch

    def halved(self) -> "NodeObjective":
        """The same function, computed half as many prompts at once."""
        return eqx.tree_at(lambda o: o.objective, self, self.objective.halved())

    def take(self, rows: ArrayLike) -> "NodeObjective":
        """The same function on some of the prompts."""
        taken = self.objective.take(rows), jax.tree.map(lambda x: x[jnp.asarray(rows)], self.reference)
        return eqx.tree_at(lambda o: (o.objective, o.reference), self, taken, is_leaf=lambda x: x is None)

    def full_mask(self) -> NodeMask:
        """All nodes: the clean run."""
        return jnp.ones(len(self.names), self.objective.model.dtype)

    def describe(self) -> dict[str, Any]:
        """What determines its values, for the record of a result."""
        run = self.objective.describe()
        run["ablation"] |= {"granularity": "node", "component": "outputs of queries, keys, values and MLPs"}
        if self.reference is None:
            run["ablation"] |= {"value": "zero", "reference_data": "zero", "reference_size": 0}
        return run

    def _cast(self, node_mask: ArrayLike) -> NodeMask:
        node_mask = jnp.asarray(mask_of(node_mask, self.graph))
        if node_mask.shape != (len(self.names),):
            raise ValueError(f"node mask: expected shape ({len(self.names)},), got {node_mask.shape}; see `names`")
        return node_mask.astype(self.objective.model.dtype)

    def _prompts(self) -> tuple:
        return self.objective._prompts(), self.reference


def _loss(node_mask: NodeMask, objective: Objective, prompt: tuple) -> Float[Array, ""]:
    (tokens, _, *rest), reference = prompt
    return score_of(objective, *rest)(objective.model.node_run(tokens, node_mask, reference))


@eqx.filter_jit
def _node_values(model: Model, values: Float[Array, "batch sender position width"], size: int) -> NodeValues:
    return batching.chunked_vmap(model.node_values, values, size)


@eqx.filter_jit
def _per_example(nodes: NodeObjective, node_mask: NodeMask) -> Float[Array, " batch"]:
    return batching.over_prompts(nodes.objective, partial(_loss, node_mask), nodes._prompts())


@eqx.filter_jit
def _values_and_gradients(
    nodes: NodeObjective, node_mask: NodeMask
) -> tuple[Float[Array, " batch"], Float[Array, "batch node"]]:
    return batching.over_prompts(nodes.objective, partial(jax.value_and_grad(_loss), node_mask), nodes._prompts())


def edge_scores(graph: Graph, node_scores: Float[np.ndarray, " node"], always: float | None = None) -> EdgeScores:
    """The score of each edge under which any threshold keeps the same edges as on the nodes.

    A removed q, k, v or MLP drops its incoming edges; a head with q, k and v all removed, or a removed MLP, its
    outgoing ones (as ACDC 2304.14997 converts Subnetwork Probing and HISP). So an edge scores the least of its
    receiver's score and of the best of its sender's inputs. Embeddings and `logits` are never removed: they score
    `always`, by default as the best node. To rank by absolute value, convert absolute values.
    """
    always = float(node_scores.max()) if always is None else always
    receivers = np.append(node_scores, always).astype(np.float64)
    senders = [always if name in graph.embeddings else receivers[graph.inputs(name)].max() for name in graph.senders]
    return np.where(graph.valid, np.minimum(np.array(senders)[:, None], receivers[None]), 0.0)
