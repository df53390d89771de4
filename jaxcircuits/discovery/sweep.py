"""The searches of a sweep: those that go on, and what the others have found; kept in a `Savepoint` if there is one."""

import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..batching import CompileClock
from ..finite import check_finite
from ..objective import Objective
from ..savepoint import Savepoint
from ..types import EdgeBools
from .acdc_result import ACDCResult
from .evaluators import Evaluator
from .search import Search


class Sweep:
    """Where a sweep stands: at its beginning, or where a savepoint has it.

    - `pending`: the searches that go on, the next one last. `done`: records of the others, see `Search.record`.
    - `values`: the metrics and the float noise that were measured at the start.
    """

    def __init__(
        self, objective: Objective, start: Search, options: dict[str, Any], clock: CompileClock, point: Savepoint | None
    ):
        self.objective, self.start, self.options, self.clock, self.point = objective, start, options, clock, point
        kept = point.get("searches") if point is not None else None
        record: dict[str, Any] = {} if kept is None else kept[0]
        self.pending: list[Search] = []
        self.values: dict[str, float] | None = record.get("values")
        self.done: list[dict[str, Any]] = record.get("done", [])
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
            self.values = self._measured(evaluator.metric(), is_part)
            self.start.current = self.values["metric_start"]
            self.pending = [self.start]
        else:
            self.start.current = self.values["metric_start"]
            self.pending = [self._again(name) for name in self._names]
        return self.values["noise"]

    def _measured(self, metric_start: float, is_part: bool) -> dict[str, float]:
        objective = self.objective
        metric_full = float(objective(objective.graph.valid)) if is_part else metric_start
        for metric in (metric_full, metric_start):
            check_finite(f"acdc: metric {objective.metric_name} at the start", metric)
        noise = _noise(objective, objective.graph.valid, metric_full)
        return {"metric_full": metric_full, "metric_start": metric_start, "noise": noise}

    def _again(self, name: str) -> Search:
        assert self.point is not None
        if (kept := self.point.get(name)) is None:
            raise ValueError(f"{self.point.folder} is damaged: {name} is missing; remove the folder to begin anew")
        search = self.start.again(kept[0])
        search.evaluator.restore(kept[1])
        search.saved = name
        return search

    def end(self) -> list[ACDCResult]:
        """Takes the next search, which is done, off the others; a result for each of its thresholds."""
        assert self.values is not None
        search = self.pending.pop()
        noise = max(self.values["noise"], _noise(self.objective, search.walk.mask, search.current))
        self.done.append({**search.record(), "noise": noise, "seconds": self.seconds})
        return self._results(search, self.done[-1])

    def earlier(self) -> Iterator[ACDCResult]:
        """The results that a savepoint has."""
        for record in self.done:
            assert self.values is not None
            self.start.current = self.values["metric_start"]
            yield from self._results(self.start.again(record), record)

    def _results(self, search: Search, record: dict[str, Any]) -> list[ACDCResult]:
        assert self.values is not None
        measured = self.values["metric_full"], record["noise"], record["seconds"]
        return [search.result(threshold, *measured, self.options) for threshold in search.thresholds]

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
                self.point.put(f"search-{self._count}", search.record(), search.evaluator.state())
                search.saved = f"search-{self._count}"
        names = [search.saved for search in self.pending if search.saved is not None]
        record = {"values": self.values, "pending": names, "done": self.done, "count": self._count}
        self.point.put("searches", {**record, "seconds": self.seconds})
        self.point.keep_only(["searches", *names])


def _noise(objective: Objective, mask: EdgeBools, metric: float) -> float:
    """Float error of a circuit's metric: the same by another route (prompt by prompt), and at least rounding."""
    eps = float(jnp.finfo(objective.model.dtype).eps)
    other = float(np.asarray(objective.per_example(mask), np.float64).mean())
    return float(max(abs(other - metric), eps * abs(metric)))
