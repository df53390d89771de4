"""The searches of a sweep: those that go on, and what the others have found; kept in a `Savepoint` if there is one."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..batching import CompileClock
from ..finite import check_finite
from ..objective import Objective
from ..savepoint import Savepoint
from . import noise
from .acdc_result import ACDCResult
from .evaluators import Evaluator
from .search import Search, next_round
from .width import ExpectedWidth, FixedWidth


class Sweep:
    """Where a sweep stands: at its beginning, or where a savepoint has it.

    - `beginning`: the walk before its first step. `pending`: the searches that go on, the next one last.
    - `done`: records of the others, see `Search.record`.
    - `values`: of each prompt the metric of the whole model and of the start; the float noise. Measured at the start.
    """

    def __init__(
        self, objective: Objective, start: Search, options: dict[str, Any], clock: CompileClock, point: Savepoint | None
    ):
        self.objective, self.start, self.options, self.clock, self.point = objective, start, options, clock, point
        kept = point.get("searches") if point is not None else None
        record: dict[str, Any] = {} if kept is None else kept[0]
        self.beginning = start.walk.fork()
        self.pending: list[Search] = []
        self.values: dict[str, Any] | None = record.get("values")
        after = {} if kept is None else kept[1]
        self.done = [(entry, after[f"done{number}"]) for number, entry in enumerate(record.get("done", []))]
        self._names: list[str] = record.get("pending", [])
        self._count: int = record.get("count", 0)
        self._before: list[float] = record.get("seconds", [0.0, 0.0])
        self._began = time.perf_counter()

    @property
    def is_done(self) -> bool:
        """Whether a sweep that was kept has nothing left to do."""
        return self.values is not None and not self._names

    @property
    def seconds(self) -> tuple[float, float]:
        """Of all the run, and of them those spent compiling."""
        return self._before[0] + time.perf_counter() - self._began, self._before[1] + self.clock.seconds

    def begin(self, evaluator: Evaluator, is_part: bool) -> float:
        """Measures the start, or takes up the searches that are kept; gives the float noise of the metric.

        - `is_part`: whether the evaluator starts from a part of the graph.

        Raises ValueError for a metric that is NaN or infinite, and for a savepoint that lacks a search.
        """
        self.start.evaluator = evaluator
        if self.values is None:
            self.values = self._measured(evaluator.values(), is_part)
            self.start.current = np.array(self.values["start"])
            self.pending = [self.start]
        else:
            self.start.current = np.array(self.values["start"])
            self.pending = [self._again(name) for name in self._names]
        return self.values["noise"]

    def _measured(self, start: np.ndarray, is_part: bool) -> dict[str, Any]:
        objective = self.objective
        full = np.asarray(objective.per_example(objective.graph.valid)) if is_part else start
        for values in (full, start):
            check_finite(f"acdc: metric {objective.metric_name} at the start", values, prompt=None)
        return {
            "full": full.tolist(),
            "start": start.tolist(),
            "noise": noise.of_rounding(objective, objective.graph.valid, full),
        }

    def _again(self, name: str) -> Search:
        assert self.point is not None
        if (kept := self.point.get(name)) is None:
            raise ValueError(f"{self.point.folder} is damaged: {name} is missing; remove the folder to begin anew")
        state = dict(kept[1])
        search = self.start.again(kept[0], state.pop("after"))
        search.evaluator.restore(state)
        search.saved = name
        return search

    def round(self, policy: FixedWidth | ExpectedWidth) -> bool:
        """A chain of each of the next searches that go on; whether one has come to another receiver."""
        last = [search for search in self.pending if not search.walk.is_done][-policy.searches :]
        receivers = [search.walk.receiver for search in last]
        self.pending = [search for search in self.pending if search not in last]
        parts = next_round(last, policy)
        # few judges first, so that few searches wait; those that are done before all
        self.pending += sorted(parts, key=lambda part: (part.walk.is_done, -len(part.judges)))
        return receivers != [search.walk.receiver for search in last]

    def end(self) -> list[tuple[int, ACDCResult]]:
        """Takes the next search, which is done, off the others; the result of each of its judges, by number."""
        assert self.values is not None
        search = self.pending.pop()
        rounding = noise.of_rounding(self.objective, search.walk.mask, search.current)
        precision = noise.of_precision(self.objective, search, self.beginning)
        record, after = search.record()
        record["noise"] = max(self.values["noise"], rounding, precision)
        self.done.append(({**record, "seconds": self.seconds}, after))
        return self._results(search, self.done[-1][0])

    def earlier(self) -> Iterator[tuple[int, ACDCResult]]:
        """The results that a savepoint has."""
        for record, after in self.done:
            assert self.values is not None
            self.start.current = np.array(self.values["start"])
            yield from self._results(self.start.again(record, after), record)

    def _results(self, search: Search, record: dict[str, Any]) -> list[tuple[int, ACDCResult]]:
        assert self.values is not None
        measured = np.array(self.values["full"]), record["noise"], record["seconds"]
        numbers = search.judges.numbers.tolist()
        return [(number, search.result(place, *measured, self.options)) for place, number in enumerate(numbers)]

    def reached(self, *, milestone: bool) -> None:
        """A whole state: saved if there is a savepoint, and if it is time to."""
        if self.point is not None:
            self.point.reached(self._save, milestone=milestone)

    def save(self) -> None:
        """Saves now."""
        if self.point is not None:
            self.point.save(self._save)

    def _save(self) -> None:
        """Searches that have changed are written under new names, then the list of names; the old ones go last."""
        assert self.point is not None
        for search in self.pending:
            if search.saved is None:
                self._count += 1
                record, after = search.record()
                self.point.put(f"search-{self._count}", record, {**search.evaluator.state(), "after": after})
                search.saved = f"search-{self._count}"
        names = [search.saved for search in self.pending if search.saved is not None]
        done = [record for record, _ in self.done]
        record = {"values": self.values, "pending": names, "done": done, "count": self._count, "seconds": self.seconds}
        self.point.put("searches", record, {f"done{number}": after for number, (_, after) in enumerate(self.done)})
        self.point.keep_only(["searches", *names])
