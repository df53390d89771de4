"""The same `f`, incremental: what a candidate costs is what it can still reach.

ACDC visits receivers from the output to the input. When it is at receiver r, everything upstream of r is still the
run it started from (the clean one), and everything downstream has been pruned. Removing edges into r thus
changes r's input by a sum of known differences (clean minus reference), r's node, and the nodes that r's node still
reaches through kept edges; nothing else. A chain of candidates is evaluated so:

1. `x_r` of candidate i = current x_r - (differences of the removals that candidate i makes at r).
2. The changed nodes, in order of computation: x_n = current x_n + changes of the changed senders kept into n; the
   node's output minus its current output is its own change.
3. The same sum at `logits`, at the scored positions only, then the metric.

Committing candidate i of a chain takes its changes into the current values: nothing is computed twice.

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
from jaxtyping import Array, Float, Int

from . import batching, chains, current_run, lockstep, programs
from .batching import place
from .kinds import Units
from .objective import Objective
from .types import EdgeBools

SLOTS = (48, 144)
"""Numbers of changeable nodes that are compiled for, or all of a smaller graph; beyond the last, its multiples. A slot
that nothing is in costs memory alone, another number of them a program.
"""

Edges = Int[np.ndarray, "_ 2"]


class LiveEvaluator:
    """`chain` and `commit` (see `discovery.acdc`) at the cost of live nodes only; from `start` on (None: all edges)."""

    def __init__(self, objective: Objective, start: EdgeBools | None = None):
        self.objective = objective
        self.graph = objective.graph
        self.mask: EdgeBools = self.graph.valid.copy() if start is None else self.graph.valid & start
        first = None if start is None else place(self.mask.astype(objective.model.dtype), objective.mesh)
        self.constants, logits = current_run.first_run(objective, first)
        self.units = Units(self.graph)
        self.slots: dict[int, int] = {}  # unit -> slot
        self.reads_everywhere: dict[int, bool] = {}  # unit -> is its output read at every position
        self.rest, self.fixed = batching.flattened((objective, self.units, self.constants))  # of every call
        self.current = current_run.empty(objective, self.units, logits, slots_for(0, self.units))
        self.memory: dict[tuple, int] = {}  # what runs, slots, width -> bytes of the compiled program
        self._chain: _Chain | None = None  # the last one
        self._changes: list[current_run.Values] = []  # its changes, which the next chain of any fork is written over

    def fork(self) -> "LiveEvaluator":
        """A second evaluator at the same point, with its own copy of what is updated in place.

        Both may commit the last chain, until either evaluates the next one.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, mask=self.mask.copy(), slots=dict(self.slots))
        copy.current = jax.tree.map(jnp.copy, self.current)
        copy.reads_everywhere = dict(self.reads_everywhere)
        return copy

    def values(self) -> Float[np.ndarray, " prompt"]:
        """Each prompt's share of the metric of the current circuit; the metric is their mean."""
        return np.asarray(chains.score(self.objective, self.current.logits[None]))[0]

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, "step prompt"]:
        """Row i: `values` of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        self._open(touched(steps))
        numbers, _ = self._program(steps, guesses, width)
        program = place(numbers, self.objective.mesh)
        self._chain = None
        inputs = self.rest, self.fixed, self.current, program, self._changes_to_write(width)
        self._check_fits(("chain", self._num_slots, width), f"a chain of {width}", chains.run_chain, *inputs)
        values, tried = chains.run_chain(*inputs)
        self._chain = _Chain(list(steps), program, tried)
        self._changes.append(tried.changes)
        return np.asarray(values)[: len(steps)]

    @staticmethod
    def together(
        searches: "Sequence[LiveEvaluator]",
        steps: Sequence[Sequence[Edges]],
        guesses: Sequence[Sequence[bool]],
        width: int,
    ) -> list[Float[np.ndarray, "step prompt"]]:
        """`chain` of several searches, forks of one, in one call."""
        first = searches[0]
        for search, own in zip(searches, steps, strict=True):
            search._open(touched(own))
            search._chain = None
        slots = max(search._num_slots for search in searches)
        for search in searches:
            if search._num_slots < slots:
                search.current = current_run.grow(search.current, slots)
        made = [
            each._program(*own, width) for each, own in zip(searches, zip(steps, guesses, strict=True), strict=True)
        ]
        numbers, instructions = lockstep.merged(made, first.units, slots, width)
        padded = [*range(len(searches)), *[0] * (lockstep.bucket(len(searches)) - len(searches))]
        currents = [searches[number].current for number in padded]
        changes = [first._changes_to_write(width) for _ in padded]
        program = place(numbers[padded], first.objective.mesh)
        inputs = first.rest, instructions, first.fixed, currents, program, changes
        shape = "chains", len(padded), instructions, slots, width
        first._check_fits(shape, f"{len(padded)} chains of {width}", lockstep.run_chains, *inputs)
        values, tried = lockstep.run_chains(*inputs)
        first._changes += [each.changes for each in tried]
        for n, search in enumerate(searches):
            search._chain = _Chain(list(steps[n]), place(made[n][0], first.objective.mesh), tried[n])
        return [each[: len(own)] for each, own in zip(np.asarray(values), steps, strict=False)]

    def _changes_to_write(self, width: int) -> current_run.Values:
        """Where a chain may write its changes: over those of an earlier one, if there are any of this shape."""
        while self._changes:
            changes = self._changes.pop()
            if changes.scored.shape[:2] == (self._num_slots * self.units.width, width):
                return changes
        return current_run.empty_changes(self.objective, self.units, self._num_slots, width)

    def _check_fits(self, shape: tuple, what: str, jitted: Any, *inputs: Any) -> None:
        if shape not in self.memory:
            needed = batching.memory_needed(jitted, *inputs)
            batching.check_fits(needed, what)
            self.memory[shape] = needed

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        last = self._chain
        assert last is not None
        if not any(removed):
            return
        number = max(number for number, is_removed in enumerate(removed, 1) if is_removed)
        chain = last.program, last.tried, np.int32(number)
        self.current = chains.commit(self.rest, self.fixed, *chain, self.current)
        for edges, is_removed in zip(last.steps, removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs to be at this point again, to the last bit."""
        places = [(number, slot, self.reads_everywhere[number]) for number, slot in self.slots.items()]
        current = {f"current{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(self.current))}
        return {"mask": self.mask, "places": np.array(places, np.int32).reshape(-1, 3), **current}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Goes to the point of a `state` of the same objective."""
        self.mask = state["mask"].copy()
        places = state["places"].tolist()
        self.slots = {number: slot for number, slot, _ in places}
        self.reads_everywhere = {number: bool(is_read) for number, _, is_read in places}
        empty = current_run.empty(self.objective, self.units, self.current.logits, len(state["current0"]))
        old, structure = jax.tree.flatten(empty)
        new = [jax.device_put(state[f"current{index}"], leaf.sharding) for index, leaf in enumerate(old)]
        self.current = jax.tree.unflatten(structure, [jnp.copy(leaf) for leaf in new])
        self._chain = None

    @property
    def _num_slots(self) -> int:
        return self.current.inputs.scored.shape[0]

    # --- nodes that can change -----------------------------------------------------------------

    def _open(self, touched: Sequence[int]) -> None:
        """Gives a slot to every unit whose inputs the chain touches, and takes those of units fixed for good."""
        rows = {row for column in touched for row in self.graph.readers(column).tolist()}
        opened = sorted({self.units.of_row[row][0] for row in rows}, reverse=True)
        if not opened:
            return
        for number in list(self.slots):
            if number > opened[0] and not self.mask[:, self._columns(number)].any():
                del self.slots[number]
        new = [number for number in opened if number not in self.slots]
        self._grow(len(self.slots) + len(new))
        free = iter(sorted(set(range(self._num_slots)) - set(self.slots.values())))
        for number in new:
            slot, unit = next(free), self.units.all[number]
            self.slots[number] = slot
            where = np.array([slot, unit.moment], np.int32), np.resize(unit.rows, self.units.width).astype(np.int32)
            edges = self.mask.T[list(unit.columns)]
            self.current = current_run.fill((self.objective, self.units, self.constants, where, edges), self.current)
        self._find_read_everywhere()

    def _grow(self, slots: int) -> None:
        """Room for at least so many units."""
        if slots > self._num_slots:
            self.current = current_run.grow(self.current, slots_for(slots, self.units))

    def _columns(self, number: int) -> list[int]:
        return [column for column in self.units.all[number].columns if column >= 0]

    def _find_read_everywhere(self) -> None:
        """Whose output a kept edge leads to a key or value, or to a unit that is itself read everywhere.

        Readers come first; edges only go, so a unit may be needed at fewer positions than before.
        """
        everywhere = np.zeros(self.graph.shape[1], bool)
        for number in self.slots:
            everywhere[self._columns(number)] = True
        everywhere &= ~self.units.is_local
        for number in sorted(self.slots, reverse=True):
            is_read = bool((self.mask[list(self.units.all[number].rows)] & everywhere).any())
            self.reads_everywhere[number] = is_read
            if is_read:
                everywhere[self._columns(number)] = True

    def _program(
        self, steps: Sequence[Edges], guesses: Sequence[bool], width: int
    ) -> tuple[Int[np.ndarray, " number"], lockstep.Order]:
        """In one array, and what its instructions compute."""
        after = self.mask.copy()
        for edges, is_removed in zip(steps, guesses, strict=True):
            if is_removed:
                after[edges[:, 0], edges[:, 1]] = False
        size, shape = self.units.width, (self.units, self._num_slots, width)
        numbers = programs.empty_program(*shape)
        program: Any = programs.unpacked(numbers, *shape)
        index = {column: number + 1 for number, column in enumerate(touched(steps))}
        last = np.zeros(len(program.last_removed), np.int32)
        for number, (edges, is_removed) in enumerate(zip(steps, guesses, strict=True)):
            present = edges[self.mask[edges[:, 0], edges[:, 1]]]
            program.removals[number, : len(present)] = present[:, 0]
            program.removal_counts[number] = len(present)
            at = index[int(edges[0, 1])]
            program.previous[number], program.last_removed[:, number] = last[at], last
            program.last_removed[at, number] = number + 1
            last[at] = number + 1 if is_removed else last[at]
        order: lockstep.Order = []
        changed, places = [], []  # senders, and where their changes are
        for unit in sorted(self.slots, key=lambda unit: (not self.reads_everywhere[unit], unit)):
            columns = self.units.all[unit].columns
            sources = [np.array(places, np.int32)[after[changed, column]] if column >= 0 else () for column in columns]
            own = [index.get(column, 0) for column in columns]
            if any(map(len, sources)) or any(own):
                self._instruct(program, len(order), unit, sources, own)
                order.append((not self.reads_everywhere[unit], unit))
                changed += self.units.all[unit].rows
                places += [self.slots[unit] * size + place for place in range(len(self.units.all[unit].rows))]
                program.count_everywhere[...] += self.reads_everywhere[unit]
        program.count[...] = len(order)
        logits = len(self.graph.receivers) - 1
        into_logits = np.array(places, np.int32)[after[changed, logits]]
        program.logits_sources[: len(into_logits)] = into_logits
        program.logits_count[...], program.logits_touched[...] = len(into_logits), index.get(logits, 0)
        return numbers, order

    def _instruct(self, program: Any, n: int, number: int, sources: Sequence[Any], touched: list[int]) -> None:
        """Instruction n: recompute this unit."""
        unit = self.units.all[number]
        program.kind[n], program.layer[n], program.node[n] = unit.kind, unit.layer, unit.node
        program.slot[n] = self.slots[number]
        for c, (places, at) in enumerate(zip(sources, touched, strict=True)):
            program.sources[n, c, : len(places)] = places
            program.counts[n, c], program.touched[n, c] = len(places), at
            program.changed[n, c] = len(places) > 0 or at > 0


def touched(steps: Sequence[Edges]) -> list[int]:
    """The receivers at which a chain removes edges."""
    return sorted({int(edges[0, 1]) for edges in steps})


def slots_for(count: int, units: Units) -> int:
    """The number of slots compiled for, at least `count`."""
    size = next((size for size in SLOTS if size >= count), -(-count // SLOTS[-1]) * SLOTS[-1])
    return min(size, len(units.all))


@dataclasses.dataclass
class _Chain:
    """What `commit` needs of the last chain."""

    steps: list[Edges]
    program: Array
    tried: chains.Tried
