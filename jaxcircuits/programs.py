"""A chain of candidates as data: what `chains.py` runs and `live.py` writes."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from .kinds import Units

AnyArray = Array | np.ndarray
"""What the host makes stays NumPy: a compiled function hands it to every device."""


class Program(eqx.Module):
    """A chain as data: which differences each candidate removes where, and the units to recompute, in order.

    - `removals[j, :removal_counts[j]]`: the senders that step j removes. `at`: for each receiver touched by the
      chain (0: none), which steps candidate i removes there.
    - `count` instructions, the first `count_everywhere` of which compute every position: a unit by its `kind`, `layer`
      and number `node` in the layer, whose values are in a `slot`.
    - `sources[n, c, :counts[n, c]]`: the changed senders kept into the input at place c of instruction n's unit, each
      as slot * width + its number in its unit; `touched[n, c]`: its row of `at`.
    """

    removals: Int[AnyArray, "candidate sender"]
    removal_counts: Int[AnyArray, " candidate"]
    at: Float[AnyArray, "touched candidate candidate"]
    count_everywhere: Int[AnyArray, ""]
    count: Int[AnyArray, ""]
    kind: Int[AnyArray, " slot"]
    layer: Int[AnyArray, " slot"]
    node: Int[AnyArray, " slot"]
    slot: Int[AnyArray, " slot"]
    sources: Int[AnyArray, "slot place source"]
    counts: Int[AnyArray, "slot place"]
    touched: Int[AnyArray, "slot place"]
    logits_sources: Int[AnyArray, " source"]
    logits_count: Int[AnyArray, ""]
    logits_touched: Int[AnyArray, ""]


def empty_program(units: Units, slots: int, candidates: int, dtype: np.dtype) -> Program:
    """A program that changes nothing, as NumPy arrays to be filled."""
    kind, layer, node, slot = np.zeros((4, slots), np.int32)
    counts, touched = np.zeros((2, slots, units.num_places), np.int32)
    return Program(
        removals=np.zeros((candidates, units.graph.shape[0]), np.int32),
        removal_counts=np.zeros(candidates, np.int32),
        at=np.zeros((candidates + 1, candidates, candidates), dtype),
        count_everywhere=np.zeros((), np.int32),
        count=np.zeros((), np.int32),
        kind=kind,
        layer=layer,
        node=node,
        slot=slot,
        sources=np.zeros((slots, units.num_places, slots * units.width), np.int32),
        counts=counts,
        touched=touched,
        logits_sources=np.zeros(slots * units.width, np.int32),
        logits_count=np.zeros((), np.int32),
        logits_touched=np.zeros((), np.int32),
    )
