"""One circuit, judged: faithfulness, its curve over sizes, completeness, and the controls beside them."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..arguments import MOST_DRAWN, check_count, checked
from ..circuit import Circuit
from ..identity import identity_of
from ..objective import Objective
from .ablation import Ablated, ablated, kept
from .completeness import Completeness, completeness
from .controls import RandomControl, RandomCurve, ResetControl, random_control, random_curve, reset_control
from .faithfulness import Faithfulness, FaithfulnessCurve, faithfulness, faithfulness_curve
from .necessity import NecessityCurve, necessity_curve
from .records import Record
from .rediscovery import Rediscovery, rediscover


@dataclasses.dataclass(frozen=True)
class Evaluation(Record):
    """All measures of one circuit; None where there is nothing to measure or it was not asked for.

    - `faithfulness`, `completeness`, and `random`: of a circuit; not of the whole graph.
    - `again`: what is found without the circuit's edges, see `rediscover`.
    - `curve`, `random_curve`, `necessity`: of its scores, if these differ among edges. `reset`: see `ResetControl`.
    """

    kind: ClassVar[str] = "evaluation"
    faithfulness: Faithfulness
    curve: FaithfulnessCurve | None
    completeness: Completeness | None
    random: RandomControl | None
    random_curve: RandomCurve | None
    reset: ResetControl | None
    run: dict[str, Any]
    necessity: NecessityCurve | None = None
    again: Rediscovery | None = None


@checked
def evaluate(
    objective: Objective | Ablated,
    circuit: Circuit,
    *,
    random: int = 100,
    reset: Objective | Ablated | None = None,
    method: Callable[[Objective], Any] | None = None,
    rediscovered: Callable[[Any], Any] | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
) -> Evaluation:
    """Judges a circuit, or scores as they are loaded from a file (a circuit of all edges).

    - `random`: random circuits of the same size to compare with; 0: none.
    - `reset`, `method`: see `reset_control`; both or none.
    - `rediscovered`: a method that is run without the circuit's edges, see `rediscover`.
    - `checkpoint`: a folder that keeps how far the run is (but what `method` does); the same call goes on from there.

    Raises ValueError for a circuit of another graph or without edges, and for a checkpoint that is damaged or another
    run's.
    """
    if (reset is None) != (method is None):
        raise ValueError("evaluate: the control on a reset network needs both `reset` and `method`")
    check_count("random", random, 0, MOST_DRAWN)
    judged = ablated(objective)
    if not circuit.num_edges:
        raise ValueError("evaluate: expected a circuit with edges, got an empty one")
    control = None if reset is None else ablated(reset)
    asked: dict[str, Any] = {"method": "evaluate", "random": random, "seed": seed}
    if checkpoint is not None:
        is_reset = control is not None
        asked["reset"] = is_reset and {**identity_of(control), "ablation": dataclasses.asdict(control.ablation)}
        asked["rediscovered"] = rediscovered is not None
    with kept(judged, circuit, checkpoint, **asked) as judged:
        if control is not None:
            control = dataclasses.replace(control, journal=judged.journal)
        again = None if rediscovered is None else rediscover(judged, circuit, rediscovered)
        return dataclasses.replace(_evaluate(judged, circuit, random, seed, (control, method)), again=again)


def _evaluate(judged: Ablated, circuit: Circuit, random: int, seed: int, reset: tuple[Any, Any]) -> Evaluation:
    graph, (control, method) = circuit.graph, reset
    own = faithfulness(judged, circuit)
    is_part = circuit.num_edges < graph.num_edges
    curve = faithfulness_curve(judged, circuit) if np.ptp(circuit.scores[graph.valid]) > 0 else None
    return Evaluation(
        faithfulness=own,
        curve=curve,
        completeness=completeness(judged, circuit, seed=seed) if is_part else None,
        random=random_control(judged, circuit, count=random, seed=seed) if random and is_part else None,
        random_curve=random_curve(judged, curve, count=min(random, 10), seed=seed) if random and curve else None,
        reset=None if control is None else reset_control(judged, circuit, control, method),
        run=own.run,
        necessity=None if curve is None else necessity_curve(judged, circuit),
    )
