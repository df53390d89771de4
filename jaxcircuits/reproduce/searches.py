"""The paper's three methods as sweeps, to circuits that are kept: ACDC, Subnetwork Probing, HISP."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..circuit import Circuit
from ..discovery import acdc, hisp, subnetwork_probing
from ..metrics import kl, l2
from ..objective import Objective
from ..scores import Scores
from ..types import EdgeBools
from .settings import Settings

STRENGTHS = tuple(float(f"{strength:.3g}") for strength in np.geomspace(0.01, 250, 21))
"""Of Subnetwork Probing's penalty; the paper sweeps 0.01 to 250."""


def acdc_circuits(
    settings: Settings, name: str, objective: Objective, thresholds: Sequence[float], **options: Any
) -> list[Circuit]:
    """A circuit a threshold; each search expects the decisions of the one before."""
    circuits, last = [], None

    def find(threshold: float) -> Any:
        nonlocal last
        last = acdc(objective, threshold, predictor=last or "history", **options)
        return last

    for threshold in settings.thresholds or thresholds:
        run = {"threshold": threshold, "objective": _identity(objective), **options}
        circuits.append(settings.kept(f"{name}-acdc-{threshold:g}", functools.partial(find, threshold), **run))
    return circuits


def probed_circuits(settings: Settings, name: str, objective: Objective) -> list[Circuit]:
    """A circuit a strength of the penalty."""
    steps, seed = settings.steps, settings.seed

    def probed(strength: float) -> Circuit:
        run = {"strength": strength, "steps": steps, "objective": _identity(objective)}
        find = functools.partial(subnetwork_probing, objective, strength, steps=steps, seed=seed)
        return settings.kept(f"{name}-sp-{strength:g}", find, **run)

    return [probed(strength) for strength in settings.strengths or STRENGTHS]


def hisp_circuits(settings: Settings, name: str, objective: Objective) -> list[Circuit] | None:
    """A circuit a number of nodes, in the order of their importance; None where HISP is zero for every node."""
    if objective.metric is kl or (objective.metric is l2 and objective.labels.target is None):
        return None
    scored = kept_scores(settings, f"{name}-hisp", hisp, objective)
    return [Circuit(scored.graph, mask, scored.scores, scored.run) for mask in stages(scored)]


def kept_scores(
    settings: Settings, name: str, method: Callable[..., Any], objective: Objective, **options: Any
) -> Circuit:
    """A method's scores under some hyperparameters, as a circuit: of all edges, or of those whose mask was learnt."""
    return settings.kept(name, lambda: method(objective, **options), objective=_identity(objective), **options)


def stages(scored: Scores | Circuit) -> list[EdgeBools]:
    """The circuits of cumulative pruning: for every score that occurs, the edges that have at least this."""
    values = np.unique(scored.scores[scored.graph.valid])
    return [scored.graph.valid & (scored.scores >= least) for least in values]


def _identity(objective: Objective) -> dict[str, Any]:
    """What of an objective changes an answer."""
    record = objective.describe()
    return {key: record[key] for key in ("metric", "reference", "average", "prompts", "dtype")}
