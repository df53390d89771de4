"""The paper's three methods as sweeps, to circuits that are kept: ACDC, Subnetwork Probing, HISP."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..circuit import Circuit
from ..discovery import acdc, hisp, subnetwork_probing
from ..files import short_name
from ..identity import identity_of
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
    circuits, last, identity = [], None, identity_of(objective)

    def find(threshold: float, kept: str) -> Any:
        nonlocal last
        last = acdc(objective, threshold, predictor=last or "history", **options, checkpoint=settings.part(kept))
        return last

    for threshold in settings.thresholds or thresholds:
        kept = f"{name}-acdc-{short_name(threshold)}"
        run = {"threshold": threshold, "objective": identity, **options}
        circuits.append(settings.kept(kept, functools.partial(find, threshold, kept), **run))
    return circuits


def probed_circuits(settings: Settings, name: str, objective: Objective) -> list[Circuit]:
    """A circuit a strength of the penalty."""
    steps, seed, identity = settings.steps, settings.seed, identity_of(objective)

    def probed(strength: float) -> Circuit:
        kept = f"{name}-sp-{short_name(strength)}"
        run = {"strength": strength, "steps": steps, "objective": identity}
        taken = {"steps": steps, "seed": seed, "checkpoint": settings.part(kept)}
        return settings.kept(kept, functools.partial(subnetwork_probing, objective, strength, **taken), **run)

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
    return settings.kept(name, lambda: method(objective, **options), objective=identity_of(objective), **options)


def stages(scored: Scores | Circuit) -> list[EdgeBools]:
    """The circuits of cumulative pruning: for every score that occurs, the edges that have at least this."""
    values = np.unique(scored.scores[scored.graph.valid])
    return [scored.graph.valid & (scored.scores >= least) for least in values]
