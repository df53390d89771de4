"""The order in which ACDC tries to remove edges and groups, and the walk along it."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ..graph import Graph
from ..types import EdgeBools

NAME_ORDERS = ("last_first", "first_last", "random")
HEAD_ORDERS = ("descending", "ascending", "random")


@dataclasses.dataclass(frozen=True)
class Step:
    """One trial: the removal of an edge, or of a group (all edges into one head's q, k or v).

    - `edges`: rows (sender, receiver). `origin`: the sender's name; of a group the port, as `<q>`.
    """

    name: str
    origin: str
    edges: Int[np.ndarray, "edge 2"]
    is_group: bool


class Steps(Sequence[Step]):
    """Every step of a search in order, as two arrays: a large model has millions."""

    GROUP = -1
    """Stands for all senders of the receiver."""

    def __init__(self, graph: Graph, senders: Sequence[int], receivers: Sequence[int]):
        self.graph = graph
        self.senders = np.asarray(senders, np.int32)
        self.receivers = np.asarray(receivers, np.int32)
        last = np.flatnonzero(np.append(np.diff(self.receivers), 1))
        self.next_receiver = np.repeat(last + 1, np.diff(np.append(-1, last)))  # the step at which the receiver changes
        self.readers = [graph.readers(column) for column in range(len(graph.receivers))]
        self.edges_before = np.cumsum(np.append(0, self.senders != self.GROUP))

    def __len__(self) -> int:
        return len(self.senders)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        sender, receiver = int(self.senders[index]), int(self.receivers[index])
        is_group = sender == self.GROUP
        port = self.graph.receiver_table[receiver].port
        name = self.graph.receivers[receiver] if is_group else self.graph.edge_name(sender, receiver)
        origin = f"<{port}>" if is_group else self.graph.senders[sender]
        senders = np.flatnonzero(self.graph.valid[:, receiver]) if is_group else np.array([sender])
        return Step(name, origin, np.stack([senders, np.full_like(senders, receiver)], 1), is_group)

    def is_present(self, index: int, mask: EdgeBools) -> bool:
        """Whether the step has an edge in the circuit."""
        sender, receiver = self.senders[index], self.receivers[index]
        return bool(mask[:, receiver].any() if sender == self.GROUP else mask[sender, receiver])

    def is_heard(self, index: int, mask: EdgeBools) -> bool:
        """Whether a node that reads through the step's receiver still sends to anything."""
        readers = self.readers[self.receivers[index]]
        return not len(readers) or bool(mask[readers].any())

    def remove_from(self, index: int, mask: EdgeBools) -> None:
        """Takes the step's edges out of the circuit."""
        sender, receiver = self.senders[index], self.receivers[index]
        mask[slice(None) if sender == self.GROUP else sender, receiver] = False


def all_steps(
    graph: Graph, *, order: str = "last_first", head_order: str = "descending", groups: bool = True, seed: int = 0
) -> Steps:
    """Every step of the original's order: receivers from `logits` back to the first layer.

    A layer's MLP comes before its heads, also where both read at once; a layer's heads as all group tests (v, k, q;
    heads descending), then the single edges in the same order of receivers. Receivers of nodes with one input have no
    group test. `order` (of layers and node kinds) and `head_order` (of heads
    within a layer) are those of the senders inside one receiver.
    """
    for name, value, allowed in (("order", order, NAME_ORDERS), ("head_order", head_order, HEAD_ORDERS)):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    random = np.random.default_rng(seed)
    layers = [list(equal) for _, equal in itertools.groupby(range(len(graph.senders)), lambda row: _place(graph, row))]
    table = graph.receiver_table
    senders: list[int] = []
    receivers: list[int] = []

    def singles(receiver: int) -> None:
        chosen = [sender for sender in _ordered(layers, order, head_order, random) if graph.valid[sender, receiver]]
        senders.extend(chosen)
        receivers.extend([receiver] * len(chosen))

    last = [max((graph.sender_table[row].block for row in receiver.readers), default=np.inf) for receiver in table]
    for block in sorted(set(last), reverse=True):
        inputs = [column for column in reversed(range(len(table))) if last[column] == block]  # v, k, q, last head first
        if groups and len({table[column].port for column in inputs}) > 1:
            senders.extend([Steps.GROUP] * len(inputs))
            receivers.extend(inputs)
        for receiver in inputs:
            singles(receiver)
    return Steps(graph, senders, receivers)


def _place(graph: Graph, row: int) -> tuple[int, int]:
    """Equal for the nodes of a layer that are of one kind; every embedding has its own."""
    block = graph.sender_table[row].block
    return block, row if block < 0 else 0


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

    def __init__(self, steps: Steps, start: EdgeBools | None = None):
        self.steps = steps
        self.mask: EdgeBools = steps.graph.valid.copy() if start is None else steps.graph.valid & start
        self.position = self._skip(self.mask, 0)
        self.kept = 0  # edges tried and kept

    def fork(self) -> "Walk":
        """A second walk at the same point."""
        copy = object.__new__(Walk)
        copy.__dict__.update(self.__dict__, mask=self.mask.copy())
        return copy

    @property
    def is_done(self) -> bool:
        return self.position >= len(self.steps)

    @property
    def receiver(self) -> int | None:
        """The column of the receiver that is examined; None at the end."""
        return None if self.is_done else int(self.steps.receivers[self.position])

    def edges_done(self) -> tuple[int, int]:
        """How many edges are decided, and how many there are."""
        return int(self.steps.edges_before[self.position]), int(self.steps.edges_before[-1])

    def upcoming(
        self, guess: Callable[[Step], bool], count: int, *, at_receiver: bool = False
    ) -> tuple[list[Step], list[bool]]:
        """The next `count` steps if every guess (is it removed?) comes true, and the guesses.

        - `at_receiver`: those alone that are left at the receiver that is examined.
        """
        mask, position = self.mask.copy(), self.position
        end = int(self.steps.next_receiver[position]) if at_receiver else len(self.steps)
        steps, guesses = [], []
        while len(steps) < count and position < end:
            step = self.steps[position]
            steps.append(step)
            guesses.append(guess(step))
            if guesses[-1]:
                self.steps.remove_from(position, mask)
            position = self._skip(mask, position + 1)
        return steps, guesses

    def take(self, removed: bool) -> None:
        """Applies the decision on the next step."""
        if removed:
            self.steps.remove_from(self.position, self.mask)
        else:
            self.kept += int(self.steps.senders[self.position] != Steps.GROUP)
        self.position = self._skip(self.mask, self.position + 1)

    def _skip(self, mask: EdgeBools, position: int) -> int:
        """The next position worth a trial; removes the inputs of dead nodes from `mask` on the way."""
        steps = self.steps
        while position < len(steps):
            column = mask[:, steps.receivers[position]]
            if not steps.is_heard(position, mask):
                column[:] = False
            if not column.any():
                position = int(steps.next_receiver[position])
            elif steps.is_present(position, mask):
                break
            else:
                position += 1
        return position
