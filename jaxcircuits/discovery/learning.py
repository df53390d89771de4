"""What learnt masks share: steps of an optimiser on a loss built from `f`, batches, history, restarts."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..arguments import MOST, check_count, key_of
from ..conditional import Conditional, kept_edges
from ..finite import check_finite
from ..graph import Graph
from ..identity import digest_of, identity_of
from ..objective import Objective
from ..savepoint import Savepoint
from ..scores import Scores
from ..types import EdgeBools, EdgeScores

SHORT = 1.0
"""Seconds that the steps between two moments at which a run can be kept take, at most, if one step does not."""

Maskable = Any
"""An objective, conditional or of nodes: `value_and_gradient(mask)`, `take(rows)`, `full_mask()`, `num_prompts`."""


class Learner(Protocol):
    """A method: an `eqx.Module` of its hyperparameters. Numbers are traced: another value compiles nothing."""

    columns: ClassVar[tuple[str, ...]]
    """Names of what `loss` reports."""

    def start(self, objective: Maskable, key: PRNGKeyArray) -> Any:
        """The parameters before the first step."""
        ...

    def optimiser(self) -> optax.GradientTransformation:
        """The steps that it takes."""
        ...

    def loss(
        self, parameters: Any, objective: Maskable, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What is minimised on one batch of prompts, and the numbers named in `columns`."""
        ...


class State(eqx.Module):
    """All that a run needs to go on from here; a pytree of arrays.

    `history`: one array [steps] a column, NaN for steps not yet done.
    """

    learner: Any
    parameters: Any
    optimiser: Any
    key: Array
    step: Int[Array, ""]
    history: dict[str, Float[Array, " step"]]


@dataclasses.dataclass(frozen=True, eq=False)
class LearntMask:
    """A circuit whose mask was learnt.

    - `scores`: [sender, receiver], higher = keep; how likely the learnt distribution keeps the edge.
    - `history`: what every step saw. `state`: where the run ended. `run`: what determines the result.
    """

    graph: Graph
    mask: EdgeBools
    scores: EdgeScores
    history: dict[str, np.ndarray]
    state: State
    run: dict[str, Any]

    def as_scores(self) -> Scores:
        """The scores alone."""
        return Scores(self.graph, self.scores, self.run["signed"], self.run["method"], self.run)


def first_order(value_and_gradient: Callable[[Any], tuple[Array, Any]], x: Any) -> Float[Array, ""]:
    """`g(x)` with its gradient, `g(c) + <dg/dx(c), x - c>` at `c = x` held fixed.

    `jax.grad` through it needs no derivative of `value_and_gradient`, which knows a cheaper way to its own.
    """
    fixed = jax.lax.stop_gradient(x)
    value, slope = jax.lax.stop_gradient(value_and_gradient(fixed))
    steps = jax.tree.map(lambda slope, x, fixed: jnp.sum(slope * (x - fixed)), slope, x, fixed)
    return jax.tree.reduce(jnp.add, steps, value)


