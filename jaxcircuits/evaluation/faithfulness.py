"""How much of what the model does its circuit does: faithfulness, its curve over sizes, CPR and CMD.

    F(C) = (m(C) - m(empty)) / (m(full) - m(empty))

m is the objective, a loss, mean over the prompts. F does not depend on its sign, so it is the F of the logit
difference as well as of its negative. MIB (2504.13151) takes F at ten sizes: CPR is the area under F, with edges
ranked by signed score; CMD the area under |1 - F|, ranked by absolute score; both over the share of edges, linear.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..arguments import checked
from ..circuit import RANKS, Circuit
from ..graph import Graph
from ..masks import from_0_to_1, mask_of, masks_of
from ..objective import Objective
from ..resampling import draws
from ..scores import Scores
from ..types import MaskLike
from .ablation import Ablated, ablated
from .records import Record, Spread

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB evaluates."""

DIFFERENCES = ("logit_diff", "logit_diff_max", "prob_diff", "greater_than")
"""Metrics below 0 where the right answers win over the wrong ones."""

REPLICATES = 2000
"""Bootstrap draws of the prompts behind an interval; their seed is 0, so that an evaluation is the same again."""

STANDARD_ERRORS = 2.0
"""A ratio is refused when its denominator is less than so many standard errors and float errors together."""


@dataclasses.dataclass(frozen=True)
class Faithfulness(Record):
    """F of one circuit.

    - `value`: ratio of means; None if `refused` says why.
    - `mean_of_ratios`: the other order: the ratio on every prompt, then their spread; None where one is noise.
    - `loss`, `loss_empty`, `loss_full`: m of the circuit, of no circuit and of the whole model, over the prompts.
    - `edges`, `weighted_edges`: its size, see `weighted_edge_count`.
    - `correct`: the share of prompts whose answer wins (loss below 0); None of metrics that do not tell.
    - `interval`: 95 % percentile bootstrap interval of `value` over the prompts; None where that is.
    """

    kind: ClassVar[str] = "faithfulness"
    value: float | None
    refused: str | None
    mean_of_ratios: Spread | None
    loss: Spread
    loss_empty: Spread
    loss_full: Spread
    edges: int
    weighted_edges: float
    correct: float | None = None
    interval: tuple[float, float] | None = None
    run: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FaithfulnessCurve(Record):
    """F over sizes, by one ranking or both.

    - `shares`: of all edges; `chosen`: the edges that these are, before dead ends are dropped.
    - `signed`, `absolute`: F of the best edges by signed and by absolute score.
    - `acc_auc`: trapezoid area under `correct` of `signed` over the logarithm of the share, divided by its range;
      unlike CPR it gains nothing from circuits that answer more decidedly than the model. None where that is not told.
    - `cpr`: trapezoid area under `signed`. `cmd`: trapezoid area under |1 - F| of `absolute`. None where F is refused.
    - `cpr_interval`, `cmd_interval`: 95 % percentile bootstrap intervals over the prompts, the ranking as it is.
    """

    kind: ClassVar[str] = "faithfulness curve"
    shares: tuple[float, ...]
    chosen: tuple[int, ...]
    signed: tuple[Faithfulness, ...]
    absolute: tuple[Faithfulness, ...]
    cpr: float | None
    cmd: float | None
    run: dict[str, Any]
    acc_auc: float | None = None
    cpr_interval: tuple[float, float] | None = None
    cmd_interval: tuple[float, float] | None = None

    @property
    def most(self) -> float | None:
        """The largest F; None where it is refused."""
        values = [point.value for point in (*self.signed, *self.absolute) if point.value is not None]
        return max(values) if len(values) == 2 * len(self.shares) else None


