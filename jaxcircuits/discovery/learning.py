"""What learnt masks share: steps of an optimiser on a loss built from `f`, batches, history, restarts."""

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

from ..arguments import check_count
from ..finite import check_finite
from ..graph import Graph
from ..npz import read_arrays, write_arrays
from ..objective import Objective
from ..scores import Scores
from ..types import EdgeBools, EdgeScores

Maskable = Any
"""An `Objective` or a `NodeObjective`: `value_and_gradient(mask)`, `take(rows)`, `full_mask()`, `num_prompts`."""


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

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz`, whole or not at all; a method's `resume` takes its name."""
        named, _ = jax.tree_util.tree_flatten_with_path(self)
        arrays: dict[str, Any] = {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in named}

        write_arrays(path, arrays)


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
        return Scores(self.graph, self.scores, False, self.run["method"], self.run)


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
    resume: State | str | os.PathLike | None = None,
    progress: Callable[[State], object] | None = None,
    chunk: int = 50,
) -> State:
    """Takes `steps` steps; each on `batch` prompts drawn without replacement (all of them if there are no more).

    - `seed`: of the start, the batches and the masks. Step k draws from `fold_in(key(seed), k)`, so a run that was
      stopped and resumed is the run that was not.
    - `resume`: a state, or the file of one, of the same method, hyperparameters, seed and number of steps.
    - `progress`: called with the state every `chunk` steps, e.g. `lambda state: state.save("run.npz")`.

    Raises ValueError for fewer than 1 step or prompt, for a state of another run, and for NaN or infinity, naming the
    step and what it saw.
    """
    for name, value in (("steps", steps), ("batch", batch), ("chunk", chunk)):
        check_count(name, value, 1)
    state = _started(learner, objective, steps, seed)
    if resume is not None:
        state = _resumed(resume, state)
    while (done := int(state.step)) < steps:
        state = _advance(state, objective, batch, jnp.asarray(min(chunk, steps - done), jnp.int32))
        _check_state(state, type(learner).__name__)
        if progress is not None:
            progress(state)
    return state


def _check_state(state: State, method: str) -> None:
    """Raises ValueError for NaN or infinity in what the steps so far saw, or in the parameters."""
    for name, column in state.history.items():
        check_finite(f"{method} diverged (lower `rate`): {name}", np.asarray(column)[: int(state.step)], step=None)
    for where, leaf in jax.tree_util.tree_flatten_with_path(state.parameters)[0]:
        check_finite(f"{method} diverged (lower `rate`): parameters{jax.tree_util.keystr(where)}", leaf)


def result_of(
    state: State,
    objective: Objective,
    mask: EdgeBools,
    scores: EdgeScores,
    *,
    method: str,
    started: float,
    options: dict[str, Any],
) -> LearntMask:
    """The record of a finished run, `f` evaluated at the mask. Raises ValueError if that is NaN or infinite."""
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
    key = jax.random.key(seed)
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


def _resumed(resume: State | str | os.PathLike, fresh: State) -> State:
    """The given state, checked against a fresh one of this run."""
    named, structure = jax.tree_util.tree_flatten_with_path(fresh)
    names = [jax.tree_util.keystr(where) for where, _ in named]
    if isinstance(resume, State):
        given = {jax.tree_util.keystr(where): leaf for where, leaf in jax.tree_util.tree_flatten_with_path(resume)[0]}
    else:
        given = read_arrays(resume, "state")
    if set(given) != set(names):
        raise ValueError(f"resume: a state of another method; it lacks or adds {sorted(set(given) ^ set(names))[:5]}")
    for name, (_, leaf) in zip(names, named, strict=True):
        if given[name].shape != leaf.shape:
            raise ValueError(f"resume: {name} has shape {given[name].shape}, this run needs {leaf.shape}")
        if name.startswith((".learner", ".key")) and not np.array_equal(given[name], leaf):
            raise ValueError(f"resume: {name} was {given[name]}, this run has {leaf}; resume with the same settings")
    leaves = [jnp.asarray(given[name], leaf.dtype) for name, (_, leaf) in zip(names, named, strict=True)]
    return jax.tree.unflatten(structure, leaves)
