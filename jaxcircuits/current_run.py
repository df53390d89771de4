"""The circuit so far, as arrays: the run that a search starts from, and the values of the units that can still change.

What it keeps at every position and what only where the metric reads is said by `Values`; the chains that are tried
from it are those of `chains.py`.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import batching
from .batching import CANDIDATES, PROMPTS, constrain
from .kinds import Units
from .objective import Objective
from .precision import products
from .programs import AnyArray
from .references import recorded
from .types import Mask


class Values(eqx.Module):
    """A quantity at every position, and the same at the scored positions of all prompts, in rows."""

    everywhere: Float[Array, "*rows batch position width"]
    scored: Float[Array, "*rows row width"]

    def part(self, is_scored: bool) -> Array:
        return self.scored if is_scored else self.everywhere


class Constants(eqx.Module):
    """The run of the circuit that the search starts from.

    - `written`: what every node writes; `difference`: that minus the reference.
    - `streams`: what each moment reads; of a part of the graph (`is_part`) when all edges carry the reference.
    """

    written: Float[Array, "sender batch position width"]
    difference: Float[Array, "sender batch position width"]
    streams: Float[Array, "moment batch position width"]
    is_part: bool = eqx.field(static=True)


class Current(eqx.Module):
    """The circuit so far: inputs [slot, place, ...] and outputs [slot * width, ...] of the units that can still change,
    and the input of `logits`. Only the scored part is kept up of what is read at scored positions only.
    """

    inputs: Values
    outputs: Values
    logits: Float[Array, "row width"]


def first_run(objective: Objective, mask: Mask | None) -> tuple[Constants, Float[Array, "row width"]]:
    """Everything that the circuit `mask` (None: all edges) fixes, and its input of `logits` where it is scored."""
    return _first_run(
        objective, mask, *recorded(objective.model, objective.clean, objective.microbatch, objective.span_at)
    )


@eqx.filter_jit
def _first_run(
    objective: Objective, mask: Mask | None, streams: Float[Array, "moment ..."], written: Float[Array, "sender ..."]
) -> tuple[Constants, Float[Array, "row width"]]:
    model, graph = objective.model, objective.graph
    difference = written - objective.reference
    residual = streams[-1]
    if mask is not None:
        earlier = np.arange(len(streams))[:, None] >= graph.written[None]
        with products(model.precision):
            streams = streams - jnp.einsum("es,sbtd->ebtd", earlier.astype(streams.dtype), difference)

        def run(prompt):
            return model.of_prompt(prompt[2]).masked_run(prompt[0], mask, prompt[1])

        prompts = objective.clean, jnp.moveaxis(objective.reference, 1, 0), objective.span_at
        residual, difference = batching.chunked_vmap(run, prompts, objective.microbatch)
        difference = jnp.moveaxis(difference, 0, 1)
        written = difference + objective.reference
    spread = (constrain(x, objective.mesh, None, PROMPTS) for x in (written, difference, streams))
    logits = constrain(at_scored(objective, residual), objective.mesh, PROMPTS)
    return Constants(*spread, is_part=mask is not None), logits


@eqx.filter_jit
def empty(objective: Objective, units: Units, logits: Float[Array, "row width"], slots: int) -> Current:
    """No unit in any slot; the clean input of `logits`."""
    inputs = _zeros(objective, (slots, units.num_places), (None, None))
    return Current(inputs, _zeros(objective, (slots * units.width,), (None,)), logits)


@eqx.filter_jit
def empty_changes(objective: Objective, units: Units, slots: int, candidates: int) -> Values:
    """Where a chain writes its changes, [slot * width, candidate, ...]."""
    return _zeros(objective, (slots * units.width, candidates), (None, CANDIDATES))


@eqx.filter_jit
def grow(current: Current, slots: int) -> Current:
    """Room for more units."""
    before = current.inputs.scored.shape[0]

    def pad(x):
        return jnp.pad(x, [(0, (slots - before) * (x.shape[0] // before))] + [(0, 0)] * (x.ndim - 1))

    return eqx.tree_at(lambda c: (c.inputs, c.outputs), current, jax.tree.map(pad, (current.inputs, current.outputs)))


@eqx.filter_jit(donate="all-except-first")
def fill(place: tuple[Objective, Units, Constants, tuple[AnyArray, AnyArray], AnyArray], current: Current) -> Current:
    """A unit's first values in its slot; `current` is updated in place.

    `place`: (slot, moment) and sender rows of the unit, and the edges into its inputs, bool [place, sender].
    """
    objective, units, constants, ((slot, moment), rows), edges = place
    inputs, outputs = constants.streams[moment], constants.written[rows]
    if constants.is_part:
        with products(objective.model.precision):
            inputs = inputs[None] + jnp.einsum("cs,sbtd->cbtd", edges.astype(inputs.dtype), constants.difference)
    inputs, outputs = (Values(x, at_scored(objective, x)) for x in (inputs, outputs))
    first = slot * units.width
    return Current(put(current.inputs, (slot,), inputs), put_rows(current.outputs, first, outputs), current.logits)


# --- rows of values ------------------------------------------------------------------------------


def _zeros(objective: Objective, rows: tuple[int, ...], axes: tuple[str | None, ...]) -> Values:
    """Zeros of shape `rows`, which are sharded along `axes`."""
    reference, scored = objective.reference, objective.scored

    def part(*values: int):
        zeros = jnp.zeros((*rows, *values, reference.shape[3]), reference.dtype)
        return constrain(zeros, objective.mesh, *axes, PROMPTS)

    return Values(part(*reference.shape[1:3]), part(scored.size))


def at_scored(objective: Objective, x: Float[Array, "*rows batch position width"]) -> Float[Array, "*rows row width"]:
    """The scored positions of all prompts, in rows.

    One of each is picked by a mask: a TPU gathers them in an order of its own, and would lay out anew, for every chain,
    the whole table that they are written to.
    """
    index = objective.scored.reshape((1,) * (x.ndim - 3) + (*objective.scored.shape, 1))
    if objective.scored.shape[1] == 1:
        positions = jnp.arange(x.shape[-2], dtype=index.dtype).reshape((1,) * (x.ndim - 2) + (-1, 1))
        return jnp.sum(jnp.where(positions == index, x, 0), axis=-2)
    x = jnp.take_along_axis(x, index, axis=-2)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def put(values: Values, index: tuple[Array | int, ...], new: Values) -> Values:
    """`values` with some rows replaced by `new`, in place where it can be."""
    return jax.tree.map(lambda old, row: old.at[index].set(jnp.broadcast_to(row, old[index].shape)), values, new)


def put_rows(values: Values, first: Array, new: Values) -> Values:
    """`values` with the rows from `first` on replaced by `new`."""
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
    return jax.tree.map(put, values, new)
