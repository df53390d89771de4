"""What "without" means: circuits to losses, under an ablation that is stated in six parts and stored.

Faithfulness depends on each of the parts (Miller et al., 2407.08734), so every result carries all of them.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..arguments import checked
from ..circuit import Circuit
from ..finite import check_finite
from ..graph import Graph
from ..identity import digest_of, identity_of
from ..objective import Objective
from ..references import sender_values
from ..savepoint import Journal, journal_of
from ..scores import Positions, Span, positions_inside, spans_within
from ..sparse import SparseEvaluator

CHOICES = {
    "granularity": ("edge", "node"),
    "component": ("all", "heads", "mlps"),
    "direction": ("ablate", "restore"),
    "set": ("circuit", "complement"),
}

FEW = 0.02
"""Circuits of at most this share of all edges are cheaper by their live nodes, if there are as many as run at once."""

Masks = Bool[np.ndarray, "circuit sender receiver"]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """How a circuit is judged.

    - `granularity`: "edge": the circuit's edges. "node": all edges out of the nodes that touch one of its edges.
    - `component`: whose outputs may be replaced: of "all" senders, of "heads" or of "mlps" alone; edges from other
      senders are always in.
    - `value`: what replaces them: the objective's reference.
    - `positions`: of the tokens at which they are replaced: "all", or spans of them as (first, before which); at the
      others every edge carries what its sender writes in the run.
    - `direction`: "ablate": a clean run in which absent edges carry the reference. "restore": a corrupt run in which
      present edges carry the clean run's values.
    - `set`: what runs: the "circuit", or its "complement", the model without it.

    Raises ValueError for an unknown choice and positions that are no spans.
    """

    granularity: str = "edge"
    component: str = "all"
    value: str = "resample"
    positions: str | tuple[Span, ...] = "all"
    direction: str = "ablate"
    set: str = "circuit"

    def __post_init__(self) -> None:
        for part, choices in CHOICES.items():
            if getattr(self, part) not in choices:
                raise ValueError(f"{part}: expected one of {', '.join(choices)}, got {getattr(self, part)!r}")
        if self.positions != "all" and (isinstance(self.positions, str) or not self.positions):
            raise ValueError(f"positions: expected 'all' or spans (first, end), got {self.positions!r}")

    def parts(self, graph: Graph, circuits: Masks) -> Masks:
        """The edges that these circuits stand for: their own, or all out of their nodes."""
        kept = circuits & graph.valid
        if self.granularity == "edge":
            return kept
        nodes = np.array([graph.edges_to_nodes(circuit)[:-1] for circuit in kept], bool).reshape(kept.shape[:2])
        return nodes[:, :, None] & graph.valid

    def running(self, graph: Graph, parts: Masks) -> Masks:
        """The edges that are in when circuits of these parts are judged: the parts, or the model without them."""
        return graph.valid & ~parts if self.set == "complement" else parts

    def masks(self, graph: Graph, running: Masks) -> Masks:
        """The masks of the objective under which these edges are in."""
        kept = graph.valid & (running | ~self.replaced(graph)[:, None])
        return graph.valid & ~kept if self.direction == "restore" else kept

    def at_positions(self, masks: Masks, width: int) -> Bool[np.ndarray, "circuit sender receiver *position"]:
        """Masks of prompts with `width` tokens: a third axis, with every edge in outside of `positions`."""
        if isinstance(self.positions, str):
            return masks
        return masks[..., None] | ~positions_inside(self.positions, width).any(0)

    def replaced(self, graph: Graph) -> Bool[np.ndarray, " sender"]:
        """Whose outputs may be replaced. Raises ValueError if there are none of that kind."""
        if self.component == "all":
            return np.ones(len(graph.senders), bool)
        kinds = {"heads": ("head", "attention"), "mlps": ("mlp", "neurons")}[self.component]
        chosen = np.array([sender.kind in kinds for sender in graph.sender_table])
        if not chosen.any():
            raise ValueError(f"component: this graph has no {self.component}; choose 'all'")
        return chosen


@dataclasses.dataclass(frozen=True, eq=False)
class Ablated:
    """A function of circuits: their losses on every prompt. Made by `ablated`.

    - `journal`: keeps the losses, and gives those that an earlier run kept, see `kept`.
    """

    objective: Objective
    ablation: Ablation
    width: int
    record: dict[str, Any]
    journal: Journal | None = None

    @property
    def graph(self) -> Graph:
        return self.objective.graph

    @property
    def microbatch(self) -> int:
        return self.objective.microbatch

    def halved(self) -> "Ablated":
        """The same function, computed half as many prompts at once."""
        return dataclasses.replace(self, objective=self.objective.halved())

    def losses(self, circuits: Masks, *, exchangeable: bool = True) -> Float[np.ndarray, "circuit batch"]:
        """The loss of each circuit on each prompt, see `losses_of`."""
        running = self.ablation.running(self.graph, self.ablation.parts(self.graph, circuits))
        return self.losses_of(running, exchangeable=exchangeable)

    def losses_of(self, running: Masks, *, exchangeable: bool = True) -> Float[np.ndarray, "circuit batch"]:
        """The loss on each prompt with these edges in, `width` masks at a time.

        - `exchangeable`: all in one program, so that equal runs have equal losses to the last bit. False: circuits of
          few edges at the cost of their live nodes, within rounding.

        Raises ValueError for NaN or infinity, naming the circuit and the prompt.
        """
        masks = self.ablation.masks(self.graph, running)
        sizes = masks.sum((1, 2))
        few = (sizes > 0) & (sizes <= FEW * self.graph.num_edges)
        if exchangeable or few.sum() < self.width or not self._can_be_sparse():
            few[:] = False
        values = np.empty((len(masks), self.objective.num_prompts))
        if few.any():
            values[few] = self._kept(masks[few], lambda: self._sparse.per_example_many(masks[few], self.width))
        if not few.all():
            values[~few] = self._dense(masks[~few])
        named = [f"of {size} edges" for size in sizes]
        check_finite(f"metric {self.objective.metric_name}", values, circuit=named, prompt=None)
        return values

    def _dense(self, masks: Masks) -> Float[np.ndarray, "circuit batch"]:
        rows = []
        for first in range(0, len(masks), self.width):
            part = masks[first : first + self.width]
            padded = np.concatenate([part, np.repeat(part[:1], self.width - len(part), 0)])
            padded = self.ablation.at_positions(padded, self.objective.clean.shape[1])
            losses = self._kept(part, functools.partial(self.objective.per_example_many, padded, self.width))
            rows.append(losses[: len(part)])
        return np.concatenate(rows).astype(np.float64)

    def _kept(self, masks: Masks, losses: Callable[[], Any]) -> np.ndarray:
        if self.journal is None:
            return np.asarray(losses())
        return self.journal.call(digest_of(masks), losses)

    def _can_be_sparse(self) -> bool:
        """Whether nodes run one by one, all prompts fit at once on one device, and edges are absent everywhere."""
        objective = self.objective
        is_whole = objective.mesh is None and objective.microbatch >= objective.num_prompts
        return is_whole and self.ablation.positions == "all"

    @cached_property
    def _sparse(self) -> SparseEvaluator:
        return SparseEvaluator(self.objective)

    def baselines(self) -> Float[np.ndarray, "2 batch"]:
        """The losses of no circuit and of the whole model, where the ablation replaces what it may and nothing."""
        return self.losses_of(np.stack([np.zeros_like(self.graph.valid), self.graph.valid]))

    def rounding(self) -> Float[np.ndarray, " batch"]:
        """How far rounding alone moves each prompt's loss: no circuit, where absent edges carry what is running."""
        objective = self.objective
        same = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
        replaced = eqx.tree_at(lambda o: o.reference, objective, same)
        empty, full = dataclasses.replace(self, objective=replaced).baselines()
        return np.maximum(np.abs(empty - full), float(jnp.finfo(objective.model.dtype).eps) * np.abs(full))

    def describe(self) -> dict[str, Any]:
        """What determines the losses, for the record of a result."""
        return {**self.record, "ablation": {**self.record["ablation"], **dataclasses.asdict(self.ablation)}}


