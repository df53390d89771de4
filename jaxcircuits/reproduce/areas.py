"""A method's circuits against the known one, as part of a table: areas under the ROC of edges and of nodes."""

from collections.abc import Sequence

from ..circuit import Circuit
from ..evaluation import roc
from ..types import EdgeBools
from .table import Curve, Row


def areas(
    names: tuple[str, str],
    circuits: Sequence[Circuit] | None,
    truth: EdgeBools,
    *,
    published: float | None,
    note: str = "",
) -> tuple[list[Row], list[Curve]]:
    """The pessimistic areas in the original's convention, and the curve of edges; no numbers without circuits.

    - `names`: of the system and of the method. `published`: the area of edges.
    """
    if not circuits:
        return [Row(*names, "edge area", published, None, note), Row(*names, "node area", None, None, note)], []
    edges, nodes = (roc(circuits, truth, level=level, convention="original") for level in ("edge", "node"))
    rows = [
        Row(*names, "edge area", published, edges.pessimistic, note),
        Row(*names, "node area", None, nodes.pessimistic, note),
    ]
    return rows, [Curve(*names, edges.points)]
