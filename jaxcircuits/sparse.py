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

from .graph import Graph
from .objective import Objective
from .references import sender_values
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
        """Runs the clean prompts once. Raises ValueError for a model whose nodes cannot be run one by one."""
        objective.require("SparseEvaluator", "receiver_streams", "head_output", remedy="use per_example_many")
        self.objective = objective
        self.planner = Planner(objective.graph, fed_only=objective.reference_name == "resample")
        self.base = _base(objective)
        self.projections = _projections(objective, self.base)

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
        """Writes the rows of a step's nodes."""
        layer = np.int32(step.time // 2)
        inputs = self.objective, self.base[step.time], layer, step._replace(time=0)
        if not step.is_head:
            return _mlps(inputs, rows)
        return _heads((*inputs, jax.tree.map(lambda x: x[layer], self.projections)), rows)


# --- compiled ------------------------------------------------------------------------------------


@eqx.filter_jit
def _base(objective: Objective) -> Float[Array, "time batch position width"]:
    """What each half-layer reads in a run of references alone: the clean run's minus all differences."""
    graph = objective.graph
    streams = jax.vmap(objective.model.receiver_streams)(objective.clean)
    before = graph.sender_times[None, :] <= np.arange(streams.shape[1])[:, None]
    delta = sender_values(objective.model, objective.clean, objective.microbatch) - objective.reference
    with jax.default_matmul_precision(objective.model.precision):
        return jnp.moveaxis(streams, 1, 0) - jnp.einsum("es,sbtd->ebtd", jnp.asarray(before, delta.dtype), delta)


@eqx.filter_jit
def _projections(
    objective: Objective, base: Float[Array, "time batch position width"]
) -> list[Float[Array, "layer head batch position key"]]:
    """Queries, keys and values that no edge leads to."""
    model, heads = objective.model, jnp.arange(objective.graph.num_heads, dtype=jnp.int32)

    def of_layer(kv: int, layer: Int[Array, ""]) -> Array:
        run = jax.vmap(partial(model.head_projection, kv, layer), (None, 0))
        return jax.vmap(run, (0, None))(heads, base[2 * layer])

    layers = jnp.arange(objective.graph.num_layers, dtype=jnp.int32)
    with jax.default_matmul_precision(model.precision):
        return [jax.lax.map(partial(of_layer, kv), layers) for kv in range(3)]


@eqx.filter_jit
def _first_rows(objective: Objective, embeddings: Int[Array, " embedding"], scored: int, wide: int) -> Rows:
    """Room for so many rows; the first are those of the embeddings."""
    written = sender_values(objective.model, objective.clean, objective.microbatch)
    first = written[embeddings] - objective.reference[embeddings]

    def with_room(x: Array, count: int) -> Array:
        return jnp.concatenate([x, jnp.zeros((count, *x.shape[1:]), x.dtype)])

    return Rows(with_room(_at_scored(objective, first), scored), with_room(first, wide))


@eqx.filter_jit(donate="all-except-first")
def _heads(inputs: tuple, rows: Rows) -> Rows:
    objective, base, layer, step, projections = inputs
    model, heads = objective.model, jnp.asarray(_head_numbers(objective.graph))[step.senders]
    everywhere = step.is_wide, True, True  # queries, keys, values
    positions = jnp.broadcast_to(jnp.arange(base.shape[1], dtype=jnp.int32), base.shape[:2])
    positions = positions if step.is_wide else objective.scored

    def projected(kv: int) -> Float[Array, "input batch position key"]:
        reads, value = step.reads[kv], _reader(objective, base, rows, step.reads[kv], everywhere[kv])

        def one(index: Array) -> Array:
            run = partial(model.head_projection, kv, layer, heads[reads.nodes[index]])
            return jax.vmap(run)(value(index))

        shape = jax.eval_shape(one, jnp.int32(0)).shape
        return _each(one, reads.used, jnp.zeros((reads.nodes.size, *shape), base.dtype), 0, reads.nodes.size)

    def written(node: Array) -> Array:
        def of(kv: int) -> Array:
            same, place = projections[kv][heads[node]], step.inputs[kv, node]
            same = same if everywhere[kv] else _at_scored(objective, same)
            return jnp.where(place < 0, same, changed[kv][place])

        run = partial(model.head_output, layer, heads[node])
        return jax.vmap(run)(*(of(kv) for kv in range(3)), positions)

    with jax.default_matmul_precision(model.precision):
        changed = [projected(kv) for kv in range(3)]
        return _write(objective, step, rows, written)


@eqx.filter_jit(donate="all-except-first")
def _mlps(inputs: tuple, rows: Rows) -> Rows:
    objective, base, layer, step = inputs
    model, value = objective.model, _reader(objective, base, rows, step.reads[0], step.is_wide)
    size, shape = step.senders.size, jax.eval_shape(value, jnp.int32(0)).shape
    x = _each(value, step.used, jnp.zeros((size, *shape), base.dtype), 0, size)  # all are read before any is written

    def written(node: Array) -> Array:
        return model.mlp_output(layer, x[node].reshape(-1, shape[-1])).reshape(shape)

    with jax.default_matmul_precision(model.precision):
        return _write(objective, step, rows, written)


@eqx.filter_jit
def _losses(objective: Objective, rows: Array, base: Array, reads: Reads) -> Float[Array, "circuit batch"]:
    value = _reader(objective, base, Rows(rows, None), reads, False)

    def one(residual: Array, weights: Array, labels: Any) -> Array:
        values = jax.vmap(objective.metric)(objective.model.unembed(residual), labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))

    def of_circuit(index: Array) -> Array:
        return jax.vmap(one)(value(index), objective.weights, objective.labels)

    return jax.vmap(of_circuit)(jnp.arange(reads.nodes.size, dtype=jnp.int32))


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


