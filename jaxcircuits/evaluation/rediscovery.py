"""Remove and rediscover: what the same method finds when the edges that it found are gone.

A circuit that leaves another one behind, as faithful as itself, is one of several paths of the behaviour.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ..arguments import checked
from ..circuit import Circuit
from ..conditional import Conditional, kept_edges, without
from ..masks import masks_of
from ..objective import Objective
from ..scores import Scores
from .ablation import Ablated, ablated
from .faithfulness import Faithfulness, faithfulness_many
from .records import Record


@dataclasses.dataclass(frozen=True)
class Rediscovery(Record):
    """What is found within the complement of a circuit.

    - `first`, `second`, `union`: F of the circuit, of what is found without its edges, and of both together.
    - `edges`: those of the second. `shared_nodes`: the nodes that touch edges of both, embeddings and `logits` too.
    """

    kind: ClassVar[str] = "rediscovery"
    method: str
    first: Faithfulness
    second: Faithfulness
    union: Faithfulness
    edges: tuple[str, ...]
    shared_nodes: tuple[str, ...]
    run: dict[str, Any]


@checked
def rediscover(
    objective: Objective | Ablated, circuit: Circuit, method: Callable[[Objective | Conditional], Any]
) -> Rediscovery:
    """Runs a method on the objective without a circuit's edges, and judges what it finds.

    - `method`: `method(objective)` gives `Scores`, of which as many edges are taken as the circuit was selected from
      (or has), by the same ranking; or a result with a mask of its own, as ACDC's. It has to take an objective
      `without` some edges.

    Raises ValueError for a circuit of another graph, without edges, or of all of them; and as the method does.
    """
    judged = ablated(objective)
    graph = judged.graph
    masks_of(circuit, graph)
    if not 0 < circuit.num_edges < graph.num_edges:
        total = f"{circuit.num_edges} of {graph.num_edges}"
        raise ValueError(
            f"rediscover: expected a circuit of some of the edges, got {total}; select one from its scores"
        )
    given = without(judged.objective, circuit)
    found = _found(method(given), circuit, kept_edges(given))
    first, second, union = faithfulness_many(judged, np.stack([circuit.mask, found.mask, circuit.mask | found.mask]))
    shared = tuple(name for name in circuit.nodes if name in found.nodes)
    run = {**judged.describe(), "circuit": circuit.run, "second": found.run}
    return Rediscovery(str(found.run.get("method", "")), first, second, union, found.edges, shared, run)


def _found(result: Any, circuit: Circuit, kept: np.ndarray) -> Circuit:
    """The circuit of a result among the edges that are left."""
    if not isinstance(result, Scores):
        found = Circuit.of(result)
        return dataclasses.replace(found, mask=found.mask & kept)
    selection = circuit.run.get("selection", {})
    count = min(selection.get("edges", circuit.num_edges), int(kept.sum()))
    how = {name: selection[name] for name in ("rank", "greedy") if name in selection}
    return Circuit.select(result, edges=count, within=kept, **how)
