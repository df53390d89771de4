"""One circuit, judged: faithfulness, its curve over sizes, completeness, and the controls beside them."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..arguments import checked
from ..circuit import Circuit
from ..objective import Objective
from .ablation import Ablated, ablated
from .completeness import Completeness, completeness
from .controls import RandomControl, RandomCurve, ResetControl, random_control, random_curve, reset_control
from .faithfulness import Faithfulness, FaithfulnessCurve, faithfulness, faithfulness_curve
from .records import Record


@dataclasses.dataclass(frozen=True)
class Evaluation(Record):
    """All measures of one circuit; None where there is nothing to measure or it was not asked for.

    - `faithfulness`, `completeness`, and `random`: of a circuit; not of the whole graph.
    - `curve`, `random_curve`: of its scores, if these differ among edges. `reset`: see `ResetControl`.
    """

    kind: ClassVar[str] = "evaluation"
    faithfulness: Faithfulness
    curve: FaithfulnessCurve | None
    completeness: Completeness | None
    random: RandomControl | None
    random_curve: RandomCurve | None
    reset: ResetControl | None
    run: dict[str, Any]


@checked
def evaluate(
    objective: Objective | Ablated,
    circuit: Circuit,
    *,
    random: int = 100,
    reset: Objective | Ablated | None = None,
    method: Callable[[Objective], Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judges a circuit, or scores as they are loaded from a file (a circuit of all edges).

    - `random`: random circuits of the same size to compare with; 0: none.
    - `reset`, `method`: see `reset_control`; both or none.

    Raises ValueError for a circuit of another graph or without edges.
    """
    if (reset is None) != (method is None):
        raise ValueError("evaluate: the control on a reset network needs both `reset` and `method`")
    judged, graph = ablated(objective), circuit.graph
    if not circuit.num_edges:
        raise ValueError("evaluate: expected a circuit with edges, got an empty one")
    own = faithfulness(judged, circuit)
    is_part = circuit.num_edges < graph.num_edges
    curve = faithfulness_curve(judged, circuit) if np.ptp(circuit.scores[graph.valid]) > 0 else None
    return Evaluation(
        faithfulness=own,
        curve=curve,
        completeness=completeness(judged, circuit, seed=seed) if is_part else None,
        random=random_control(judged, circuit, count=random, seed=seed) if random and is_part else None,
        random_curve=random_curve(judged, curve, count=min(random, 10), seed=seed) if random and curve else None,
        reset=None if reset is None or method is None else reset_control(judged, circuit, reset, method),
        run=own.run,
    )
