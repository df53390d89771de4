"""The paper's headline: 68 of GPT-2 small's edges at one threshold, all five types of Greater-Than's components."""

from ..circuit import Circuit
from ..evaluation.roc import members
from ..tasks import by_name, greater_than
from .searches import acdc_circuits
from .settings import PAPER, Settings
from .table import Curve, Row, Table

THRESHOLD = 0.01585
PROMPTS = 100
COMPONENTS = (
    greater_than.EARLY_HEADS,
    greater_than.DUPLICATE_HEAD,
    greater_than.EARLY_MLPS,
    greater_than.YEAR_HEADS,
    greater_than.LATE_MLPS,
)
"""The types of the known circuit's components."""


def greater_than_68(settings: Settings) -> Table:
    """ACDC at the paper's threshold on the difference of probabilities: edges, and which components they touch.

    Another model than GPT-2 small rehearses the search; its components are not known.
    Raises ValueError for a task, and for weights that are absent.
    """
    if settings.task is not None:
        raise ValueError("the table greater-than-68 has its own task: expected no --task")
    model = settings.load("gpt2")
    objective = settings.objective(model, "greater_than", "greater_than", PROMPTS)
    circuits = acdc_circuits(settings, f"greater_than-{settings.stem}", objective, [THRESHOLD])
    task = by_name("greater_than")
    assert task.circuit is not None
    try:
        task.circuit(model.graph)
        known, note = True, ""
    except ValueError:
        known, note = False, f"a rehearsal on {model.source}: published for GPT-2 small"
    rows = []
    for circuit in circuits:
        label = f"threshold {circuit.run['threshold']:g}"
        count = int(members(circuit.graph, circuit.mask, level="edge", convention="original").sum())
        is_papers = known and circuit.run["threshold"] == THRESHOLD
        rows.append(Row(label, "ACDC", "edges, internal ones counted", 68 if is_papers else None, count, note))
        rows.append(Row(label, "ACDC", "edges of the residual stream", None, circuit.num_edges, note))
        if known:
            rows.append(Row(label, "ACDC", "of 5 component types", 5 if is_papers else None, _types(circuit)))
    points = tuple((float(c.num_edges), float(c.run["metric_final"])) for c in circuits)
    return settings.table(
        "greater-than-68",
        rows,
        [Curve(model.source, "ACDC", points)],
        title="Greater-Than: what ACDC keeps at the paper's threshold",
        source=f"{PAPER}, section 4: 68 of 32,923 edges, 5 of 5 component types",
        axes=("edges", "negated difference of probabilities"),
        threshold=THRESHOLD,
        objective=objective.describe(),
    )


def _types(circuit: Circuit) -> int:
    """How many of the known circuit's component types have a node in the circuit."""
    return sum(bool(set(nodes) & set(circuit.nodes)) for nodes in COMPONENTS)
