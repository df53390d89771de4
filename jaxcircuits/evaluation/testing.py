"""All circuits that the five hypothesis tests need, evaluated in batches, and what the tests then say."""

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np

from ..arguments import MOST_DRAWN, check_count, checked
from ..circuit import Circuit
from ..masks import masks_of
from ..objective import Objective
from ..types import EdgeBools
from .ablation import Ablated, Masks, ablated, kept
from .faithfulness import STANDARD_ERRORS
from .hypotheses import NOISE, Outcome, distance, equivalence, independence, minimality, partial_necessity, sufficiency
from .random_circuits import random_circuits, random_walks
from .records import Record

REDRAWS = 1000  # walks until one adds an edge to the circuit


@dataclasses.dataclass(frozen=True)
class HypothesisTests(Record):
    """The five tests of a circuit (Shi et al., 2410.13032), in the order of the paper.

    - `evaluations`: circuits that were run on all prompts.
    """

    kind: ClassVar[str] = "hypothesis tests"
    outcomes: tuple[Outcome, ...]
    edges: int
    evaluations: int
    run: dict[str, Any]

    def of(self, name: str) -> Outcome:
        """One test's outcome. Raises ValueError for a name that is none."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise ValueError(f"test: expected one of {', '.join(o.name for o in self.outcomes)}, got {name!r}")


@checked
def hypothesis_tests(
    objective: Objective | Ablated,
    circuit: Circuit,
    *,
    level: float = 0.05,
    epsilon: float = 0.1,
    share: float = 0.9,
    random: int = 100,
    permutations: int = 1000,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
) -> HypothesisTests:
    """Equivalence, independence, minimality, sufficiency and partial necessity of a circuit.

    M is the whole model and M - C the model without the circuit, or without all edges out of its nodes; C is what runs
    when the circuit is judged, which is M - C under `set="complement"`.

    - `level`: of each test. `epsilon`, `share`: see the tests. `random`: random circuits of the circuit's size, and
      circuits inflated by a random path. `seed`: of all that is drawn.
    - `checkpoint`: a folder that keeps how far the run is; the same call goes on from there.

    Raises ValueError for a circuit of another graph or without edges, numbers below 1, and a checkpoint that is damaged
    or another run's.
    """
    check_count("random", random, 1, MOST_DRAWN)
    check_count("permutations", permutations, 1, MOST_DRAWN)
    judged = ablated(objective)
    mask = masks_of(circuit, judged.graph)[0]
    if not mask.any():
        raise ValueError("hypothesis tests: expected a circuit with edges, got an empty one")
    if not 0 < level < 1 or not 0 < share < 1:
        raise ValueError(f"expected level and share in (0, 1); got {level} and {share}")
    parts = _parts(judged, mask, random, seed)
    with kept(judged, circuit, checkpoint, method="test", random=random, seed=seed) as keeping:
        losses = keeping.losses_of(np.concatenate(list(parts.values())))
    sizes = np.cumsum([len(part) for part in parts.values()])
    s = dict(zip(parts, np.split(losses, sizes[:-1]), strict=True))
    names = judged.graph.names_of(mask)
    effects = distance(s["without_edge"], s["circuit"]), distance(s["inflated"], s["reduced"])
    near = float(distance(s["circuit"], s["model"])[0]), distance(s["random"], s["model"])
    far = float(distance(s["complement"], s["model"])[0]), distance(s["without_random"], s["model"])
    noise = np.maximum(NOISE, STANDARD_ERRORS * judged.rounding())
    against = {"share": share, "level": level, "noise": float(np.sqrt((noise**2).mean()))}
    shuffled = {"permutations": permutations, "seed": seed, "noise": float(noise.mean())}
    outcomes = (
        equivalence(s["circuit"][0], s["model"][0], epsilon=epsilon, level=level, noise=noise),
        independence(s["complement"][0], s["model"][0], level=level, **shuffled),
        minimality(*effects, names, **against),
        sufficiency(*near, **against),
        partial_necessity(*far, **against),
    )
    run = {**judged.describe(), "circuit": circuit.run, "seed_of_tests": seed, "random_circuits": "walks"}
    return HypothesisTests(outcomes, int(mask.sum()), len(losses), run)


def _parts(judged: Ablated, mask: EdgeBools, random: int, seed: int) -> dict[str, Masks]:
    """The edges that are in, for everything that the tests compare, by its role."""
    graph, ablation = judged.graph, judged.ablation
    own = ablation.parts(graph, mask[None])
    drawn = ablation.parts(graph, random_circuits(graph, int(mask.sum()), random, seed=seed))
    inflated, reduced = _inflated(judged, mask, random, np.random.default_rng(seed))
    return {
        "model": graph.valid[None],
        "circuit": ablation.running(graph, own),
        "complement": graph.valid & ~own,
        "random": ablation.running(graph, drawn),
        "without_random": graph.valid & ~drawn,
        "without_edge": ablation.running(graph, _without_each_edge(own[0], mask)),
        "inflated": ablation.running(graph, inflated),
        "reduced": ablation.running(graph, reduced),
    }


def _without_each_edge(own: EdgeBools, mask: EdgeBools) -> Masks:
    """The circuit's parts without one of its edges, for each, in edge order."""
    edges = np.argwhere(mask)
    masks = np.repeat(own[None], len(edges), 0)
    masks[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    return masks


def _inflated(judged: Ablated, mask: EdgeBools, count: int, random: np.random.Generator) -> tuple[Masks, Masks]:
    """The circuit with a random walk from an embedding to `logits` added, and that without one of the added edges.

    None where the walks add nothing, as to the whole graph.
    """
    graph, ablation = judged.graph, judged.ablation
    [own] = ablation.parts(graph, mask[None])
    walks = random_walks(graph, random)
    inflated, removed = [], []
    for _ in range(count):
        added = next((new for _ in range(REDRAWS) if (new := [e for e in next(walks) if not own[e]])), None)
        if added is None:
            return np.zeros((0, *graph.shape), bool), np.zeros((0, *graph.shape), bool)
        larger = mask.copy()
        larger[tuple(np.array(added).T)] = True
        inflated.append(larger)
        removed.append(added[random.integers(len(added))])
    larger = ablation.parts(graph, np.stack(inflated))
    reduced = larger.copy()
    reduced[np.arange(count), *np.array(removed).T] = False
    return larger, reduced
