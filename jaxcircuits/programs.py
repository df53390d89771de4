"""A chain of candidates as data: what `chains.py` runs and `live.py` writes."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

AnyArray = Array | np.ndarray
"""What the host makes stays NumPy: a compiled function hands it to every device."""

HEAD, MLP = range(2)
"""What an instruction computes."""


class Program(eqx.Module):
    """A chain as data: which differences each candidate removes where, and the nodes to recompute, in order.

    - `removals[j, :removal_counts[j]]`: the senders that step j removes. `at`: for each receiver touched by the
      chain (0: none), which steps candidate i removes there.
    - `count` instructions, the first `count_everywhere` of which compute every position.
    - `sources[n, c, :counts[n, c]]`: slots of the changed senders kept into input c of instruction n's node;
      `touched[n, c]`: its row of `at`.
    """

    removals: Int[AnyArray, "candidate sender"]
    removal_counts: Int[AnyArray, " candidate"]
    at: Float[AnyArray, "touched candidate candidate"]
    count_everywhere: Int[AnyArray, ""]
    count: Int[AnyArray, ""]
    kind: Int[AnyArray, " slot"]
    layer: Int[AnyArray, " slot"]
    head: Int[AnyArray, " slot"]
    slot: Int[AnyArray, " slot"]
    sources: Int[AnyArray, "slot kv source"]
    counts: Int[AnyArray, "slot kv"]
    touched: Int[AnyArray, "slot kv"]
    logits_sources: Int[AnyArray, " source"]
    logits_count: Int[AnyArray, ""]
    logits_touched: Int[AnyArray, ""]


def empty_program(senders: int, slots: int, candidates: int, dtype: np.dtype) -> Program:
    """A program that changes nothing, as NumPy arrays to be filled."""
    kind, layer, head, slot, logits_sources = np.zeros((5, slots), np.int32)
    counts, touched = np.zeros((2, slots, 3), np.int32)
    return Program(
        removals=np.zeros((candidates, senders), np.int32),
        removal_counts=np.zeros(candidates, np.int32),
        at=np.zeros((candidates + 1, candidates, candidates), dtype),
        count_everywhere=np.zeros((), np.int32),
        count=np.zeros((), np.int32),
        kind=kind,
        layer=layer,
        head=head,
        slot=slot,
        sources=np.zeros((slots, 3, slots), np.int32),
        counts=counts,
        touched=touched,
        logits_sources=logits_sources,
        logits_count=np.zeros((), np.int32),
        logits_touched=np.zeros((), np.int32),
    )
