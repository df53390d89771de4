"""ACDC (Conmy et al. 2023, 2304.14997, algorithm 1): greedy descent of `f`, tried in speculative batches.

Walk from the output to the input; try to remove each edge; where `f(without) - f(current) < threshold` it stays
removed. Decisions depend on each other only through the current circuit, so the next k of them can be tried at
once, each under the guess that those before it come out as predicted. All up to the first wrong guess are what the
sequential algorithm would have decided: a wrong guess costs time, never correctness.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ..batching import compile_clock
from ..graph import Graph
from ..objective import Objective
from ..types import EdgeBools, EdgeScores
from .schedule import Step, Walk, all_steps

WIDTHS = (1, 4, 16, 64)
"""Batch widths that are compiled; a chain of another length is padded to the next."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One trial: an edge, or a group named by its receiver; the metric before and without it; whether it went."""

    name: str
    before: float
    after: float
    removed: bool


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress callback gets after every round."""

    edges_done: int
    edges_total: int
    edges_kept: int
    evaluations: int
    metric: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class ACDCResult:
    """The circuit, every decision that led to it, and what it cost.

    - `evaluations`: trials whose decision counted; `evaluations_wasted`: tried behind a wrong guess.
    - `smallest_margin`: least distance of an increment to the threshold. `noise`: float error of the metric as
      measured in the run; `undecided`: trials whose margin is below twice the noise.
    - `scores`: the increment of each edge's own trial, 0 where it was never tried alone.
    """

    graph: Graph
    mask: EdgeBools
    scores: EdgeScores
    decisions: tuple[Decision, ...]
    kept_groups: tuple[str, ...]
    metric_full: float
    metric_final: float
    evaluations: int
    evaluations_wasted: int
    device_calls: int
    smallest_margin: float | None
    noise: float
    undecided: tuple[str, ...]
    seconds: float
    seconds_compiling: float
    options: dict[str, Any]

    @property
    def run(self) -> dict[str, Any]:
        """The record of the run, as it stands in a circuit file."""
        taken = ("graph", "mask", "scores", "options", "decisions", "undecided", "kept_groups")
        return {
            "method": "acdc",
            "signed": True,
            **self.options,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in taken},
            "edges_total": self.graph.num_edges,
            "edges_kept": int(self.mask.sum()),
            "groups_kept": len(self.kept_groups),
            "kept_groups": list(self.kept_groups),
            "undecided": list(self.undecided),
            "decisions": [list(dataclasses.astuple(decision)) for decision in self.decisions],
        }


@runtime_checkable
class Evaluator(Protocol):
    """What the loop needs of `f`: a live and a dense one give the same answers."""

    def chain(self, steps: Sequence[Step], guesses: Sequence[bool]) -> Float[np.ndarray, " step"]:
        """Metric i: of the current circuit after guesses 1..i-1 are applied, with step i removed."""
        ...

    def commit(self, removed: Sequence[bool]) -> None:
        """Applies the decisions on the first steps of the last chain."""
        ...


class DenseEvaluator:
    """The oracle: `f` over whole masks, batched."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.mask: EdgeBools = objective.graph.valid.copy()
        self.steps: Sequence[Step] = ()

    def chain(self, steps: Sequence[Step], guesses: Sequence[bool]) -> Float[np.ndarray, " step"]:
        self.steps = steps
        width = next(width for width in WIDTHS if width >= len(steps))
        masks = np.repeat(self.mask[None], width, axis=0)
        current = self.mask.copy()
        for row, (step, removed) in enumerate(zip(steps, guesses, strict=True)):
            masks[row] = current
            step.remove_from(masks[row])
            if removed:
                step.remove_from(current)
        return np.asarray(self.objective.many(masks, width=width))[: len(steps)]

    def commit(self, removed: Sequence[bool]) -> None:
        for step, is_removed in zip(self.steps, removed, strict=False):
            if is_removed:
                step.remove_from(self.mask)