@checked
def faithfulness(objective: Objective | Ablated, circuit: MaskLike) -> Faithfulness:
    """F of one circuit, or of a mask [sender, receiver].

    Raises ValueError for a circuit of another graph. A denominator that is noise is refused in the result.
    """
    judged = ablated(objective)
    masks = masks_of(circuit, judged.graph)
    if len(masks) != 1:
        raise ValueError(f"faithfulness: expected one circuit, got {len(masks)}; for several: faithfulness_many")
    [result] = faithfulness_many(judged, masks)
    found = circuit.run if isinstance(circuit, Circuit) else {}
    return dataclasses.replace(result, run={**judged.describe(), "circuit": found})


def faithfulness_many(objective: Objective | Ablated, circuits: MaskLike) -> tuple[Faithfulness, ...]:
    """F of many circuits, in batches; those of few edges by their live nodes. Raises ValueError for another graph's."""
    judged = ablated(objective)
    masks = masks_of(circuits, judged.graph)
    baselines = judged.baselines()
    return _judged(judged, masks, judged.losses(masks, exchangeable=False), baselines)


def judged_running(judged: Ablated, running: np.ndarray) -> tuple[Faithfulness, ...]:
    """F of runs with these edges in, [run, sender, receiver], whatever the ablation takes for a circuit's."""
    baselines = judged.baselines()
    return _judged(judged, running, judged.losses_of(running, exchangeable=False), baselines)


def _judged(
    judged: Ablated,
    masks: np.ndarray,
    each: Float[np.ndarray, "circuit prompt"],
    baselines: Float[np.ndarray, "2 prompt"],
) -> tuple[Faithfulness, ...]:
    empty, full = baselines
    noise, tells = judged.rounding(), judged.objective.metric_name in DIFFERENCES
    results = [_faithfulness(mask, losses, (empty, full), noise) for mask, losses in zip(masks, each, strict=True)]
    if len(full) > 1 and results and results[0].value is not None:  # it is refused for all alike, or for none
        within = map(_within, resampled(each, baselines))
        results = [dataclasses.replace(one, interval=ends) for one, ends in zip(results, within, strict=True)]
    if not tells:
        return tuple(results)
    shares = [float((losses < 0).mean()) for losses in each]
    return tuple(dataclasses.replace(one, correct=share) for one, share in zip(results, shares, strict=True))


@checked
def faithfulness_curve(
    objective: Objective | Ablated, scores: Scores | Circuit, *, shares: Sequence[float] = MIB_SHARES
) -> FaithfulnessCurve:
    """F at shares of all edges, `n = int(share * edges)`, the best n without dead ends; with CPR and CMD.

    - `scores`: ranked by `Circuit.select`, ties by edge order.
    - `shares`: ascending, from above 0 to 1.

    Raises ValueError for other shares and scores of another graph.
    """
    judged, graph = ablated(objective), scores.graph
    check_shares(judged.graph, graph, shares)
    chosen = tuple(int(share * graph.num_edges) for share in shares)
    circuits = [Circuit.select(scores, edges=count, rank=rank) for rank in RANKS for count in chosen]
    masks = masks_of(circuits, judged.graph)
    baselines, each = judged.baselines(), judged.losses(masks, exchangeable=False)
    points = _judged(judged, masks, each, baselines)
    signed, absolute = points[: len(shares)], points[len(shares) :]
    cpr, cmd = area_under(shares, signed), area_beside_1(shares, absolute)
    run = {**judged.describe(), "scores": scores.run}
    curve = FaithfulnessCurve(tuple(shares), chosen, signed, absolute, cpr, cmd, run, acc_auc(shares, signed))
    if cpr is None or cmd is None or each.shape[1] < 2:
        return curve
    ratios = resampled(each, baselines)
    above = _within(np.trapezoid(ratios[: len(shares)], shares, axis=0))
    beside = _within(np.trapezoid(np.abs(1 - ratios[len(shares) :]), shares, axis=0))
    return dataclasses.replace(curve, cpr_interval=above, cmd_interval=beside)


