"""What is left of the model without the best edges: F of the complement, over how many edges are taken away."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from ..arguments import checked
from ..circuit import Circuit
from ..masks import masks_of
from ..objective import Objective
from ..scores import Scores
from .ablation import Ablated, ablated
from .faithfulness import MIB_SHARES, Faithfulness, area_under, check_shares, judged_running
from .records import Record


@dataclasses.dataclass(frozen=True)
class NecessityCurve(Record):
    """F of what does not run when the best edges are judged.

    - `shares`: of all edges; `chosen`: the edges that these are. `points`: F without them, ranked by signed score.
    - `area`: trapezoid area under F over the share, lower = better; None where F is refused.
    """

    kind: ClassVar[str] = "necessity curve"
    shares: tuple[float, ...]
    chosen: tuple[int, ...]
    points: tuple[Faithfulness, ...]
    area: float | None
    run: dict[str, Any]


@checked
def necessity_curve(
    objective: Objective | Ablated, scores: Scores | Circuit, *, shares: Sequence[float] = MIB_SHARES
) -> NecessityCurve:
    """F of the model without its best edges, at the circuits of `faithfulness_curve` by signed score.

    Raises ValueError for other shares and scores of another graph, as that does.
    """
    judged, graph = ablated(objective), scores.graph
    check_shares(judged.graph, graph, shares)
    chosen = tuple(int(share * graph.num_edges) for share in shares)
    circuits = masks_of([Circuit.select(scores, edges=count) for count in chosen], graph)
    running = judged.ablation.running(graph, judged.ablation.parts(graph, circuits))
    points = judged_running(judged, graph.valid & ~running)
    run = {**judged.describe(), "scores": scores.run}
    return NecessityCurve(tuple(shares), chosen, points, area_under(shares, points), run)
