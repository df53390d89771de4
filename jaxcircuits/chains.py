"""Runs a chain of candidates, which `programs.py` has as data, in one compiled program (the arithmetic of `live.py`).

Shapes are the candidates' number and the number of slots (nodes that can still change); everything else, which nodes
are recomputed from what, is data.

A node that is read at the scored positions only is computed only there. What it reads with its query, or as an MLP,
it needs only there too; so such nodes never feed one that is computed everywhere, and those come first.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import batching, metrics
from .batching import CANDIDATES, PROMPTS, constrain
from .objective import Objective
from .programs import AnyArray, Program
from .references import sender_values
from .types import Mask


class Values(eqx.Module):
    """A quantity at every position, and the same at the scored positions."""

    everywhere: Float[Array, "*rows batch position width"]
    scored: Float[Array, "*rows batch scored width"]

    def part(self, is_scored: bool) -> Array:
        return self.scored if is_scored else self.everywhere


class Constants(eqx.Module):
    """The run of the circuit that the search starts from.

    - `written`: what every node writes; `difference`: that minus the reference.
    - `streams`: what each half-layer reads; of a part of the graph (`is_part`) when all edges carry the reference.
    """

    written: Float[Array, "sender batch position width"]
    difference: Float[Array, "sender batch position width"]
    streams: Float[Array, "time batch position width"]
    is_part: bool = eqx.field(static=True)


class Current(eqx.Module):
    """The circuit so far: inputs [slot, kv, ...] and outputs [slot, ...] of the nodes that can still change, and the
    input of `logits`. Only the scored part is kept up of what is read at scored positions only.
    """

    inputs: Values
    outputs: Values
    logits: Float[Array, "batch scored width"]


# --- the circuit so far ------------------------------------------------------------------------


@eqx.filter_jit
def first_run(objective: Objective, mask: Mask | None) -> tuple[Constants, Float[Array, "batch scored width"]]:
    """Everything that the circuit `mask` (None: all edges) fixes, and its input of `logits` where it is scored."""
    model, graph = objective.model, objective.graph
    written = sender_values(model, objective.clean, objective.microbatch)
    difference = written - objective.reference
    streams = batching.chunked_vmap(model.receiver_streams, objective.clean, objective.microbatch)
    streams = jnp.moveaxis(streams, 0, 1)
    residual = streams[-1]
    if mask is not None:
        earlier = np.arange(len(streams))[:, None] >= graph.sender_times[None]
        streams = streams - jnp.einsum("es,sbtd->ebtd", earlier.astype(streams.dtype), difference)

        def run(prompt):
            return model.masked_run(prompt[0], mask, prompt[1])

        prompts = objective.clean, jnp.moveaxis(objective.reference, 1, 0)
        residual, difference = batching.chunked_vmap(run, prompts, objective.microbatch)
        difference = jnp.moveaxis(difference, 0, 1)
        written = difference + objective.reference
    spread = (constrain(x, objective.mesh, None, PROMPTS) for x in (written, difference, streams))
    logits = constrain(_at_scored(objective, residual), objective.mesh, PROMPTS)
    return Constants(*spread, is_part=mask is not None), logits


@eqx.filter_jit
def empty(objective: Objective, logits: Float[Array, "batch scored width"], slots: int) -> Current:
    """No node in any slot; the clean input of `logits`."""
    return Current(_zeros(objective, (slots, 3), (None, None)), _zeros(objective, (slots,), (None,)), logits)


@eqx.filter_jit
def empty_changes(objective: Objective, slots: int, candidates: int) -> Values:
    """Where a chain writes its changes, [slot, candidate, ...]."""
    return _zeros(objective, (slots, candidates), (None, CANDIDATES))


@eqx.filter_jit
def grow(current: Current, slots: int) -> Current:
    """Room for more nodes."""

    def pad(x):
        return jnp.pad(x, [(0, slots - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    return eqx.tree_at(lambda c: (c.inputs, c.outputs), current, jax.tree.map(pad, (current.inputs, current.outputs)))


@eqx.filter_jit(donate="all-except-first")
def fill(place: tuple[Objective, Constants, Int[AnyArray, " 3"], Bool[AnyArray, "kv sender"]], current: Current):
    """A node's first values in its slot; `current` is updated in place.

    `place`: slot, sender row and time of the node, and the edges into its inputs.
    """
    objective, constants, (slot, row, time), edges = place
    inputs, outputs = constants.streams[time], constants.written[row]
    if constants.is_part:
        with jax.default_matmul_precision(objective.model.precision):
            inputs = inputs[None] + jnp.einsum("cs,sbtd->cbtd", edges.astype(inputs.dtype), constants.difference)
    inputs, outputs = (Values(x, _at_scored(objective, x)) for x in (inputs, outputs))
    return Current(_put(current.inputs, (slot,), inputs), _put(current.outputs, (slot,), outputs), current.logits)


# --- a chain -----------------------------------------------------------------------------------


@eqx.filter_jit(donate="all-except-first")
def run_chain(
    inputs: tuple[Objective, Constants, Current, Program], changes: Values
) -> tuple[Float[Array, " candidate"], Values, Values]:
    """The metric of every candidate, every changed node's change, and the difference that each step removes.

    Changes [slot, candidate, ...] are written over the given ones; only what was written is read.
    """
    objective, constants, current, program = inputs
    with jax.default_matmul_precision(objective.model.precision):
        chain = _Chain(objective, current, program, _removed(objective, constants, program))
        first, last = program.count_everywhere, program.count
        changes = jax.lax.fori_loop(0, first, lambda n, changes: chain.compute_everywhere(n, changes), changes)
        changes = jax.lax.fori_loop(first, last, lambda n, changes: chain.compute_scored(n, changes), changes)
        logits = chain.logits(changes)
    return score(objective, logits), changes, chain.removed


def _removed(objective: Objective, constants: Constants, program: Program) -> Values:
    """The difference that each step removes, [candidate, ...]."""
    candidates = program.removals.shape[0]

    def remove(j, removed):
        zero = jnp.zeros_like(removed[j])
        total = _sum_of(zero, program.removals[j], program.removal_counts[j], lambda s: constants.difference[s])
        return removed.at[j].set(total)

    zeros = jnp.zeros((candidates, *constants.difference.shape[1:]), constants.difference.dtype)
    removed = jax.lax.fori_loop(0, candidates, remove, constrain(zeros, objective.mesh, None, PROMPTS))
    return Values(removed, _at_scored(objective, removed))


class _Chain(eqx.Module):
    """What the instructions of a chain compute with; `n` is an instruction, `c` one of its node's inputs."""

    objective: Objective
    current: Current
    program: Program
    removed: Values

    def compute_everywhere(self, n: Int[Array, ""], changes: Values) -> Values:
        """The change of instruction n's node, at every position."""
        new = self._output(n, changes, False) - self.current.outputs.everywhere[self.program.slot[n]][None]
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=self.program.slot[n], axis=0)
        return jax.tree.map(put, changes, Values(new, _at_scored(self.objective, new)))

    def compute_scored(self, n: Int[Array, ""], changes: Values) -> Values:
        """The change of instruction n's node, at the scored positions only."""
        new = self._output(n, changes, True) - self.current.outputs.scored[self.program.slot[n]][None]
        scored = jax.lax.dynamic_update_index_in_dim(changes.scored, new, self.program.slot[n], 0)
        return Values(changes.everywhere, scored)

    def logits(self, changes: Values) -> Float[Array, "candidate batch scored width"]:
        """What `logits` reads."""
        x = self._for_all(self.current.logits)
        x = _sum_of(x, self.program.logits_sources, self.program.logits_count, lambda s: changes.scored[s])
        return _minus(x, self.program.at, self.program.logits_touched, self.removed.scored)

    def _output(self, n: Int[Array, ""], changes: Values, is_scored: bool) -> Float[Array, "candidate batch _ width"]:
        """What instruction n's node writes for each candidate."""
        kinds = [self._head, self._mlp] if any(self.objective.graph.has_mlp) else [self._head]
        return jax.lax.switch(self.program.kind[n], [functools.partial(k, n, changes, is_scored) for k in kinds])

    def _head(self, n: Int[Array, ""], changes: Values, is_scored: bool) -> Array:
        """Queries are needed where the head writes, keys and values everywhere."""
        query, key, value = (self._project(n, c, changes, is_scored and c == 0) for c in range(3))
        where = (
            self.objective.scored
            if is_scored
            else jnp.broadcast_to(jnp.arange(key.shape[2], dtype=jnp.int32), self.objective.clean.shape)
        )
        run = jax.vmap(self.objective.model.head_output, (None, None, 0, 0, 0, 0))
        run = jax.vmap(run, (None, None, 0, 0, 0, None))
        return run(self.program.layer[n], self.program.head[n], query, key, value, where)

    def _project(self, n: Int[Array, ""], c: int, changes: Values, is_scored: bool) -> Array:
        """A head's queries, keys or values for every candidate; computed once where its input stays."""
        place = self.program.layer[n], self.program.head[n]
        run = jax.vmap(functools.partial(self.objective.model.head_projection, c, *place))
        is_changed = (self.program.counts[n, c] > 0) | (self.program.touched[n, c] > 0)
        return jax.lax.cond(
            is_changed,
            lambda: jax.vmap(run)(self._read(n, c, changes, is_scored)),
            lambda: self._for_all(run(self.current.inputs.part(is_scored)[self.program.slot[n], c])),
        )

    def _mlp(self, n: Int[Array, ""], changes: Values, is_scored: bool) -> Array:
        run = jax.vmap(jax.vmap(self.objective.model.mlp_output, (None, 0)), (None, 0))
        return run(self.program.layer[n], self._read(n, 0, changes, is_scored))

    def _read(self, n: Int[Array, ""], c: int, changes: Values, is_scored: bool) -> Array:
        """What input c of instruction n's node reads for every candidate."""
        x = self._for_all(self.current.inputs.part(is_scored)[self.program.slot[n], c])
        sources = self.program.sources[n, c], self.program.counts[n, c]
        x = _sum_of(x, *sources, lambda source: changes.part(is_scored)[source])
        return _minus(x, self.program.at, self.program.touched[n, c], self.removed.part(is_scored))

    def _for_all(self, x: Array) -> Array:
        return jnp.broadcast_to(x[None], (self.program.removals.shape[0], *x.shape))


