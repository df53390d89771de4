"""Runs a chain of candidates, which `programs.py` has as data, in one compiled program (the arithmetic of `live.py`).

Shapes are the candidates' number and the number of slots (nodes that can still change); everything else, which nodes
are recomputed from what, is data.

A node that is read at the scored positions only is computed only there. What it reads with its query, or as an MLP,
it needs only there too; so such nodes never feed one that is computed everywhere, and those come first.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import batching, metrics
from .batching import PROMPTS, Rest, constrain
from .current_run import Constants, Current, Values, at_scored, put, put_rows
from .kinds import Kind, Units
from .models import runs
from .objective import Objective
from .precision import products
from .programs import AnyArray, Program, unpacked


class Tried(eqx.Module):
    """What a chain computed, of which any candidate can be committed.

    - `changes`: of every changed unit, [slot * width, candidate, ...]; only what was written is read.
    - `removed`: what each step removes with those before it at its receiver, [1 + step, ...]: first 0.
    - `logits`: what `logits` reads.
    """

    changes: Values
    removed: Values
    logits: Float[Array, "candidate row width"]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def run_chain(
    rest: Rest, fixed: list[Array], current: Current, numbers: Int[Array, " number"], changes: Values
) -> tuple[Float[Array, "candidate prompt"], Tried]:
    """Every candidate's `score`, and what it changes.

    - `rest`, `fixed`: objective, units and constants, `batching.flattened` once. `numbers`: the program, in one array.

    Changes are written over the given ones.
    """
    objective, units, constants = rest.with_arrays(fixed)
    return chain(objective, units, constants, current, _unpacked(numbers, units, changes), changes)


def chain(
    objective: Objective, units: Units, constants: Constants, current: Current, program: Program, changes: Values
) -> tuple[Float[Array, "candidate prompt"], Tried]:
    """What `run_chain` gives, to be traced."""
    with products(objective.model.precision):
        chain = _Chain(objective, units, current, program, _removed(objective, constants, program))
        first, last = program.count_everywhere, program.count
        with jax.named_scope("everywhere"):
            changes = jax.lax.fori_loop(0, first, lambda n, changes: chain.compute_everywhere(n, changes), changes)
        with jax.named_scope("scored"):
            changes = jax.lax.fori_loop(first, last, lambda n, changes: chain.compute_scored(n, changes), changes)
        logits = chain.logits(changes)
    return score(objective, logits), Tried(changes, chain.removed, logits)


def _unpacked(program: Int[Array, " number"], units: Units, changes: Values) -> Program:
    rows, candidates = changes.scored.shape[:2]
    return unpacked(program, units, rows // units.width, candidates)


@jax.named_scope("removals")
def _removed(objective: Objective, constants: Constants, program: Program) -> Values:
    """What each step and the removed ones before it take from what their receiver reads, [1 + step, ...]: first 0."""
    candidates = program.removals.shape[0]

    def remove(j, removed):
        earlier = removed[program.previous[j]]
        total = _sum_of(earlier, program.removals[j], program.removal_counts[j], lambda s: constants.difference[s])
        return removed.at[j + 1].set(total)

    zeros = jnp.zeros((candidates + 1, *constants.difference.shape[1:]), constants.difference.dtype)
    removed = jax.lax.fori_loop(0, candidates, remove, constrain(zeros, objective.mesh, None, PROMPTS))
    return Values(removed, at_scored(objective, removed))


class _Chain(eqx.Module):
    """What the instructions of a chain compute with; `n` is an instruction, `c` the place of an input of its unit."""

    objective: Objective
    units: Units = eqx.field(static=True)
    current: Current
    program: Program
    removed: Values

    def compute_everywhere(self, n: Int[Array, ""], changes: Values) -> Values:
        """The changes of instruction n's unit, at every position."""
        new = self._output(n, changes, False) - self._before(n, False)
        return put_rows(changes, self._first(n), Values(new, at_scored(self.objective, new)))

    def compute_scored(self, n: Int[Array, ""], changes: Values) -> Values:
        """The changes of instruction n's unit, at the scored positions only."""
        new = self._output(n, changes, True) - self._before(n, True)
        scored = jax.lax.dynamic_update_slice_in_dim(changes.scored, new, self._first(n), 0)
        return Values(changes.everywhere, scored)

    @jax.named_scope("logits")
    def logits(self, changes: Values) -> Float[Array, "candidate row width"]:
        """What `logits` reads."""
        x = self._for_all(self.current.logits)
        x = _sum_of(x, self.program.logits_sources, self.program.logits_count, lambda s: changes.scored[s])
        return _minus(x, self.program.last_removed, self.program.logits_touched, self.removed.scored)

    def _first(self, n: Int[Array, ""]) -> Int[Array, ""]:
        return self.program.slot[n] * self.units.width

    def _before(self, n: Int[Array, ""], is_scored: bool) -> Float[Array, "sender 1 *values width"]:
        outputs = self.current.outputs.part(is_scored)
        return jax.lax.dynamic_slice_in_dim(outputs, self._first(n), self.units.width)[:, None]

    def _output(
        self, n: Int[Array, ""], changes: Values, is_scored: bool
    ) -> Float[Array, "sender candidate *values width"]:
        """What instruction n's unit writes for each candidate; rows that its kind does not have are 0."""
        kinds = [
            jax.named_scope(kind.nodes.kind)(functools.partial(self._unit, kind, n, changes, is_scored))
            for kind in self.units.kinds
        ]
        return jax.lax.switch(self.program.kind[n], kinds)

    def _unit(self, kind: Kind, n: Int[Array, ""], changes: Values, is_scored: bool) -> Array:
        """Local inputs are needed where the unit writes, the others everywhere."""
        nodes, model, layer, at = kind.nodes, self.objective.model, self.program.layer[n], self._at(is_scored)
        joint = nodes.is_joint
        compute = self._computed_jointly if joint else self._computed
        ys = [
            jax.named_scope(port.name)(compute)(kind, number, n, changes, is_scored)
            for number, (port, _) in enumerate(kind.ports)
        ]
        node = jnp.arange(nodes.count, dtype=jnp.int32) if joint else self.program.node[n]
        own = 1 if joint else 0  # the axis of candidates, then that of prompts

        def write(ys, at, span_at):
            return runs.unit_rows(model.of_prompt(span_at), nodes, layer, at, node, ys)

        every = jax.vmap(jax.vmap(write, (own, 0, 0), 1), (own, None, None), 1)
        out = every(tuple(ys), at, self.objective.span_at)
        out = out.reshape(*out.shape[:2], -1, out.shape[-1]) if is_scored else out
        return jnp.pad(out, [(0, self.units.width - len(out))] + [(0, 0)] * (out.ndim - 1))

    def _at(self, is_scored: bool) -> Int[Array, "batch _"]:
        """The positions of each prompt."""
        scored, clean = self.objective.scored, self.objective.clean
        every = jnp.broadcast_to(jnp.arange(clean.shape[1], dtype=jnp.int32), clean.shape)
        return scored if is_scored else every

    def _computed(self, kind: Kind, number: int, n: Int[Array, ""], changes: Values, is_scored: bool) -> Array:
        """What one receiver of a node computes for every candidate; once where what it reads stays."""
        (port, (c,)), (_, inputs) = kind.ports[number], kind.nodes.inputs[number]
        part = is_scored and port.is_local
        index = jnp.asarray(np.array(inputs, np.int32))[self.program.node[n]]
        read = functools.partial(self.objective.model.read, port.name, self.program.layer[n], index)
        run, at = (lambda x, at: jax.vmap(read)(self._by_prompt(x, part), at)), self._at(part)
        every = jax.vmap(run, (0, None))

        def once() -> Array:
            x = self.current.inputs.part(part)[self.program.slot[n], c]
            return self._for_all(run(jax.lax.optimization_barrier(x), at))  # or a TPU lays out anew all inputs for one

        if len(kind.ports) == 1:
            return every(self._read(n, c, changes, part), at)
        return jax.lax.cond(self.program.changed[n, c] > 0, lambda: every(self._read(n, c, changes, part), at), once)

    def _computed_jointly(self, kind: Kind, number: int, n: Int[Array, ""], changes: Values, is_scored: bool) -> Array:
        """What the receivers of joint nodes compute for every candidate, [node, candidate, batch, ...]."""
        (port, places), (_, inputs) = kind.ports[number], kind.nodes.inputs[number]
        part, at = is_scored and port.is_local, self._at(is_scored and port.is_local)

        def one(receiver):
            index, c = receiver
            read = functools.partial(self.objective.model.read, port.name, self.program.layer[n], index)
            return jax.vmap(jax.vmap(read), (0, None))(self._by_prompt(self._read(n, c, changes, part), part), at)

        receivers = np.array([range(port.count), places], np.int32)
        return jax.lax.map(one, (jnp.asarray(receivers[0]), jnp.asarray(receivers[1])))[np.array(inputs)]

    def _read(self, n: Int[Array, ""], c: int | Array, changes: Values, is_scored: bool) -> Array:
        """What the input at place c of instruction n's unit reads for every candidate."""
        x = self._for_all(self.current.inputs.part(is_scored)[self.program.slot[n], c])
        sources = self.program.sources[n, c], self.program.counts[n, c]
        x = _sum_of(x, *sources, lambda source: changes.part(is_scored)[source])
        return _minus(x, self.program.last_removed, self.program.touched[n, c], self.removed.part(is_scored))

    def _by_prompt(self, x: Float[Array, "..."], is_scored: bool) -> Float[Array, "*candidate batch _ width"]:
        """The scored positions, in rows, or every position: of each prompt."""
        return x.reshape(*x.shape[:-2], *self.objective.scored.shape, x.shape[-1]) if is_scored else x

    def _for_all(self, x: Array) -> Array:
        return jnp.broadcast_to(x[None], (self.program.removals.shape[0], *x.shape))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def commit(rest: Rest, fixed: list[Array], program: Any, tried: Tried, last: AnyArray, current: Current) -> Current:
    """The current values after candidate `last` of a chain, from 1 on (0: none); `current` is updated in place."""
    objective, units, _ = rest.with_arrays(fixed)
    return committed(objective, units, _unpacked(program, units, tried.changes), tried, last, current)


