"""The order in which ACDC tries to remove edges and groups, and the walk along it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from ..graph import Graph
from ..types import EdgeBools

NAME_ORDERS = ("last_first", "first_last", "random")
HEAD_ORDERS = ("descending", "ascending", "random")


@dataclasses.dataclass(frozen=True)
class Step:
    """One trial: the removal of an edge, or of a group (all edges into one head's q, k or v).

    - `edges`: rows (sender, receiver). `readers`: senders whose nodes read through the receiver; None: `logits`.
    """

    name: str
    edges: Int[np.ndarray, "edge 2"]
    is_group: bool
    readers: Int[np.ndarray, " reader"] | None

    def remove_from(self, mask: EdgeBools) -> None:
        mask[self.edges[:, 0], self.edges[:, 1]] = False

    def is_present(self, mask: EdgeBools) -> bool:
        return bool(mask[self.edges[:, 0], self.edges[:, 1]].any())


def all_steps(
    graph: Graph, *, order: str = "last_first", head_order: str = "descending", groups: bool = True, seed: int = 0
) -> list[Step]:
    """Every step of the original's order: receivers from `logits` back to the first layer.

    A layer's MLP comes before its heads; a layer's heads as all group tests (v, k, q; heads descending), then
    the single edges in the same order of receivers. `order` (of layers and node kinds) and `head_order` (of heads
    within a layer) are those of the senders inside one receiver.
    """
    for name, value, allowed in (("order", order, NAME_ORDERS), ("head_order", head_order, HEAD_ORDERS)):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    random = np.random.default_rng(seed)
    layers = _senders_by_layer(graph)

    def singles(receiver: int) -> list[Step]:
        senders = [sender for sender in _ordered(layers, order, head_order, random) if graph.valid[sender, receiver]]
        return [_step(graph, [sender], receiver) for sender in senders]

    steps = singles(graph.receiver_index("logits"))
    for layer in reversed(range(graph.num_layers)):
        if graph.has_mlp[layer]:
            steps += singles(graph.receiver_index(f"m{layer}"))
        inputs = [
            graph.receiver_index(f"a{layer}.h{head}<{kind}>")
            for kind, heads in (("v", graph.kv_heads), ("k", graph.kv_heads), ("q", graph.num_heads))
            for head in reversed(range(heads))
        ]
        if groups:
            steps += [_step(graph, np.flatnonzero(graph.valid[:, receiver]), receiver) for receiver in inputs]
        for receiver in inputs:
            steps += singles(receiver)
    return steps


def _step(graph: Graph, senders: Sequence[int] | np.ndarray, receiver: int) -> Step:
    is_group = not isinstance(senders, list)
    edges = np.array([(sender, receiver) for sender in senders], int)
    name = graph.receivers[receiver] if is_group else graph.edge_name(int(senders[0]), receiver)
    readers = None if graph.receivers[receiver] == "logits" else graph.readers(receiver)
    return Step(name, edges, is_group, readers)


def _senders_by_layer(graph: Graph) -> list[list[int]]:
    """Senders in order of computation; the heads of one layer form one list, every other sender its own."""
    layers: list[list[int]] = []
    for index, name in enumerate(graph.senders):
        stem, dot, _ = name.partition(".h")
        if dot and layers and graph.senders[layers[-1][0]].startswith(f"{stem}.h"):
            layers[-1].append(index)
        else:
            layers.append([index])
    return layers


def _ordered(layers: list[list[int]], order: str, head_order: str, random: np.random.Generator) -> list[int]:
    layers = layers[::-1] if order == "last_first" else list(layers)
    if order == "random":
        random.shuffle(layers)
    ordered = []
    for heads in layers:
        heads = heads[::-1] if head_order == "descending" else list(heads)
        if head_order == "random":
            random.shuffle(heads)
        ordered += heads
    return ordered


class Walk:
    """Where ACDC stands in its order: the circuit so far and the next step.

    A step is skipped when its edges are gone already (with their group), or when its node has lost all outgoing
    edges by the time its turn comes: then the edges go too, unevaluated.
    """

    def __init__(self, graph: Graph, steps: Sequence[Step]):
        self.graph = graph
        self.mask: EdgeBools = graph.valid.copy()
        self.steps = steps
        self.position = 0
        self.kept = 0  # edges tried and kept
        self._edges_before = np.cumsum([0, *(not step.is_group for step in steps)])

    def fork(self) -> "Walk":
        """A second walk at the same point."""
        copy = object.__new__(Walk)
        copy.__dict__.update(self.__dict__, mask=self.mask.copy())
        return copy

    def edges_done(self) -> tuple[int, int]:
        """How many edges are decided, and how many there are."""
        return int(self._edges_before[self.position]), int(self._edges_before[-1])

    def upcoming(self, guess: Callable[[Step], bool], count: int) -> tuple[list[Step], list[bool]]:
        """The next `count` steps if every guess (is it removed?) comes true, and the guesses."""
        mask, position = self.mask.copy(), self.position
        steps, guesses = [], []
        while len(steps) < count and position < len(self.steps):
            step = self.steps[position]
            steps.append(step)
            guesses.append(guess(step))
            if guesses[-1]:
                step.remove_from(mask)
            position = self._skip(mask, position + 1)
        return steps, guesses

    def take(self, removed: bool) -> None:
        """Applies the decision on the next step."""
        step = self.steps[self.position]
        if removed:
            step.remove_from(self.mask)
        self.kept += not (removed or step.is_group)
        self.position = self._skip(self.mask, self.position + 1)

    def _skip(self, mask: EdgeBools, position: int) -> int:
        """The next position worth a trial; removes the inputs of dead nodes from `mask` on the way."""
        while position < len(self.steps):
            step = self.steps[position]
            if step.is_present(mask):
                if step.readers is None or mask[step.readers].any():
                    break
                step.remove_from(mask)
            position += 1
        return position
