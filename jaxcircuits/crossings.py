"""PEAP (2502.04577): which positions a circuit works at, and between which of them its heads carry something.

Nodes are (component, span): `a0.h3@0:4` is what head 3 of layer 0 writes at the first four tokens. Two kinds of edges:

- within a span, `a0.h3@0:4->m5`: EAP of what m5 reads there;
- between spans, `a5.h1@0:4->a5.h1@4:8<k>`: what the head at the second span takes from the first, by q, k or v; see
  `models/crossing.py`.
"""

import dataclasses
import heapq
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from .arguments import checked, is_count, is_number
from .circuit import RANKS, Circuit
from .circuit_file import PEAP, Contents, contents_of
from .files import plain, read_json, write_json
from .graph import Graph
from .models.crossing import PORTS
from .models.crossing import check as check_crossing
from .scores import Scores
from .span_names import span_text

FORMAT = PEAP + "/1"
CIRCUIT_FORMAT = PEAP + "-circuit/1"

Crossing = Float[np.ndarray, "layer head port span span"]


@dataclasses.dataclass(frozen=True)
class PeapCircuit:
    """Nodes (component, span), the edges within spans, and the scores of those between spans by name, best first."""

    nodes: tuple[str, ...]
    within: Circuit
    crossing: dict[str, float]

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, whole or not at all."""
        parts = {"nodes": list(self.nodes), "within": self.within.to_json(), "crossing": self.crossing}
        write_json(path, {"format": CIRCUIT_FORMAT, **parts})

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike) -> "PeapCircuit":
        """What `save` wrote. Raises ValueError for anything malformed."""
        value = read_json(path, "file of PEAP's circuit")
        try:
            found = _within(value, CIRCUIT_FORMAT)
            check_crossing(found.graph)
            table = zip(found.graph.senders, found.graph.sender_table, strict=True)
            heads = {name for name, sender in table if sender.kind == "head"}
            crossing, nodes = value.get("crossing"), _texts("nodes", value.get("nodes"))
            if not isinstance(crossing, dict) or not all(_is_crossing(name, heads) for name in crossing):
                raise ValueError(f"crossing: expected scores of edges between spans by name, got {crossing!r:.60}")
            if not all(map(is_number, crossing.values())):
                raise ValueError("crossing: expected a number for each edge")
            known = {*found.graph.senders, *(f"logits@{span}" for span in names_of_spans(found.graph))}
            if not set(nodes) <= known:
                raise ValueError(
                    f"nodes: expected some of the graph's, as a0.h1@0:4, got {sorted({*nodes} - known)[0]!r}"
                )
            return cls(nodes, Circuit(*found), {name: float(score) for name, score in crossing.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Peap:
    """Scores of edges within and between spans of positions; above 0: removing the edge raises the loss.

    - `within`: of the edges of the graph whose nodes are divided at spans. `crossing`: [layer, head, port, key span,
      query span], ports q, k, v; a span's attention to itself is on the diagonal, and is no edge.
    - `last`: the spans in which a prompt is scored, where `logits` reads.

    Raises ValueError for another shape, NaN or infinity, and unknown spans.
    """

    within: Scores
    crossing: Crossing
    last: tuple[str, ...]

    def __post_init__(self) -> None:
        check_crossing(self.graph)
        heads = next(nodes.count for nodes in self.graph.blocks if nodes.kind == "head")
        shape = self.graph.num_layers, heads, len(PORTS), len(self.spans), len(self.spans)
        object.__setattr__(self, "crossing", np.asarray(self.crossing, np.float64))
        if self.crossing.shape != shape or not np.isfinite(self.crossing).all():
            raise ValueError(f"crossing: expected finite numbers of shape {shape}, got {self.crossing.shape}")
        if not self.last or not set(self.last) <= set(self.spans):
            raise ValueError(f"last: expected some of the spans {', '.join(self.spans)}, got {list(self.last)}")

    @property
    def graph(self) -> Graph:
        return self.within.graph

    @property
    def run(self) -> dict[str, Any]:
        """The record of the run."""
        return self.within.run

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the spans, in the order of `crossing`."""
        return names_of_spans(self.graph)

    def of(self, edge: str) -> float:
        """The score of an edge within a span or between spans. Raises ValueError for a name that is none."""
        found = self.between.get(edge)
        return self.within.of(edge) if found is None else found

    def best(self, count: int) -> list[tuple[str, float]]:
        """Names and scores of so many edges of both kinds, the best first; ties go within spans first."""
        graph, values = self.graph, self.within.values
        first = graph.edges[np.argsort(-values[graph.valid], kind="stable")[:count]]
        inside = [(graph.edge_name(row, column), float(values[row, column])) for row, column in first]
        return sorted(inside + list(self.between.items()), key=lambda edge: -edge[1])[:count]

    @property
    def between(self) -> dict[str, float]:
        """The scores of the edges between spans, by name."""
        return {name: score for name, _, _, score in self._crossings()}

    @checked
    def circuit(self, edges: int, *, rank: str = "signed") -> PeapCircuit:
        """The circuit of so many edges of both kinds, found from `logits` at its spans on.

        Repeatedly the best edge into a (component, span) that is in; its sender's is in then, too. Ties go within spans
        first, by edge order. `rank`: by "signed" scores or their "absolute" values. Nothing is dropped afterwards.

        Raises ValueError for a bad number or rank.
        """
        if rank not in RANKS or not is_count(edges):
            raise ValueError(
                f"circuit: expected a number of edges and one of {', '.join(RANKS)}, got {edges}, {rank!r}"
            )
        mask, scores, between = np.zeros(self.graph.shape, bool), self.between, {}
        into, inside, heap = self._edges_into(rank), {}, []

        def enter(node: str) -> None:
            if node not in inside:
                inside[node] = None
                for edge in into.get(node, ()):
                    heapq.heappush(heap, edge)

        for span in self.last:
            enter(f"logits@{span}")
        taken: set[tuple] = set()
        while heap and len(taken) < edges:
            edge = heapq.heappop(heap)
            _, kind, index, name, sender = edge
            if (kind, index) in taken:  # an input that heads share
                continue
            taken.add((kind, index))
            if kind == 0:
                mask[np.unravel_index(index, mask.shape)] = True
            else:
                between[name] = scores[name]
            enter(sender)
        run = {**self.run, "selection": {"edges": edges, "rank": rank, "greedy": True, "crossing": len(between)}}
        return PeapCircuit(tuple(inside), Circuit(self.graph, mask, self.within.values, run), between)

    def _edges_into(self, rank: str) -> dict[str, list[tuple]]:
        """Of each (component, span), the edges into it: what sorts the best first, a name, the sender."""
        into: dict[str, list[tuple]] = {}

        def add(node: str, score: float, *edge: Any) -> None:
            into.setdefault(node, []).append((-abs(score) if rank == "absolute" else -score, *edge))

        graph, table = self.graph, self.graph.sender_table
        owners = [{table[row].node for row in receiver.owners} or {"logits"} for receiver in graph.receiver_table]
        for row, column in graph.edges:
            sender, score = graph.senders[row], float(self.within.values[row, column])
            span, index = sender.rpartition("@")[2], int(row * graph.shape[1] + column)
            for node in owners[column]:
                add(f"{node}@{span}", score, 0, index, graph.edge_name(row, column), sender)
        for index, (name, sender, node, score) in enumerate(self._crossings()):
            add(node, score, 1, index, name, sender)
        return into

    def _crossings(self) -> Iterator[tuple[str, str, str, float]]:
        """Name, (component, span) that is read, the one that reads, and score of every edge between spans."""
        nodes = dict.fromkeys(
            (sender.layer, sender.index, sender.node) for sender in self.graph.sender_table if sender.kind == "head"
        )
        for layer, head, node in nodes:
            for port, a, b in np.ndindex(self.crossing.shape[2:]):
                if a != b:
                    sender, reader = (f"{node}@{self.spans[span]}" for span in (a, b))
                    score = float(self.crossing[layer, head, port, a, b])
                    yield f"{sender}->{reader}<{PORTS[port]}>", sender, reader, score

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, whole or not at all: the scores within as a circuit's, those between spans by name."""
        value = {"format": FORMAT, "within": Circuit.of(self.within).to_json(), "last": list(self.last)}
        write_json(path, value | {"crossing": plain(self.crossing)})

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike) -> "Peap":
        """What `save` wrote. Raises ValueError for anything malformed."""
        value = read_json(path, "file of PEAP's scores")
        try:
            graph, _, scores, run, _ = _within(value, FORMAT)
            within = Scores(graph, scores, True, "peap", run)
            return cls(within, _numbers(value.get("crossing")), _texts("last", value.get("last")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def names_of_spans(graph: Graph) -> tuple[str, ...]:
    """Of a graph whose nodes are divided at spans, in its order."""
    return tuple(span_text(span) for span in graph.blocks[0].spans)


def _within(value: Any, expected: str) -> Contents:
    if not isinstance(value, dict) or value.get("format") != expected:
        raise ValueError(f"expected a JSON object of format {expected!r}")
    return contents_of(value.get("within"))


def _is_crossing(name: str, heads: set[str]) -> bool:
    sender, _, reader = name.partition("->")
    reader, port = reader[:-3], reader[-3:]
    is_one_head = sender.rpartition("@")[0] == reader.rpartition("@")[0]
    return is_one_head and sender != reader and {sender, reader} <= heads and port in {f"<{port}>" for port in PORTS}


def _numbers(value: Any) -> np.ndarray:
    def check(value: Any, depth: int) -> None:
        if depth == 5:
            if not is_number(value):
                raise ValueError(f"crossing: expected numbers, got {value!r:.60}")
        elif not isinstance(value, list) or not value or len({len(x) for x in value if isinstance(x, list)}) > 1:
            raise ValueError("crossing: expected lists of equal lists, [layer, head, port, key span, query span]")
        else:
            for entry in value:
                check(entry, depth + 1)

    check(value, 0)
    return np.array(value, np.float64)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a list of names, got {value!r:.60}")
    return tuple(value)
