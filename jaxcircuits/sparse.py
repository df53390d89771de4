"""The same `f` for small circuits, at the cost of their live nodes only.

In a circuit of few edges most nodes reach nothing: what they write is never read. With `delta_s = z_s - ref_s`,

    x_r = base_r + sum over kept edges s->r of delta_s,       base_r = constants + sum_s ref_s

so a node is computed only if kept edges lead from it to `logits`, from a handful of `delta`s; a query, key or value
that no edge leads to is that of `base`, once for all circuits. The plan (`sparse_plan.py`) says which nodes these are
and where they stand; here are the compiled programs that compute them, some nodes at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from . import batching
from .kinds import Kind
from .models import Computed, NodeValues, runs
from .objective import Objective
from .precision import products
from .programs import AnyArray
from .references import recorded, sender_values
from .sparse_plan import Planner, Reads, Step

POSITIONS_AT_ONCE = {"cpu": 256}
"""By platform, else `MANY`: on a CPU so few that what nodes read and write stays in its caches."""

MANY = 1 << 15


class Rows(NamedTuple):
    """What nodes wrote minus the reference: all of them at the scored positions, wide ones at every position."""

    scored: Float[Array, "_ batch scored width"]
    wide: Float[Array, "_ batch position width"] | None


class SparseEvaluator:
    """`per_example_many` of an objective, for circuits of few edges."""

    def __init__(self, objective: Objective):
        """Runs the clean prompts once."""
        self.objective = objective
        self.planner = Planner(objective.graph, fed_only=objective.reference_name == "resample")
        self.base = _base(objective)
        self.alone = _alone(objective)
        stacks = enumerate(objective.graph.layout.stacks)
        (platform,) = {device.platform for device in objective.clean.devices()}
        self.at_once = POSITIONS_AT_ONCE.get(platform, MANY)
        each = [(n, m, row) for n, stack in stacks for row in range(stack.layers) for m in range(len(stack.moments))]
        self.places = each  # of each moment: its stack, which of the stack's moments it is, the layer in the stack

    def per_example_many(self, masks: np.ndarray, width: int = 32) -> Float[np.ndarray, "circuit batch"]:
        """The loss of each circuit (bool [circuit, sender, receiver]) on each prompt, `width` circuits at a time.

        Raises ValueError for masks of another shape, masks that are not bool, and a width below 1.
        """
        shape = self.objective.graph.shape
        if masks.ndim != 3 or masks.shape[1:] != shape or masks.dtype != bool:
            raise ValueError(f"masks: expected bool (circuits, *{shape}), got {masks.dtype} {masks.shape}")
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        plans = [self.planner.plan(masks[first : first + width]) for first in range(0, len(masks), width)]
        scored, wide = (64 * -(-size // 64) for size in np.max([plan.rows for plan in plans], 0, initial=1).tolist())
        rows = _first_rows(self.objective, jnp.asarray(self.planner.embeddings), scored, wide)
        losses = [np.zeros((0, self.objective.num_prompts), self.objective.model.dtype)]
        for plan in plans:
            for step in plan.steps:
                rows = self._run(step, rows)
            values = _losses(self.objective, rows.scored, self.base[-1], plan.logits)
            losses.append(np.asarray(values)[: plan.logits.used])
        return np.concatenate(losses)

    def _run(self, step: Step, rows: Rows) -> Rows:
        """Writes the rows of a step's units."""
        kind, moment, layer = self.planner.units.kinds[step.kind], np.int32(step.moment), np.array(step.layer, np.int32)
        stack, number, row = self.places[step.moment]
        alone = jax.tree.map(lambda x: x[:, row], self.alone[stack][number])
        inputs = self.objective, kind, self.base[moment], layer, _traced(step), alone, self.at_once
        return _write_units(inputs, rows)


def _traced(step: Step) -> Step:
    """Without the numbers that a compiled function must not depend on."""
    return step._replace(kind=0, moment=0, layer=0)


# --- compiled ------------------------------------------------------------------------------------


