"""The two compiled programs, whose circuits are known: complete with the bundled weights."""

from ..checkpoints import Checkpoint, load
from ..circuit import Circuit
from ..evaluation.roc import members
from ..models import permute_positions
from ..objective import Objective
from ..tasks import TASKS
from ..types import EdgeBools
from .areas import areas
from .searches import acdc_circuits, hisp_circuits, probed_circuits
from .settings import PAPER, Settings, powers
from .table import Curve, Row, Table

THRESHOLDS = powers(-5, -1, 21)
SHIFT = (1, 2, 3, 0)
"""The positions of the corrupted reference, all in another place."""

PROGRAMS = {"tracr-reverse": {}, "tracr-proportion": {"convention": "original"}}
"""The bundled models, and what makes the prompts the original's."""

PUBLISHED = {
    ("tracr-reverse", "zero"): {"ACDC": 1.0, "SP": 0.801, "HISP": 0.577},
    ("tracr-proportion", "zero"): {"ACDC": 1.0, "SP": 0.829, "HISP": 0.679},
    ("tracr-reverse", "corrupted"): {"ACDC": 0.2},
    ("tracr-proportion", "corrupted"): {"ACDC": 0.679},
}
"""Pessimistic areas under the ROC of edges."""

FLAT = "zero for every node: L2 to the model's own output has no slope at the whole model; published: rounding"
RERUN = "a run of the original's code of today gives {} of {} edges at thresholds up to 0.04, internal edges counted"


def tracr(settings: Settings) -> Table:
    """Areas of ACDC, Subnetwork Probing and HISP under zero and corrupted ablation, edges and nodes.

    Raises ValueError for another model or task than the two that the table has.
    """
    if settings.model is not None or settings.task is not None:
        raise ValueError("the table tracr has its own models and tasks: expected neither --model nor --task")
    rows, curves = [], []
    for name in PROGRAMS:
        for ablation in ("zero", "corrupted"):
            more_rows, more_curves = _program(settings, name, ablation)
            rows += more_rows
            curves += more_curves
    return settings.table(
        "tracr",
        rows,
        curves,
        title="Compiled programs: area under the ROC against the known circuit (pessimistic)",
        source=f"{PAPER}, the tracr tasks, in its convention of edges and nodes",
        axes=("false positive rate (edges)", "true positive rate"),
        thresholds=settings.thresholds or THRESHOLDS,
        shift=SHIFT,
    )


def _program(settings: Settings, name: str, ablation: str) -> tuple[list[Row], list[Curve]]:
    checkpoint, task, options = load(name), TASKS[name.replace("-", "_")], PROGRAMS[name]
    assert task.circuit is not None
    truth = checkpoint.graph.mask_of(task.circuit(checkpoint.graph, **options))
    objective = _objective(settings, checkpoint, name, ablation)
    label = f"{name}-{ablation}"
    found = {
        "ACDC": acdc_circuits(settings, label, objective, THRESHOLDS),
        "SP": probed_circuits(settings, label, objective),
        "HISP": hisp_circuits(settings, label, objective),
    }
    rows, curves = [], []
    for method, circuits in found.items():
        published, note = PUBLISHED[name, ablation].get(method), "" if circuits else FLAT
        more_rows, more_curves = areas((label, method), circuits, truth, published=published, note=note)
        rows += more_rows
        curves += more_curves
    if ablation == "corrupted":
        rows.append(_edges_kept(label, found["ACDC"] or [], truth))
    return rows, curves


def _objective(settings: Settings, checkpoint: Checkpoint, name: str, ablation: str) -> Objective:
    pairs = TASKS[name.replace("-", "_")].generate(
        checkpoint.tokenizer, seed=settings.seed, **({"size": settings.size} if settings.size else {}), **PROGRAMS[name]
    )
    reference = "zero" if ablation == "zero" else permute_positions(checkpoint.model, SHIFT)
    return Objective(checkpoint.model, pairs, "l2", reference)


def _edges_kept(label: str, circuits: list[Circuit], truth: EdgeBools) -> Row:
    """How much of the known circuit ACDC keeps at its largest threshold up to 0.04."""
    chosen = max((c for c in circuits if c.run["threshold"] <= 0.04), key=lambda c: c.run["threshold"], default=None)
    real = members(circuits[0].graph, truth, level="edge", convention="original")
    count = None
    if chosen is not None:
        kept = members(chosen.graph, chosen.mask, level="edge", convention="original")
        count = int((kept & real).sum())
    return Row(label, "ACDC", f"edges kept of {real.sum()}", 9, count, RERUN.format(9, real.sum()))