@checked
def ablated(
    objective: Objective | Ablated,
    *,
    positions: Positions | str = "all",
    pairs: Any = None,
    width: int = 16,
    **parts: str,
) -> Ablated:
    """The losses of circuits under an ablation; an objective alone is edges of the clean run, replaced.

    - `positions`: token positions or spans (first, before which), together; see `Ablation`.
    - `parts`: `granularity`, `component`, `direction`, `set` of `Ablation`; the value is the objective's reference.
    - `pairs`: the objective's `PromptPairs`; needed to restore into the corrupt run.
    - `width`: circuits at a time.

    Raises ValueError for unknown parts, positions beyond the prompts, and for restoring without prompts or with another
    reference than "resample".
    """
    if isinstance(objective, Ablated):
        return objective
    if unknown := parts.keys() - CHOICES.keys():
        raise ValueError(f"ablation: unknown parts {sorted(unknown)}; expected some of {', '.join(CHOICES)}, positions")
    if width < 1:
        raise ValueError(f"width: expected at least 1 circuit, got {width}")
    if not isinstance(positions, str):
        positions = spans_within(positions, objective.clean.shape[1])
        if positions_inside(positions, objective.clean.shape[1]).any(0).all():
            positions = "all"
    ablation = Ablation(value=objective.reference_name, positions=positions, **parts)
    record = objective.describe()
    if ablation.direction == "restore":
        objective = objective.restoring(pairs)
        ablation = dataclasses.replace(ablation, value="clean prompts")
        record["ablation"] = {**record["ablation"], "reference_data": "clean prompts, pairwise"}
    return Ablated(objective, ablation, width, record)


@contextlib.contextmanager
def kept(judged: Ablated, circuit: Circuit, checkpoint: str | os.PathLike | None, **asked: Any) -> Iterator[Ablated]:
    """`judged` with its losses kept in a folder, and given again to the same run; as it is without one.

    - `asked`: what else would change the answer.

    Raises ValueError for a checkpoint that is damaged or another run's.
    """

    def identity() -> dict[str, Any]:
        ablation, of = dataclasses.asdict(judged.ablation), digest_of((circuit.mask, circuit.scores))
        return {**asked, "circuit": of, "ablation": ablation, "width": judged.width, **identity_of(judged)}

    with journal_of(checkpoint, identity) as journal:
        yield dataclasses.replace(judged, journal=journal)
