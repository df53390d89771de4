"""ACDC's loop: guess, evaluate a chain, accept up to the first contradiction; what it has found is its decisions.

The host's, and what it asks a `DeviceEvaluator` for, which runs the same loop through a receiver's edges by itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..arguments import is_memory_full
from ..batching import LESS
from ..device_loop import CHAINS, DeviceEvaluator, Judge
from ..finite import check_finite
from ..live import touched
from .acdc_result import ACDCResult, Decision, Progress, scores_of
from .evaluators import Evaluator
from .judges import Judges
from .predictors import Predictor
from .schedule import Step, Walk
from .width import ExpectedWidth, FixedWidth, bucket

MEMORY = 0.02
"""Weight of the last guess in the share of those that came true."""


class Trial(NamedTuple):
    """A decision, with each prompt's share of the metric before and without the step's edges."""

    name: str
    before: Float[np.ndarray, " prompt"]
    after: Float[np.ndarray, " prompt"]
    removed: bool


def next_round(searches: Sequence["Search"], policy: FixedWidth | ExpectedWidth) -> "list[Search]":
    """One call: a chain of each search, and then all that go on; where the memory does not do, of fewer
    searches, and then shorter chains.
    """
    ahead = max(policy.next(search.right) for search in searches)
    while True:
        width = bucket(ahead)
        try:
            if len(searches) == 1 and searches[0].is_decided_on_device and searches[0].advance_on_device(ahead):
                return list(searches)
            asked = [search.walk.upcoming(search.guess, ahead) for search in searches]
            values = _values(searches, asked, width)
            break
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and not is_memory_full(error):
                raise
            if len(searches) > 1:
                policy.searches = len(searches) // 2
                return [*searches[: -policy.searches], *next_round(searches[-policy.searches :], policy)]
            if width == 1:
                raise MemoryError(str(error) if isinstance(error, MemoryError) else f"{error}; {LESS}") from error
            policy.limit(width)
            ahead = policy.next(searches[0].right)
    parts = []
    for search, (steps, guesses), own in zip(searches, asked, values, strict=True):
        search.calls[width] = search.calls.get(width, 0) + 1
        parts += search.advance(steps, guesses, own)
    return parts


def _values(
    searches: Sequence["Search"], asked: Sequence[tuple[list[Step], list[bool]]], width: int
) -> Sequence[Float[np.ndarray, "step prompt"]]:
    edges = [[step.edges for step in steps] for steps, _ in asked]
    evaluators = [search.evaluator for search in searches]
    if len(searches) == 1:
        return [evaluators[0].chain(edges[0], asked[0][1], width)]
    return type(evaluators[0]).together(evaluators, edges, [guesses for _, guesses in asked], width)


class Search:
    """The loop: guess, evaluate a chain, accept up to the first contradiction; for judges that agree so far.

    - `evaluator`, `current`: set where the search begins. `saved`: the name under which it is kept as it is, if it is.
    """

    def __init__(self, walk: Walk, predictor: Predictor, judges: Judges):
        self.walk, self.predictor, self.judges = walk, predictor, judges
        self._evaluator: Evaluator | None = None
        self.current = np.full(judges.weights.shape[1], np.nan)  # each prompt's metric of the circuit so far
        self.trials: list[Trial] = []
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

    def fork(self, judges: Judges) -> "Search":
        copy = Search(self.walk.fork(), self.predictor.fork(), judges)
        copy._evaluator = None if self._evaluator is None else self._evaluator.fork()
        copy.trials, copy.wasted, copy.calls = list(self.trials), self.wasted, dict(self.calls)
        copy.current, copy.memory, copy.right = self.current, self.memory, self.right
        return copy

    def guess(self, step: Step) -> bool:
        return self.predictor.guess(step, self.judges.thresholds.max())

    def advance(
        self, steps: list[Step], guesses: list[bool], values: Float[np.ndarray, "step prompt"]
    ) -> "list[Search]":
        """After a chain's values: this search, and those that go on for the judges that now disagree."""
        self.saved = None
        accepted, others = self.decide(steps, guesses, values)
        self.saw(guesses[:accepted])
        for search in others:
            search.right = self.right
        return [self, *others]

    @property
    def is_decided_on_device(self) -> bool:
        """Whether there is one judge, and an evaluator that can decide as it does."""
        return len(self.judges) == 1 and isinstance(self._evaluator, DeviceEvaluator)

    def advance_on_device(self, ahead: int) -> bool:
        """Decides the steps left at this receiver, or the next `ahead` up to a wrong guess, whichever are more.

        False, and nothing is decided, where the host would not decide all of them so: at ties, by rounding.
        """
        steps, guesses = self.walk.upcoming(self.guess, CHAINS * ahead, at_receiver=True)
        if len(steps) <= ahead:
            steps, guesses = self.walk.upcoming(self.guess, ahead)
        assert isinstance(self._evaluator, DeviceEvaluator)
        edges, width = [step.edges for step in steps], bucket(ahead)
        at_one = len(touched(edges)) == 1 and not any(step.is_group for step in steps)
        judge = Judge(float(self.judges.thresholds[0]), self.judges.weights[0], self.judges.absolute)
        found = self._evaluator.decide(edges, guesses, width, judge, self.current, at_one=at_one)
        self.calls[width] = self.calls.get(width, 0) + 1
        if not self._decides_so(found.values, found.removed):
            self.wasted += found.tried
            return False
        self.saved = None
        self._evaluator.accept(edges, found)
        for step, after, removed in zip(steps, found.values, found.removed, strict=False):
            check_finite(f"acdc: metric without {step.name}", after, prompt=None)
            self.take(step, after, removed)
        self.saw(guesses[: len(found.removed)])
        self.wasted += found.tried - len(found.removed)
        return True

    def _decides_so(self, values: Float[np.ndarray, "step prompt"], removed: list[bool]) -> bool:
        """Whether the judge decides the next steps so by their values."""
        before = self.current
        for after, is_removed in zip(values, removed, strict=True):
            if self.judges.removing(before, after)[0] != is_removed:
                return False
            before = after if is_removed else before
        return True

    def saw(self, guesses: Sequence[bool]) -> None:
        """Which of the guesses of the last decisions came true."""
        for trial, guess in zip(self.trials[len(self.trials) - len(guesses) :], guesses, strict=True):
            self.right += MEMORY * ((trial.removed == guess) - self.right)

    def decide(
        self, steps: list[Step], guesses: list[bool], values: Float[np.ndarray, "step prompt"]
    ) -> "tuple[int, list[Search]]":
        """Takes the decisions up to the first that contradicts its guess; judges that do so alone go their own way."""
        taken: list[bool] = []
        others: list[Search] = []
        for step, guess, after in zip(steps, guesses, values, strict=False):
            check_finite(f"acdc: metric without {step.name}", after, prompt=None)
            agree = self.judges.removing(self.current, after) == guess
            if agree.any() and not agree.all():
                other = self.fork(self.judges.take(~agree))
                other.take(step, after, not guess)
                other.evaluator.commit([*taken, not guess])
                other.wasted += len(steps) - len(taken) - 1
                others.append(other)
                self.judges = self.judges.take(agree)
            removed = guess if agree.any() else not guess
            self.take(step, after, removed)
            taken.append(removed)
            if removed != guess:
                break
        self.evaluator.commit(taken)
        self.wasted += len(steps) - len(taken)
        return len(taken), others

    def take(self, step: Step, after: Float[np.ndarray, " prompt"], removed: bool) -> None:
        """Records one decision and applies it to the walk."""
        self.trials.append(Trial(step.name, self.current, after, removed))
        self.predictor.saw(step, removed)
        self.walk.take(removed)
        self.current = after if removed else self.current

    def record(self) -> tuple[dict[str, Any], np.ndarray]:
        """What `again` needs: JSON's values, and each prompt's metric after each step."""
        record = {
            "judges": self.judges.numbers.tolist(),
            "decisions": [[trial.name, trial.removed] for trial in self.trials],
            "right": self.right,
            "wasted": self.wasted,
            "calls": sorted(self.calls.items()),
            "memory": self.memory_planned,
        }
        return record, np.array([trial.after for trial in self.trials]).reshape(-1, len(self.current))

    def again(self, record: dict[str, Any], after: Float[np.ndarray, "step prompt"]) -> "Search":
        """A fork of this one, at the beginning, that has come to what a record says.

        Raises ValueError if its decisions are of another walk.
        """
        search = self.fork(self.judges.take(record["judges"]))
        for (name, removed), values in zip(record["decisions"], after, strict=True):
            step = None if search.walk.is_done else search.walk.steps[search.walk.position]
            if step is None or step.name != name:
                raise ValueError(f"checkpoint: expected a decision on {step and step.name}, got one on {name}")
            search.take(step, values, removed)
        search.right, search.wasted, search.memory = record["right"], record["wasted"], record["memory"]
        search.calls = {width: count for width, count in record["calls"]}
        return search

    @property
    def memory_planned(self) -> int:
        """Bytes of the largest chain."""
        return max([self.memory, *(self._evaluator.memory.values() if self._evaluator else ())])

    def result(
        self, place: int, values_full: np.ndarray, noise: float, seconds: Sequence[float], options: dict[str, Any]
    ) -> ACDCResult:
        """What the judge at a place has found; `values_full`: of the whole model."""
        graph, judge = self.walk.steps.graph, self.judges.take([place])
        each = [trial.before for trial in self.trials], [trial.after for trial in self.trials]
        before, after = (judge.metrics(np.array(x).reshape(-1, len(self.current)))[:, 0] for x in each)
        decided = zip(self.trials, before.tolist(), after.tolist(), strict=True)
        decisions = tuple(Decision(trial.name, start, end, trial.removed) for trial, start, end in decided)
        increments = np.abs(after - before) if judge.absolute else after - before
        margins = np.abs(increments - judge.thresholds)
        return ACDCResult(
            graph=graph,
            mask=self.walk.mask.copy(),
            scores=scores_of(graph, decisions),
            decisions=decisions,
            kept_groups=tuple(d.name for d in decisions if "->" not in d.name and not d.removed),
            metric_full=float(judge.metrics(values_full)[0]),
            metric_final=float(judge.metrics(self.current)[0]),
            evaluations=len(decisions),
            evaluations_wasted=self.wasted,
            device_calls=sum(self.calls.values()),
            device_calls_by_width=dict(sorted(self.calls.items())),
            memory_planned=self.memory_planned,
            smallest_margin=min(margins.tolist(), default=None),
            noise=noise,
            undecided=tuple(d.name for d, margin in zip(decisions, margins, strict=True) if margin < 2 * noise),
            seconds=seconds[0],
            seconds_compiling=seconds[1],
            options={"threshold": float(judge.thresholds[0]), **judge.weighing(), **options},
        )

    def progress(self, seconds: float) -> Progress:
        done, total = self.walk.edges_done()
        return Progress(
            done, total, self.walk.kept, len(self.trials), float(self.judges.metrics(self.current)[0]), seconds
        )
