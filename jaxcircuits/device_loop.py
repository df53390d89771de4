"""ACDC's greedy loop on the device: chains are tried, decided and committed in one call, a receiver at a time.

The nodes to recompute are the same for all edges of a receiver, so that only what is removed there changes from chain
to chain: that, the decisions and the circuit so far are arrays of a `while_loop`. The host's loop (`discovery.search`)
is the oracle: it checks each decision by its own rule, and where rounding decided (an increment is the threshold) it
decides the next ones itself.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import chains
from .batching import Rest, constrain, place
from .current_run import Current, Values
from .live import Edges, LiveEvaluator, touched
from .programs import AnyArray, Program, unpacked

CHAINS = 16
"""A call tries candidates of about so many whole chains: it is not stopped, and nothing of it saved, before its end."""


class Judge(NamedTuple):
    """Lets edges go where the prompts' values, so weighed, rise by less than a threshold; `absolute`: by their size."""

    threshold: float
    weights: Float[np.ndarray, " prompt"]
    absolute: bool


class Decided(NamedTuple):
    """Of the first steps of a call: each prompt's metric without the step's edges, and whether they are gone.

    - `tried`: how many candidates were computed. `current`: the circuit then.
    """

    values: Float[np.ndarray, "step prompt"]
    removed: list[bool]
    tried: int
    current: Current


class DeviceEvaluator(LiveEvaluator):
    """A `LiveEvaluator` that can also decide: the host is asked once a receiver, not once a chain."""

    def decide(
        self,
        steps: Sequence[Edges],
        guesses: Sequence[bool],
        width: int,
        judge: Judge,
        before: Float[np.ndarray, " prompt"],
        *,
        at_one: bool,
    ) -> Decided:
        """Decides steps in their order, in chains of `width`; nothing has changed until that is accepted.

        - `before`: each prompt's metric of the circuit so far.
        - `at_one`: whether the steps are single edges of one receiver, at most `CHAINS * width`. They are decided also
          behind a wrong guess; others, at most `width`, up to the first.
        """
        assert len(steps) <= (CHAINS * width if at_one else width)
        self._open(touched(steps))
        program, _ = self._program(steps[:width], guesses[:width], width)
        trials = np.zeros((2, _room(width)), np.int32)
        trials[:, : len(steps)] = [edges[0, 0] for edges in steps], guesses
        trials = np.concatenate([np.array([len(steps), at_one, judge.absolute], np.int32), trials.ravel()])
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        least = 2 * float(np.finfo(dtype).tiny)  # what is less might count as 0
        threshold = max(judge.threshold, least) if judge.threshold > 0 else judge.threshold
        with np.errstate(over="ignore"):  # a threshold beyond float32 is infinite there
            rule = np.concatenate([[threshold], judge.weights, before]).astype(dtype)
        self._chain = None
        given = (place(x, self.objective.mesh) for x in (program, trials, rule))
        inputs = self.rest, self.fixed, self.current, *given, self._changes_to_write(width)
        self._check_fits(("loop", self._num_slots, width), f"a chain of {width}", run_loop, *inputs)
        found, current, changes = run_loop(*inputs)
        values, removed, (count, tried) = jax.device_get(found)
        self._changes.append(changes)
        return Decided(values[:count], removed[:count].tolist(), int(tried), current)

    def accept(self, steps: Sequence[Edges], decided: Decided) -> None:
        """Goes on from what was decided of the steps."""
        self.current = decided.current
        for edges, is_removed in zip(steps, decided.removed, strict=False):
            if is_removed:
                self.mask[edges[:, 0], edges[:, 1]] = False


def shapes_beside(width: int, prompts: int) -> tuple[int, int]:
    """How many numbers `run_loop` takes as `trials` and as `rule`."""
    return 3 + 2 * _room(width), 1 + 2 * prompts


def _room(width: int) -> int:
    """For the steps of a call, and a chain that begins at the last."""
    return (CHAINS + 1) * width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Trials:
    """The steps of a call: `count` of them. If they are single edges of one receiver (`at_one`), their senders."""

    count: Int[Array, ""]
    at_one: Bool[Array, ""]
    senders: Int[Array, " step"]
    guesses: Bool[Array, " step"]

    def at(self, position: Int[Array, ""], program: Program) -> tuple[Program, Bool[Array, " candidate"], Array]:
        """The chain that begins at a step: as a program, its guesses, and which candidates there are."""
        width = program.removals.shape[0]
        own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=position, slice_size=width)
        guesses, exist = own(self.guesses), position + jnp.arange(width, dtype=jnp.int32) < self.count

        def of_one(given: AnyArray, value: Array) -> Array:
            return jnp.where(self.at_one, value, given)

        removals, last_removed = jnp.asarray(program.removals), jnp.asarray(program.last_removed)
        own_number = 1 + jnp.arange(width, dtype=jnp.int32)
        chain = dataclasses.replace(
            program,
            removals=removals.at[:, 0].set(of_one(removals[:, 0], own(self.senders))),
            removal_counts=of_one(program.removal_counts, exist.astype(jnp.int32)),
            previous=of_one(program.previous, _last_before(guesses & exist)),
            last_removed=last_removed.at[1].set(of_one(last_removed[1], own_number)),
        )
        return chain, guesses, exist


