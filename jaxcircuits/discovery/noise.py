"""How far the metric that decides is from what exact numbers would give: rounding, and products of few passes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..objective import Objective
from ..precision import HIGHEST
from ..references import sender_values
from ..types import EdgeBools
from .schedule import Walk
from .search import Search

SAMPLE = 16
"""Decisions of a search that are held against those at full precision."""


def of_rounding(objective: Objective, mask: EdgeBools, values: Float[np.ndarray, " prompt"]) -> float:
    """Float error of a circuit's metric: the same by another route (prompt by prompt), and at least rounding."""
    eps = float(jnp.finfo(objective.model.dtype).eps)
    metric = values.mean(dtype=np.float64)
    other = np.asarray(objective.per_example(mask)).mean(dtype=np.float64)
    return float(max(abs(other - metric), eps * abs(metric)))


def of_removal(objective: Objective) -> float:
    """How far rounding alone moves the metric: without edges, where these carry what is running."""
    same = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
    replaced, valid = eqx.tree_at(lambda o: o.reference, objective, same), objective.graph.valid
    full, empty = (np.asarray(replaced.per_example(mask), np.float64) for mask in (valid, np.zeros_like(valid)))
    eps = float(jnp.finfo(objective.model.dtype).eps)
    return float(np.maximum(np.abs(empty - full), eps * np.abs(full)).mean())


def of_precision(objective: Objective, search: Search, walk: Walk) -> float:
    """The largest error of a sample of a search's increments that a model's `precision` makes; 0 at full precision.

    Circuits are evaluated anew at full precision, labels and references too, before and without a trial's edges.

    - `walk`: where the search began.
    """
    if objective.model.precision == HIGHEST or not search.trials:
        return 0.0
    count = min(SAMPLE, len(search.trials))
    sample = np.sort(np.random.default_rng(0).choice(len(search.trials), count, replace=False))
    walk, masks = walk.fork(), []
    for number, trial in enumerate(search.trials):
        if number in sample:
            without = walk.mask.copy()
            walk.steps.remove_from(walk.position, without)
            masks += [walk.mask.copy(), without]
        walk.take(trial.removed)
    values = np.asarray(objective.with_precision(HIGHEST).per_example_many(np.stack(masks)))
    own = np.stack([(search.trials[number].before, search.trials[number].after) for number in sample])
    exact = search.judges.increments(values[::2], values[1::2])
    return float(np.abs(search.judges.increments(own[:, 0], own[:, 1]) - exact).max())