def learn(
    learner: Any,
    objective: Maskable,
    *,
    steps: int,
    batch: int,
    seed: int = 0,
    progress: Callable[[State], object] | None = None,
    chunk: int = 50,
    checkpoint: str | os.PathLike | None = None,
) -> State:
    """Takes `steps` steps; each on `batch` prompts drawn without replacement (all of them if there are no more).

    - `seed`: of the start, the batches and the masks. Step k draws from `fold_in(key(seed), k)`, so a run that was
      stopped and goes on is the run that was not.
    - `progress`: called with the state every `chunk` steps; more often with a checkpoint, if these take long.
    - `checkpoint`: a folder that keeps how far the run is; the same call goes on from there.

    Raises ValueError for fewer than 1 step or prompt, for a checkpoint that is damaged or another run's, and for NaN or
    infinity, naming the step and what it saw.
    """
    for name, value in (("steps", steps), ("batch", batch), ("chunk", chunk)):
        check_count(name, value, 1, MOST)
    state = _started(learner, objective, steps, seed)
    with contextlib.ExitStack() as stack:
        kept, ahead = None, chunk
        if checkpoint is not None:
            asked = _settings(learner) | {"steps": steps, "batch": batch, "seed": seed}
            kept = _Kept(stack.enter_context(Savepoint(checkpoint, {**asked, **identity_of(objective)})))
            state, ahead = kept.read(state), 1
        while (done := int(state.step)) < steps:
            began, count = time.monotonic(), min(ahead, steps - done)
            state = _advance(state, objective, batch, jnp.asarray(count, jnp.int32))
            _check_state(state, type(learner).__name__)
            if progress is not None:
                progress(state)
            if kept is not None:
                kept.write(state, is_last=done + count == steps)
                ahead = min(chunk, 2 * ahead if time.monotonic() - began < SHORT / 2 else max(1, ahead // 2))
    return state


class _Kept:
    """A state in a savepoint."""

    def __init__(self, point: Savepoint):
        self.point = point

    def read(self, fresh: State) -> State:
        """The state that is kept, or a fresh one of this run. Raises ValueError for one of another structure."""
        if (kept := self.point.get("state")) is None:
            return fresh
        named, structure = jax.tree_util.tree_flatten_with_path(fresh)
        leaves = []
        for where, leaf in named:
            array = kept[1].get(jax.tree_util.keystr(where))
            if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(f"{self.point.folder} keeps a state of another kind: choose another folder")
            leaves.append(jnp.array(array))
        return jax.tree.unflatten(structure, leaves)

    def write(self, state: State, *, is_last: bool) -> None:
        """Keeps the state if it is time to, and the last one."""
        named, _ = jax.tree_util.tree_flatten_with_path(state)

        def save() -> None:
            self.point.put("state", None, {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in named})

        if is_last:
            self.point.save(save)
        self.point.reached(save)


def _settings(learner: Any) -> dict[str, Any]:
    """The hyperparameters by name, arrays by their digest."""
    values = {field.name: getattr(learner, field.name) for field in dataclasses.fields(learner)}
    settings = {name: digest_of(value) if eqx.is_array(value) else value for name, value in values.items()}
    return {"method": type(learner).__name__, **settings}


def _check_state(state: State, method: str) -> None:
    """Raises ValueError for NaN or infinity in what the steps so far saw, or in the parameters."""
    for name, column in state.history.items():
        check_finite(f"{method} diverged (lower `rate`): {name}", np.asarray(column)[: int(state.step)], step=None)
    for where, leaf in jax.tree_util.tree_flatten_with_path(state.parameters)[0]:
        check_finite(f"{method} diverged (lower `rate`): parameters{jax.tree_util.keystr(where)}", leaf)


def result_of(
    state: State,
    objective: Objective | Conditional,
    mask: EdgeBools,
    scores: EdgeScores,
    *,
    method: str,
    started: float,
    options: dict[str, Any],
) -> LearntMask:
    """The record of a finished run, `f` evaluated at the mask; edges that cannot be in are not, and score 0.

    Raises ValueError if `f` is NaN or infinite.
    """
    kept = kept_edges(objective)
    mask, scores = mask & kept, np.where(kept, scores, 0)
    metric = float(objective(mask))
    check_finite(f"{method}: metric {objective.metric_name} of its circuit", metric)
    run = {
        "method": method,
        "signed": False,
        **objective.describe(),
        **options,
        "metric_final": metric,
        "edges_kept": int(mask.sum()),
        "edges_total": objective.graph.num_edges,
        "seconds": time.perf_counter() - started,
    }
    history = {name: np.asarray(column, np.float64) for name, column in state.history.items()}
    return LearntMask(objective.graph, mask, scores, history, state, run)


def _started(learner: Any, objective: Maskable, steps: int, seed: int) -> State:
    dtype = objective.full_mask().dtype
    learner = jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, int | float) else x, learner)
    key = key_of(seed)
    parameters = learner.start(objective, jax.random.fold_in(key, steps))
    history = {name: jnp.full(steps, jnp.nan, dtype) for name in learner.columns}
    optimiser = learner.optimiser().init(parameters)
    return State(learner, parameters, optimiser, jax.random.key_data(key), jnp.zeros((), jnp.int32), history)


@eqx.filter_jit
def _advance(state: State, objective: Maskable, batch: int, count: Int[Array, ""]) -> State:
    def step(_, state: State) -> State:
        learner = state.learner
        choose, draw = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step))
        some = objective
        if batch < objective.num_prompts:
            some = objective.take(jax.random.permutation(choose, objective.num_prompts)[:batch])
        slopes, seen = jax.grad(learner.loss, has_aux=True)(state.parameters, some, draw, state.step)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes counters and floats
            updates, optimiser = learner.optimiser().update(slopes, state.optimiser, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
        history = {name: column.at[state.step].set(seen[name]) for name, column in state.history.items()}
        return State(learner, parameters, optimiser, state.key, state.step + 1, history)

    return jax.lax.fori_loop(0, count, step, state)
