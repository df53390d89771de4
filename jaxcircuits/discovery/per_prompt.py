"""One circuit a prompt, and clusters of prompts whose circuits are alike, with a circuit of each cluster."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from ..arguments import check_count, check_number, checked
from ..graph import Graph
from ..objective import Objective
from .acdc import acdc, searched
from .acdc_result import ACDCResult
from .judges import Judges

MOST_CLUSTERS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Prompts by the circuits that they have alone.

    - `full`: the circuit of all prompts. `masks`, `metrics`: each prompt's own circuit, and its metric of that.
    - `labels`: the cluster of each prompt, from 0 on, the largest first. `circuits`: of each, on its prompts.
    - `distances`: 1 - Jaccard of two prompts' edges. `silhouettes`: Rousseeuw's (1987), of each number tried.
    """

    full: ACDCResult
    masks: np.ndarray
    metrics: Float[np.ndarray, " prompt"]
    labels: Int[np.ndarray, " prompt"]
    circuits: tuple[ACDCResult, ...]
    distances: Float[np.ndarray, "prompt prompt"]
    silhouettes: dict[int, float]

    @property
    def graph(self) -> Graph:
        return self.full.graph

    def prompts(self, cluster: int) -> Int[np.ndarray, " number"]:
        """The numbers of a cluster's prompts."""
        return np.flatnonzero(self.labels == cluster)


@checked
def per_prompt(
    objective: Objective,
    threshold: float,
    *,
    clusters: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    **options: Any,
) -> Clusters:
    """ACDC on every prompt alone, exactly and in one search; prompts clustered by what they keep; ACDC on each
    cluster.

    Prompts are joined by average linkage of 1 - Jaccard of their edges.

    - `clusters`: how many; default: the number from 2 to `MOST_CLUSTERS` with the best silhouette, and 1 where all
      prompts have the same circuit.
    - `options`: those of `acdc`. `checkpoint`: a folder that keeps how far the run is.

    Raises ValueError for a bad option, for less than 2 prompts, and as `acdc` does.
    """
    check_number("threshold", threshold)
    prompts = objective.num_prompts
    if prompts < 2:
        raise ValueError(f"per_prompt: expected at least 2 prompts, got {prompts}")
    if clusters is not None:
        check_count("clusters", clusters, 1)
        if clusters > prompts:
            raise ValueError(f"clusters: expected at most {prompts}, one a prompt, got {clusters}")
    if "prompt_weights" in options:
        raise ValueError("prompt_weights: each prompt is searched alone, got weights of all")
    folders = {name: None if checkpoint is None else Path(checkpoint) / name for name in ("full", "each", "clusters")}
    full = acdc(objective, threshold, **options, checkpoint=folders["full"])
    absolute = options.pop("absolute", False)
    options = {"predictor": full, **options}

    def search(name: str, counts: np.ndarray) -> list[ACDCResult]:
        judges = Judges.of(objective, threshold, counts, absolute=absolute)
        return searched(objective, judges, **options, checkpoint=folders[name])

    alone = search("each", np.eye(prompts))
    masks = np.array([result.mask for result in alone])
    distances = _distances(masks)
    labels, silhouettes = _labels(distances, clusters)
    found = search("clusters", np.array([labels == label for label in range(labels.max() + 1)], float))
    metrics = np.array([result.metric_final for result in alone])
    return Clusters(full, masks, metrics, labels, tuple(found), distances, silhouettes)


def _distances(masks: np.ndarray) -> Float[np.ndarray, "prompt prompt"]:
    """1 - Jaccard of every two; 0 between circuits without edges."""
    return squareform(pdist(masks.reshape(len(masks), -1), "jaccard"))


def _labels(distances: np.ndarray, clusters: int | None) -> tuple[np.ndarray, dict[int, float]]:
    """The cluster of each prompt, the largest first, then by first prompts; silhouettes of the numbers tried."""
    tree = hierarchy.linkage(squareform(distances, checks=False), "average")
    numbers = range(2, min(MOST_CLUSTERS, len(distances) - 1) + 1) if clusters is None else [clusters]
    cuts = {number: hierarchy.cut_tree(tree, number)[:, 0] for number in numbers}
    silhouettes = {number: silhouette(distances, cut) for number, cut in cuts.items()}
    is_one = not distances.any() or not cuts
    labels = np.ones(len(distances), int) if is_one else cuts[max(silhouettes, key=lambda number: silhouettes[number])]
    names, firsts, sizes = np.unique(labels, return_index=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda place: (-sizes[place], firsts[place]))
    place = {names[old]: new for new, old in enumerate(order)}
    return np.array([place[label] for label in labels]), silhouettes


def silhouette(distances: Float[np.ndarray, "item item"], labels: np.ndarray) -> float:
    """Mean over items of `(b - a) / max(a, b)`, a the mean distance to one's own cluster, b to the nearest other one.

    0 for an item that is alone in its cluster; 0 where there is one cluster (Rousseeuw, 1987).
    """
    names = np.unique(labels)
    if len(names) < 2:
        return 0.0
    to = np.array([distances[:, labels == name].sum(1) for name in names])
    sizes = np.array([(labels == name).sum() for name in names])
    own = np.searchsorted(names, labels)
    items = np.arange(len(labels))
    a = to[own, items] / np.maximum(sizes[own] - 1, 1)
    means = to / sizes[:, None]
    means[own, items] = np.inf
    b = means.min(0)
    largest = np.maximum(a, b)
    values = np.where((sizes[own] > 1) & (largest > 0), (b - a) / np.where(largest > 0, largest, 1), 0.0)
    return float(values.mean())