def committed(
    objective: Objective, units: Units, program: Program, tried: Tried, last: AnyArray, current: Current
) -> Current:
    """What `commit` gives, to be traced."""
    candidate = jnp.maximum(last - 1, 0)
    count_everywhere, count = (jnp.where(last > 0, n, 0) for n in (program.count_everywhere, program.count))
    last_removed = program.last_removed[:, candidate][:, None]

    def move_input(n: Array, c: Array, inputs: Values, is_scored: bool) -> Values:
        index, sources = (program.slot[n], c), (program.sources[n, c], program.counts[n, c])
        changes, x = tried.changes.part(is_scored), inputs.part(is_scored)[index][None]
        x = _sum_of(x, *sources, lambda source: changes[source, candidate][None])
        new = _minus(x, last_removed, program.touched[n, c], tried.removed.part(is_scored))[0]
        if is_scored:
            return Values(inputs.everywhere, inputs.scored.at[index].set(new))
        return put(inputs, index, Values(new, at_scored(objective, new)))

    def step(n: Array, current: Current, is_scored: bool) -> Current:
        inputs = current.inputs
        of_scored = units.num_local if is_scored else 0  # so many inputs are kept up at the scored positions only
        places = 1 + jnp.arange(units.num_places, dtype=jnp.int32)
        last = jnp.max(jnp.where(program.changed[n] > 0, places, 0))
        for scope, begin, end in (("local", 0, of_scored), ("inputs", of_scored, units.num_places)):
            if begin < end:
                move = functools.partial(move_input, n, is_scored=scope == "local")
                with jax.named_scope(scope):
                    inputs = jax.lax.fori_loop(jnp.int32(begin), jnp.minimum(last, end), move, inputs)
        first, outputs = program.slot[n] * units.width, current.outputs
        own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=units.width)
        new = own(outputs.part(is_scored)) + own(tried.changes.part(is_scored))[:, candidate]
        if is_scored:
            scored = jax.lax.dynamic_update_slice_in_dim(outputs.scored, new, first, 0)
            return Current(inputs, Values(outputs.everywhere, scored), current.logits)
        outputs = put_rows(outputs, first, Values(new, at_scored(objective, new)))
        return Current(inputs, outputs, current.logits)

    with jax.named_scope("everywhere"):
        current = jax.lax.fori_loop(0, count_everywhere, functools.partial(step, is_scored=False), current)
    with jax.named_scope("scored"):
        current = jax.lax.fori_loop(count_everywhere, count, functools.partial(step, is_scored=True), current)
    logits = jnp.where(last > 0, tried.logits[candidate], current.logits)
    return Current(current.inputs, current.outputs, logits)


