"""ACDC's loop: guess, evaluate a chain, accept up to the first contradiction; what it has found is its decisions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from ..finite import check_finite
from .acdc_result import ACDCResult, Decision, Progress, scores_of
from .evaluators import Evaluator
from .predictors import Predictor
from .schedule import Step, Walk
from .width import ExpectedWidth, FixedWidth, bucket

MEMORY = 0.02
"""Weight of the last guess in the share of those that came true."""


class Search:
    """The loop: guess, evaluate a chain, accept up to the first contradiction; for thresholds that agree so far.

    - `evaluator`, `current`: set where the search begins. `saved`: the name under which it is kept as it is, if it is.
    """

    def __init__(self, walk: Walk, predictor: Predictor, thresholds: Sequence[float], absolute: bool):
        self.walk, self.predictor = walk, predictor
        self._evaluator: Evaluator | None = None
        self.current = math.nan  # the metric of the circuit so far
        self.thresholds, self.absolute = list(thresholds), absolute
        self.decisions: list[Decision] = []
        self.right = 0.9  # share of the guesses that came true, running mean
        self.wasted = 0
        self.calls: dict[int, int] = {}  # of each width
        self.memory = 0  # bytes of the largest chain, before this process
        self.saved: str | None = None

    @property
    def evaluator(self) -> Evaluator:
        assert self._evaluator is not None
        return self._evaluator

    @evaluator.setter
    def evaluator(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def fork(self, thresholds: Sequence[float]) -> "Search":
        copy = Search(self.walk.fork(), self.predictor.fork(), thresholds, self.absolute)
        copy._evaluator = None if self._evaluator is None else self._evaluator.fork()
        copy.decisions, copy.wasted, copy.calls = list(self.decisions), self.wasted, dict(self.calls)
        copy.current, copy.memory, copy.right = self.current, self.memory, self.right
        return copy

    def guess(self, step: Step) -> bool:
        return self.predictor.guess(step, max(self.thresholds))

    def increment(self, before: float, after: float) -> float:
        return abs(after - before) if self.absolute else after - before

    def round(self, policy: FixedWidth | ExpectedWidth) -> "list[Search]":
        """One chain: this search, and those that go on for the thresholds that now disagree."""
        self.saved = None
        ahead = policy.next(self.right)
        steps, guesses = self.walk.upcoming(self.guess, ahead)
        metrics = self.evaluate(steps, guesses, policy, bucket(ahead))
        right = self.right
        accepted, others = self.decide(steps, guesses, metrics)
        was_right = accepted == len(steps) and self.decisions[-1].removed == guesses[accepted - 1]
        for ahead in range(accepted):
            right += MEMORY * ((ahead < accepted - (not was_right)) - right)
        for search in (self, *others):
            search.right = right
        return [self, *others]

    def evaluate(
        self, steps: list[Step], guesses: list[bool], policy: FixedWidth | ExpectedWidth, width: int
    ) -> list[float]:
        """The chain's metrics, padded to `width`; where the memory does not do, of a shorter chain."""
        while True:
            try:
                metrics = self.evaluator.chain([step.edges for step in steps], guesses[: len(steps)], width)
                self.calls[width] = self.calls.get(width, 0) + 1
                return metrics.tolist()
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                is_full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
                if not is_full or width == 1:
                    raise
                policy.limit(width)
                width = bucket(policy.next(self.right))
                del steps[width:]

    def decide(self, steps: list[Step], guesses: list[bool], metrics: list[float]) -> "tuple[int, list[Search]]":
        """Takes the decisions up to the first that contradicts its guess or divides the thresholds."""
        taken: list[bool] = []
        others: list[Search] = []
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

    def replay(self, decisions: Sequence[Sequence[Any]]) -> None:
        """Takes decisions that were taken before. Raises ValueError if they are of another walk."""
        for name, before, after, removed in decisions:
            step = None if self.walk.is_done else self.walk.steps[self.walk.position]
            if step is None or (step.name, self.current) != (name, before):
                raise ValueError(f"checkpoint: expected a decision on {step and step.name}, got one on {name}")
            self.take(step, after, removed)

    def record(self) -> dict[str, Any]:
        """What `replay` and the fields need to be again what they are, as JSON's values."""
        return {
            "thresholds": self.thresholds,
            "decisions": [list(dataclasses.astuple(decision)) for decision in self.decisions],
            "right": self.right,
            "wasted": self.wasted,
            "calls": sorted(self.calls.items()),
            "memory": self.memory_planned,
        }

    def again(self, record: dict[str, Any]) -> "Search":
        """A fork of this one, at the beginning, that has come to what a record says."""
        search = self.fork(record["thresholds"])
        search.replay(record["decisions"])
        search.right, search.wasted, search.memory = record["right"], record["wasted"], record["memory"]
        search.calls = {width: count for width, count in record["calls"]}
        return search

    @property
    def memory_planned(self) -> int:
        """Bytes of the largest chain."""
        return max([self.memory, *(self._evaluator.memory.values() if self._evaluator else ())])

    def result(
        self, threshold: float, metric_full: float, noise: float, seconds: Sequence[float], options: dict[str, Any]
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
            memory_planned=self.memory_planned,
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