def resampled(
    each: Float[np.ndarray, "circuit prompt"], baselines: Float[np.ndarray, "2 prompt"]
) -> Float[np.ndarray, "circuit replicate"]:
    """F of circuits on `REPLICATES` bootstrap draws of the prompts, the same for all circuits."""
    empty, full = baselines
    counts = draws(len(full), REPLICATES, "bootstrap", 0.5, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((each - empty) @ counts.T) / ((full - empty) @ counts.T)


def _within(values: Float[np.ndarray, " replicate"]) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):  # a draw without any difference to divide by
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high


def weighted_edge_count(mask: MaskLike, neurons: Float[np.ndarray, " sender"] | None = None) -> float:
    """MIB's size of a circuit: kept edges, each counted by the share of its sender's neurons that are kept.

    - `mask`: a circuit, or bool [sender, receiver]. `neurons`: that share; None: 1, as at the level of edges.
    """
    edges = np.asarray(mask_of(mask))
    shares = 1.0 if neurons is None else np.asarray(from_0_to_1(neurons, "neurons"))[:, None]
    return float((edges * shares).sum())


def check_shares(own: Graph, graph: Graph, shares: Sequence[float]) -> None:
    """Raises ValueError for scores of another graph than the objective's own, and for shares that do not ascend."""
    if graph != own:
        raise ValueError("scores: expected those of the objective's graph, got another graph's")
    if not shares or any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"shares: expected ascending numbers above 0, at most 1, got {list(shares)}")


def area_under(shares: Sequence[float], points: Sequence[Faithfulness]) -> float | None:
    """Trapezoid area under F; None where it is refused."""
    values = _values(points)
    return None if values is None else float(np.trapezoid(values, shares))


def area_beside_1(shares: Sequence[float], points: Sequence[Faithfulness]) -> float | None:
    """Trapezoid area under |1 - F|; None where it is refused."""
    values = _values(points)
    return None if values is None else float(np.trapezoid(np.abs(1 - values), shares))


def acc_auc(shares: Sequence[float], points: Sequence[Faithfulness]) -> float | None:
    """Trapezoid area under the share of prompts answered right over log share; None where that is not told."""
    correct = [point.correct for point in points if point.correct is not None]
    if len(correct) < len(points):
        return None
    where = np.log(shares)
    return correct[0] if len(shares) == 1 else float(np.trapezoid(correct, where) / (where[-1] - where[0]))


def _values(points: Sequence[Faithfulness]) -> Float[np.ndarray, " point"] | None:
    values = [point.value for point in points if point.value is not None]
    return np.array(values) if len(values) == len(points) else None


def _faithfulness(
    mask: np.ndarray,
    losses: Float[np.ndarray, " batch"],
    baselines: tuple[Float[np.ndarray, " batch"], Float[np.ndarray, " batch"]],
    noise: Float[np.ndarray, " batch"],
) -> Faithfulness:
    empty, full = baselines
    difference = full - empty
    refused = _refusal(Spread.of(difference), float(noise.mean()))
    value = ratios = None
    if refused is None:
        value = float((losses.mean() - empty.mean()) / difference.mean())
        tells = np.abs(difference) > STANDARD_ERRORS * noise
        ratios = Spread.of((losses - empty) / difference) if tells.all() else None
    spreads = Spread.of(losses), Spread.of(empty), Spread.of(full)
    return Faithfulness(value, refused, ratios, *spreads, int(mask.sum()), weighted_edge_count(mask))


def _refusal(difference: Spread, noise: float) -> str | None:
    """Why a ratio to this difference says nothing, if so; `noise`: what rounding alone makes of it."""
    if abs(difference.mean) > STANDARD_ERRORS * (difference.standard_error + noise):
        return None
    return (
        f"the whole model and no circuit differ by {difference.mean:.3g} with a standard error of "
        f"{difference.standard_error:.3g} and a float error of {noise:.1g}: a ratio to that is noise; take more "
        "prompts, corrupt prompts that differ from the clean ones, or another metric"
    )