@jax.named_scope("sources")
def _sum_of(x: Array, sources: Int[AnyArray, " source"], count: Int[AnyArray, ""], change) -> Array:
    """X plus the changes of its first `count` sources."""
    return jax.lax.fori_loop(0, count, lambda e, x: x + change(sources[e]), x)


@jax.named_scope("removed")
def _minus(
    x: Float[Array, "candidate ..."],
    last_removed: Int[AnyArray, "touched candidate"],
    touched: Int[AnyArray, ""],
    removed: Float[Array, "step ..."],
) -> Array:
    """X minus what candidates remove at this receiver, if the chain touches it (not 0): one turn of a loop, or none."""

    def subtract(receiver, x):
        return x - removed[last_removed[receiver]]

    return jax.lax.fori_loop(jnp.maximum(touched, 1), touched + 1, subtract, x)


@eqx.filter_jit
@jax.named_scope("score")
def score(objective: Objective, x: Float[Array, "candidate row width"]) -> Float[Array, "candidate prompt"]:
    """Each prompt's share of the metric (their mean) for each candidate's input of `logits`.

    Only the logits that the metric reads are computed.
    """
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
        return jnp.where(weights > 0, values * weights, 0).reshape(objective.num_prompts, -1).sum(1)

    numbers = weights.size * (1 if few else model.vocab_size)
    each = batching.chunked_vmap(candidate, x, max(1, (1 << 28) // (4 * numbers)))
    return constrain(each, objective.mesh)
