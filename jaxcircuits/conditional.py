"""The same loss given that some edges are absent: `f(mask * kept)`, one more function of the mask.

What methods do with the mask alone, they do with this one: its gradient at ones is that of `f` at the mask of all other
edges, and absent edges have none. What needs the whole model's own run refuses it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .arguments import checked, fitting
from .graph import Graph
from .masks import mask_of
from .objective import Objective
from .types import EdgeBools, Mask, MaskLike

Absent = Any
"""Edges: a circuit's, those of a mask, or named; the name of a node stands for all edges out of it."""


class Conditional(eqx.Module):
    """An `Objective` of which only the edges in `kept` can be in. Made by `without`."""

    objective: Objective
    kept: Bool[Array, "sender receiver"]
    said: ClassVar[str] = "an objective without some edges: only methods that are functions of the mask take it"

    def __getattr__(self, name: str) -> Any:
        """Of prompts, labels and the model what `f` itself has."""
        if name not in SHARED:
            raise AttributeError(f"an objective without some edges has no {name!r}")
        return getattr(self.objective, name)

    @fitting
    def __call__(self, mask: MaskLike) -> Float[Array, ""]:
        """The loss, mean over the prompts."""
        return self.objective(self._narrowed(mask))

    @fitting
    def per_example(self, mask: MaskLike) -> Float[Array, " batch"]:
        """The loss on each prompt."""
        return self.objective.per_example(self._narrowed(mask))

    @fitting
    def many(self, masks: MaskLike, width: int = 8) -> Float[Array, " circuit"]:
        """The losses of many circuits [circuit, sender, receiver, *position], `width` of them at a time."""
        return self.objective.many(self._narrowed(masks, 1), width)

    @fitting
    def gradient(self, mask: MaskLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`df/dmask`, 0 at absent edges."""
        return self._at_kept(self.objective.gradient(self._narrowed(mask), spans=spans))

    @fitting
    def value_and_gradient(self, mask: MaskLike) -> tuple[Float[Array, ""], Mask]:
        """The loss and `gradient`."""
        value, slopes = self.objective.value_and_gradient(self._narrowed(mask))
        return value, self._at_kept(slopes)

    def clean_gradient(self, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`gradient` with all edges in that can be."""
        return self.gradient(self.full_mask(), spans=spans)

    def displacement_gradient(
        self, held: ArrayLike, alphas: ArrayLike, *, spans: ArrayLike | None = None
    ) -> Float[Array, "*span sender receiver"]:
        """As `Objective.displacement_gradient`, of runs without the absent edges; so `D_s` are of these runs too."""
        return self._at_kept(self.objective.displacement_gradient(held, alphas, spans=spans, mask=self.full_mask()))

    def along(self, alphas: ArrayLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`displacement_gradient` with the embedding held, as `Objective.along`."""
        return self._at_kept(self.objective.along(alphas, spans=spans, mask=self.full_mask()))

    def take(self, rows: ArrayLike) -> "Conditional":
        """The same function on some of the prompts."""
        return Conditional(self.objective.take(rows), self.kept)

    def halved(self) -> "Conditional":
        """The same function, computed half as many prompts at once."""
        return Conditional(self.objective.halved(), self.kept)

    def full_mask(self) -> Mask:
        """All edges that can be in."""
        return self.kept.astype(self.objective.model.dtype)

    def describe(self) -> dict[str, Any]:
        """What determines its values, for the record of a result; `without`: the absent edges."""
        absent = self.graph.valid & ~np.asarray(self.kept)
        return {**self.objective.describe(), "without": list(self.graph.names_of(absent))}

    def _narrowed(self, masks: MaskLike, first: int = 0) -> Array:
        """Masks in which absent edges are 0; `first`: axes before the sender's."""
        if isinstance(masks, list | tuple):
            masks = jnp.stack([jnp.asarray(mask_of(mask, self.graph)) for mask in masks])
        masks = jnp.asarray(mask_of(masks, self.graph))
        if masks.shape[first : first + 2] != self.graph.shape:
            return masks  # which the objective refuses
        kept = self.kept.reshape(*[1] * first, *self.graph.shape, *[1] * (masks.ndim - first - 2))
        return jnp.where(kept, masks, jnp.zeros_like(masks))

    def _at_kept(self, slopes: Float[Array, "*span sender receiver"]) -> Float[Array, "*span sender receiver"]:
        return jnp.where(jnp.broadcast_to(self.kept, slopes.shape), slopes, jnp.zeros_like(slopes))


SHARED = frozenset(
    "average clean d_model graph labels metric metric_name microbatch mesh model num_prompts reference_name weights "
    "_loss".split()
)
"""What a method may ask of an objective besides its values."""


@checked
def without(objective: Objective, absent: Absent) -> Objective | Conditional:
    """The objective given that some edges are absent; itself if there are none.

    - `absent`: a circuit, whose edges these are; a mask of them; or names of edges and nodes (all edges out of one).

    Raises ValueError for names and masks that are none of the model's.
    """
    gone = absent_edges(objective.graph, absent)
    return Conditional(objective, objective._placed(objective.graph.valid & ~gone)) if gone.any() else objective


def absent_edges(graph: Graph, absent: Absent) -> EdgeBools:
    """The mask of the edges that are named, in a circuit or in a mask. Raises ValueError as `without` does."""
    if isinstance(absent, str) or (isinstance(absent, Sequence) and not all(isinstance(name, str) for name in absent)):
        raise ValueError(f"absent: expected a circuit, a mask or a list of names, got {absent!r:.60}")
    if isinstance(absent, Sequence):
        edges = graph.mask_of([name for name in absent if "->" in name])
        edges[[graph.sender_index(name) for name in absent if "->" not in name]] = True
        return edges & graph.valid
    mask = np.asarray(mask_of(absent, graph))
    if mask.shape != graph.shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"absent: expected a mask of shape {graph.shape} of True and False, got one of {mask.shape}")
    return mask.astype(bool) & graph.valid


def kept_edges(objective: Any) -> EdgeBools:
    """The edges that can be in: of an `Objective` all, of a `Conditional` all but the absent ones."""
    valid = objective.graph.valid
    return valid & np.asarray(jax.device_get(objective.kept)) if isinstance(objective, Conditional) else valid
