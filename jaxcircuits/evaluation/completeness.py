"""Does the circuit break where the model breaks? (Wang et al., 2211.00593, section 4)

For a part K that is knocked out, a complete circuit C does as the model M does: `m(C - K)` is near `m(M - K)`. The
largest `|m(C - K) - m(M - K)|` over all K is the incompleteness score; here over all single nodes of the circuit, and
over random subsets of its edges.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ..arguments import checked
from ..circuit import Circuit
from ..masks import masks_of
from ..objective import Objective
from .ablation import Ablated, Masks, ablated
from .records import Record, Spread


@dataclasses.dataclass(frozen=True)
class KnockOut:
    """One knocked-out part, and the losses without it over the prompts.

    - `name`: a node, or "random i". `edges`: of the circuit that it takes away.
    - `circuit`, `model`: `m(C - K)` and `m(M - K)`. `difference`: the first minus the second, prompt by prompt.
    """

    name: str
    edges: int
    circuit: Spread
    model: Spread
    difference: Spread


@dataclasses.dataclass(frozen=True)
class Completeness(Record):
    """A circuit and its model under the same knock-outs.

    - `incompleteness`: the largest `|mean difference|`; `worst`: the name of that knock-out.
    """

    kind: ClassVar[str] = "completeness"
    knock_outs: tuple[KnockOut, ...]
    incompleteness: float
    worst: str
    edges: int
    run: dict[str, Any]


@checked
def completeness(
    objective: Objective | Ablated, circuit: Circuit, *, random: int = 20, share: float = 0.5, seed: int = 0
) -> Completeness:
    """Losses with knocked-out parts of a circuit, in the circuit and in the model.

    - A node is knocked out with all its outgoing edges, a random subset with each of its edges (under
      `granularity="node"` its nodes), drawn with chance `share`. `random`: how many of these.

    The circuit is what runs when it is judged: under `granularity="node"` all edges out of its nodes, under
    `set="complement"` the model without them. Raises ValueError for a circuit of another graph or without edges, and
    numbers out of range.
    """
    judged, graph = ablated(objective), circuit.graph
    ablation = judged.ablation
    mask = masks_of(circuit, judged.graph)
    if not mask.any():
        raise ValueError("completeness: expected a circuit with edges, got an empty one")
    if random < 0 or not 0 < share <= 1:
        raise ValueError(f"expected random >= 0 and share in (0, 1], got {random} and {share}")
    [running] = ablation.running(graph, ablation.parts(graph, mask))
    replaced = running & ablation.replaced(graph)[:, None]
    rows = np.flatnonzero(replaced.any(1))
    if not len(rows):
        raise ValueError("completeness: nothing that runs may be replaced, so nothing can be knocked out")
    nodes = np.zeros((len(rows), *graph.shape), bool)
    nodes[np.arange(len(rows)), rows] = graph.valid[rows]
    shape = graph.shape if ablation.granularity == "edge" else (graph.shape[0], 1)
    subsets = replaced & (np.random.default_rng(seed).random((random, *shape)) < share)
    names = [graph.senders[row] for row in rows] + [f"random {index}" for index in range(random)]
    knock_outs = _knock_outs(judged, running, np.concatenate([nodes, subsets]), names)
    worst = max(knock_outs, key=lambda knock_out: abs(knock_out.difference.mean))
    run = {**judged.describe(), "circuit": circuit.run, "seed_of_subsets": seed, "share_of_subsets": share}
    return Completeness(knock_outs, abs(worst.difference.mean), worst.name, int(mask.sum()), run)


def _knock_outs(judged: Ablated, running: np.ndarray, parts: Masks, names: list[str]) -> tuple[KnockOut, ...]:
    losses = judged.losses_of(np.concatenate([running & ~parts, judged.graph.valid & ~parts]))
    circuit, model = np.split(losses, 2)
    return tuple(
        KnockOut(name, int((running & part).sum()), Spread.of(ours), Spread.of(theirs), Spread.of(ours - theirs))
        for name, part, ours, theirs in zip(names, parts, circuit, model, strict=True)
    )
