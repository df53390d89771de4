"""The same loss given that some edges are absent: `f(mask * kept)`, one more function of the mask.

What methods do with the mask alone, they do with this one: its gradient at ones is that of `f` at the mask of all other
edges, and absent edges have none; learners count the edges that can be in. What needs the whole model's own run refuses
it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from .arguments import checked
from .graph import Graph
from .masks import mask_of, placed
from .objective import Objective
from .types import EdgeBools, Mask, MaskLike

Absent = Any
"""Edges: a circuit's, those of a mask, or named; the name of a node stands for all edges out of it."""


class Conditional(eqx.Module):
    """An `Objective` of which only the edges in `kept` can be in. Made by `without` and `narrowed`."""

    objective: Objective
    kept: Bool[Array, "sender receiver"]
    said: ClassVar[str] = "an objective without some edges: only methods that are functions of the mask take it"

    def __getattr__(self, name: str) -> Any:
        """Of prompts, labels and the model what `f` itself has."""
        if name not in SHARED:
            raise AttributeError(f"an objective without some edges has no {name!r}")
        return getattr(self.objective, name)

    def __call__(self, mask: MaskLike) -> Float[Array, ""]:
        """The loss, mean over the prompts."""
        return self.objective(self._narrowed(mask))

    def per_example(self, mask: MaskLike) -> Float[Array, " batch"]:
        """The loss on each prompt."""
        return self.objective.per_example(self._narrowed(mask))

    def many(self, masks: MaskLike, width: int = 8) -> Float[Array, " circuit"]:
        """The losses of many circuits [circuit, sender, receiver, *position], `width` of them at a time."""
        return self.objective.many(self._narrowed(masks, 1), width)

    def gradient(self, mask: MaskLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`df/dmask`, 0 at absent edges."""
        return self._at_kept(self.objective.gradient(self._narrowed(mask), spans=spans))

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

    def down_path(self, steps: int, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """As `Objective.down_path`, of runs without the absent edges."""
        return self._at_kept(self.objective.down_path(steps, spans=spans, mask=self.full_mask()))

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
        """What determines its values, for the record of a result.

        `edges_within`: how many edges can be in. Which, the shorter list says: `within`, or `without`, the absent ones.
        """
        kept = kept_edges(self)
        absent = self.graph.valid & ~kept
        name, shorter = ("without", absent) if absent.sum() <= kept.sum() else ("within", kept)
        count = {"edges_within": int(kept.sum())}
        return {**self.objective.describe(), **count, name: list(self.graph.names_of(shorter))}

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
def without(objective: Objective | Conditional, absent: Absent) -> Objective | Conditional:
    """The objective given that some edges are absent (more than already are); itself if there are none.

    - `absent`: a circuit, whose edges these are; a mask of them; or names of edges and nodes (all edges out of one).

    Raises ValueError for names and masks that are none of the model's.
    """
    return _of(objective, kept_edges(objective) & ~named_edges("absent", absent, objective.graph))


@checked
def narrowed(objective: Objective | Conditional, within: Absent | None) -> Objective | Conditional:
    """For learners: the objective `without` all edges but these; itself for None.

    Raises ValueError as `without`, and where no edge can be in.
    """
    kept = kept_edges(objective)
    if within is not None:
        kept = kept & named_edges("within", within, objective.graph)
    if not kept.any():
        raise ValueError("within, without: expected at least one edge that can be in, got none")
    return _of(objective, kept)


def named_edges(argument: str, edges: Absent, graph: Graph) -> EdgeBools:
    """The mask of the edges that are named, in a circuit or in a mask.

    Raises ValueError, naming the argument, for names and masks that are none of the graph's.
    """
    if isinstance(edges, str) or (isinstance(edges, Sequence) and not all(isinstance(name, str) for name in edges)):
        raise ValueError(f"{argument}: expected a circuit, a mask or a list of names, got {edges!r:.60}")
    if isinstance(edges, Sequence):
        mask = graph.mask_of([name for name in edges if "->" in name])
        mask[[graph.sender_index(name) for name in edges if "->" not in name]] = True
        return mask & graph.valid
    mask = np.asarray(mask_of(edges, graph))
    if mask.shape != graph.shape or not np.isin(mask, (0, 1)).all():
        got = f"one of {mask.shape}" if mask.shape != graph.shape else "shares of edges"
        raise ValueError(f"{argument}: expected a mask of shape {graph.shape} of True and False, got {got}")
    return mask.astype(bool) & graph.valid


def kept_edges(objective: Any) -> Any:
    """Bool [sender, receiver], traced in what is compiled: of an `Objective` all, of a `Conditional` what can be in."""
    kept = objective.kept if isinstance(objective, Conditional) else objective.graph.valid
    return kept if isinstance(kept, Tracer) else np.asarray(kept)


def _of(objective: Objective | Conditional, kept: EdgeBools) -> Objective | Conditional:
    if (kept == kept_edges(objective)).all():
        return objective
    whole = objective.objective if isinstance(objective, Conditional) else objective
    return Conditional(whole, placed(whole, kept))
