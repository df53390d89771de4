"""Exact patching: what the loss rises by when one edge, or one node, is removed. The oracle of all other scores.

    score of s->r = f(all but s->r) - f(all)

Removing one edge into r leaves everything before r clean, so this is the clean run in which r reads
`reference_s - clean_s` more, computed from r on. Where other edges are absent already, every mask is run whole.
"""

import functools
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import batching
from ..arguments import check_count, checked
from ..conditional import Conditional, kept_edges
from ..finite import check_finite
from ..identity import identity_of
from ..objective import Objective
from ..references import recorded
from ..savepoint import Journal, journal_of
from ..scores import Scores
from .measure import Positions, scored, spans_of


class _CleanRun(eqx.Module):
    """What every node writes and every moment reads; the change of each sender from clean to reference."""

    written: Float[Array, "batch sender position width"]
    streams: Float[Array, "batch moment position width"]
    change: Float[Array, "batch sender position width"]


@checked
def exact(
    objective: Objective | Conditional,
    *,
    width: int = 8,
    positions: Positions | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Scores:
    """Single-edge patching of every edge: one evaluation each.

    - `width`: senders into one receiver that are evaluated at once.
    - `positions`: remove edges at these token positions or spans alone, each on its own.
    - `checkpoint`: a folder that keeps how far the run is; the same call goes on from there.

    Raises ValueError for a bad width or span, and for a checkpoint that is damaged or another run's.
    """
    check_count("width", width, 1)
    named, spans = spans_of(objective, positions)
    every = np.ones((1, objective.clean.shape[1]), bool) if spans is None else spans
    count = len(every) * objective.graph.num_edges

    def values() -> np.ndarray:
        asked = {"method": "exact", "width": width, "positions": named}
        with journal_of(checkpoint, lambda: asked | identity_of(objective)) as journal:
            if isinstance(objective, Conditional):
                effects = _effects_of_masks(objective, every, width, journal)
            else:
                effects = _edge_effects(objective, every, width, journal)
        return effects[0] if spans is None else effects

    return scored(objective, "exact", values, passes=(count + 2, 0), positions=named, width=width)


@checked
def exact_nodes(objective: Objective, *, width: int = 8) -> Float[np.ndarray, " sender"]:
    """What the loss rises by when all edges out of a node are removed, for every sender.

    Raises ValueError for a bad width, and for NaN or infinity, naming the node.
    """
    check_count("width", width, 1)
    graph, times = objective.graph, objective.graph.written
    clean, full = _clean_run(objective), float(objective(graph.valid))
    values = np.zeros(len(times))
    for time in np.unique(times):
        for rows in _chunks(np.flatnonzero(times == time), width):
            losses = _without_nodes(objective, clean, jnp.int32(time), jnp.asarray(rows, jnp.int32))
            values[rows] = np.asarray(losses) - full
    check_finite("scores of nodes (exact)", values, sender=graph.senders)
    return values


def _edge_effects(
    objective: Objective, spans: np.ndarray, width: int, journal: Journal | None
) -> Float[np.ndarray, "span sender receiver"]:
    graph = objective.graph
    clean, full = _clean_run(objective), float(objective(graph.valid))
    values = np.zeros((len(spans), *graph.shape))
    for receiver in range(len(graph.receivers)):
        place = objective.model.place(receiver)
        for rows in _chunks(np.flatnonzero(graph.valid[:, receiver]), width):
            for index, span in enumerate(spans):
                at = jnp.asarray(span, objective.model.dtype)
                losses = functools.partial(_without_edges, objective, clean, place, jnp.asarray(rows, jnp.int32), at)
                found = losses() if journal is None else journal.call(f"{receiver} {rows[0]} {index}", losses)
                values[index, rows, receiver] = np.asarray(found) - full
    return values


def _effects_of_masks(
    objective: Conditional, spans: np.ndarray, width: int, journal: Journal | None
) -> Float[np.ndarray, "span sender receiver"]:
    """The same where some edges are absent: of those that are in, each mask is evaluated."""
    kept = kept_edges(objective)
    full, values = float(objective(kept)), np.zeros((len(spans), *kept.shape))
    for index, span in enumerate(spans):
        at = np.ones(1, bool) if span.all() else span
        for edges in _chunks(np.flatnonzero(kept), width):
            senders, receivers = np.unravel_index(edges, kept.shape)
            masks = np.tile(kept[None, ..., None], (width, 1, 1, len(at)))
            masks[np.arange(width), senders, receivers] &= ~at
            losses = functools.partial(objective.many, masks[..., 0] if span.all() else masks, width)
            found = losses() if journal is None else journal.call(f"{edges[0]} {index}", losses)
            values[index, senders, receivers] = np.asarray(found) - full
    return values


def _chunks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """`rows`, `width` at a time; the last are repeated, so that all chunks have one shape."""
    padded = np.append(rows, np.repeat(rows[-1:], -len(rows) % width))
    return list(padded.reshape(-1, width))


@eqx.filter_jit
def _clean_run(objective: Objective) -> _CleanRun:
    streams, written = recorded(objective.model, objective.clean, objective.microbatch, objective.span_at)
    return _CleanRun(*(jnp.moveaxis(x, 0, 1) for x in (written, streams, objective.reference - written)))


@eqx.filter_jit
def _without_edges(
    objective: Objective, clean: _CleanRun, place: eqx.Module, senders: Int[Array, " circuit"], span: Array
) -> Float[Array, " circuit"]:
    """The loss without the edge from each sender into the receiver at `place`, at the positions of `span`."""

    def one(objective, prompt):
        run, (_, _, *rest) = prompt

        def without(sender):
            offset = run.change[sender] * span[:, None]
            residual = objective.model.displaced_residual(place, run.streams, run.written, offset)
            return objective._score(residual, *rest)

        return jax.vmap(without)(senders)

    return batching.over_prompts(objective, one, (clean, objective._prompts())).mean(0)


@eqx.filter_jit
def _without_nodes(
    objective: Objective, clean: _CleanRun, time: Int[Array, ""], senders: Int[Array, " circuit"]
) -> Float[Array, " circuit"]:
    """The loss without all edges out of each sender; all of them are written at one `time`."""

    def one(objective, prompt):
        run, (_, _, *rest) = prompt

        def without(sender):
            return objective._score(objective.model.residual_from(run.streams[time] + run.change[sender], time), *rest)

        return jax.vmap(without)(senders)

    return batching.over_prompts(objective, one, (clean, objective._prompts())).mean(0)
