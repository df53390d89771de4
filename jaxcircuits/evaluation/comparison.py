"""Methods side by side: each scores some prompts, and its ranking is judged on others."""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..objective import Objective
from ..scores import Scores
from .ablation import Ablated, ablated
from .faithfulness import FaithfulnessCurve, faithfulness_curve
from .necessity import NecessityCurve, necessity_curve
from .records import Record


@dataclasses.dataclass(frozen=True)
class Compared:
    """One method.

    - `refused`: why it does not take this objective; then the other fields are None.
    - `curve`, `necessity`: of its scores, on the prompts that judge. `run`: the record of its scores.
    - `seconds`: of scoring, compilation included. `peak_bytes`: the most memory of the process so far, so of this
      method and those before it.
    """

    name: str
    refused: str | None = None
    curve: FaithfulnessCurve | None = None
    necessity: NecessityCurve | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    run: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Comparison(Record):
    """Several methods on one task; `run`: of the objective that judges, `scored_on` of the one that is scored."""

    kind: ClassVar[str] = "comparison of methods"
    methods: tuple[Compared, ...]
    scored_on: dict[str, Any]
    run: dict[str, Any]


def compare_methods(
    objective: Objective, held_out: Objective | Ablated, methods: Mapping[str, Callable[[Objective], Any]]
) -> Comparison:
    """Scores `objective` by each method (to `Scores`, or a result that has `as_scores`), judges on `held_out`.

    A method that refuses the objective has its reason in the record. Raises ValueError for no methods.
    """
    if not methods:
        raise ValueError("compare: expected at least one method, got none")
    judged = ablated(held_out)
    rows = tuple(_compared(name, method, objective, judged) for name, method in methods.items())
    return Comparison(rows, objective.describe(), judged.describe())


def _compared(name: str, method: Callable[[Objective], Any], objective: Objective, judged: Ablated) -> Compared:
    start = time.perf_counter()
    try:
        result = method(objective)
    except ValueError as error:
        return Compared(name, str(error))
    seconds, peak = time.perf_counter() - start, _peak()
    scores: Scores = result if isinstance(result, Scores) else result.as_scores()
    curve, without = faithfulness_curve(judged, scores), necessity_curve(judged, scores)
    return Compared(name, None, curve, without, seconds, peak, scores.run)


def _peak() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
