"""A chain of candidates as data, and the compiled program that runs it (the arithmetic of `live.py`).

Shapes are the candidates' number and the number of slots (nodes that can still change); everything else, which nodes
are recomputed from what, is data.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import batching, metrics
from .batching import CANDIDATES, PROMPTS, constrain
from .objective import Objective, sender_values

AnyArray = Array | np.ndarray
"""What the host makes stays NumPy: a compiled function hands it to every device."""

HEAD, HEAD_AT_SCORED, MLP, MLP_AT_SCORED = range(4)
"""What an instruction computes."""


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

    - `removals[j, :removal_counts[j]]`: the senders that step j removes. `at`: for each receiver touched by the
      chain (0: none), which steps candidate i removes there.
    - `sources[n, c, :counts[n, c]]`: slots of the changed senders kept into input c of instruction n's node;
      `touched[n, c]`: its row of `at`.
    """

    removals: Int[AnyArray, "candidate sender"]
    removal_counts: Int[AnyArray, " candidate"]
    at: Float[AnyArray, "touched candidate candidate"]
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


@eqx.filter_jit
def clean_run(objective: Objective) -> tuple[Constants, Float[Array, "batch scored width"]]:
    """Everything the clean run fixes, and its input of `logits` at the scored positions."""
    clean = sender_values(objective.model, objective.clean, objective.microbatch)
    streams = batching.chunked_vmap(objective.model.receiver_streams, objective.clean, objective.microbatch)

    def spread(x):
        return constrain(x, objective.mesh, None, PROMPTS)

    constants = Constants(spread(clean), spread(clean - objective.reference), spread(jnp.moveaxis(streams, 0, 1)))
    return constants, constrain(_at_scored(objective, constants.streams[-1]), objective.mesh, PROMPTS)


@eqx.filter_jit
def empty(objective: Objective, constants: Constants, logits: Array, slots: int) -> Current:
    """No node in any slot; the clean input of `logits`."""
    row, mesh = constants.clean.shape[1:], objective.mesh
    inputs, outputs = jnp.zeros((slots, 3, *row), logits.dtype), jnp.zeros((slots, *row), logits.dtype)
    return Current(constrain(inputs, mesh, None, None, PROMPTS), constrain(outputs, mesh, None, PROMPTS), logits)


@eqx.filter_jit
def empty_scratch(objective: Objective, slots: int, candidates: int) -> Float[Array, "slot candidate batch ..."]:
    """Where a chain writes its changes."""
    zeros = jnp.zeros((slots, candidates, *objective.reference.shape[1:]), objective.reference.dtype)
    return constrain(zeros, objective.mesh, None, CANDIDATES, PROMPTS)


@eqx.filter_jit
def grow(current: Current, slots: int) -> Current:
    """Room for more nodes."""

    def pad(x):
        return jnp.pad(x, [(0, slots - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    return Current(pad(current.inputs), pad(current.outputs), current.logits)


@eqx.filter_jit(donate="all-except-first")
def fill(place: tuple[Constants, Int[AnyArray, " 3"]], current: Current) -> Current:
    """A node's clean values in its slot (`place`: slot, sender row, time); `current` is updated in place."""
    constants, (slot, row, time) = place
    inputs = current.inputs.at[slot].set(jnp.broadcast_to(constants.streams[time], current.inputs.shape[1:]))
    return Current(inputs, current.outputs.at[slot].set(constants.clean[row]), current.logits)


def _at_scored(objective: Objective, x: Float[Array, "*many batch position width"]) -> Float[Array, "..."]:
    """The scored positions of every prompt."""
    index = objective.scored.reshape((1,) * (x.ndim - 3) + (*objective.scored.shape, 1))
    return jnp.take_along_axis(x, index, axis=-2)


@eqx.filter_jit(donate="all-except-first")
def run_chain(inputs: tuple[Objective, Constants, Current, Program], scratch: Array):
    """The metric of every candidate, every changed node's change, and the difference that each step removes.

    Changes are written over `scratch` [slot, candidate, batch, position, width]; only what was written is read.
    """
    objective, constants, current, program = inputs
    model = objective.model
    with jax.default_matmul_precision(model.precision):
        candidates = program.removals.shape[0]

        def remove(j, removed):
            zero = jnp.zeros_like(removed[j])
            total = _sum_of(zero, program.removals[j], program.removal_counts[j], lambda s: constants.difference[s])
            return removed.at[j].set(total)

        zeros = jnp.zeros((candidates, *constants.difference.shape[1:]), constants.difference.dtype)
        removed = jax.lax.fori_loop(0, candidates, remove, constrain(zeros, objective.mesh, None, PROMPTS))
        removed_scored = _at_scored(objective, removed)

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

        matches = objective.scored[:, None, :] == everywhere[:, :, None]
        is_first = matches & (jnp.cumsum(matches, -1) == 1)  # a position may be listed twice
        spread = is_first.astype(removed.dtype)

        def change(n, written, is_scored):
            before = current.outputs[program.slot[n]]
            if not is_scored:
                return written - before[None]
            return jnp.einsum("btp,ibpd->ibtd", spread, written - _at_scored(objective, before)[None])

        kinds = [head(False), head(True), mlp(False), mlp(True)] if _has_mlps(objective) else [head(False), head(True)]

        def step(n, changes):
            new = jax.lax.switch(program.kind[n], kinds, n, changes)
            return jax.lax.dynamic_update_index_in_dim(changes, new, program.slot[n], 0)

        changes = jax.lax.fori_loop(0, program.count, step, scratch)
        x = jnp.broadcast_to(current.logits[None], (candidates, *current.logits.shape))
        into = program.logits_sources, program.logits_count
        x = _sum_of(x, *into, lambda source: _at_scored(objective, changes[source]))
        x = _minus(x, program.at, program.logits_touched, removed_scored)
    return score(objective, x), changes, removed


@eqx.filter_jit(donate="all-except-first")
def commit(inputs: tuple[Objective, Program, Array, Array, AnyArray], current: Current) -> Current:
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


def _has_mlps(objective: Objective) -> bool:
    return any(objective.graph.has_mlp)
