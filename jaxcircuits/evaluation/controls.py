"""What a circuit's faithfulness is worth: that of random circuits, and of the same method on a reset network.

A measure that random circuits of the same size reach, or a method that finds as faithful a circuit in a network whose
weights were permuted, shows nothing (2304.14997, section 4; 2410.13032).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..arguments import checked
from ..circuit import Circuit
from ..masks import masks_of
from ..objective import Objective
from ..scores import Scores
from .ablation import Ablated, ablated
from .faithfulness import Faithfulness, FaithfulnessCurve, faithfulness, faithfulness_curve, faithfulness_many
from .random_circuits import random_circuits
from .records import Record, Spread


@dataclasses.dataclass(frozen=True)
class RandomControl(Record):
    """Random circuits of a circuit's size.

    - `value`: the spread of their F over the circuits; None if F is refused.
    - `loss`: the spread of their mean losses.
    - `as_faithful`: the share of them with |1 - F| at most the circuit's; None if F is refused.
    """

    kind: ClassVar[str] = "random circuits"
    value: Spread | None
    loss: Spread
    as_faithful: float | None
    circuits: int
    edges: int
    drawn: str
    seed: int


@dataclasses.dataclass(frozen=True)
class RandomCurve(Record):
    """Random circuits at every size of a faithfulness curve.

    - `values`: the spread of F over the circuits of each size; `cpr`, `cmd`: of the areas; None where F is refused.
    - `edges`: the sizes, which are those of the curve's circuits by signed score, without dead ends.
    """

    kind: ClassVar[str] = "random curve"
    shares: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[Spread, ...] | None
    cpr: Spread | None
    cmd: Spread | None
    circuits: int
    drawn: str
    seed: int


@dataclasses.dataclass(frozen=True)
class ResetControl(Record):
    """What the same method finds in a reset network.

    - `on_reset`, `on_model`: F, in the reset network and in the model, of the circuit that it finds there; of scores
      that is the circuit of the same size. None for scores of the whole graph, whose curve tells.
    - `curve`: of the scores that it finds there, in the reset network; None if it finds a mask.
    - `shared_edges`: of the two circuits.
    """

    kind: ClassVar[str] = "reset network"
    method: str
    on_reset: Faithfulness | None
    on_model: Faithfulness | None
    curve: FaithfulnessCurve | None
    shared_edges: int | None


@checked
def random_control(
    objective: Objective | Ablated, circuit: Circuit, *, count: int = 100, seed: int = 0, kind: str = "walks"
) -> RandomControl:
    """F of `count` random circuits with as many edges as `circuit`, see `random_circuits`.

    Raises ValueError for a circuit of another graph or without edges, and as `random_circuits` does.
    """
    judged = ablated(objective)
    mask = masks_of(circuit, judged.graph)
    drawn = random_circuits(judged.graph, int(mask.sum()), count, seed=seed, kind=kind)
    own, *others = faithfulness_many(judged, np.concatenate([mask, drawn]))
    losses = Spread.of(np.array([other.loss.mean for other in others]))
    value = as_faithful = None
    if own.value is not None:
        values = np.array([other.value for other in others], np.float64)
        value, as_faithful = Spread.of(values), float(np.mean(np.abs(1 - values) <= abs(1 - own.value)))
    return RandomControl(value, losses, as_faithful, count, int(mask.sum()), kind, seed)


@checked
def random_curve(
    objective: Objective | Ablated, curve: FaithfulnessCurve, *, count: int = 10, seed: int = 0, kind: str = "walks"
) -> RandomCurve:
    """F of `count` random circuits at every size of a curve, see `random_circuits`.

    Raises ValueError as `random_circuits` does.
    """
    judged = ablated(objective)
    sizes = [point.edges for point in curve.signed]
    empty = np.zeros((count, *judged.graph.shape), bool)
    drawn = [random_circuits(judged.graph, size, count, seed=seed, kind=kind) if size else empty for size in sizes]
    points = faithfulness_many(judged, np.concatenate(drawn))
    values: tuple[Spread, ...] | None = None
    cpr = cmd = None
    if all(point.value is not None for point in points):
        table = np.array([point.value for point in points], np.float64).reshape(len(sizes), count)
        values = tuple(Spread.of(row) for row in table)
        cpr, cmd = (Spread.of(np.asarray(np.trapezoid(y, curve.shares, axis=0))) for y in (table, np.abs(1 - table)))
    return RandomCurve(curve.shares, tuple(sizes), values, cpr, cmd, count, kind, seed)


def reset_control(
    objective: Objective | Ablated,
    circuit: Circuit,
    reset: Objective | Ablated,
    method: Callable[[Objective], Any],
) -> ResetControl:
    """What `method` finds in a reset network, at the size of `circuit`.

    - `reset`: the same objective on the network with permuted weights.
    - `method`: `method(objective)` gives `Scores`, of which the best edges are taken as `circuit` was selected, or a
      result with a mask of its own, which is taken as it is.

    Raises ValueError for a circuit of another graph.
    """
    judged, control = ablated(objective), ablated(reset)
    masks_of(circuit, judged.graph)
    result = method(control.objective)
    name = str(result.run.get("method", circuit.run.get("method", "")))
    curve = faithfulness_curve(control, result) if isinstance(result, Scores) else None
    if curve and circuit.num_edges == circuit.graph.num_edges:
        return ResetControl(name, None, None, curve, None)
    selection = {key: value for key, value in circuit.run.get("selection", {}).items() if key in ("rank", "greedy")}
    found = Circuit.select(result, edges=circuit.num_edges, **selection) if curve else Circuit.of(result)
    shared = int((found.mask & circuit.mask).sum())
    return ResetControl(name, faithfulness(control, found), faithfulness(judged, found), curve, shared)
