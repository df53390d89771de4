"""The fewest best edges that keep a share of what the model does, found by bisection."""

import dataclasses

from ..arguments import checked
from ..circuit import Circuit
from ..objective import Objective
from ..scores import Scores
from .ablation import Ablated, ablated
from .faithfulness import faithfulness


@checked
def retained(
    objective: Objective | Ablated, scores: Scores | Circuit, share: float = 0.95, *, rank: str = "signed"
) -> Circuit:
    """The best n edges, without dead ends, with F of at least `share`, where n - 1 have less.

    F need not rise with every edge, so there may be smaller n: bisection finds one crossing. `run["retention"]` says
    so, with F and how many circuits were evaluated. Raises ValueError for a share outside of (0, 1], and where F is
    refused.
    """
    judged, graph = ablated(objective), scores.graph
    if not 0 < share <= 1:
        raise ValueError(f"retain: expected a share of faithfulness above 0, at most 1, got {share}")
    none, all_edges, evaluations = 0, graph.num_edges, 0
    best = Circuit.select(scores, edges=all_edges, rank=rank)
    reached = _faithfulness(judged, best)
    while all_edges - none > 1:
        middle = (none + all_edges) // 2
        tried = Circuit.select(scores, edges=middle, rank=rank)
        value, evaluations = _faithfulness(judged, tried), evaluations + 1
        if value >= share:
            all_edges, best, reached = middle, tried, value
        else:
            none = middle
    found = {
        "share": share,
        "faithfulness": reached,
        "evaluations": evaluations + 1,
        "search": "bisection, one crossing",
    }
    return dataclasses.replace(best, run={**best.run, "retention": found})


def _faithfulness(judged: Ablated, circuit: Circuit) -> float:
    found = faithfulness(judged, circuit)
    if found.value is None:
        raise ValueError(f"retain: faithfulness is refused: {found.refused}")
    return found.value
