"""How small circuits are computed by their live nodes: which nodes, in what order, and where they read and write.

A node is live if kept edges lead from it to `logits`. One that is read at the scored positions alone (through `logits`,
and through queries and MLPs of such nodes) is computed only there; the others are `wide`. What nodes write stands in
the rows of two buffers: all nodes at the scored positions, wide ones at every position. NumPy only.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .graph import Graph
from .kinds import Units


class Reads(NamedTuple):
    """Inputs at one place: the i-th adds the rows `sources[first[i] : last[i]]`. It belongs to the unit `units[i]`.

    Arrays are padded; `used` inputs are no padding.
    """

    sources: Int[np.ndarray, " edge"]
    first: Int[np.ndarray, " input"]
    last: Int[np.ndarray, " input"]
    units: Int[np.ndarray, " input"]
    used: Int[np.ndarray, ""]


class Step(NamedTuple):
    """Units of one kind and moment that are computed together; `used` of them, the rest is padding.

    - `rows`: where the first writes, among the scored and the wide rows. `senders`: the first sender of each.
    - `reads`: of each place those inputs that edges lead to, and `inputs` [place, unit]: which of them is each unit's,
      -1 for none. An input that is its unit's only one is always there.
    """

    kind: int
    moment: int
    layer: int
    is_wide: bool
    senders: Int[np.ndarray, " unit"]
    nodes: Int[np.ndarray, " unit"]
    used: Int[np.ndarray, ""]
    rows: Int[np.ndarray, "2"]
    reads: tuple[Reads, ...]
    inputs: Int[np.ndarray, "place unit"]


class Plan(NamedTuple):
    """Steps in order, what `logits` of each circuit reads, and how many rows of both kinds are needed."""

    steps: list[Step]
    logits: Reads
    rows: Int[np.ndarray, "2"]


class Planner:
    """Plans for circuits of one graph; `fed_only`: also without nodes that no embedding reaches."""

    def __init__(self, graph: Graph, fed_only: bool):
        self.graph, self.fed_only, self.units = graph, fed_only, Units(graph)
        self.embeddings = np.flatnonzero(graph.written == 0)
        self.reads = np.zeros((len(graph.receivers), len(graph.senders)), bool)  # whose writing depends on a receiver
        for column in range(len(graph.receivers)):
            self.reads[column, graph.readers(column)] = True
        pairs = [
            (column, number, place)
            for number, unit in enumerate(self.units.all)
            for place, column in enumerate(unit.columns)
            if column >= 0
        ]
        self.pairs = np.array(sorted(pairs), np.int64).reshape(-1, 3)  # every unit's reading through a column

    def plan(self, masks: Bool[np.ndarray, "circuit sender receiver"]) -> Plan:
        """What to compute for these circuits."""
        kept = self._heard(masks & self.graph.valid)
        units = self.units.all
        first_rows = np.array([unit.rows[0] for unit in units])
        of_kind = np.array([(unit.moment, unit.kind) for unit in units])
        joined = [list(unit.rows) for unit in units]
        sends, everywhere = np.asarray(kept.any(2)), self._read_everywhere(kept)
        live = np.stack([sends[:, rows].any(1) for rows in joined], 1)
        wide = np.stack([everywhere[:, rows].any(1) for rows in joined], 1)
        row_of = np.zeros((2, *sends.shape), np.int32)  # of each circuit's senders, among the scored and the wide rows
        row_of[:, :, self.embeddings] = np.arange(len(self.embeddings))
        edges = np.argwhere(kept)
        into = self._readings(edges)
        steps, rows, slack = [], np.full(2, len(self.embeddings), np.int32), 0
        for moment, kind in np.unique(of_kind[live.any(0)], axis=0).tolist():
            own = (of_kind == (moment, kind)).all(1)
            for is_wide in (False, True):
                chosen = np.argwhere(live & own & (wide == is_wide))
                if len(chosen):
                    steps.append(self._step(is_wide, chosen, rows, row_of, into))
                    width = self.units.kinds[kind].width
                    written = first_rows[chosen[:, 1], None] + np.arange(width)
                    for buffer in range(1 + is_wide):
                        new = rows[buffer] + np.arange(len(chosen) * width).reshape(-1, width)
                        row_of[buffer, chosen[:, :1], written] = new
                        rows[buffer] += len(chosen) * width
                    slack = max(slack, len(steps[-1].senders) * width)
        ends = edges[edges[:, 2] == len(self.graph.receivers) - 1]
        circuits, sizes = np.arange(len(masks)), (_rounded(len(ends)), _rounded(len(masks)))
        logits = _reads(row_of[0, ends[:, 0], ends[:, 1]], ends[:, 0], circuits, sizes)
        return Plan(steps, logits, rows + slack)

    def _readings(self, edges: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of each kept edge and each unit that reads it: circuit, unit, sender, place, and whether it is local."""
        columns = self.pairs[:, 0]
        first, last = (np.searchsorted(columns, edges[:, 2], side) for side in ("left", "right"))
        counts = last - first
        edge = np.repeat(np.arange(len(edges)), counts)
        pair = self.pairs[np.repeat(first - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())]
        return edges[edge, 0], pair[:, 1], edges[edge, 1], pair[:, 2], self.units.is_local[pair[:, 0]]

    def _heard(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender receiver"]:
        """Without edges to nodes that reach no `logits`, and to those that no embedding reaches if asked for."""
        if self.fed_only:
            return np.stack([self.graph.drop_dead_ends(mask) for mask in kept])
        kept = kept.copy()
        heard = np.tile(~self.reads.any(1), (len(kept), 1))  # receivers that reach logits: at first these alone
        for unit in reversed(self.units.all):
            rows = list(unit.rows)
            kept[:, rows] &= heard[:, None]
            heard[:, self.reads[:, rows[0]]] |= np.any(kept[:, rows], (1, 2))[:, None]
        kept[:, self.embeddings] &= heard[:, None]
        return kept

    def _read_everywhere(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender"]:
        """Whether a kept edge leads to a key or value, or to a query or MLP that is itself read everywhere."""
        everywhere = np.zeros(kept.shape[:2], bool)
        columns = np.tile(~self.units.is_local, (len(kept), 1))
        for unit in reversed(self.units.all):
            rows = list(unit.rows)
            everywhere[:, rows] = np.any(kept[:, rows] & columns[:, None], (1, 2), keepdims=True)[:, 0]
            columns[:, self.reads[:, rows[0]]] |= everywhere[:, rows[0], None]
        return everywhere

    def _step(self, is_wide: bool, chosen: np.ndarray, rows: np.ndarray, row_of: np.ndarray, into: tuple) -> Step:
        """A step of units (circuit, unit), all of one kind and moment; `into`: as `_readings` gives them."""
        units = [self.units.all[number] for number in chosen[:, 1]]
        kind, size = self.units.kinds[units[0].kind], _rounded(len(units))
        place_of = np.full((len(row_of[0]), len(self.units.all)), -1)
        place_of[chosen[:, 0], chosen[:, 1]] = np.arange(len(units))
        target = place_of[into[0], into[1]]
        circuit, sender, place, is_local = (x[target >= 0] for x in (into[0], *into[2:]))
        target = target[target >= 0]
        places = [place for _, own in kind.ports for place in own]
        edges = _rounded(int(max(np.bincount(place), default=0)))  # one size for all places: fewer shapes to compile
        reads, inputs = [], np.full((len(places), size), -1, np.int32)
        for number, at in enumerate(places):
            own = place == at
            buffer = np.where(is_local[own], int(is_wide), 1)
            source = row_of[buffer, circuit[own], sender[own]]
            found = np.unique(target[own]) if len(places) > 1 else np.arange(len(units))
            inputs[number, found] = np.arange(len(found))
            reads.append(_reads(source, target[own], found, (edges, size)))
        senders, nodes = (np.array([x(unit) for unit in units]) for x in (lambda u: u.rows[0], lambda u: u.node))
        first, used = units[0], np.array(len(units), np.int32)
        own = _padded(senders, size), _padded(nodes, size), used, rows.copy()
        return Step(first.kind, first.moment, first.layer, is_wide, *own, tuple(reads), inputs)


def _reads(sources: np.ndarray, targets: np.ndarray, units: np.ndarray, sizes: tuple[int, int]) -> Reads:
    """Inputs of `units`, ascending; `targets`: the unit that reads each source. `sizes`: of both, padded."""
    order = np.argsort(targets, kind="stable")
    first, last = (np.searchsorted(targets[order], units, side) for side in ("left", "right"))
    first, last, inputs = (_padded(x, sizes[1]) for x in (first, last, units))
    return Reads(_padded(sources[order], sizes[0]), first, last, inputs, np.array(len(units), np.int32))


def _padded(x: np.ndarray, size: int) -> Int[np.ndarray, " _"]:
    return np.pad(x, (0, size - len(x))).astype(np.int32)


def _rounded(count: int) -> int:
    """The next power of two from 8 on: few shapes to compile."""
    return 1 << max(3, (count - 1).bit_length())