@eqx.filter_jit(donate="all-except-first")
def commit(inputs: tuple[Objective, Program, Values, Values, AnyArray], current: Current) -> Current:
    """The current values after one candidate (a row) of a chain; `current` is updated in place."""
    objective, program, changes, removed, row = inputs
    at = program.at[:, row][:, None]

    def moved(x: Array, sources: tuple[AnyArray, AnyArray], touched: AnyArray, is_scored: bool) -> Array:
        x = _sum_of(x[None], *sources, lambda source: changes.part(is_scored)[source, row][None])
        return _minus(x, at, touched, removed.part(is_scored))[0]

    def put(values: Values, index: tuple, new: Array, is_scored: bool) -> Values:
        if is_scored:
            return Values(values.everywhere, values.scored.at[index].set(new))
        return _put(values, index, Values(new, _at_scored(objective, new)))

    def step(n, current, is_scored):
        slot, inputs = program.slot[n], current.inputs
        for c in range(3):
            part = is_scored and c == 0  # keys and values are read everywhere
            sources = program.sources[n, c], program.counts[n, c]
            new = moved(inputs.part(part)[slot, c], sources, program.touched[n, c], part)
            inputs = put(inputs, (slot, c), new, part)
        new = current.outputs.part(is_scored)[slot] + changes.part(is_scored)[slot, row]
        return Current(inputs, put(current.outputs, (slot,), new, is_scored), current.logits)

    with jax.default_matmul_precision(objective.model.precision):
        everywhere = functools.partial(step, is_scored=False)
        current = jax.lax.fori_loop(0, program.count_everywhere, everywhere, current)
        scored = functools.partial(step, is_scored=True)
        current = jax.lax.fori_loop(program.count_everywhere, program.count, scored, current)
        into = program.logits_sources, program.logits_count
        logits = moved(current.logits, into, program.logits_touched, True)
    return Current(current.inputs, current.outputs, logits)


