"""The same `f`, incremental: what a candidate costs is what it can still reach.

ACDC visits receivers from the output to the input. When it is at receiver r, everything upstream of r is still the
clean run, because all its edges are present, and everything downstream has been pruned. Removing edges into r thus
changes r's input by a sum of known differences (clean minus reference), r's node, and the nodes that r's node still
reaches through kept edges; nothing else. A chain of candidates is evaluated so:

1. `x_r` of candidate i = current x_r - (differences of the removals that candidate i makes at r).
2. The changed nodes, in order of computation: x_n = current x_n + changes of the changed senders kept into n; the
   node's output minus its current output is its own change.
3. The same sum at `logits`, at the scored positions only, then the metric.

Committing row i of a chain adds its changes to the current values: nothing is computed twice.

A node whose output is read only at the scored positions (through `logits`, and through the MLPs and queries of such
nodes) is computed only there. One compiled program, with the candidates' number and the number of *slots* (nodes
that can still change) as its only shapes, runs a list of instructions, one a node.
"""

import dataclasses
import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import batching, metrics
from .objective import Objective, sender_values
from .types import EdgeBools

SLOTS = (16, 48, 144)
"""Numbers of changeable nodes that are compiled for; beyond the last, its multiples."""

HEAD, HEAD_AT_SCORED, MLP, MLP_AT_SCORED = range(4)
"""What an instruction computes."""

Edges = Int[np.ndarray, "_ 2"]


class Constants(eqx.Module):
    """The clean run: what every node writes, that minus the reference, and what each half-layer reads."""

    clean: Float[Array, "sender batch position width"]
    difference: Float[Array, "sender batch position width"]
    streams: Float[Array, "time batch position width"]


class Current(eqx.Module):
    """The circuit so far: inputs and outputs of the nodes that can still change, and the input of `logits`."""

    inputs: Float[Array, "slot kv batch position width"]
    outputs: Float[Array, "slot batch position width"]
    logits: Float[Array, "batch scored width"]


class Program(eqx.Module):
    """A chain as data: which differences each candidate removes where, and the nodes to recompute, in order.

    - `removals`: the senders that step j removes. `at`: for each receiver touched by the chain (0: none), which
      steps candidate i removes there.
    - `sources[n, c, :counts[n, c]]`: slots of the changed senders kept into input c of instruction n's node;
      `touched[n, c]`: its row of `at`.
    """

    removals: Float[Array, "candidate sender"]
    at: Float[Array, "touched candidate candidate"]
    count: Int[Array, ""]
    kind: Int[Array, " slot"]
    layer: Int[Array, " slot"]
    head: Int[Array, " slot"]
    slot: Int[Array, " slot"]
    sources: Int[Array, "slot kv source"]
    counts: Int[Array, "slot kv"]
    touched: Int[Array, "slot kv"]
    logits_sources: Int[Array, " source"]
    logits_count: Int[Array, ""]
    logits_touched: Int[Array, ""]