def _write(objective: Objective, step: Step, rows: Rows, written: Callable[[Array], Array]) -> Rows:
    """The rows with what each node of the step writes, minus the reference."""

    def one(node: Array) -> Rows:
        reference = objective.reference[step.senders[node]]
        if step.is_wide:
            delta = written(node) - reference
            return Rows(_at_scored(objective, delta), delta)
        return Rows(written(node) - _at_scored(objective, reference), None)

    first = Rows(step.rows[0], step.rows[1] if step.is_wide else None)
    into = rows if step.is_wide else Rows(rows.scored, None)
    into = _each(one, step.used, into, first, step.senders.size)
    return into if step.is_wide else Rows(into.scored, rows.wide)


def _each(one: Callable[[Array], Any], count: ArrayLike, into: Any, first: Any, size: int) -> Any:
    """`into` with `one(i)` at `first + i` for every i below `count`, and some more behind, up to `size`.

    `one` gives [batch, position, ...] for each leaf of `into`; POSITIONS_AT_ONCE says how many are computed at once.
    """
    batch, positions = jax.tree.leaves(jax.eval_shape(one, jnp.int32(0)))[-1].shape[:2]
    limit = POSITIONS_AT_ONCE.get(jax.default_backend(), MANY)
    at_once = min(size, 1 << max(0, (limit // (batch * positions)).bit_length() - 1))  # both are powers of two

    def some(i: Array) -> Any:
        if at_once == 1:
            return jax.tree.map(lambda x: x[None], one(i))
        return jax.vmap(one)(i + jnp.arange(at_once, dtype=jnp.int32))

    def step(number: Array, into: Any) -> Any:
        i = number * jnp.int32(at_once)
        put = lambda x, values, row: jax.lax.dynamic_update_slice_in_dim(x, values, row + i, 0)  # noqa: E731
        return jax.tree.map(put, into, some(i), first)

    return jax.lax.fori_loop(0, -(-jnp.asarray(count) // at_once), step, into)


def _at_scored(
    objective: Objective, x: Float[Array, "*rows batch position width"]
) -> Float[Array, "*rows batch scored width"]:
    """The scored positions of each prompt."""
    return jnp.take_along_axis(x, objective.scored[(None,) * (x.ndim - 3) + (..., None)], -2)


def _head_numbers(graph: Graph) -> Int[np.ndarray, " sender"]:
    """The head of each sender in its layer; 0 of others."""
    return np.array([int(name.split(".h")[1]) if ".h" in name else 0 for name in graph.senders], np.int32)