@eqx.filter_jit
def _base(objective: Objective) -> Float[Array, "moment batch position width"]:
    """What each moment reads in a run of references alone: the clean run's minus all differences."""
    streams, written = recorded(objective.model, objective.clean, objective.microbatch, objective.span_at)
    before = objective.graph.written[None, :] <= np.arange(len(streams))[:, None]
    delta = written - objective.reference
    with products(objective.model.precision):
        return streams - jnp.einsum("es,sbtd->ebtd", jnp.asarray(before, delta.dtype), delta)


@eqx.filter_jit
def _alone(objective: Objective) -> NodeValues:
    """What receivers compute that no edge leads to, [batch, layer, receiver, position, ...] of each port."""
    values = jnp.moveaxis(objective.reference, 1, 0)
    return batching.chunked_vmap(objective.model.node_values, values, objective.microbatch)


@eqx.filter_jit
def _first_rows(objective: Objective, embeddings: Int[Array, " embedding"], scored: int, wide: int) -> Rows:
    """Room for so many rows; the first are those of the embeddings."""
    written = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
    first = written[embeddings] - objective.reference[embeddings]

    def with_room(x: Array, count: int) -> Array:
        return jnp.concatenate([x, jnp.zeros((count, *x.shape[1:]), x.dtype)])

    return Rows(with_room(_at_scored(objective, first), scored), with_room(first, wide))


@eqx.filter_jit(donate="all-except-first")
def _write_units(inputs: tuple[Objective, Kind, Array, AnyArray, Step, Computed, int], rows: Rows) -> Rows:
    """The rows with what each unit of the step writes, minus the reference; so many positions at once."""
    objective, kind, base, layer, step, alone, at_once = inputs
    model, nodes = objective.model, kind.nodes
    receivers = [
        (port, jnp.asarray(np.array(indices, np.int32)), own)
        for (port, places), (_, indices) in zip(kind.ports, nodes.inputs, strict=True)
        for own in range(len(places))
    ]

    def index_of(number: int, unit: Array) -> Array:
        _, indices, own = receivers[number]
        return jnp.int32(own) if nodes.is_joint else indices[step.nodes[unit]]

    def is_everywhere(number: int) -> bool:
        return step.is_wide or not receivers[number][0].is_local

    def computed(number: int) -> Float[Array, "input batch position *features"]:
        """What receivers compute that edges lead to."""
        reads, everywhere = step.reads[number], is_everywhere(number)
        value, at = _reader(objective, base, rows, reads, everywhere), _positions(objective, everywhere)

        def one(i: Array) -> Array:
            index = index_of(number, reads.units[i])
            return jax.vmap(partial(model.read, receivers[number][0].name, layer, index))(value(i), at)[None]

        shape, size = jax.eval_shape(one, jnp.int32(0)).shape[1:], reads.units.size
        return _each(one, reads.used, jnp.zeros((size, *shape), base.dtype), 0, (size, at_once))

    def value_of(number: int, unit: Array) -> Array:
        place = step.inputs[number, unit]
        if len(receivers) == 1:
            return changed[number][place]
        same = alone[receivers[number][0].name][:, index_of(number, unit)]
        same = same if is_everywhere(number) else _at_scored(objective, same)
        return jnp.where(place < 0, same, changed[number][place])

    def rows_of(index: Array, ys: tuple[Array, ...], at: Array, span_at: Array | None) -> Array:
        return runs.unit_rows(model.of_prompt(span_at), nodes, layer, at, index, ys)

    def written(unit: Array) -> Float[Array, "row batch _ width"]:
        values = [value_of(number, unit) for number in range(len(receivers))]
        at = _positions(objective, step.is_wide)
        if not nodes.is_joint:
            return jax.vmap(partial(rows_of, step.nodes[unit]), 0, 1)(tuple(values), at, objective.span_at)
        ys = []
        for (_, places), (_, indices) in zip(kind.ports, nodes.inputs, strict=True):
            own, values = values[: len(places)], values[len(places) :]
            ys.append(jnp.stack(own)[np.array(indices)])
        every = jnp.arange(nodes.count, dtype=jnp.int32)
        return jax.vmap(partial(rows_of, every), (1, 0, 0), 1)(tuple(ys), at, objective.span_at)

    with products(model.precision):
        changed = [computed(number) for number in range(len(receivers))]  # all are read before any is written
        return _write(objective, step, kind.width, rows, written, at_once)


