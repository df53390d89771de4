"""What the parts of methods.py share: the problem, its memory, agreement of two results, the steps that are timed."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from common import emit, peak
from peers import problem

import jaxcircuits as jc
from jaxcircuits.batching import memory_needed
from jaxcircuits.discovery.edge_pruning import EdgePruning
from jaxcircuits.discovery.learning import learn
from jaxcircuits.gradients import value_and_gradient

TURNS, POINTS = 5, 5
TOLERANCE = 1e-9


def start_problem(options: argparse.Namespace, metric: str = "logit_diff") -> tuple[jc.Objective, jc.PromptPairs]:
    return problem(options.size, metric, options.prompts, options.length)


def shape_and_memory(objective: jc.Objective, before: float, after: float | None = None) -> dict[str, Any]:
    """The prompts, and the memory as the header says."""
    after = peak() if after is None else after
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(objective) if eqx.is_array(leaf))
    taken = memory_needed(value_and_gradient, objective, objective.full_mask(), None)
    return {
        "metric": objective.metric_name,
        "prompts": list(objective.clean.shape),
        "microbatch": objective.microbatch,
        "gib": {"peak": after, "peak_before": before, "bound": round((held + taken) / 2**30, 2)},
    }


def require_same(what: str, **pairs: tuple[Any, Any]) -> None:
    """Stops unless both of every pair are the same, up to a share of the largest."""
    differences = {}
    for name, (one, other) in pairs.items():
        one, other = np.asarray(one), np.asarray(other)
        differences[name] = float(np.abs(one - other).max() / np.abs(other).max())
    emit(what=what, largest_relative_difference=differences)
    if not max(differences.values()) < TOLERANCE:
        raise SystemExit(f"{what}: they differ, no benchmark")


def pruning_steps(
    objective: jc.Objective, *, node_sparsity: float | None = None, between: Callable[[], object] | None = None
) -> list[float]:
    """Seconds of each of `TURNS` steps of Edge Pruning on all prompts, after one that compiles.

    `between` runs after every step, the first included, and is not timed.
    """
    start, seconds = time.perf_counter(), []

    def note(state: jc.State) -> None:
        nonlocal start
        jax.block_until_ready(state.parameters)
        seconds.append(time.perf_counter() - start)
        if between is not None:
            between()
        start = time.perf_counter()

    learner = EdgePruning(
        0.95, node_sparsity, steps=TURNS + 1, ramp=TURNS, warm_up=1, rate=0.8, multiplier_rate=0.8, decay=0.01
    )
    learn(learner, objective, steps=TURNS + 1, batch=objective.num_prompts, progress=note, chunk=1)
    return seconds[1:]
