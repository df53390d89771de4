"""The paper's ROC tables: how well each method finds the published circuit of a task."""

import numpy as np

from ..checkpoints import Checkpoint
from ..circuit import Circuit
from ..discovery import acdc, eap
from ..identity import identity_of
from ..metrics import kl
from ..objective import Objective
from ..tasks import by_name
from ..types import EdgeBools
from .areas import areas
from .searches import acdc_circuits, hisp_circuits, kept_scores, probed_circuits
from .settings import PAPER, Settings, powers
from .table import Table

# Of each task: the paper's model, prompts, and thresholds under KL and under the task's metric.
TASKS = {
    "ioi": ("gpt2", 100, powers(-6, 0, 31), powers(-4, 0, 21)),
    "greater_than": ("gpt2", 100, powers(-6, -4, 11), powers(-3, -1, 21)),
    "docstring": ("attn-only-4l", 50, powers(-4, 0, 21), powers(-4, 0, 21)),
}
PUBLISHED = {
    "docstring": {"ACDC": 0.982, "SP": 0.937, "HISP": 0.805},
    "greater_than": {"ACDC": 0.853, "SP": 0.806, "HISP": 0.693},
    "ioi": {"ACDC": 0.869, "SP": 0.823, "HISP": 0.789},
}
"""Pessimistic areas of edges under KL and corrupted activations."""

SIZES = 40
"""Circuits of the curve of scores."""

REHEARSED = 0.1
"""The threshold that makes a rehearsal's circuit."""


def roc_of_task(settings: Settings) -> Table:
    """Areas of ACDC, Subnetwork Probing, HISP and attribution against the published circuit, under KL and the metric.

    On another model than the circuit's, a rehearsal: the truth is what ACDC keeps on other prompts at one threshold.
    Raises ValueError for an unknown task, and for weights that are absent.
    """
    if settings.task not in TASKS:
        raise ValueError(f"the table roc needs a task: --task with one of {', '.join(TASKS)}, got {settings.task!r}")
    paper, size, *thresholds = TASKS[settings.task]
    model = settings.load(paper)
    truth, note = _truth(settings, model, size)
    rows, curves = [], []
    for metric, chosen in zip(("kl", by_name(settings.task).metric), thresholds, strict=True):
        objective = settings.objective(model, settings.task, metric, size)
        for method, circuits in _circuits(settings, objective, chosen).items():
            published = PUBLISHED[settings.task].get(method) if metric == "kl" and not note else None
            more_rows, more_curves = areas((metric, method), circuits, truth, published=published, note=note)
            rows += more_rows
            curves += more_curves
    return settings.table(
        f"roc-{settings.task}",
        rows,
        curves,
        title=f"{settings.task}: area under the ROC against the known circuit (pessimistic)",
        source=f"{PAPER}, last version: KL, corrupted activations, edges",
        axes=("false positive rate (edges)", "true positive rate"),
        thresholds=thresholds,
        truth=int(truth.sum()),
        note=note,
    )


def _circuits(settings: Settings, objective: Objective, thresholds: tuple[float, ...]) -> dict[str, list[Circuit]]:
    name = f"{settings.task}-{settings.stem}-{objective.metric_name}"
    found = {
        "ACDC": acdc_circuits(settings, name, objective, thresholds),
        "SP": probed_circuits(settings, name, objective),
    }
    if importance := hisp_circuits(settings, name, objective):
        found["HISP"] = importance
    if objective.metric is not kl:
        scores = kept_scores(settings, f"{name}-eap", eap, objective)
        sizes = np.unique(np.geomspace(1, objective.graph.num_edges, SIZES).round().astype(int))
        found["EAP"] = [Circuit.select(scores, edges=int(edges), rank="absolute") for edges in sizes]
    return found


def _truth(settings: Settings, model: Checkpoint, size: int) -> tuple[EdgeBools, str]:
    """The known circuit, or a rehearsal's, and what to say of it."""
    assert settings.task is not None
    known = by_name(settings.task).circuit
    assert known is not None
    try:
        return model.graph.mask_of(known(model.graph)), ""
    except ValueError:
        pairs = settings.prompts(model, settings.task, size, other=True)
        name, objective = f"{settings.task}-{settings.stem}-truth", Objective(model.model, pairs, "kl")
        circuit = settings.kept(
            name,
            lambda: acdc(objective, REHEARSED, checkpoint=settings.part(name)),
            threshold=REHEARSED,
            objective=identity_of(objective),
        )
        note = f"a rehearsal on {model.source}: truth is ACDC's circuit on other prompts, KL, threshold {REHEARSED}"
        return circuit.mask, note
