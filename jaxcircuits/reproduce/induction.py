"""Induction, which has no known circuit: how much of KL each number of edges buys, method by method."""

from ..circuit import Circuit
from ..discovery import eap_ig_inputs
from ..objective import Objective
from ..report.pareto import pareto_front
from .searches import acdc_circuits, kept_scores, probed_circuits
from .settings import PAPER, Settings, powers
from .table import Curve, Row, Table

THRESHOLDS = powers(-4, 0, 21)
PROMPTS = 50
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
"""Edges of the circuits that scores select."""

BUDGETS = (5, 10, 20, 50, 100)
"""Edges for which the table says the least KL."""


def induction_pareto(settings: Settings) -> Table:
    """KL to the whole model against edges, of ACDC, Subnetwork Probing and EAP-IG; the paper prints a plot only.

    Raises ValueError for a task, and for weights that are absent.
    """
    if settings.task is not None:
        raise ValueError("the table induction-pareto has its own task: expected no --task")
    model = settings.load("redwood_attn_2l")
    task = "induction" if settings.is_rehearsal else "induction_text"
    objective = settings.objective(model, task, "kl", PROMPTS)
    name = f"induction-{settings.stem}"
    found = {
        "ACDC": acdc_circuits(settings, name, objective, THRESHOLDS, head_order="ascending"),
        "SP": probed_circuits(settings, name, objective),
        "EAP-IG": _selected(settings, name, objective),
    }
    curves, rows = [], []
    for method, circuits in found.items():
        points = tuple((float(c.num_edges), float(c.run["metric_final"])) for c in circuits)
        curves.append(Curve(model.source, method, points))
        front = pareto_front([(int(edges), value) for edges, value in points])
        for budget in BUDGETS:
            best = min((value for edges, value in front if edges <= budget), default=None)
            rows.append(Row(model.source, method, f"least KL with up to {budget} edges", None, best))
    return settings.table(
        "induction-pareto",
        rows,
        curves,
        title="Induction: KL to the whole model against edges kept",
        source=f"{PAPER}, a plot without printed numbers",
        axes=("edges", "KL"),
        task=task,
        objective=objective.describe(),
    )


def _selected(settings: Settings, name: str, objective: Objective) -> list[Circuit]:
    scores = kept_scores(settings, f"{name}-eap-ig", eap_ig_inputs, objective)
    sizes = [size for size in SIZES if size <= objective.graph.num_edges]
    circuits = [Circuit.select(scores, edges=size) for size in sizes]
    return [Circuit.of(circuit, metric_final=float(objective(circuit.mask))) for circuit in circuits]
