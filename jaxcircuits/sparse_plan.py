"""How small circuits are computed by their live nodes: which nodes, in what order, and where they read and write.

A node is live if kept edges lead from it to `logits`. One that is read at the scored positions alone (through `logits`,
and through queries and MLPs of such nodes) is computed only there; the others are `wide`. What nodes write stands in
the rows of two buffers: all nodes at the scored positions, wide ones at every position. NumPy only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .graph import Graph

KINDS = ("<q>", "<k>", "<v>")


class Reads(NamedTuple):
    """Inputs of one kind: the i-th adds the rows `sources[first[i] : last[i]]`. It belongs to the node `nodes[i]`.

    Arrays are padded; `used` inputs are no padding.
    """

    sources: Int[np.ndarray, " edge"]
    first: Int[np.ndarray, " input"]
    last: Int[np.ndarray, " input"]
    nodes: Int[np.ndarray, " input"]
    used: Int[np.ndarray, ""]


class Step(NamedTuple):
    """Nodes of one half-layer that are computed together; `used` of them, the rest is padding.

    - `time`: the half-layer that they read. `rows`: where the first writes, among the scored and the wide rows.
    - `reads`: an MLP's inputs; or a head's queries, keys and values that edges lead to, and `inputs` [kv, node]: which
      of them is each node's, -1 for none.
    """

    time: int
    is_head: bool
    is_wide: bool
    senders: Int[np.ndarray, " node"]
    used: Int[np.ndarray, ""]
    rows: Int[np.ndarray, "2"]
    reads: tuple[Reads, ...]
    inputs: Int[np.ndarray, "kv node"]


class Plan(NamedTuple):
    """Steps in order, what `logits` of each circuit reads, and how many rows of both kinds are needed."""

    steps: list[Step]
    logits: Reads
    rows: Int[np.ndarray, "2"]


class Planner:
    """Plans for circuits of one graph; `fed_only`: also without nodes that no embedding reaches."""

    def __init__(self, graph: Graph, fed_only: bool):
        self.graph, self.fed_only = graph, fed_only
        names, receivers = graph.senders, graph.receivers
        self.embeddings = np.flatnonzero(np.isin(names, graph.embeddings))
        self.is_head = np.array([name.startswith("a") for name in names]) & ~np.isin(names, graph.embeddings)
        kinds = [next((kind for kind, end in enumerate(KINDS) if name.endswith(end)), 0) for name in receivers]
        self.kinds = np.array(kinds)
        self.reads = np.zeros((len(receivers), len(names)), bool)  # whether a sender's node reads through a receiver
        for column in range(len(receivers)):
            self.reads[column, graph.readers(column)] = True

    def plan(self, masks: Bool[np.ndarray, "circuit sender receiver"]) -> Plan:
        """What to compute for these circuits."""
        kept = self._heard(masks & self.graph.valid)
        wide, live = self._read_everywhere(kept), np.asarray(kept.any(2))
        live[:, self.embeddings] = False
        row_of = np.zeros((2, *live.shape), np.int32)  # of each circuit's senders, among the scored and the wide rows
        row_of[:, :, self.embeddings] = np.arange(len(self.embeddings))
        edges = np.argwhere(kept)
        at, readers = np.nonzero(self.reads[edges[:, 2]])
        into = edges[at, 0], readers, edges[at, 1], self.kinds[edges[at, 2]]
        steps, rows, slack = [], np.full(2, len(self.embeddings), np.int32), 0
        for time in np.unique(self.graph.sender_times[live.any(0)]):
            for is_wide in (False, True):
                nodes = np.argwhere(live & (self.graph.sender_times == time) & (wide == is_wide))
                if len(nodes):
                    steps.append(self._step(int(time) - 1, is_wide, nodes, rows, row_of, into))
                    for buffer in range(1 + is_wide):
                        row_of[buffer, nodes[:, 0], nodes[:, 1]] = rows[buffer] + np.arange(len(nodes))
                        rows[buffer] += len(nodes)
                    slack = max(slack, len(steps[-1].senders))
        ends = edges[edges[:, 2] == len(self.graph.receivers) - 1]
        circuits, sizes = np.arange(len(masks)), (_rounded(len(ends)), _rounded(len(masks)))
        logits = _reads(row_of[0, ends[:, 0], ends[:, 1]], ends[:, 0], circuits, sizes)
        return Plan(steps, logits, rows + slack)

    def _heard(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender receiver"]:
        """Without edges to nodes that reach no `logits`, and to those that no embedding reaches if asked for."""
        if self.fed_only:
            return np.stack([self.graph.drop_dead_ends(mask) for mask in kept])
        kept = kept.copy()
        heard = np.tile(~self.reads.any(1), (len(kept), 1))  # receivers that reach logits: at first these alone
        for row in reversed(range(len(self.graph.senders))):
            kept[:, row] &= heard
            heard[:, self.reads[:, row]] |= np.any(kept[:, row], 1, keepdims=True)
        return kept

    def _read_everywhere(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender"]:
        """Whether a kept edge leads to a key or value, or to a query or MLP that is itself read everywhere."""
        everywhere = np.zeros(kept.shape[:2], bool)
        columns = np.tile(self.kinds > 0, (len(kept), 1))
        for row in reversed(range(kept.shape[1])):
            everywhere[:, row] = (kept[:, row] & columns).any(1)
            columns[:, self.reads[:, row]] |= everywhere[:, row, None]
        return everywhere

    def _step(
        self, time: int, is_wide: bool, nodes: np.ndarray, rows: np.ndarray, row_of: np.ndarray, into: tuple
    ) -> Step:
        """A step of the nodes (circuit, sender); `into`: circuit, reader, sender and kind of every edge's reading."""
        circuits, senders = nodes.T
        is_head = bool(self.is_head[senders[0]])
        place = np.full(row_of.shape[1:], -1)
        place[circuits, senders] = np.arange(len(nodes))
        targets = place[into[0], into[1]]
        circuit, target, sender, kind = (x[targets >= 0] for x in (into[0], targets, into[2], into[3]))
        size, reads, inputs = _rounded(len(nodes)), [], np.full((3, _rounded(len(nodes))), -1, np.int32)
        edges = _rounded(int(max(np.bincount(kind), default=0)))  # one size for all kinds: fewer shapes to compile
        for kv in range(3 if is_head else 1):
            own = kind == kv
            source = row_of[int(is_wide or kv > 0), circuit[own], sender[own]]
            found = np.unique(target[own]) if is_head else np.arange(len(nodes))
            inputs[kv, found] = np.arange(len(found))
            reads.append(_reads(source, target[own], found, (edges, size)))
        used = np.array(len(nodes), np.int32)
        return Step(time, is_head, is_wide, _padded(senders, size), used, rows.copy(), tuple(reads), inputs)


def _reads(sources: np.ndarray, targets: np.ndarray, nodes: np.ndarray, sizes: tuple[int, int]) -> Reads:
    """Inputs of `nodes`, ascending; `targets`: the node that reads each source. `sizes`: of both, padded."""
    order = np.argsort(targets, kind="stable")
    first, last = (np.searchsorted(targets[order], nodes, side) for side in ("left", "right"))
    first, last, inputs = (_padded(x, sizes[1]) for x in (first, last, nodes))
    return Reads(_padded(sources[order], sizes[0]), first, last, inputs, np.array(len(nodes), np.int32))


def _padded(x: np.ndarray, size: int) -> Int[np.ndarray, " _"]:
    return np.pad(x, (0, size - len(x))).astype(np.int32)


def _rounded(count: int) -> int:
    """The next power of two from 8 on: few shapes to compile."""
    return 1 << max(3, (count - 1).bit_length())
