"""A chain of candidates as data: what `chains.py` runs and `live.py` writes."""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Int

from .kinds import Units

AnyArray = Array | np.ndarray
"""What the host makes stays NumPy: a compiled function hands it to every device."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Program:
    """A chain as data: which differences each candidate removes where, and the units to recompute, in order.

    - `removals[j, :removal_counts[j]]`: the senders that step j removes, at one of the touched receivers, which are
      numbered from 1 on.
    - `last_removed[t, i]`: the last step, from 1 on, that candidate i removes at receiver t (0: none): its own, or one
      before it that is guessed to be removed. `previous[j]`: the last such before step j at its receiver.
    - `count` instructions, the first `count_everywhere` of which compute every position: a unit by its `kind`, `layer`
      and number `node` in the layer, whose values are in a `slot`.
    - `sources[n, c, :counts[n, c]]`: the changed senders kept into the input at place c of instruction n's unit, each
      as slot * width + its number in its unit; `touched[n, c]`: its number among touched receivers, 0 if it is none.
    - `changed[n, c]`: whether either changes it, in any of the searches that run together.
    """

    removals: Int[AnyArray, "candidate sender"]
    removal_counts: Int[AnyArray, " candidate"]
    previous: Int[AnyArray, " candidate"]
    last_removed: Int[AnyArray, "touched candidate"]
    count_everywhere: Int[AnyArray, ""]
    count: Int[AnyArray, ""]
    kind: Int[AnyArray, " instruction"]
    layer: Int[AnyArray, " instruction"]
    node: Int[AnyArray, " instruction"]
    slot: Int[AnyArray, " instruction"]
    sources: Int[AnyArray, "instruction place source"]
    counts: Int[AnyArray, "instruction place"]
    touched: Int[AnyArray, "instruction place"]
    changed: Int[AnyArray, "instruction place"]
    logits_sources: Int[AnyArray, " source"]
    logits_count: Int[AnyArray, ""]
    logits_touched: Int[AnyArray, ""]


def empty_program(
    units: Units, slots: int, candidates: int, instructions: int | None = None
) -> Int[np.ndarray, " number"]:
    """A program that changes nothing, in one array, which goes to the devices at once.

    - `instructions`: room for so many; None: one a slot.
    """
    return np.zeros(sum(math.prod(shape) for shape in _shapes(units, slots, candidates, instructions)), np.int32)


def unpacked(
    numbers: Int[AnyArray, " number"], units: Units, slots: int, candidates: int, instructions: int | None = None
) -> Program:
    """The parts of a program in one array; of NumPy's they are views, to be filled."""
    fields, first = [], 0
    for shape in _shapes(units, slots, candidates, instructions):
        size = math.prod(shape)
        fields.append(numbers[first : first + size].reshape(shape))
        first += size
    return Program(*fields)


def _shapes(units: Units, slots: int, candidates: int, instructions: int | None) -> tuple[tuple[int, ...], ...]:
    sources, places = slots * units.width, units.num_places
    count = slots if instructions is None else instructions
    return (
        (candidates, units.graph.shape[0]),
        *[(candidates,)] * 2,
        (candidates + 1, candidates),
        *[()] * 2,
        *[(count,)] * 4,
        (count, places, sources),
        *[(count, places)] * 3,
        (sources,),
        *[()] * 2,
    )