def _zeros(objective: Objective, rows: tuple[int, ...], axes: tuple[str | None, ...]) -> Values:
    """Zeros of shape `rows`, which are sharded along `axes`."""
    reference, scored = objective.reference, objective.scored

    def part(positions: int):
        zeros = jnp.zeros((*rows, reference.shape[1], positions, reference.shape[3]), reference.dtype)
        return constrain(zeros, objective.mesh, *axes, PROMPTS)

    return Values(part(reference.shape[2]), part(scored.shape[1]))


def _at_scored(objective: Objective, x: Float[Array, "*rows batch position width"]) -> Float[Array, "..."]:
    """The scored positions of every prompt."""
    index = objective.scored.reshape((1,) * (x.ndim - 3) + (*objective.scored.shape, 1))
    return jnp.take_along_axis(x, index, axis=-2)


def _put(values: Values, index: tuple[Array | int, ...], new: Values) -> Values:
    """`values` with some rows replaced by `new`, in place where it can be."""
    return jax.tree.map(lambda old, row: old.at[index].set(jnp.broadcast_to(row, old[index].shape)), values, new)


def _sum_of(x: Array, sources: Int[AnyArray, " source"], count: Int[AnyArray, ""], change) -> Array:
    """X plus the changes of its first `count` sources."""
    return jax.lax.fori_loop(0, count, lambda e, x: x + change(sources[e]), x)


def _minus(x: Array, at: AnyArray, touched: Int[AnyArray, ""], removed: Float[Array, "candidate ..."]) -> Array:
    """X minus the differences that the candidates remove at this receiver, if the chain touches it."""

    def subtract(_, x):
        return x - jnp.einsum("ij,j...->i...", at[touched], removed)

    return jax.lax.fori_loop(0, jnp.minimum(touched, 1), subtract, x)


@eqx.filter_jit
def score(objective: Objective, x: Float[Array, "candidate batch scored width"]) -> Float[Array, " candidate"]:
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
