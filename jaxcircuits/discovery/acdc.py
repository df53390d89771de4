"""ACDC (Conmy et al. 2023, 2304.14997, algorithm 1): greedy descent of `f`, tried in speculative batches.

Walk from the output to the input; try to remove each edge; where `f(without) - f(current) < threshold` it stays
removed. Decisions depend on each other only through the current circuit, so the next k of them can be tried at
once, each under the guess that those before it come out as predicted. All up to the first wrong guess are what the
sequential algorithm would have decided: a wrong guess costs time, never correctness. Through a receiver's edges the
device goes by itself (`device_loop.py`); the host decides (`search.py`) where several thresholds are searched at once.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from ..arguments import check_number, checked
from ..batching import compile_clock, tokens_and_devices
from ..conditional import Conditional, kept_edges
from ..device_loop import DeviceEvaluator
from ..identity import digest_of, identity_of
from ..lockstep import COUNTS
from ..masks import edges_of
from ..objective import Objective
from ..savepoint import Savepoint
from ..types import EdgeBools, EdgeScores, MaskLike
from .acdc_result import ACDCResult, Progress
from .evaluators import Evaluator
from .judges import Judges
from .predictors import predictor_of
from .schedule import Walk, all_steps
from .search import Search
from .sweep import Sweep
from .width import WIDTHS, ExpectedWidth, FixedWidth, largest_width, searches_at_once


@checked
def acdc(objective: Objective | Conditional, threshold: float, **options: Any) -> ACDCResult:
    """The circuit that ACDC keeps at a threshold.

    - `threshold`: an edge stays removed if removing it raises the metric by less than this (strictly).
    - `options`: those of `acdc_sweep`.

    Raises ValueError for a bad option; warns if a decision lies within float noise.
    """
    return acdc_sweep(objective, [threshold], **options)[0]


@checked
def acdc_sweep(
    objective: Objective | Conditional,
    thresholds: Sequence[float],
    *,
    order: str = "last_first",
    head_order: str = "descending",
    groups: bool = True,
    absolute: bool = False,
    width: int | None = None,
    together: int | None = None,
    predictor: str | EdgeScores | ACDCResult = "history",
    evaluator: Callable[[Objective, EdgeBools | None], Evaluator] | None = None,
    within: MaskLike | None = None,
    prompt_weights: ArrayLike | Sequence | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[ACDCResult], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> list[ACDCResult]:
    """The circuits that ACDC keeps at several thresholds, each as it would be alone, for less than their sum.

    Runs at two thresholds are one run until their first different decision; there the evaluator forks.

    - `thresholds`: an edge stays removed if removing it raises the metric by less than this (strictly).
    - `order`, `head_order`: of the senders within a receiver, by layer ("last_first", "first_last", "random") and
      within a layer ("descending", "ascending", "random" heads; `seed` for both). They change the circuit.
    - `groups`: first try to remove all edges into a head's q, k or v at once, as the original does.
    - `absolute`: compare the size of the increment, so that an edge whose removal helps is kept too.
    - `width`: trials evaluated in one batch, at most 64; default: what the share of guesses that came true makes best
      (on a CPU at most 4, on a TPU as many as keep it busy), so that two runs agree to the last bit. The decisions do
      not depend on it, nor on `predictor`, which guesses decisions: "history" (as the sender's last edges fared),
      "all_removed", scores of all edges (an edge is expected to go if its score is below the threshold), or an earlier
      result, whose decisions are expected again.
    - `together`: how many searches (of thresholds that have parted) share a call, at most 64; default: 1 on a CPU,
      which is busy with one, and 16 elsewhere. Decisions do not depend on it.
    - `evaluator`: `DeviceEvaluator` (the default), which decides a receiver's edges by itself in a search of one
      threshold; `LiveEvaluator`, whose every batch the host decides on; or `DenseEvaluator`, the slow oracle.
    - `within`: a circuit to search in, such as the best edges by some scores: the others are gone from the outset.
      Fewer trials, and another answer than that of the whole graph. Edges that an objective is `without` are too.
    - `prompt_weights`: how much each prompt counts in the metric that decides; default: all alike. Only their ratios
      matter.
    - `on_progress`: called after every round. `on_result`: called with each threshold's result as soon as it is known.
    - `checkpoint`: a folder that keeps how far the run is; the same call goes on from there, to the same answer.

    Returns one result a threshold, in their order. Raises ValueError for a bad option, for a metric that is NaN or
    infinite in a decision, naming its trial, and for a checkpoint that is damaged or another run's; warns of thresholds
    at 0, below it, or within float noise before the first trial, and of decisions within float noise after the last.
    """
    if not isinstance(thresholds, Sequence) or not len(thresholds):
        raise ValueError(f"thresholds: expected at least one number, got {thresholds!r:.60}")
    for threshold in thresholds:
        check_number("threshold", threshold)
    if isinstance(objective, Conditional):
        objective, kept = objective.objective, kept_edges(objective)
        within = kept if within is None else edges_of(within, objective.graph, "within") & kept
    judges = Judges.of(objective, sorted(set(thresholds)), prompt_weights, absolute=absolute)
    results = searched(
        objective,
        judges,
        order=order,
        head_order=head_order,
        groups=groups,
        width=width,
        together=together,
        predictor=predictor,
        evaluator=evaluator,
        within=within,
        seed=seed,
        on_progress=on_progress,
        on_result=on_result,
        checkpoint=checkpoint,
    )
    for result in results:
        _warn_of_noise(result)
    number = {threshold: place for place, threshold in enumerate(judges.thresholds.tolist())}
    return [results[number[threshold]] for threshold in thresholds]


def searched(
    objective: Objective,
    judges: Judges,
    *,
    drawn: dict[str, Any] | None = None,
    order: str = "last_first",
    head_order: str = "descending",
    groups: bool = True,
    width: int | None = None,
    together: int | None = None,
    predictor: str | EdgeScores | ACDCResult = "history",
    evaluator: Callable[[Objective, EdgeBools | None], Evaluator] | None = None,
    within: MaskLike | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_result: Callable[[ACDCResult], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> list[ACDCResult]:
    """What each judge's search finds, each as it would be alone; see `acdc_sweep`.

    - `drawn`: how the judges came about, by which a checkpoint says in what another run differs.
    """
    if width is not None and not 1 <= width <= WIDTHS[-1]:
        raise ValueError(f"width: expected 1 to {WIDTHS[-1]}, got {width}")
    if together is not None and not 1 <= together <= COUNTS[-1]:
        raise ValueError(f"together: expected 1 to {COUNTS[-1]}, got {together}")
    graph = objective.graph
    within = None if within is None else edges_of(within, objective.graph, "within") & objective.graph.valid
    evaluator = DeviceEvaluator if evaluator is None else evaluator
    if not isinstance(evaluator, type):
        named = "DeviceEvaluator, LiveEvaluator or DenseEvaluator"
        raise ValueError(f"evaluator: expected {named}, got {evaluator!r:.60}")
    steps = all_steps(graph, order=order, head_order=head_order, groups=groups, seed=seed)
    options = {"order": order, "head_order": head_order, "groups": groups, "absolute": judges.absolute}
    options |= {"order_seed": seed, "evaluator": evaluator.__name__}
    asked = {"method": "acdc", "thresholds": judges.thresholds.tolist(), **options, **(drawn or {})}
    if judges.counts is not None:
        asked["prompt_weights"] = digest_of(judges.counts)
    options |= {"width": width, **objective.describe()}
    if within is not None:
        options["edges_within"] = int(within.sum())
    first = Search(Walk(steps, within), predictor_of(predictor, graph), judges)
    together = searches_at_once() if together is None else together
    largest = largest_width(*tokens_and_devices(objective))
    policy = ExpectedWidth(searches=together, largest=largest) if width is None else FixedWidth(width, together)
    results: dict[int, ACDCResult] = {}

    def tell(found: Iterable[tuple[int, ACDCResult]]) -> None:
        for number, result in found:
            results[number] = result
            if on_result is not None:
                on_result(result)

    with contextlib.ExitStack() as stack:
        clock, point = stack.enter_context(compile_clock()), None
        if checkpoint is not None:
            asked["within"] = within is not None and digest_of(within)
            point = stack.enter_context(Savepoint(checkpoint, {**asked, **identity_of(objective)}))
        sweep = Sweep(objective, first, options, clock, point)
        tell(sweep.earlier())
        if not sweep.is_done:
            noise = sweep.begin(evaluator(objective, within), within is not None)
            _warn_of_thresholds(judges.thresholds, noise, str(np.dtype(objective.model.dtype)))
        while sweep.pending:
            if sweep.pending[-1].walk.is_done:
                tell(sweep.end())
                sweep.reached(milestone=True)
                continue
            milestone = sweep.round(policy)
            if on_progress is not None:
                on_progress(sweep.pending[-1].progress(sweep.seconds[0]))
            sweep.reached(milestone=milestone)
        sweep.save()
    return [results[number] for number in range(len(judges))]


def _warn_of_noise(result: ACDCResult) -> None:
    if result.undecided:
        warnings.warn(
            f"{len(result.undecided)} of {result.evaluations} decisions lie within float noise ({result.noise:.1e}) of "
            f"the threshold, first {result.undecided[0]}: another device may decide them otherwise; "
            + _remedy(result.run["dtype"]),
            stacklevel=3,
        )


def _remedy(dtype: str) -> str:
    return "choose another threshold" if dtype == "float64" else "use float64"


def _warn_of_thresholds(thresholds: Iterable[float], noise: float, dtype: str) -> None:
    """Says, before the first trial, what is odd about thresholds that the algorithm allows."""
    for threshold in dict.fromkeys(thresholds):
        said = None
        if threshold <= 0:
            said = "is not above 0: even an edge without any effect stays, only what lowers the metric goes"
        elif threshold < 2 * noise:
            said = f"is below twice the float noise of the metric ({noise:.1e}), which will decide; {_remedy(dtype)}"
        if said is not None:
            warnings.warn(f"threshold {threshold:g} {said}", stacklevel=3)
