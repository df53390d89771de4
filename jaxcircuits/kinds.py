"""What incremental engines compute at once: a node, or the joint nodes of a layer, and where its inputs stand.

A unit reads through *columns* of a mask and writes *rows*. Its inputs have places, the same for all units: first those
of local ports, which are needed only where the unit writes, then the others. NumPy only.
"""

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .graph import Graph
from .layout import Nodes, Port


class Kind(NamedTuple):
    """Units that are computed alike.

    - `ports`: each port that they read through, and the places of its receivers in a unit.
    """

    nodes: Nodes
    ports: tuple[tuple[Port, tuple[int, ...]], ...]

    @property
    def width(self) -> int:
        """Senders that a unit writes."""
        return (self.nodes.count if self.nodes.is_joint else 1) * self.nodes.parts


class Unit(NamedTuple):
    """A node, or joint nodes: its kind, layer and number in the layer (of joint nodes 0), the moment at which it reads.

    - `rows`: its senders. `columns`: its receivers by place, -1 where it has none.
    """

    kind: int
    layer: int
    node: int
    moment: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of a graph in the order of computation."""

    graph: Graph

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds there are; equal ones once."""
        nodes = [(n, moment) for stack in self.graph.layout.stacks for moment in stack.moments for n in moment.nodes]
        locals_ = max(sum(size for port, size in _ports(n, moment) if port.is_local) for n, moment in nodes)
        return tuple(dict.fromkeys(_kind(n, _ports(n, moment), locals_) for n, moment in nodes))

    @cached_property
    def num_local(self) -> int:
        """Places of inputs that are needed only where a unit writes; the others follow."""
        return max(sum(len(places) for port, places in kind.ports if port.is_local) for kind in self.kinds)

    @cached_property
    def num_places(self) -> int:
        return max(max(place for _, places in kind.ports for place in places) for kind in self.kinds) + 1

    @cached_property
    def width(self) -> int:
        """Most senders that a unit writes."""
        return max(kind.width for kind in self.kinds)

    @cached_property
    def all(self) -> tuple[Unit, ...]:
        """Every unit."""
        units: list[Unit] = []
        row, column, layer, now = len(self.graph.embeddings), 0, 0, 0
        for stack in self.graph.layout.stacks:
            for layer in range(layer, layer + stack.layers):  # noqa: B020
                for moment in stack.moments:
                    firsts, first = {}, column
                    for port in moment.ports:
                        firsts[port.name], first = first, first + port.count
                    for nodes in moment.nodes:
                        kind = self.kinds.index(_kind(nodes, _ports(nodes, moment), self.num_local))
                        for node in range(1 if nodes.is_joint else nodes.count):
                            rows = tuple(range(row, row + self.kinds[kind].width))
                            columns = [-1] * self.num_places
                            for (port, places), (_, inputs) in zip(self.kinds[kind].ports, nodes.inputs, strict=True):
                                own = range(port.count) if nodes.is_joint else (inputs[node],)
                                for place, index in zip(places, own, strict=True):
                                    columns[place] = firsts[port.name] + index
                            units.append(Unit(kind, layer, node, now, rows, tuple(columns)))
                            row += len(rows)
                    column, now = first, now + 1
            layer += 1
        return tuple(units)

    @cached_property
    def of_row(self) -> dict[int, tuple[int, int]]:
        """Of each sender but the embeddings: its unit, and which of the unit's senders it is."""
        return {row: (number, place) for number, unit in enumerate(self.all) for place, row in enumerate(unit.rows)}

    @cached_property
    def is_local(self) -> np.ndarray:
        """Bool [receiver]: needed only where what reads through it writes."""
        return np.array([receiver.is_local for receiver in self.graph.receiver_table])


def _ports(nodes: Nodes, moment) -> list[tuple[Port, int]]:
    """The ports that nodes read through, and how many receivers of each a unit has."""
    ports = {port.name: port for port in moment.ports}
    return [(ports[name], ports[name].count if nodes.is_joint else 1) for name, _ in nodes.inputs]


def _kind(nodes: Nodes, ports: list[tuple[Port, int]], num_local: int) -> Kind:
    free = {True: 0, False: num_local}
    placed = []
    for port, size in ports:
        first = free[port.is_local]
        free[port.is_local] += size
        placed.append((port, tuple(range(first, first + size))))
    return Kind(nodes, tuple(placed))
