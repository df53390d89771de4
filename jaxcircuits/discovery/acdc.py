"""ACDC (Conmy et al. 2023, 2304.14997, algorithm 1): greedy descent of `f`, tried in speculative batches.

Walk from the output to the input; try to remove each edge; where `f(without) - f(current) < threshold` it stays
removed. Decisions depend on each other only through the current circuit, so the next k of them can be tried at
once, each under the guess that those before it come out as predicted. All up to the first wrong guess are what the
sequential algorithm would have decided: a wrong guess costs time, never correctness.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ..arguments import check_number, checked
from ..batching import CompileClock, compile_clock
from ..finite import check_finite
from ..live import LiveEvaluator
from ..objective import Objective
from ..types import EdgeBools, EdgeScores
from .acdc_result import ACDCResult, Decision, Progress, scores_of
from .evaluators import Evaluator
from .predictors import Predictor, predictor_of
from .schedule import Step, Walk, all_steps
from .width import WIDTHS, FixedWidth, MeasuredWidth, bucket


@checked
def acdc(objective: Objective, threshold: float, **options: Any) -> ACDCResult:
    """The circuit that ACDC keeps at a threshold.

    - `threshold`: an edge stays removed if removing it raises the metric by less than this (strictly).
    - `options`: those of `acdc_sweep`.

    Raises ValueError for a bad option; warns if a decision lies within float noise.
    """
    return acdc_sweep(objective, [threshold], **options)[0]


@checked
def acdc_sweep(
    objective: Objective,
    thresholds: Sequence[float],
    *,
    order: str = "last_first",
    head_order: str = "descending",
    groups: bool = True,
    absolute: bool = False,
    width: int | None = None,
    predictor: str | EdgeScores | ACDCResult = "history",
    evaluator: Callable[[Objective, EdgeBools | None], Evaluator] | None = None,
    within: ArrayLike | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[ACDCResult], None] | None = None,
) -> list[ACDCResult]:
    """The circuits that ACDC keeps at several thresholds, each as it would be alone, for less than their sum.

    Runs at two thresholds are one run until their first different decision; there the evaluator forks.

    - `thresholds`: an edge stays removed if removing it raises the metric by less than this (strictly).
    - `order`, `head_order`: of the senders within a receiver, by layer ("last_first", "first_last", "random") and
      within a layer ("descending", "ascending", "random" heads; `seed` for both). They change the circuit.
    - `groups`: first try to remove all edges into a head's q, k or v at once, as the original does.
    - `absolute`: compare the size of the increment, so that an edge whose removal helps is kept too.
    - `width`: trials evaluated in one batch, at most 64; default: whichever is measured to be fastest. The answer
      does not depend on it, nor on `predictor`, which guesses decisions: "history" (as the sender's last edges
      fared), "all_removed", scores of all edges (an edge is expected to go if its score is below the threshold), or
      an earlier result, whose decisions are expected again.
    - `evaluator`: `LiveEvaluator` (the default), or `DenseEvaluator`, the slow oracle.
    - `within`: a circuit to search in, such as the best edges by some scores: the others are gone from the outset.
      Fewer trials, and another answer than that of the whole graph.
    - `on_progress`: called after every round. `on_result`: called with each threshold's result as soon as it is known.

    Returns one result a threshold, in their order. Raises ValueError for a bad option, and for a metric that is NaN or
    infinite in a decision, naming its trial; warns of thresholds at 0, below it, or within float noise before the first
    trial, and of decisions within float noise after the last.
    """
    if not isinstance(thresholds, Sequence) or not len(thresholds):
        raise ValueError(f"thresholds: expected at least one number, got {thresholds!r:.60}")
    for threshold in thresholds:
        check_number("threshold", threshold)
    if width is not None and not 1 <= width <= WIDTHS[-1]:
        raise ValueError(f"width: expected 1 to {WIDTHS[-1]}, got {width}")
    graph = objective.graph
    if within is not None and np.shape(within) != graph.shape:
        raise ValueError(f"within: expected a mask of shape {graph.shape}, got {np.shape(within)}")
    evaluator = LiveEvaluator if evaluator is None else evaluator
    if not isinstance(evaluator, type):
        raise ValueError(f"evaluator: expected LiveEvaluator or DenseEvaluator, got {evaluator!r:.60}")
    steps = all_steps(graph, order=order, head_order=head_order, groups=groups, seed=seed)
    options = {"order": order, "head_order": head_order, "groups": groups, "absolute": absolute, "order_seed": seed}
    options |= {"evaluator": evaluator.__name__, "width": width, **objective.describe()}
    if within is not None:
        within = np.asarray(within, bool) & graph.valid
        options["edges_within"] = int(within.sum())
    start = time.perf_counter()
    results: dict[float, ACDCResult] = {}
    with compile_clock() as clock:
        first = evaluator(objective, within)
        policy = MeasuredWidth() if width is None else FixedWidth(width)
        metric_start = first.metric()
        metric_full = metric_start if within is None else float(objective(graph.valid))
        for metric in (metric_full, metric_start):
            check_finite(f"acdc: metric {objective.metric_name} at the start", metric)
        noise_full = _noise(objective, graph.valid, metric_full)
        _warn_of_thresholds(thresholds, noise_full)
        walk, guesses = Walk(steps, within), predictor_of(predictor, graph)
        pending = [_Search(first, walk, guesses, metric_start, sorted(set(thresholds)), absolute)]
        while pending:
            search = pending.pop()
            if divided := search.run(policy, clock, on_progress, start):
                pending += divided
                continue
            noise = max(noise_full, _noise(objective, search.walk.mask, search.current))
            for threshold in search.thresholds:
                seconds = time.perf_counter() - start, clock.seconds
                results[threshold] = search.result(threshold, metric_full, noise, seconds, options)
                if on_result is not None:
                    on_result(results[threshold])
    for result in results.values():
        _warn_of_noise(result)
    return [results[threshold] for threshold in thresholds]


class _Search:
    """The loop: guess, evaluate a chain, accept up to the first contradiction; for thresholds that agree so far."""

    def __init__(
        self,
        evaluator: Evaluator,
        walk: Walk,
        predictor: Predictor,
        metric: float,
        thresholds: Sequence[float],
        absolute: bool,
    ):
        self.evaluator, self.walk, self.predictor = evaluator, walk, predictor
        self.current = metric
        self.thresholds, self.absolute = list(thresholds), absolute
        self.decisions: list[Decision] = []
        self.wasted = 0
        self.calls: dict[int, int] = {}  # of each width

    def fork(self, thresholds: Sequence[float]) -> "_Search":
        shared = self.evaluator.fork(), self.walk.fork(), self.predictor.fork()
        copy = _Search(*shared, self.current, thresholds, self.absolute)
        copy.decisions, copy.wasted, copy.calls = list(self.decisions), self.wasted, dict(self.calls)
        return copy

    def guess(self, step: Step) -> bool:
        return self.predictor.guess(step, max(self.thresholds))

    def increment(self, before: float, after: float) -> float:
        return abs(after - before) if self.absolute else after - before

    def run(
        self,
        policy: "FixedWidth | MeasuredWidth",
        clock: CompileClock,
        on_progress: Callable[[Progress], None] | None,
        start: float,
    ) -> "list[_Search]":
        """Rounds until the end, or until the thresholds disagree: then the searches that go on."""
        while not self.walk.is_done:
            ahead = policy.next()
            steps, guesses = self.walk.upcoming(self.guess, ahead)
            began, compilations = time.perf_counter(), clock.compilations
            metrics, width = self.evaluate(steps, guesses, policy, bucket(ahead))
            accepted, others = self.decide(steps, guesses, metrics)
            seconds = time.perf_counter() - began if clock.compilations == compilations else None
            was_right = accepted == len(steps) and self.decisions[-1].removed == guesses[accepted - 1]
            policy.record(width, accepted - (not was_right), accepted, seconds)
            if on_progress is not None:
                on_progress(self.progress(time.perf_counter() - start))
            if others:
                return [self, *others]
        return []

    def evaluate(
        self, steps: list[Step], guesses: list[bool], policy: "FixedWidth | MeasuredWidth", width: int
    ) -> tuple[list[float], int]:
        """The chain's metrics, padded to `width`; where the memory does not do, of a shorter chain."""
        while True:
            try:
                metrics = self.evaluator.chain([step.edges for step in steps], guesses[: len(steps)], width)
                self.calls[width] = self.calls.get(width, 0) + 1
                return metrics.tolist(), width
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                is_full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
                if not is_full or width == 1:
                    raise
                policy.limit(width)
                width = bucket(policy.next())
                del steps[width:]

    def decide(self, steps: list[Step], guesses: list[bool], metrics: list[float]) -> "tuple[int, list[_Search]]":
        """Takes the decisions up to the first that contradicts its guess or divides the thresholds."""
        taken: list[bool] = []
        others: list[_Search] = []
        for step, guess, after in zip(steps, guesses, metrics, strict=False):
            increment = self.increment(self.current, after)
            # sorted: those that remove this step are the last ones
            keeping = [threshold for threshold in self.thresholds if not increment < threshold]
            if keeping and len(keeping) < len(self.thresholds):
                other = self.fork(keeping)
                other.take(step, after, removed=False)
                other.evaluator.commit([*taken, False])
                others.append(other)
                self.thresholds = self.thresholds[len(keeping) :]
                keeping = []
            removed = not keeping
            self.take(step, after, removed)
            taken.append(removed)
            if removed != guess or others:
                break
        self.evaluator.commit(taken)
        for search in (self, *others):
            search.wasted += len(steps) - len(taken)
        return len(taken), others

    def take(self, step: Step, after: float, removed: bool) -> None:
        """Records one decision and applies it to the walk. Raises ValueError for a metric that is no number."""
        check_finite(f"acdc: metric without {step.name}", after)
        self.decisions.append(Decision(step.name, self.current, after, removed))
        self.predictor.saw(step, removed)
        self.walk.take(removed)
        self.current = after if removed else self.current

    def result(
        self, threshold: float, metric_full: float, noise: float, seconds: tuple[float, float], options: dict[str, Any]
    ) -> ACDCResult:
        graph = self.walk.steps.graph
        margins = [abs(self.increment(d.before, d.after) - threshold) for d in self.decisions]
        return ACDCResult(
            graph=graph,
            mask=self.walk.mask.copy(),
            scores=scores_of(graph, self.decisions),
            decisions=tuple(self.decisions),
            kept_groups=tuple(d.name for d in self.decisions if "->" not in d.name and not d.removed),
            metric_full=metric_full,
            metric_final=self.current,
            evaluations=len(self.decisions),
            evaluations_wasted=self.wasted,
            device_calls=sum(self.calls.values()),
            device_calls_by_width=dict(sorted(self.calls.items())),
            memory_planned=max(self.evaluator.memory.values(), default=0),
            smallest_margin=min(margins, default=None),
            noise=noise,
            undecided=tuple(d.name for d, margin in zip(self.decisions, margins, strict=True) if margin < 2 * noise),
            seconds=seconds[0],
            seconds_compiling=seconds[1],
            options={"threshold": threshold, **options},
        )

    def progress(self, seconds: float) -> Progress:
        done, total = self.walk.edges_done()
        return Progress(done, total, self.walk.kept, len(self.decisions), self.current, seconds)


def _warn_of_noise(result: ACDCResult) -> None:
    if result.undecided:
        warnings.warn(
            f"{len(result.undecided)} of {result.evaluations} decisions lie within float noise ({result.noise:.1e}) of "
            f"the threshold, first {result.undecided[0]}: another device may decide them otherwise; use float64",
            stacklevel=3,
        )


def _warn_of_thresholds(thresholds: Sequence[float], noise: float) -> None:
    """Says, before the first trial, what is odd about thresholds that the algorithm allows."""
    for threshold in thresholds:
        said = None
        if threshold <= 0:
            said = "is not above 0: even an edge without any effect stays, only what lowers the metric goes"
        elif threshold < 2 * noise:
            said = f"is below twice the float noise of the metric ({noise:.1e}), which will decide; use float64"
        if said is not None:
            warnings.warn(f"threshold {threshold:g} {said}", stacklevel=3)


def _noise(objective: Objective, mask: EdgeBools, metric: float) -> float:
    """Float error of a circuit's metric: the same by another route (prompt by prompt), and at least rounding."""
    eps = float(jnp.finfo(objective.model.dtype).eps)
    other = float(np.asarray(objective.per_example(mask), np.float64).mean())
    return float(max(abs(other - metric), eps * abs(metric)))