class LiveEvaluator:
    """`chain` and `commit` (see `discovery.acdc`) at the cost of live nodes only."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.graph = objective.graph
        self.mask: EdgeBools = self.graph.valid.copy()
        self.constants, logits = _clean_run(objective)
        self.slots: dict[int, int] = {}  # sender row -> slot
        self.reads_everywhere: dict[int, bool] = {}  # sender row -> is its output read at every position
        self.current = _empty(self.constants, logits, SLOTS[0])
        self._nodes = _Nodes(objective)
        self._chain: _Chain | None = None  # the last one; its arrays are written over by the next
        self._is_shared = False  # whether a fork may still read them

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
        return float(_score(self.objective, self.current.logits[None])[0])

    def bytes_per_candidate(self) -> int:
        """Memory that one more candidate in a chain takes, about."""
        _, batch, positions, width = self.constants.clean.shape
        scored = self.objective.scored.shape[1]
        row = batch * positions * width
        numbers = row * (self.current.outputs.shape[0] + 12) + 3 * batch * scored * self.objective.model.vocab_size
        return numbers * self.constants.clean.dtype.itemsize

    def chain(self, steps: Sequence[Edges], guesses: Sequence[bool], width: int) -> Float[np.ndarray, " step"]:
        """Metric i: of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        after = self.mask.copy()
        for edges, is_removed in zip(steps, guesses, strict=True):
            if is_removed:
                after[edges[:, 0], edges[:, 1]] = False
        touched = sorted({int(edges[0, 1]) for edges in steps})
        self._open(touched)
        program = self._program(steps, guesses, after, touched, width)
        shape = self.current.outputs.shape[0], width, *self.constants.clean.shape[1:]
        scratch, self._chain = self._chain.changes if self._chain else None, None
        if scratch is None or scratch.shape != shape or self._is_shared:
            scratch = jnp.zeros(shape, self.constants.clean.dtype)
        inputs = self.objective, self.constants, self.current, program
        values, changes, removed = _run_chain(inputs, scratch)
        self._chain, self._is_shared = _Chain(list(steps), program, changes, removed), False
        return np.asarray(values)[: len(steps)]

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        chain = self._chain
        assert chain is not None
        if not any(removed):
            return
        row = max(index for index, is_removed in enumerate(removed) if is_removed)
        inputs = self.objective, chain.program, chain.changes, chain.removed, jnp.int32(row)
        self.current = _commit(inputs, self.current)
        for edges, is_removed in zip(chain.steps, removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False

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
        while len(self.slots) + len(new) > self.current.outputs.shape[0]:
            self.current = _grow(self.current, next_bucket(self.current.outputs.shape[0] + 1))
        free = iter(sorted(set(range(self.current.outputs.shape[0])) - set(self.slots.values())))
        for row in new:
            slot = self.slots[row] = next(free)
            self.reads_everywhere[row] = self._is_read_everywhere(row)
            place = jnp.int32(slot), jnp.int32(row), jnp.int32(self._nodes.time[row])
            self.current = _fill((self.constants, *place), self.current)

    def _is_read_everywhere(self, row: int) -> bool:
        """Whether a kept edge leads to a key or value, or to a node that is itself read everywhere."""
        for column in np.flatnonzero(self.mask[row]).tolist():
            kind, readers = self._nodes.kv[column], [r for r in self.graph.readers(column).tolist() if r in self.slots]
            if readers and (kind > 0 or any(self.reads_everywhere[reader] for reader in readers)):
                return True
        return False

    def _program(
        self, steps: Sequence[Edges], guesses: Sequence[bool], after: EdgeBools, touched: Sequence[int], width: int
    ) -> Program:
        senders, slots = len(self.graph.senders), self.current.outputs.shape[0]
        removals = np.zeros((width, senders))
        at = np.zeros((width + 1, width, width))
        index = {column: number + 1 for number, column in enumerate(touched)}
        for number, (edges, is_removed) in enumerate(zip(steps, guesses, strict=True)):
            present = edges[self.mask[edges[:, 0], edges[:, 1]]]
            removals[number, present[:, 0]] = 1
            at[index[int(edges[0, 1])], number if not is_removed else slice(number, None), number] = 1
        arrays = _Instructions(slots)
        changed: list[int] = []
        for row in sorted(self.slots):
            columns = self._nodes.columns[row]
            sources = [[self.slots[sender] for sender in changed if after[sender, column]] for column in columns]
            own = [index.get(int(column), 0) for column in columns]
            if any(sources) or any(own):
                kind = 2 * self._nodes.is_mlp[row] + (not self.reads_everywhere[row])
                arrays.add(kind, self._nodes.layer[row], self._nodes.head[row], self.slots[row], sources, own)
                changed.append(row)
        last = len(self.graph.receivers) - 1
        into_logits = [self.slots[sender] for sender in changed if after[sender, last]]
        dtype = np.dtype(self.objective.model.dtype)
        return Program(
            removals=jnp.asarray(removals, dtype),
            at=jnp.asarray(at, dtype),
            **{name: jnp.asarray(value) for name, value in arrays.finished().items()},
            logits_sources=jnp.asarray(np.resize(np.array([*into_logits, 0], np.int32), slots)),
            logits_count=jnp.int32(len(into_logits)),
            logits_touched=jnp.int32(index.get(last, 0)),
        )


def next_bucket(count: int) -> int:
    """The number of slots compiled for, at least `count`."""
    return next((size for size in SLOTS if size >= count), -(-count // SLOTS[-1]) * SLOTS[-1])


@dataclasses.dataclass
class _Chain:
    """What `commit` needs of the last chain."""

    steps: list[Edges]
    program: Program
    changes: Float[Array, "slot candidate batch position width"]
    removed: Float[Array, "candidate batch position width"]


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


class _Instructions:
    """Arrays of a program, filled one instruction at a time."""

    def __init__(self, slots: int):
        self.number = 0
        self.kind, self.layer, self.head, self.slot = np.zeros((4, slots), np.int32)
        self.sources = np.zeros((slots, 3, slots), np.int32)
        self.counts, self.touched = np.zeros((2, slots, 3), np.int32)

    def add(self, kind: int, layer: int, head: int, slot: int, sources: list[list[int]], touched: list[int]) -> None:
        n, self.number = self.number, self.number + 1
        self.kind[n], self.layer[n], self.head[n], self.slot[n] = kind, layer, head, slot
        for c, (slots, row) in enumerate(zip(sources, touched, strict=True)):
            self.sources[n, c, : len(slots)] = slots
            self.counts[n, c], self.touched[n, c] = len(slots), row

    def finished(self) -> dict[str, np.ndarray]:
        return {"count": np.array(self.number, np.int32), **{k: v for k, v in self.__dict__.items() if k != "number"}}


# --- compiled -------------------------------------------------------------------------------------


@eqx.filter_jit
def _clean_run(objective: Objective) -> tuple[Constants, Float[Array, "batch scored width"]]:
    clean = sender_values(objective.model, objective.clean, objective.microbatch)
    streams = batching.chunked_vmap(objective.model.receiver_streams, objective.clean, objective.microbatch)
    constants = Constants(clean, clean - objective.reference, jnp.moveaxis(streams, 0, 1))
    return constants, _at_scored(objective, constants.streams[-1])


def _empty(constants: Constants, logits: Array, slots: int) -> Current:
    row = constants.clean.shape[1:]
    return Current(jnp.zeros((slots, 3, *row), logits.dtype), jnp.zeros((slots, *row), logits.dtype), logits)


def _grow(current: Current, slots: int) -> Current:
    def pad(x):
        return jnp.pad(x, [(0, slots - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    return Current(pad(current.inputs), pad(current.outputs), current.logits)


@eqx.filter_jit(donate="all-except-first")
def _fill(place: tuple[Constants, Array, Array, Array], current: Current) -> Current:
    """A node's clean values in its slot; `current` is updated in place."""
    constants, slot, row, time = place
    inputs = current.inputs.at[slot].set(jnp.broadcast_to(constants.streams[time], current.inputs.shape[1:]))
    return Current(inputs, current.outputs.at[slot].set(constants.clean[row]), current.logits)


def _at_scored(objective: Objective, x: Float[Array, "*many batch position width"]) -> Float[Array, "..."]:
    """The scored positions of every prompt."""
    index = objective.scored.reshape((1,) * (x.ndim - 3) + (*objective.scored.shape, 1))
    return jnp.take_along_axis(x, index, axis=-2)


@eqx.filter_jit(donate="all-except-first")
def _run_chain(inputs: tuple[Objective, Constants, Current, Program], scratch: Array):
    """The metric of every candidate, every changed node's change, and the difference that each step removes.

    Changes are written over `scratch` [slot, candidate, batch, position, width]; only what was written is read.
    """
    objective, constants, current, program = inputs
    model = objective.model
    with jax.default_matmul_precision(model.precision):
        removed = jnp.einsum("js,sbtd->jbtd", program.removals, constants.difference)
        removed_scored = _at_scored(objective, removed)
        candidates = removed.shape[0]

        def read(n, c, changes, is_scored):
            """Input c of instruction n's node, for every candidate."""
            pick = (lambda x: _at_scored(objective, x)) if is_scored else (lambda x: x)
            x = pick(current.inputs[program.slot[n], c])
            x = jnp.broadcast_to(x[None], (candidates, *x.shape))
            x = _sum_of(x, program.sources[n, c], program.counts[n, c], lambda source: pick(changes[source]))
            return _minus(x, program.at, program.touched[n, c], removed_scored if is_scored else removed)

        everywhere = jnp.broadcast_to(jnp.arange(removed.shape[2], dtype=jnp.int32), objective.clean.shape)

        def project(n, c, changes, is_scored):
            """A head's queries, keys or values for every candidate; computed once where its input stays."""
            place = program.layer[n], program.head[n]
            run = jax.vmap(functools.partial(model.head_projection, c, *place))

            def one_for_all():
                x = current.inputs[program.slot[n], c]
                once = run(_at_scored(objective, x) if is_scored else x)
                return jnp.broadcast_to(once[None], (candidates, *once.shape))

            is_changed = (program.counts[n, c] > 0) | (program.touched[n, c] > 0)
            return jax.lax.cond(is_changed, lambda: jax.vmap(run)(read(n, c, changes, is_scored)), one_for_all)

        def head(is_scored):
            def compute(n, changes):
                run = jax.vmap(model.head_output, (None, None, 0, 0, 0, 0))
                run = jax.vmap(run, (None, None, 0, 0, 0, None))
                qkv = (project(n, c, changes, is_scored and c == 0) for c in range(3))
                where = objective.scored if is_scored else everywhere
                return change(n, run(program.layer[n], program.head[n], *qkv, where), is_scored)

            return compute

        def mlp(is_scored):
            def compute(n, changes):
                x = read(n, 0, changes, is_scored)
                written = jax.vmap(jax.vmap(model.mlp_output, (None, 0)), (None, 0))(program.layer[n], x)
                return change(n, written, is_scored)

            return compute

        def change(n, written, is_scored):
            before = current.outputs[program.slot[n]]
            if not is_scored:
                return written - before[None]
            b, t = jnp.arange(objective.scored.shape[0])[:, None], objective.scored
            zeros = jnp.zeros((candidates, *before.shape), before.dtype)
            return zeros.at[:, b, t].set(written - before[b, t][None])

        kinds = [head(False), head(True), mlp(False), mlp(True)] if _has_mlps(objective) else [head(False), head(True)]

        def step(n, changes):
            new = jax.lax.switch(program.kind[n], kinds, n, changes)
            return jax.lax.dynamic_update_index_in_dim(changes, new, program.slot[n], 0)

        changes = jax.lax.fori_loop(0, program.count, step, scratch)
        x = jnp.broadcast_to(current.logits[None], (candidates, *current.logits.shape))
        into = program.logits_sources, program.logits_count
        x = _sum_of(x, *into, lambda source: _at_scored(objective, changes[source]))
        x = _minus(x, program.at, program.logits_touched, removed_scored)
    return _score(objective, x), changes, removed


@eqx.filter_jit(donate="all-except-first")
def _commit(inputs: tuple[Objective, Program, Array, Array, Array], current: Current) -> Current:
    """The current values after one candidate (a row) of a chain; `current` is updated in place."""
    objective, program, changes, removed, row = inputs
    at = program.at[:, row][:, None]
    with jax.default_matmul_precision(objective.model.precision):

        def step(n, current):
            slot = program.slot[n]

            def update(c, inputs):
                x = inputs[slot, c][None]
                x = _sum_of(x, program.sources[n, c], program.counts[n, c], lambda s: changes[s, row][None])
                return inputs.at[slot, c].set(_minus(x, at, program.touched[n, c], removed)[0])

            inputs = jax.lax.fori_loop(0, 3, update, current.inputs)
            return Current(inputs, current.outputs.at[slot].add(changes[slot, row]), current.logits)

        current = jax.lax.fori_loop(0, program.count, step, current)
        x = current.logits[None]
        into = program.logits_sources, program.logits_count
        x = _sum_of(x, *into, lambda source: _at_scored(objective, changes[source, row])[None])
        x = _minus(x, at, program.logits_touched, _at_scored(objective, removed))
    return Current(current.inputs, current.outputs, x[0])


def _sum_of(x: Array, sources: Int[Array, " source"], count: Int[Array, ""], change) -> Array:
    """X plus the changes of its first `count` sources."""
    return jax.lax.fori_loop(0, count, lambda e, x: x + change(sources[e]), x)


def _minus(x: Array, at: Array, touched: Int[Array, ""], removed: Float[Array, "candidate ..."]) -> Array:
    """X minus the differences that the candidates remove at this receiver, if the chain touches it."""

    def subtract(_, x):
        return x - jnp.einsum("ij,j...->i...", at[touched], removed)

    return jax.lax.fori_loop(0, jnp.minimum(touched, 1), subtract, x)


@eqx.filter_jit
def _score(objective: Objective, x: Float[Array, "candidate batch scored width"]) -> Float[Array, " candidate"]:
    """The metric of each candidate's input of `logits`; only the logits that the metric reads are computed."""
    model, labels = objective.model, objective.labels
    few = objective.metric in metrics.READS_ANSWERS_ONLY

    def one(x, labels):
        if few:
            columns, labels = metrics.answer_columns(labels)
            return objective.metric(model.unembed(x, columns), labels)
        return objective.metric(model.unembed(x), labels)

    rows = jax.tree.map(lambda label: label.reshape(-1, *label.shape[2:]), labels)  # every scored position
    weights = objective.weights.reshape(-1)

    def candidate(x):
        values = jax.vmap(one)(x.reshape(len(weights), -1), rows)
        return jnp.where(weights > 0, values * weights, 0).sum() / objective.num_prompts

    numbers = weights.size * (1 if few else model.vocab_size)
    return batching.chunked_vmap(candidate, x, max(1, (1 << 28) // (4 * numbers)))


def _has_mlps(objective: Objective) -> bool:
    return any(objective.graph.has_mlp)
