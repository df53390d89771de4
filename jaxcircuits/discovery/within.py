"""Learning within some edges, the others absent (HAP: a cheap score, then a learnt mask of its best edges)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..arguments import checked
from ..conditional import Conditional, kept_edges
from ..masks import mask_of
from ..objective import Objective
from ..types import Mask, MaskLike


class Edges(NamedTuple):
    """What learners ask of a graph: which entries of a mask are edges, its shape, how many they are."""

    valid: Bool[Array, "sender receiver"]
    shape: tuple[int, ...]
    num_edges: Any


class Within(eqx.Module):
    """An `Objective` for learners, of a mask's `edges` alone: the others are absent and have no slope."""

    objective: Objective
    edges: Bool[Array, "sender receiver"]

    @property
    def graph(self) -> Edges:
        """These edges."""
        return Edges(self.edges, self.edges.shape, self.edges.sum(dtype=jnp.int32))

    @property
    def model(self) -> Any:
        return self.objective.model

    @property
    def labels(self) -> Any:
        return self.objective.labels

    @property
    def weights(self) -> Array:
        return self.objective.weights

    @property
    def num_prompts(self) -> int:
        return self.objective.num_prompts

    def full_mask(self) -> Mask:
        """All of these edges."""
        return self.edges.astype(self.model.dtype)

    def take(self, rows: Any) -> "Within":
        """The same on some of the prompts."""
        return Within(self.objective.take(rows), self.edges)

    def value_and_gradient(self, mask: Mask) -> tuple[Float[Array, ""], Mask]:
        """Of the mask without the other edges."""
        value, slopes = self.objective.value_and_gradient(jnp.where(self.edges, mask, 0))
        return value, jnp.where(self.edges, slopes, 0)

    def _loss(self, *arguments: Any) -> Float[Array, ""]:
        return self.objective._loss(*arguments)


@checked
def narrowed(objective: Objective | Conditional, within: MaskLike | None) -> Objective | Conditional | Within:
    """The objective of the edges in a mask or circuit; itself where that has all of them (None).

    Edges that an objective is `without` are not in either.

    Raises ValueError for a mask of another graph, one that is neither 0 nor 1, and one without edges.
    """
    if within is None:
        return objective
    mask, graph = np.asarray(mask_of(within, objective.graph)), objective.graph
    if mask.shape != graph.shape:
        raise ValueError(f"within: expected a mask of shape {graph.shape}, got {mask.shape}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("within: expected edges that are in or not, 1 or 0, got shares of them")
    edges = mask.astype(bool) & kept_edges(objective)
    if not edges.any():
        raise ValueError("within: expected at least one edge, got none")
    if (edges == kept_edges(objective)).all():
        return objective
    return Within(objective.objective if isinstance(objective, Conditional) else objective, jnp.asarray(edges))


def recorded(own: Objective | Conditional | Within) -> dict[str, int]:
    """How many edges were learnt, for the record of a run; nothing where it is all."""
    return {"edges_within": int(own.graph.num_edges)} if isinstance(own, Within) else {}
