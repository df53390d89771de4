"""Two circuits on the same prompts: by how much one is better, and how sure that is."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from ..arguments import check_count, checked
from ..circuit import Circuit
from ..masks import masks_of
from ..objective import Objective
from ..resampling import draws
from .ablation import Ablated, ablated
from .faithfulness import faithfulness_many
from .records import Record, Spread


@dataclasses.dataclass(frozen=True)
class Paired(Record):
    """The first circuit's loss minus the second's, prompt by prompt: below 0 the first is better.

    - `difference`, `interval`: over the prompts, and the 95 % percentile bootstrap interval of its mean.
    - `p`: of the sign-flip test that the differences lie evenly around 0, two-sided.
    - `faithfulness`: of the two, None where it is refused. `faithfulness_interval`: of their difference; None likewise.
    """

    kind: ClassVar[str] = "paired"
    difference: Spread
    interval: tuple[float, float]
    p: float
    faithfulness: tuple[float | None, float | None]
    faithfulness_interval: tuple[float, float] | None
    edges: tuple[int, int]
    run: dict[str, Any]


@checked
def paired(
    objective: Objective | Ablated, first: Circuit, second: Circuit, *, count: int = 10_000, seed: int = 0
) -> Paired:
    """Judges two circuits of one graph on the same prompts.

    - `count`: bootstrap replicates, and sign flips where there are more than that.

    Raises ValueError for circuits of another graph and for less than 2 prompts.
    """
    check_count("count", count, 1)
    judged = ablated(objective)
    masks = np.concatenate([masks_of(circuit, judged.graph) for circuit in (first, second)])
    losses = judged.losses(masks, exchangeable=False)
    if losses.shape[1] < 2:
        raise ValueError(f"paired: expected at least 2 prompts, got {losses.shape[1]}")
    difference = losses[0] - losses[1]
    counts = draws(len(difference), count, "bootstrap", 0.5, seed)
    low, high = np.quantile(counts @ difference / len(difference), [0.025, 0.975]).tolist()
    values = faithfulness_many(judged, masks)
    faithful = values[0].value, values[1].value
    run = {**judged.describe(), "first": first.run, "second": second.run, "count": count, "seed": seed}
    return Paired(
        difference=Spread.of(difference),
        interval=(low, high),
        p=_sign_flips(difference, count, seed),
        faithfulness=faithful,
        faithfulness_interval=None if None in faithful else _of_ratios(difference, judged.baselines(), counts),
        edges=(first.num_edges, second.num_edges),
        run=run,
    )


def _sign_flips(difference: Float[np.ndarray, " prompt"], count: int, seed: int) -> float:
    """Two-sided p of the mean under flipped signs: exact where there are at most `count` of them; 1 where all are 0."""
    if not difference.any():
        return 1.0
    options = {"permutation_type": "samples", "n_resamples": count, "rng": np.random.default_rng(seed)}
    return float(stats.permutation_test((difference,), np.mean, vectorized=True, **options).pvalue)


def _of_ratios(
    difference: Float[np.ndarray, " prompt"], baselines: Float[np.ndarray, "2 prompt"], counts: np.ndarray
) -> tuple[float, float]:
    """Bootstrap interval of the difference of two faithfulnesses, ratios to the same baselines."""
    empty, full = baselines
    ratios = (counts @ difference) / (counts @ (full - empty))
    low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
    return low, high