def acdc(
    objective: Objective,
    threshold: float,
    *,
    order: str = "last_first",
    head_order: str = "descending",
    groups: bool = True,
    absolute: bool = False,
    width: int = 16,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> ACDCResult:
    """The circuit that ACDC keeps at a threshold.

    - `threshold`: an edge stays removed if removing it raises the metric by less than this (strictly).
    - `order`, `head_order`: of the senders within a receiver, by layer ("last_first", "first_last", "random") and
      within a layer ("descending", "ascending", "random" heads; `seed` for both). They change the circuit.
    - `groups`: first try to remove all edges into a head's q, k or v at once, as the original does.
    - `absolute`: compare the size of the increment, so that an edge whose removal helps is kept too.
    - `width`: the most trials evaluated in one batch, at most 64; the answer does not depend on it.
    - `on_progress`: called after every round.

    Raises ValueError for a bad option; warns if a decision lies within float noise.
    """
    if not np.isfinite(threshold):
        raise ValueError(f"threshold: expected a finite number, got {threshold}")
    if not 1 <= width <= WIDTHS[-1]:
        raise ValueError(f"width: expected 1 to {WIDTHS[-1]}, got {width}")
    graph = objective.graph
    steps = all_steps(graph, order=order, head_order=head_order, groups=groups, seed=seed)
    options = {"threshold": threshold, "order": order, "head_order": head_order, "groups": groups}
    options |= {"absolute": absolute, "width": width, "order_seed": seed, **objective.describe()}
    start = time.perf_counter()
    with compile_clock() as clock:
        metric_full = float(objective(graph.valid))
        search = _Search(DenseEvaluator(objective), Walk(graph, steps), metric_full, threshold, absolute)
        search.run(width, on_progress, start)
        mask = search.walk.mask
        noise = _noise(objective, mask, metric_full, search.current)
    result = ACDCResult(
        graph=graph,
        mask=mask,
        scores=_scores(graph, search.decisions),
        decisions=tuple(search.decisions),
        kept_groups=tuple(d.name for d in search.decisions if "->" not in d.name and not d.removed),
        metric_full=metric_full,
        metric_final=search.current,
        evaluations=len(search.decisions),
        evaluations_wasted=search.wasted,
        device_calls=search.calls,
        smallest_margin=min((search.margin(d) for d in search.decisions), default=None),
        noise=noise,
        undecided=tuple(d.name for d in search.decisions if search.margin(d) < 2 * noise),
        seconds=time.perf_counter() - start,
        seconds_compiling=clock.seconds,
        options=options,
    )
    if result.undecided:
        warnings.warn(
            f"{len(result.undecided)} of {result.evaluations} decisions lie within float noise ({noise:.1e}) of the "
            f"threshold, first {result.undecided[0]}: another device may decide them otherwise; use float64",
            stacklevel=2,
        )
    return result


class _Search:
    """The loop: guess, evaluate a chain, accept up to the first contradiction."""

    def __init__(self, evaluator: Evaluator, walk: Walk, metric_full: float, threshold: float, absolute: bool):
        self.evaluator, self.walk = evaluator, walk
        self.current = metric_full
        self.threshold, self.absolute = threshold, absolute
        self.decisions: list[Decision] = []
        self.wasted = self.calls = 0

    def increment(self, decision: Decision) -> float:
        increment = decision.after - decision.before
        return abs(increment) if self.absolute else increment

    def margin(self, decision: Decision) -> float:
        margin = abs(self.increment(decision) - self.threshold)
        return margin if np.isfinite(margin) else float("inf")

    def run(self, width: int, on_progress: Callable[[Progress], None] | None, start: float) -> None:
        ahead = 1
        while True:
            steps, guesses = self.walk.upcoming(_all_removed, ahead)
            if not steps:
                return
            accepted = self.round(steps, guesses)
            if accepted == len(steps) and self.decisions[-1].removed == guesses[-1]:
                ahead = min(width, ahead * 4)
            elif accepted <= ahead // 4:
                ahead = max(1, ahead // 4)
            if on_progress is not None:
                on_progress(self.progress(time.perf_counter() - start))

    def round(self, steps: list[Step], guesses: list[bool]) -> int:
        """Evaluates a chain and takes its decisions up to the first that contradicts its guess."""
        metrics = self.evaluator.chain(steps, guesses)
        self.calls += 1
        taken = []
        for step, guess, after in zip(steps, guesses, metrics.tolist(), strict=True):
            decision = Decision(step.name, self.current, after, False)
            removed = self.increment(decision) < self.threshold
            self.decisions.append(dataclasses.replace(decision, removed=removed))
            self.walk.take(removed)
            self.current = after if removed else self.current
            taken.append(removed)
            if removed != guess:
                break
        self.evaluator.commit(taken)
        self.wasted += len(steps) - len(taken)
        return len(taken)

    def progress(self, seconds: float) -> Progress:
        walk = self.walk
        ahead = sum(len(step.edges) for step in walk.steps[walk.position :] if not step.is_group)
        total = int(walk.mask.size and sum(len(step.edges) for step in walk.steps if not step.is_group))
        kept = int(walk.mask.sum()) - sum(
            step.is_present(walk.mask) for step in walk.steps[walk.position :] if not step.is_group
        )
        return Progress(total - ahead, total, kept, len(self.decisions), self.current, seconds)


def _all_removed(step: Step) -> bool:
    return True


def _scores(graph: Graph, decisions: Sequence[Decision]) -> EdgeScores:
    scores = np.zeros(graph.shape)
    for decision in decisions:
        increment = decision.after - decision.before
        if "->" in decision.name and np.isfinite(increment):
            scores[graph.edge_index(decision.name)] = increment
    return scores


def _noise(objective: Objective, mask: EdgeBools, metric_full: float, metric_final: float) -> float:
    """Float error of the metric: the same circuits by another route (prompt by prompt), and at least rounding."""
    eps = np.finfo(np.dtype(objective.model.dtype)).eps
    routes = [
        abs(float(np.asarray(objective.per_example(circuit), np.float64).mean()) - metric)
        for circuit, metric in ((objective.graph.valid, metric_full), (mask, metric_final))
    ]
    return float(max(*routes, eps * abs(metric_final), eps * abs(metric_full)))
