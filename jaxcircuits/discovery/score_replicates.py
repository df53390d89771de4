"""How sure scores are: every prompt is scored once, and resampled prompts are weights on those."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from ..arguments import MOST_DRAWN, check_count, checked
from ..identity import identity_of, told_by
from ..objective import Objective
from ..resampling import draws
from ..savepoint import journal_of
from ..scores import Scores
from ..types import EdgeScores
from .method import takes
from .resampled import Resampled

AT_ONCE = 4096
"""Edges whose replicates are in memory at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreReplicates(Resampled):
    """Scores of all prompts, of each, and of resampled ones.

    - `full`: of all prompts, the mean of `each`, [prompt, edge], in the order of `graph.edges`.
    - `counts`: how often each prompt is in each bootstrap replicate; `seed`: of the draws.
    """

    full: Scores
    each: Float[np.ndarray, "prompt edge"]
    counts: Int[np.ndarray, "replicate prompt"]
    seed: int

    @cached_property
    def intervals(self) -> Float[np.ndarray, "2 edge"]:
        """Percentile bootstrap intervals of the scores, 95 %: lower and upper ends, in the order of the edges."""
        ends = [np.quantile(part, [0.025, 0.975], axis=0) for part in self._parts()]
        return np.concatenate(ends, axis=1)

    @property
    def excludes_zero(self) -> Bool[np.ndarray, " edge"]:
        """Whose interval has not both signs."""
        low, high = self.intervals
        return (low > 0) | (high < 0)

    @cached_property
    def rank_correlations(self) -> Float[np.ndarray, " replicate"]:
        """Spearman's correlation of each replicate's scores with those of all prompts."""
        whole = stats.rankdata(self.each.mean(0))
        ranks = (stats.rankdata(weights @ self.each) for weights in self._weights())
        with np.errstate(invalid="ignore"):
            return np.array([np.corrcoef(whole, one)[0, 1] for one in ranks])

    def top(self, edges: int) -> Float[np.ndarray, " edge"]:
        """The share of replicates in which each edge is one of so many best ones; ties by edge order."""
        check_count("edges", edges, 1)
        found = np.zeros(self.each.shape[1])
        for weights in self._weights():
            found[np.argsort(-(weights @ self.each), kind="stable")[:edges]] += 1
        return found / len(self.counts)

    @property
    def run(self) -> dict[str, Any]:
        """The record of the scores, with that of the replicates under `score_replicates`."""
        low, high = self.intervals.tolist()
        replicates = {
            "count": len(self.counts),
            "seed": self.seed,
            "low": low,
            "high": high,
            "excludes_zero": int(self.excludes_zero.sum()),
            "rank_correlation": np.quantile(self.rank_correlations, [0.025, 0.5, 0.975]).tolist(),
        }
        return {**self.full.run, "score_replicates": replicates}

    def table(self, values: Float[np.ndarray, " edge"]) -> EdgeScores:
        """Numbers of the edges as [sender, receiver], 0 where there is no edge."""
        table = np.zeros(self.graph.shape)
        table[self.graph.valid] = values
        return table

    def _weights(self) -> Float[np.ndarray, "replicate prompt"]:
        return self.counts / self.counts.sum(1, keepdims=True)

    def _parts(self) -> Iterator[Float[np.ndarray, "replicate _"]]:
        for first in range(0, self.each.shape[1], AT_ONCE):
            yield self._weights() @ self.each[:, first : first + AT_ONCE]


@checked
def score_replicates(
    objective: Objective,
    method: Callable[..., Any],
    *,
    count: int = 1000,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    **options: Any,
) -> ScoreReplicates:
    """Scores with bootstrap intervals over prompts, at the cost of scoring every prompt once.

    - `method`: one whose score is a mean over prompts, such as `eap`, `eap_ig_inputs` and `exact`; it gets `options`.
    - `count`: of replicates; `seed`: of the draws.
    - `checkpoint`: a folder that keeps the prompts' scores, and, of a method that takes one, how far that of all is.

    Raises ValueError for a method that is no such mean (learnt masks, and what ranks or takes sizes over prompts), for
    prompts that count differently, for an objective on several devices, and for a checkpoint that is damaged or another
    run's.
    """
    check_count("count", count, 1, MOST_DRAWN)
    check_count("seed", seed)
    if objective.mesh is not None:
        raise ValueError("score_replicates: expected an objective on one device, as prompts are scored one by one")
    if np.ptp(weights := np.asarray(objective.weights).sum(1)) > 1e-5 * weights.max():
        raise ValueError("score_replicates: expected prompts that count alike; take average='per_prompt'")
    folders = {name: None if checkpoint is None else Path(checkpoint) / name for name in ("all", "each")}
    is_kept = checkpoint is not None and takes(method, "checkpoint")
    scores = method(objective, **options, **({"checkpoint": folders["all"]} if is_kept else {}))
    if not isinstance(scores, Scores) or scores.positions is not None:
        raise ValueError("score_replicates: expected a method that scores edges, at all positions together")
    valid = scores.graph.valid
    whole = scores.values[valid]

    def of_one(prompt: int) -> Float[np.ndarray, " edge"]:
        return method(objective.take(np.array([prompt])), **options).values[valid]

    def identity() -> dict[str, Any]:
        return {"method": told_by(scores.run, whole), **identity_of(objective)}

    rows = []
    with journal_of(folders["each"], identity) as journal:
        for prompt in range(objective.num_prompts):
            row = partial(of_one, prompt)
            rows.append(row() if journal is None else journal.call(f"prompt {prompt}", row))
    each = np.array(rows)
    error, eps = np.abs(each.mean(0) - whole).max(), np.finfo(np.dtype(objective.model.dtype)).eps
    if error > 1e4 * eps * np.abs(each).max():
        raise ValueError(
            f"score_replicates: {scores.method} is no mean over prompts: theirs and that of all differ by {error:.2g}"
        )
    return ScoreReplicates(scores, each, draws(objective.num_prompts, count, "bootstrap", 0.5, seed), seed)
