"""How sure each edge of a circuit is: ACDC on resampled prompts, exactly, by weights on the prompts' own metrics.

Replicates are judges of one search: what they have decided alike so far is computed once, and where they part each
goes its own way. No prompt is copied, and no run's answer depends on the others.
"""

import dataclasses
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..arguments import MOST_DRAWN, check_count, check_number, checked
from ..objective import Objective
from ..resampling import LEFT_OUT, certificates_of, draws, interval_of
from ..types import EdgeBools, EdgeScores
from .acdc import acdc, searched
from .acdc_result import ACDCResult
from .judges import Judges
from .resampled import Resampled


@dataclasses.dataclass(frozen=True, eq=False)
class Replicates(Resampled):
    """The circuits that ACDC finds on resampled prompts, beside the one that it finds on all.

    - `full`: on all prompts alike. `counts`: how often each prompt is in each replicate.
    - `masks`, `metrics`: each replicate's circuit, and the metric of that on the replicate's own prompts.
    - `resample`: "bootstrap", or "keep": each prompt with probability `1 - q`. `seed`: of the draws.
    - `seconds`: of all together.
    """

    full: ACDCResult
    counts: Int[np.ndarray, "replicate prompt"]
    masks: Bool[np.ndarray, "replicate sender receiver"]
    metrics: Float[np.ndarray, " replicate"]
    resample: str
    q: float
    seed: int
    seconds: float

    @cached_property
    def kept(self) -> Int[np.ndarray, "sender receiver"]:
        """How many replicates keep each edge."""
        return self.masks.sum(0)

    @property
    def shares(self) -> EdgeScores:
        """The share of replicates that keep each edge."""
        return self.kept / len(self.masks)

    def intervals(self, confidence: float = 0.95) -> Float[np.ndarray, "2 sender receiver"]:
        """Lower and upper end of each edge's share: Clopper and Pearson's exact interval (1934)."""
        return interval_of(self.kept, len(self.masks), confidence)

    def core(self, at_least: float = 0.95) -> EdgeBools:
        """The edges that at least so large a share of the replicates keeps."""
        return (self.shares >= at_least) & self.graph.valid

    def fringe(self, at_least: float = 0.95) -> EdgeBools:
        """The edges that some replicate keeps, but fewer than those of the core."""
        return (self.kept > 0) & ~self.core(at_least)

    @cached_property
    def jaccards(self) -> Float[np.ndarray, " replicate"]:
        """Edges that a replicate shares with the full run's circuit, of those in either; 1 where both are empty."""
        both, either = (self.masks & self.mask).sum((1, 2)), (self.masks | self.mask).sum((1, 2))
        return np.where(either, both / np.maximum(either, 1), 1.0)

    def certificates(self, confidence: float = 0.95) -> dict[str, Int[np.ndarray, "sender receiver"]]:
        """How many prompts may be "replaced" or "deleted" before the majority's decision on an edge can change.

        See `resampling.certificates_of`. Raises ValueError for bootstrap replicates, which say nothing of this.
        """
        if self.resample != "keep":
            raise ValueError(f"certificates: expected replicates of resample='keep', got {self.resample!r}")
        return certificates_of(self.kept, len(self.masks), self.q, self.counts.shape[1], confidence)

    @property
    def run(self) -> dict[str, Any]:
        """The record of the full run, with that of the replicates under `replicates`."""
        kept = {self.graph.edge_name(s, r): int(self.kept[s, r]) for s, r in np.argwhere(self.kept)}
        replicates = {
            "count": len(self.masks),
            "resample": self.resample,
            **({"left_out": self.q} if self.resample == "keep" else {}),
            "seed": self.seed,
            "kept": kept,
            "edges": self.masks.sum((1, 2)).tolist(),
            "metrics": self.metrics.tolist(),
            "jaccards": self.jaccards.tolist(),
            "seconds": self.seconds,
        }
        return {**self.full.run, "replicates": replicates}


@checked
def replicates(
    objective: Objective,
    threshold: float,
    *,
    count: int = 200,
    resample: str = "bootstrap",
    q: float = LEFT_OUT,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    **options: Any,
) -> Replicates:
    """ACDC's circuit at a threshold, and those that it finds on resampled prompts: error bars for every edge.

    Each replicate's circuit is the one of `acdc(objective, threshold, prompt_weights=its counts)`.

    - `count`: of replicates. `resample`: "bootstrap" draws as many prompts as there are with replacement; "keep" keeps
      each with probability `1 - q`, as `Replicates.certificates` needs it. One without prompts keeps no edge.
    - `seed`: of the draws. `options`: those of `acdc`; its `seed` is `order_seed` here.
    - `checkpoint`: a folder that keeps how far the run is.

    Raises ValueError for a bad option, and as `acdc` does.
    """
    check_number("threshold", threshold)
    check_count("count", count, 1, MOST_DRAWN)
    check_count("seed", seed)
    if "prompt_weights" in options:
        raise ValueError("prompt_weights: replicates weigh the prompts themselves, got another weighting")
    counts = draws(objective.num_prompts, count, resample, q, seed)
    options["seed"] = options.pop("order_seed", 0)
    folders = {name: None if checkpoint is None else Path(checkpoint) / name for name in ("full", "replicates")}
    full = acdc(objective, threshold, **options, checkpoint=folders["full"])
    drawn = {"count": count, "resample": resample, "left_out": q, "seed": seed}
    is_drawn = counts.any(1)
    masks, metrics = np.zeros((count, *full.mask.shape), bool), np.zeros(count)
    if is_drawn.any():
        judges = Judges.of(objective, threshold, counts[is_drawn], absolute=options.pop("absolute", False))
        options = {"predictor": full, **options, "checkpoint": folders["replicates"]}
        found = searched(objective, judges, drawn={"replicates": drawn}, **options)
        masks[is_drawn], metrics[is_drawn] = [r.mask for r in found], [r.metric_final for r in found]
        seconds = full.seconds + max(result.seconds for result in found)
    else:
        seconds = full.seconds
    return Replicates(full, counts, masks, metrics, resample, q, seed, seconds)
