"""Chains of several searches in one compiled call: `run_chain` under `vmap`, over one list of instructions.

Each search has its own circuit so far, and units and slots of its own. A call computes the units that any of them
changes; what a search does not change goes to a slot that nobody reads.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import chains
from .batching import Rest
from .current_run import Current, Values
from .kinds import Units
from .programs import Program, empty_program, unpacked

SHARED = ("count_everywhere", "count", "kind", "layer", "node", "changed")
"""Fields of a program that are one for all searches."""

OF_INSTRUCTIONS = ("kind", "layer", "node", "slot", "sources", "counts", "touched", "changed")

Order = list[tuple[bool, int]]
"""Of each instruction of a program: whether it computes the scored positions only, and its unit."""


COUNTS = (1, 4, 16, 64)
"""Numbers of searches that are compiled for."""


def bucket(count: int) -> int:
    """The number of searches compiled for, at least `count`."""
    return next(size for size in COUNTS if size >= count)


def merged(
    made: Sequence[tuple[np.ndarray, Order]], units: Units, slots: int, candidates: int
) -> tuple[Int[np.ndarray, "search number"], int]:
    """Each search's program with its instructions among those of all, which are in the same order; room for how many.

    - `made`: each search's program in one array, and what its instructions compute.
    """
    programs = [unpacked(numbers, units, slots, candidates) for numbers, _ in made]
    orders = [order for _, order in made]
    every = sorted(set().union(*orders))
    at = {instruction: row for row, instruction in enumerate(every)}
    instructions = slots * -(-max(1, len(every)) // slots)
    shape = units, slots, candidates, instructions
    numbers = np.stack([empty_program(*shape)] * len(made))
    new = [unpacked(row, *shape) for row in numbers]
    shared = new[0]
    for program, order, own in zip(programs, orders, new, strict=True):
        rows, count = [at[instruction] for instruction in order], len(order)
        own.slot[...] = slots  # nobody's
        for field in dataclasses.fields(Program):
            value, target = getattr(program, field.name), getattr(own, field.name)
            if field.name == "changed":
                shared.changed[rows] |= value[:count]
            elif field.name in OF_INSTRUCTIONS:
                target[rows] = value[:count]
                if field.name in SHARED:
                    getattr(shared, field.name)[rows] = value[:count]
            elif field.name not in SHARED:
                target[...] = value
    shared.count[...], shared.count_everywhere[...] = len(every), sum(not is_scored for is_scored, _ in every)
    return numbers, instructions


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def run_chains(
    rest: Rest,
    instructions: int,
    fixed: list[Array],
    currents: Sequence[Current],
    numbers: Int[Array, "search number"],
    changes: Sequence[Values],
) -> tuple[Float[Array, "search candidate prompt"], list[chains.Tried]]:
    """`chains.run_chain` for each search."""
    objective, units, constants = rest.with_arrays(fixed)
    rows, candidates = changes[0].scored.shape[:2]
    shape = units, rows // units.width, candidates, instructions
    first = unpacked(numbers[0], *shape)
    shared = {name: getattr(first, name) for name in SHARED}

    def with_spare_slot(x: Array) -> Array:
        return jnp.concatenate([x, jnp.zeros_like(x[: units.width])])

    def one(current: Current, own: Array, changes: Values) -> tuple[Array, chains.Tried]:
        program = dataclasses.replace(unpacked(own, *shape), **shared)
        changes = jax.tree.map(with_spare_slot, changes)
        values, tried = chains.chain(objective, units, constants, current, program, changes)
        return values, dataclasses.replace(tried, changes=jax.tree.map(lambda x: x[:rows], tried.changes))

    values, tried = jax.vmap(one)(_stacked(currents), numbers, _stacked(changes))
    return values, [jax.tree.map(lambda x, n=n: x[n], tried) for n in range(len(currents))]


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