def _positions(objective: Objective, everywhere: bool) -> Int[Array, "batch _"]:
    clean = objective.clean
    every = jnp.broadcast_to(jnp.arange(clean.shape[1], dtype=jnp.int32), clean.shape)
    return every if everywhere else objective.scored


@eqx.filter_jit
def _losses(objective: Objective, rows: Array, base: Array, reads: Reads) -> Float[Array, "circuit batch"]:
    value = _reader(objective, base, Rows(rows, None), reads, False)

    def one(residual: Array, weights: Array, labels: Any) -> Array:
        values = jax.vmap(objective.metric)(objective.model.unembed(residual), labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))

    def of_circuit(index: Array) -> Array:
        return jax.vmap(one)(value(index), objective.weights, objective.labels)

    return jax.vmap(of_circuit)(jnp.arange(reads.units.size, dtype=jnp.int32))


def _reader(
    objective: Objective, base: Float[Array, "batch position width"], rows: Rows, reads: Reads, everywhere: bool
) -> Callable[[Int[Array, ""]], Float[Array, "batch _ width"]]:
    """A function: what the i-th of these inputs reads, at every position or at the scored ones."""
    table: Any = rows.wide if everywhere else rows.scored
    start = base if everywhere else _at_scored(objective, base)

    def value(index: Array) -> Array:
        add = lambda edge, x: x + table[reads.sources[edge]]  # noqa: E731
        return jax.lax.fori_loop(reads.first[index], reads.last[index], add, start)

    return value


def _write(
    objective: Objective, step: Step, width: int, rows: Rows, written: Callable[[Array], Array], at_once: int
) -> Rows:
    """The rows with what each unit of the step writes, minus the reference."""

    def one(unit: Array) -> Rows:
        reference = jax.lax.dynamic_slice_in_dim(objective.reference, step.senders[unit], width)
        if step.is_wide:
            delta = written(unit) - reference
            return Rows(_at_scored(objective, delta), delta)
        return Rows(written(unit) - _at_scored(objective, reference), None)

    first = Rows(step.rows[0], step.rows[1] if step.is_wide else None)
    into = rows if step.is_wide else Rows(rows.scored, None)
    into = _each(one, step.used, into, first, (step.senders.size, at_once))
    return into if step.is_wide else Rows(into.scored, rows.wide)


def _each(one: Callable[[Array], Any], count: ArrayLike, into: Any, first: Any, sizes: tuple[int, int]) -> Any:
    """`into` with the rows of `one(i)` behind each other from `first` on, for every i below `count`.

    `one` gives [row, batch, position, ...] for each leaf. `sizes`: the most that `count` can be, and how many positions
    are computed at once.
    """
    size, limit = sizes
    width, batch, positions = jax.tree.leaves(jax.eval_shape(one, jnp.int32(0)))[-1].shape[:3]
    at_once = min(size, 1 << max(0, (limit // (width * batch * positions)).bit_length() - 1))  # both are powers of two

    def some(i: Array) -> Any:
        if at_once == 1:
            return one(i)
        rows = jax.vmap(one)(i + jnp.arange(at_once, dtype=jnp.int32))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def step(number: Array, into: Any) -> Any:
        i = number * jnp.int32(at_once)
        put = lambda x, values, row: jax.lax.dynamic_update_slice_in_dim(x, values, row + i * width, 0)  # noqa: E731
        return jax.tree.map(put, into, some(i), first)

    return jax.lax.fori_loop(0, -(-jnp.asarray(count) // at_once), step, into)


def _at_scored(
    objective: Objective, x: Float[Array, "*rows batch position width"]
) -> Float[Array, "*rows batch scored width"]:
    """The scored positions of each prompt."""
    return jnp.take_along_axis(x, objective.scored[(None,) * (x.ndim - 3) + (..., None)], -2)
