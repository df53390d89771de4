"""Backups (CoAx, 2607.01940): units that matter more once a circuit is absent.

    E(u) = mean over prompts of sum_v p0(v) (dz_v - E_p0 dz)^2

with p0 the probabilities of a base run at the scored position and dz what its logits change by without u. The base run
is the whole model, or the model without S: a unit with a large E(u without S) / E(u) stands in for S.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import losses
from ..arguments import check_count, checked
from ..circuit import Circuit
from ..conditional import Absent, named_edges
from ..finite import check_finite
from ..graph import Graph
from ..masks import cast
from ..metrics import Labels
from ..objective import Objective
from ..references import sender_values
from ..types import Logits
from .records import Record

UNITS = ("nodes", "edges")

NOISE = 4.0
"""An energy below so many times that of rounding alone is none: twice its amplitude."""


@dataclasses.dataclass(frozen=True)
class Backup:
    """One unit: how far its removal moves the logits.

    - `energy`: in the whole model; `energy_without`: where the circuit is absent; `difference`: by how much more.
    - `ratio`: of the second to the first, infinite where the first is no more than rounding; None where both are.
    """

    name: str
    energy: float
    energy_without: float
    difference: float
    ratio: float | None


@dataclasses.dataclass(frozen=True)
class Backups(Record):
    """What becomes important when some edges are absent.

    - `units`: nodes, each removed with all its edges out that are not absent; or edges. `rows`: by falling ratio, those
      without one last. `absent`: the edges.
    - `loss`, `loss_without`: of the whole model and without those edges, mean over the prompts, in the metric of `run`.
    - `noise`: the energy that is no more than rounding.
    """

    kind: ClassVar[str] = "backups"
    units: str
    rows: tuple[Backup, ...]
    absent: tuple[str, ...]
    loss: float
    loss_without: float
    noise: float
    run: dict[str, Any]

    def of(self, name: str) -> Backup:
        """The row of a unit. Raises ValueError for one that was not removed."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"backups: expected one of {len(self.rows)} {self.units}, got {name!r}")


@checked
def backups(objective: Objective, absent: Absent, *, units: str = "nodes", width: int = 8) -> Backups:
    """Which units the model falls back on when some edges are absent.

    - `absent`: a circuit, whose edges these are; a mask of them; or names of edges and of nodes (all edges out of one).
    - `units`: "nodes" that have an edge left, embeddings too, or "edges" that are left. `width`: masks at a time.

    The metric is recorded and does not enter the energies. Two masked runs a unit. Raises ValueError for unknown units,
    names that are none of the graph's, a model with a single output, whose energies are 0, and NaN or infinity.
    """
    graph = objective.graph
    if units not in UNITS:
        raise ValueError(f"units: expected one of {', '.join(UNITS)}, got {units!r}")
    check_count("width", width, 1)
    if objective.labels.full.shape[-1] == 1:
        raise ValueError(
            "backups: expected a model with several outputs, got one with a single output: no energy tells"
        )
    gone = named_edges("absent", absent, graph)
    if gone.sum() == graph.num_edges:
        raise ValueError("backups: expected edges that are left, got all edges absent")
    names, places = _units(graph, graph.valid & ~gone, units)
    bases = graph.valid, graph.valid & ~gone
    columns = [_energies(objective, base, places, width) for base in bases]
    check_finite("backups: energies", np.transpose(columns), **{units.removesuffix("s"): names}, base=None)
    noise = NOISE * _rounding(objective)
    check_finite("backups: energy of rounding", noise)
    before, after = columns
    rows = [_backup(*each, noise) for each in zip(names, before, after, strict=True)]
    rows.sort(key=lambda row: -np.inf if row.ratio is None else row.ratio, reverse=True)
    full, rest = (float(objective(base)) for base in bases)
    check_finite(f"backups: metric {objective.metric_name} without the absent edges", rest)
    run = {**objective.describe(), **({"circuit": absent.run} if isinstance(absent, Circuit) else {})}
    return Backups(units, tuple(rows), graph.names_of(gone), full, rest, noise, run)


def energy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`sum_v p0(v) (dz_v - E_p0 dz)^2`, p0 and dz to `labels.full`; a metric."""
    p = jax.nn.softmax(labels.full)
    change = logits - labels.full
    return jnp.sum(p * (change - jnp.sum(p * change)) ** 2)


def _units(graph: Graph, kept: np.ndarray, units: str) -> tuple[tuple[str, ...], Int[np.ndarray, "unit index"]]:
    """Names, and where in a mask the edges are that go with each: a sender's row, or one entry."""
    if units == "edges":
        return graph.names_of(kept), np.argwhere(kept)
    rows = np.flatnonzero(kept.any(1))
    return tuple(graph.senders[row] for row in rows), rows[:, None]


def _energies(objective: Objective, base: np.ndarray, places: np.ndarray, width: int) -> Float[np.ndarray, " unit"]:
    """E of every unit given a base mask."""
    logits = losses.logits(objective, cast(objective, base))
    measured, values = eqx.tree_at(lambda o: (o.metric, o.labels.full), objective, (energy, logits)), []
    for first in range(0, len(places), width):
        part = places[first : first + width]
        masks = np.tile(base, (width, 1, 1))
        masks[(np.arange(len(part)), *part.T)] = False
        values.append(np.asarray(measured.many(masks, width), np.float64)[: len(part)])
    return np.concatenate(values)


def _rounding(objective: Objective) -> float:
    """The energy of rounding: of no circuit where absent edges carry what is running, at least that of one last bit."""
    same = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
    measured = eqx.tree_at(lambda o: (o.metric, o.reference), objective, (energy, same))
    spread = jax.vmap(jax.vmap(lambda full: energy(2 * full, Labels(full))))(objective.labels.full)
    bit = float(jnp.finfo(objective.model.dtype).eps) ** 2 * float(jnp.mean(spread))
    return max(float(measured(np.zeros(objective.graph.shape))), bit)


def _backup(name: str, before: float, after: float, noise: float) -> Backup:
    ratio = None
    if max(before, after) > noise:
        ratio = float(after / before) if before > noise else float("inf")
    return Backup(name, float(before), float(after), float(after - before), ratio)