class _State(NamedTuple):
    """Of the loop: the next step, how many candidates were computed, whether it goes on; the metric and the circuit so
    far; where chains write their changes; and of every step so far its values and whether it is gone.
    """

    position: Int[Array, ""]
    tried: Int[Array, ""]
    goes_on: Bool[Array, ""]
    before: Float[Array, " prompt"]
    current: Current
    changes: Values
    values: Float[Array, "step prompt"]
    removed: Bool[Array, " step"]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=6)
def run_loop(
    rest: Rest,
    fixed: list[Array],
    current: Current,
    program: Any,
    trials: Any,
    rule: Float[Array, " value"],
    changes: Values,
) -> tuple[tuple[Float[Array, "step prompt"], Bool[Array, " step"], Int[Array, " 2"]], Current, Values]:
    """Every step's values and whether it is gone, how many were decided and computed; the circuit then.

    - `rest`, `fixed`: as `chains.run_chain` takes them. `program`: of the first chain, in one array.
    - `trials`: how many steps, whether they are at one receiver, whether sizes count; their senders and guesses.
    - `rule`: the threshold, the prompts' weights, and their metric so far.
    """
    objective, units, constants = rest.with_arrays(fixed)
    rows, width = changes.scored.shape[:2]
    program = unpacked(program, units, rows // units.width, width)
    (count, at_one, absolute), (senders, guessed) = trials[:3], trials[3:].reshape(2, -1)
    trials = _Trials(count, at_one > 0, senders, guessed > 0)
    threshold, (weights, before) = rule[0], rule[1:].reshape(2, -1)

    def one(state: _State) -> _State:
        chain, guesses, exist = trials.at(state.position, program)
        each, candidates = chains.chain(objective, units, constants, state.current, chain, state.changes)
        with jax.named_scope("decisions"):
            each = each.astype(rule.dtype)
            so_far = jnp.concatenate([state.before[None], each])
            rise = jnp.sum((each - so_far[_last_before(guesses & exist)]) * weights[None], axis=1)
            gone = jnp.where(absolute > 0, jnp.abs(rise), rise) < threshold
            right = jnp.cumprod(((gone == guesses) & exist).astype(jnp.int32)).sum(dtype=jnp.int32)
            tried = exist.sum(dtype=jnp.int32)
            decided = jnp.minimum(right + 1, tried)
            numbers = jnp.arange(width, dtype=jnp.int32)
            last = jnp.max(jnp.where(gone & (numbers < decided), numbers + 1, 0))  # 0: all stay
        with jax.named_scope("commit"):
            current = chains.committed(objective, units, chain, candidates, last, state.current)
        return _State(
            state.position + decided,
            state.tried + tried,
            trials.at_one | (right == tried),
            so_far[last],
            current,
            candidates.changes,
            jax.lax.dynamic_update_slice_in_dim(state.values, each, state.position, 0),
            jax.lax.dynamic_update_slice_in_dim(state.removed, gone, state.position, 0),
        )

    def has_next(state: _State) -> Array:
        return state.goes_on & (state.position < trials.count) & (state.tried < CHAINS * width)

    empty = jnp.zeros((len(senders), len(before)), rule.dtype), jnp.zeros(len(senders), bool)
    first = _State(jnp.int32(0), jnp.int32(0), jnp.bool_(True), before, current, changes, *empty)
    with jax.named_scope("chains"):
        end = jax.lax.while_loop(has_next, one, first)
    found = end.values, end.removed, jnp.stack([end.position, end.tried])
    return jax.tree.map(lambda x: constrain(x, objective.mesh), found), end.current, end.changes


def _last_before(chosen: Bool[Array, " candidate"]) -> Int[Array, " candidate"]:
    """Of each candidate: the last chosen one before it, from 1 on; 0: none."""
    places = jnp.where(chosen, 1 + jnp.arange(len(chosen), dtype=jnp.int32), 0)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jax.lax.cummax(places)[:-1]])
