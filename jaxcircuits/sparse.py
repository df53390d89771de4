"""The same `f` for small circuits, at the cost of their live nodes only; many circuits share every matrix product.

In a circuit of few edges most nodes reach nothing: what they write is never read. With `delta_s = z_s - ref_s`,

    x_r = base_r + sum over kept edges s->r of delta_s,       base_r = constants + sum_s ref_s

so a node is computed only if a kept edge leads from it to `logits`, from a handful of `delta`s, and one that is read at
the scored positions alone (through `logits`, and through queries and MLPs of such nodes) only there if it is an MLP.
Circuits are taken `width` at a time, layer by layer: the live heads of all of them in one product, then their MLPs.
The host decides which nodes these are; three compiled programs compute them, in shapes rounded up to few sizes.
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .objective import Objective, sender_values
from .types import Model

KINDS = ("<q>", "<k>", "<v>")

Rows = Float[Array, "_ batch position width"]
Edges = tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"], Int[np.ndarray, ""]]
"""The row that each edge reads, the input that it leads to, and how many edges there are; the rest is padding."""


class SparseEvaluator:
    """`per_example_many` of an objective, for circuits of few edges."""

    def __init__(self, objective: Objective):
        """Runs the clean prompts once. Raises ValueError for a model whose nodes cannot be run one by one."""
        objective.require("SparseEvaluator", "receiver_streams", "head_output", remedy="use per_example_many")
        self.objective, self.graph = objective, objective.graph
        self.base = _base(objective)
        names, receivers = self.graph.senders, self.graph.receivers
        self.embeddings = [row for row, name in enumerate(names) if name in self.graph.embeddings]
        self.start = objective.reference[np.array(self.embeddings)]
        self.start = _embedded(objective)[np.array(self.embeddings)] - self.start
        kinds = [next((kind for kind, end in enumerate(KINDS) if name.endswith(end)), 0) for name in receivers]
        self.kind = np.array(kinds)
        self.reads = np.zeros((len(receivers), len(names)), bool)  # whether a sender's node reads through a receiver
        for column in range(len(receivers)):
            self.reads[column, self.graph.readers(column)] = True
        self.is_head = np.array([name.startswith("a") for name in names]) & ~np.isin(names, self.graph.embeddings)

    def per_example_many(self, masks: np.ndarray, width: int = 32) -> Float[np.ndarray, "circuit batch"]:
        """The loss of each circuit (bool [circuit, sender, receiver]) on each prompt, `width` circuits at a time.

        Raises ValueError for masks of another shape, masks that are not bool, and a width below 1.
        """
        if masks.ndim != 3 or masks.shape[1:] != self.graph.shape or masks.dtype != bool:
            raise ValueError(f"masks: expected bool (circuits, *{self.graph.shape}), got {masks.dtype} {masks.shape}")
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        chunks = [self._chunk(masks[first : first + width], width) for first in range(0, len(masks), width)]
        return np.concatenate([np.asarray(chunk)[: len(masks)] for chunk in chunks])[: len(masks)]

    def _chunk(self, masks: np.ndarray, width: int) -> Float[np.ndarray, "circuit batch"]:
        kept = self._heard(masks & self.graph.valid)
        everywhere = self._read_everywhere(kept)
        live = np.asarray(kept.any(2))
        live[:, self.embeddings] = False
        nodes = sorted(np.argwhere(live).tolist(), key=lambda node: (self.graph.sender_times[node[1]], node))
        row_of = np.zeros(live.shape, np.int32)  # of each circuit's senders in the buffer
        row_of[:, self.embeddings] = np.arange(len(self.embeddings))
        steps = self._steps(nodes, everywhere, row_of)
        count = len(self.embeddings) + sum(len(step.nodes) for step in steps)
        slack = max((_rounded(len(step.nodes)) for step in steps), default=0)
        rows = _start_rows(self.start, 64 * -(-(count + slack) // 64))
        edges = np.argwhere(kept).astype(np.int32)
        for step in steps:
            rows = self._run(step, rows, edges, row_of)
        to_logits = edges[edges[:, 2] == len(self.graph.receivers) - 1]
        into = _padded(row_of[to_logits[:, 0], to_logits[:, 1]], to_logits[:, 0])
        return np.asarray(_losses(self.objective, rows, self.base[-1], into, width))[: len(masks)]

    def _heard(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender receiver"]:
        """Without edges to nodes that reach no `logits`; with corrupt values also those that no embedding reaches."""
        kept = kept.copy()
        if self.objective.reference_name == "resample":
            return np.stack([self.graph.drop_dead_ends(mask) for mask in kept])
        heard = np.tile(~self.reads.any(1), (len(kept), 1))  # receivers that reach logits: at first these alone
        for row in reversed(range(len(self.graph.senders))):
            kept[:, row] &= heard
            heard[:, self.reads[:, row]] |= np.any(kept[:, row], 1, keepdims=True)
        return kept

    def _read_everywhere(self, kept: np.ndarray) -> Bool[np.ndarray, "circuit sender"]:
        """Whether a kept edge leads to a key or value, or to a node that is itself read everywhere."""
        everywhere = np.zeros(kept.shape[:2], bool)
        columns = np.tile(self.kind > 0, (len(kept), 1))
        for row in reversed(range(kept.shape[1])):
            everywhere[:, row] = (kept[:, row] & columns).any(1)
            columns[:, self.reads[:, row]] |= everywhere[:, row, None]
        return everywhere

    def _steps(self, nodes: list, everywhere: np.ndarray, row_of: np.ndarray) -> "list[_Step]":
        """Live nodes that are computed at once, in order; gives each its row."""
        groups: dict[tuple[int, bool], list] = {}
        for circuit, sender in nodes:
            is_everywhere = bool(self.is_head[sender] or everywhere[circuit, sender])
            groups.setdefault((int(self.graph.sender_times[sender]), is_everywhere), []).append((circuit, sender))
        steps, first = [], len(self.embeddings)
        for (time, is_everywhere), members in sorted(groups.items()):
            table = np.array(members, np.int32)
            row_of[table[:, 0], table[:, 1]] = first + np.arange(len(table))
            steps.append(_Step(time, is_everywhere, table, first))
            first += len(table)
        return steps

    def _run(self, step: "_Step", rows: Rows, edges: np.ndarray, row_of: np.ndarray) -> Rows:
        """Writes what the step's nodes write, minus the reference."""
        circuits, senders = step.nodes[:, 0], step.nodes[:, 1]
        place = np.full(row_of.shape, -1, np.int32)  # of a node among the step's
        place[circuits, senders] = np.arange(len(senders))
        at, reader = np.nonzero(self.reads[edges[:, 2]] & (place[edges[:, 0]] >= 0))
        chosen = edges[at]
        sources, targets = row_of[chosen[:, 0], chosen[:, 1]], place[chosen[:, 0], reader]
        size = _rounded(len(senders))
        nodes = np.concatenate([senders, np.repeat(senders[:1], size - len(senders))])
        place_of_step = nodes, np.int32((step.time - 1) // 2), np.int32(step.first)
        inputs = self.objective, self.base[step.time - 1]
        if not self.is_head[senders[0]]:
            run = _mlps if step.is_everywhere else _scored_mlps
            return run((*inputs, _padded(sources, targets), place_of_step), rows)
        changed, targets = _changed_inputs(targets, self.kind[chosen[:, 2]], size)
        return _heads((*inputs, _padded(sources, targets), changed, place_of_step), rows)


@dataclasses.dataclass(frozen=True)
class _Step:
    """Nodes (circuit, sender) of one time, read everywhere or at the scored positions only; their first row."""

    time: int
    is_everywhere: bool
    nodes: Int[np.ndarray, "node 2"]
    first: int


def _rounded(count: int) -> int:
    """The next power of two, or three quarters of one: few shapes to compile."""
    size = 1 << max(2, (count - 1).bit_length())
    return size * 3 // 4 if count <= size * 3 // 4 else size


def _padded(sources: np.ndarray, targets: np.ndarray) -> Edges:
    """Edges in arrays of a rounded size."""
    more = (0, _rounded(len(sources)) - len(sources))
    count = np.array(len(sources), np.int32)
    return np.pad(sources, more).astype(np.int32), np.pad(targets, more).astype(np.int32), count


def _changed_inputs(
    nodes: Int[np.ndarray, " edge"], kinds: Int[np.ndarray, " edge"], size: int
) -> tuple[Int[np.ndarray, "kv input"], Int[np.ndarray, " edge"]]:
    """Which nodes' queries, keys and values an edge leads to (padded with `size`), and each edge's place among them."""
    found = [np.unique(nodes[kinds == kind]) for kind in range(3)]
    changed = np.full((3, _rounded(max(map(len, found)))), size, np.int32)
    targets = np.zeros(len(nodes), np.int32)
    for kind, own in enumerate(found):
        changed[kind, : len(own)] = own
        targets[kinds == kind] = kind * changed.shape[1] + np.searchsorted(own, nodes[kinds == kind])
    return changed, targets


# --- compiled ------------------------------------------------------------------------------------


@eqx.filter_jit
def _embedded(objective: Objective) -> Rows:
    return sender_values(objective.model, objective.clean, objective.microbatch)


@eqx.filter_jit
def _base(objective: Objective) -> Float[Array, "time batch position width"]:
    """What each half-layer reads in a run of references alone: the clean run's minus all differences."""
    graph = objective.graph
    streams = jax.vmap(objective.model.receiver_streams)(objective.clean)
    before = graph.sender_times[None, :] <= np.arange(streams.shape[1])[:, None]
    delta = _embedded(objective) - objective.reference
    with jax.default_matmul_precision(objective.model.precision):
        return jnp.moveaxis(streams, 1, 0) - jnp.einsum("es,sbtd->ebtd", jnp.asarray(before, delta.dtype), delta)


@partial(jax.jit, static_argnums=1)
def _start_rows(start: Rows, count: int) -> Rows:
    return jnp.concatenate([start, jnp.zeros((count - start.shape[0], *start.shape[1:]), start.dtype)])


def _read(rows: Rows, base: Float[Array, "batch ..."], into: Any, count: int) -> Rows:
    """`base + sum of the rows that lead there`, for each of `count` inputs."""
    sources, targets, edges = into

    def add(e, x):
        return jax.lax.dynamic_update_index_in_dim(x, x[targets[e]] + rows[sources[e]], targets[e], 0)

    return jax.lax.fori_loop(0, edges, add, jnp.broadcast_to(base[None], (count, *base.shape)))


@eqx.filter_jit(donate="all-except-first")
def _heads(inputs: tuple, rows: Rows) -> Rows:
    """Queries, keys and values that no edge leads to are those of `base`, once for all circuits."""
    objective, base, into, changed, (senders, layer, first) = inputs
    model, graph = objective.model, objective.graph
    x = _read(rows, base, into, changed.size).reshape(*changed.shape, *base.shape)
    heads = jnp.asarray(_head_numbers(graph))[senders]
    positions = jnp.arange(base.shape[1], dtype=jnp.int32)

    def projected(kv: int) -> Float[Array, "node batch position key"]:
        run = jax.vmap(partial(model.head_projection, kv, layer), (None, 0))
        unchanged = jax.vmap(run, (0, None))(jnp.arange(graph.num_heads, dtype=jnp.int32), base)[heads]
        own = heads[jnp.minimum(changed[kv], len(senders) - 1)]
        return unchanged.at[changed[kv]].set(jax.vmap(run)(own, x[kv]), mode="drop")

    with jax.default_matmul_precision(model.precision):
        write = jax.vmap(jax.vmap(model.head_output, (None, None, 0, 0, 0, None)), (None, 0, 0, 0, 0, None))
        written = write(layer, heads, *(projected(kv) for kv in range(3)), positions)
    written = written - objective.reference[senders]
    return jax.lax.dynamic_update_slice_in_dim(rows, written, first, 0)


@eqx.filter_jit(donate="all-except-first")
def _mlps(inputs: tuple, rows: Rows) -> Rows:
    objective, base, into, (senders, layer, first) = inputs
    x = _read(rows, base, into, len(senders))
    written = _mlp(objective.model, layer, x) - objective.reference[senders]
    return jax.lax.dynamic_update_slice_in_dim(rows, written, first, 0)


@eqx.filter_jit(donate="all-except-first")
def _scored_mlps(inputs: tuple, rows: Rows) -> Rows:
    """`_mlps` at the scored positions; elsewhere nobody reads what they write, and 0 stands there."""
    objective, base, into, (senders, layer, first) = inputs
    x = _read(_scored(objective, rows), _scored(objective, base[None])[0], into, len(senders))
    reference = objective.reference[senders]
    written = _mlp(objective.model, layer, x) - _scored(objective, reference)
    prompts = jnp.arange(objective.num_prompts)[:, None]
    written = jnp.zeros_like(reference).at[:, prompts, objective.scored].set(written)
    return jax.lax.dynamic_update_slice_in_dim(rows, written, first, 0)


@eqx.filter_jit
def _losses(objective: Objective, rows: Rows, base: Array, into: Any, count: int) -> Float[Array, "circuit batch"]:
    x = _read(_scored(objective, rows), _scored(objective, base[None])[0], into, count)

    def one(residual: Array, weights: Array, labels: Any) -> Array:
        values = jax.vmap(objective.metric)(objective.model.unembed(residual), labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))

    each = jax.vmap(one)
    return jax.vmap(lambda residual: each(residual, objective.weights, objective.labels))(x)


def _mlp(model: Model, layer: Array, x: Float[Array, "_ batch position width"]) -> Array:
    with jax.default_matmul_precision(model.precision):
        return model.mlp_output(layer, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _scored(objective: Objective, rows: Rows) -> Float[Array, "_ batch scored width"]:
    prompts = jnp.arange(objective.num_prompts)[:, None]
    return rows[:, prompts, objective.scored]


def _head_numbers(graph: Any) -> Int[np.ndarray, " sender"]:
    """The head of each sender in its layer; 0 of others."""
    return np.array([int(name.split(".h")[1]) if ".h" in name else 0 for name in graph.senders], np.int32)
