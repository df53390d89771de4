"""The same `f`, incremental: what a candidate costs is what it can still reach.

ACDC visits receivers from the output to the input. When it is at receiver r, everything upstream of r is still the
run it started from (the clean one), and everything downstream has been pruned. Removing edges into r thus
changes r's input by a sum of known differences (clean minus reference), r's node, and the nodes that r's node still
reaches through kept edges; nothing else. A chain of candidates is evaluated so:

1. `x_r` of candidate i = current x_r - (differences of the removals that candidate i makes at r).
2. The changed nodes, in order of computation: x_n = current x_n + changes of the changed senders kept into n; the
   node's output minus its current output is its own change.
3. The same sum at `logits`, at the scored positions only, then the metric.

Committing row i of a chain adds its changes to the current values: nothing is computed twice.

A node whose output is read only at the scored positions (through `logits`, and through the MLPs and queries of such
nodes) is computed only there. This file decides which nodes a chain touches; `chains.py` computes them, in one compiled
program whose shapes are the number of candidates and the number of *slots* (nodes that can still change).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from . import batching, chains, programs
from .batching import place
from .objective import Objective
from .types import EdgeBools, Model

SLOTS = (16, 48, 144)
"""Numbers of changeable nodes that are compiled for; beyond the last, its multiples."""

Edges = Int[np.ndarray, "_ 2"]

NODE_METHODS = ("receiver_streams", "head_projection", "head_output", "mlp_output")
"""What live evaluation asks of a model besides the masked run."""


class LiveEvaluator:
    """`chain` and `commit` (see `discovery.acdc`) at the cost of live nodes only; from `start` on (None: all edges)."""

    def __init__(self, objective: Objective, start: EdgeBools | None = None):
        objective.require("LiveEvaluator", *NODE_METHODS, remedy="use DenseEvaluator")
        self.objective = objective
        self.graph = objective.graph
        self.mask: EdgeBools = self.graph.valid.copy() if start is None else self.graph.valid & start
        first = None if start is None else place(self.mask.astype(objective.model.dtype), objective.mesh)
        self.constants, logits = chains.first_run(objective, first)
        self.slots: dict[int, int] = {}  # sender row -> slot
        self.reads_everywhere: dict[int, bool] = {}  # sender row -> is its output read at every position
        self.current = chains.empty(objective, logits, SLOTS[0])
        self.memory: dict[tuple[int, ...], int] = {}  # (slots, width) -> bytes of the compiled chain
        self._nodes = _Nodes(objective)
        self._chain: _Chain | None = None  # the last one; its arrays are written over by the next
        self._is_shared = False  # whether a fork may still read them

    @staticmethod
    def can_run(model: Model) -> bool:
        """Whether a model offers its nodes one by one."""
        return all(hasattr(model, name) for name in NODE_METHODS)

    def fork(self) -> "LiveEvaluator":
        """A second evaluator at the same point, with its own copy of what is updated in place."""
        self._is_shared = True
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, mask=self.mask.copy(), slots=dict(self.slots))
        copy.current = jax.tree.map(jnp.copy, self.current)
        copy.reads_everywhere = dict(self.reads_everywhere)
        return copy

    def metric(self) -> float:
        """The metric of the current circuit."""
        return float(chains.score(self.objective, self.current.logits[None])[0])

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, " step"]:
        """Metric i: of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        after = self.mask.copy()
        for edges, is_removed in zip(steps, guesses, strict=True):
            if is_removed:
                after[edges[:, 0], edges[:, 1]] = False
        touched = sorted({int(edges[0, 1]) for edges in steps})
        self._open(touched)
        program = self._program(steps, guesses, after, touched, width)
        shape = self._num_slots, width
        changes, self._chain = self._chain.changes if self._chain else None, None
        if changes is None or changes.scored.shape[:2] != shape or self._is_shared:
            changes = chains.empty_changes(self.objective, *shape)
        inputs = self.objective, self.constants, self.current, program
        if shape not in self.memory:
            self.memory[shape] = batching.memory_needed(chains.run_chain, inputs, changes)
            batching.check_fits(self.memory[shape], f"a chain of {width}")
        values, changes, removed = chains.run_chain(inputs, changes)
        self._chain, self._is_shared = _Chain(list(steps), program, changes, removed), False
        return np.asarray(values)[: len(steps)]

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        last = self._chain
        assert last is not None
        if not any(removed):
            return
        row = max(index for index, is_removed in enumerate(removed) if is_removed)
        inputs = self.objective, last.program, last.changes, last.removed, np.array(row, np.int32)
        self.current = chains.commit(inputs, self.current)
        for edges, is_removed in zip(last.steps, removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False

    @property
    def _num_slots(self) -> int:
        return self.current.outputs.scored.shape[0]

    # --- nodes that can change -----------------------------------------------------------------

    def _open(self, touched: Sequence[int]) -> None:
        """Gives a slot to every node whose inputs the chain touches, and takes those of nodes fixed for good."""
        nodes = sorted({row for column in touched for row in self.graph.readers(column).tolist()}, reverse=True)
        if not nodes:
            return
        for row in list(self.slots):
            if row > nodes[0] and not self.mask[:, self._nodes.columns[row]].any():
                del self.slots[row]
        new = [row for row in nodes if row not in self.slots]
        while len(self.slots) + len(new) > self._num_slots:
            self.current = chains.grow(self.current, next_bucket(self._num_slots + 1))
        free = iter(sorted(set(range(self._num_slots)) - set(self.slots.values())))
        for row in new:
            slot = self.slots[row] = next(free)
            where = np.array([slot, row, self._nodes.time[row]], np.int32)
            edges = self.mask.T[np.resize(self._nodes.columns[row], 3)]
            self.current = chains.fill((self.objective, self.constants, where, edges), self.current)
        # Readers first; edges only go, so a node may be needed at fewer positions than before.
        for row in sorted(self.slots, reverse=True):
            self.reads_everywhere[row] = self._is_read_everywhere(row)

    def _is_read_everywhere(self, row: int) -> bool:
        """Whether a kept edge leads to a key or value, or to a node that is itself read everywhere."""
        for column in np.flatnonzero(self.mask[row]).tolist():
            kind, readers = self._nodes.kv[column], [r for r in self.graph.readers(column).tolist() if r in self.slots]
            if readers and (kind > 0 or any(self.reads_everywhere[reader] for reader in readers)):
                return True
        return False

    def _program(
        self, steps: Sequence[Edges], guesses: Sequence[bool], after: EdgeBools, touched: Sequence[int], width: int
    ) -> programs.Program:
        slots, dtype = self._num_slots, np.dtype(self.objective.model.dtype)
        program: Any = programs.empty_program(len(self.graph.senders), slots, width, dtype)
        index = {column: number + 1 for number, column in enumerate(touched)}
        for number, (edges, is_removed) in enumerate(zip(steps, guesses, strict=True)):
            present = edges[self.mask[edges[:, 0], edges[:, 1]]]
            program.removals[number, : len(present)] = present[:, 0]
            program.removal_counts[number] = len(present)
            program.at[index[int(edges[0, 1])], number if not is_removed else slice(number, None), number] = 1
        changed: list[int] = []
        for row in sorted(self.slots, key=lambda row: (not self.reads_everywhere[row], row)):
            columns = self._nodes.columns[row].tolist()
            sources = [[self.slots[sender] for sender in changed if after[sender, column]] for column in columns]
            own = [index.get(column, 0) for column in columns]
            if any(sources) or any(own):
                self._instruct(program, len(changed), row, sources, own)
                changed.append(row)
        program.count[...] = len(changed)
        program.count_everywhere[...] = sum(self.reads_everywhere[row] for row in changed)
        last = len(self.graph.receivers) - 1
        into_logits = [self.slots[sender] for sender in changed if after[sender, last]]
        program.logits_sources[: len(into_logits)] = into_logits
        program.logits_count[...], program.logits_touched[...] = len(into_logits), index.get(last, 0)
        return program

    def _instruct(self, program: Any, n: int, row: int, sources: list[list[int]], touched: list[int]) -> None:
        """Instruction n: recompute the node of this sender row."""
        nodes = self._nodes
        program.kind[n] = programs.MLP if nodes.is_mlp[row] else programs.HEAD
        program.layer[n], program.head[n], program.slot[n] = nodes.layer[row], nodes.head[row], self.slots[row]
        for c, (slots, at) in enumerate(zip(sources, touched, strict=True)):
            program.sources[n, c, : len(slots)] = slots
            program.counts[n, c], program.touched[n, c] = len(slots), at


def next_bucket(count: int) -> int:
    """The number of slots compiled for, at least `count`."""
    return next((size for size in SLOTS if size >= count), -(-count // SLOTS[-1]) * SLOTS[-1])


@dataclasses.dataclass
class _Chain:
    """What `commit` needs of the last chain."""

    steps: list[Edges]
    program: programs.Program
    changes: chains.Values
    removed: chains.Values


class _Nodes:
    """Where each node stands: its layer and head, the half-layer that it reads, its columns in the mask."""

    def __init__(self, objective: Objective):
        graph = objective.graph
        self.columns = {row: graph.inputs(name) for row, name in enumerate(graph.senders)}
        self.kv = {
            column: "qkv".find(name[-2]) if name.endswith(">") else -1 for column, name in enumerate(graph.receivers)
        }
        self.layer, self.head, self.is_mlp, self.time = {}, {}, {}, {}
        for row, name in enumerate(graph.senders):
            if len(self.columns[row]):
                layer, _, head = name[1:].partition(".h")
                self.layer[row], self.head[row] = int(layer), int(head or 0)
                self.is_mlp[row] = not head
                self.time[row] = 2 * int(layer) + self.is_mlp[row]
