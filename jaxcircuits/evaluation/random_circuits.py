"""Random circuits of a given size, to compare a circuit with.

Uniformly drawn edges are nearly all dead (500 of GPT-2 small's leave about 11 on a path from the embedding to the
logits), so the default is a union of random walks, in which every edge is alive.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from ..arguments import checked
from ..graph import Graph
from ..types import EdgeBools

KINDS = ("walks", "uniform")
STALE = 100  # walks in a row that bring no new edge before one edge is drawn instead
POOL = 256  # walks drawn at once
RESTARTS = 1000

Walk = list[tuple[int, int]]


@checked
def random_circuits(
    graph: Graph, edges: int, count: int, *, seed: int = 0, kind: str = "walks"
) -> Bool[np.ndarray, "circuit sender receiver"]:
    """`count` circuits of exactly `edges` edges.

    - `kind`: "walks": random walks from an embedding to `logits`, each step an edge drawn uniformly among those out of
      the node, are united as long as they fit. A walk that has more new edges than are missing (or 100 in a row that
      have none) is replaced by one edge drawn among those between nodes already in: every edge lies on a path.
      "uniform": edges drawn uniformly; most are dead.

    Raises ValueError for an unknown kind and sizes that no circuit has.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not 1 <= edges <= graph.num_edges or count < 1:
        raise ValueError(f"expected 1 to {graph.num_edges} edges and at least 1 circuit, got {edges} and {count}")
    random = np.random.default_rng(seed)
    circuits = np.zeros((count, *graph.shape), bool)
    walks = random_walks(graph, random)
    for circuit in circuits:
        if kind == "uniform":
            chosen = graph.edges[random.choice(graph.num_edges, edges, replace=False)]
            circuit[chosen[:, 0], chosen[:, 1]] = True
        else:
            circuit[:] = _union(graph, edges, walks, random)
    return circuits


def random_walks(graph: Graph, random: np.random.Generator) -> Iterator[Walk]:
    """Endlessly, random walks from an embedding to `logits`, as the (sender, receiver) of each step."""
    readers, counts = _readers(graph)
    first = graph.valid.argmax(1)  # receivers are in order of time, so those that a sender feeds are neighbours
    end = first + graph.valid.sum(1)
    while True:
        at = random.integers(0, len(graph.embeddings), POOL)
        walks: list[Walk] = [[] for _ in range(POOL)]
        alive = np.arange(POOL)
        while len(alive):
            columns = random.integers(first[at], end[at])
            for walk, row, column in zip(alive.tolist(), at.tolist(), columns.tolist(), strict=True):
                walks[walk].append((row, column))
            goes_on = counts[columns] > 0
            alive, columns = alive[goes_on], columns[goes_on]
            at = readers[columns, random.integers(0, counts[columns])]
        yield from walks


def _readers(graph: Graph) -> tuple[Int[np.ndarray, "receiver most"], Int[np.ndarray, " receiver"]]:
    """The senders whose node reads through each receiver, and how many they are: 0 for `logits`."""
    rows = [graph.readers(column) for column in range(graph.shape[1])]
    table = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table, np.array([len(row) for row in rows])


def _union(graph: Graph, edges: int, walks: Iterator[Walk], random: np.random.Generator) -> EdgeBools:
    for _ in range(RESTARTS):
        mask = np.zeros(graph.shape, bool)
        missing, stale = edges, 0
        while missing and stale <= STALE:
            new = [edge for edge in next(walks) if not mask[edge]]
            if len(new) > missing or (not new and stale >= STALE):
                new = _between(graph, mask, random)
            stale = 0 if new else stale + 1
            for edge in new:
                mask[edge] = True
            missing -= len(new)
        if not missing:
            return mask
    raise ValueError(
        f"found no circuit of {edges} edges that all lie on paths from an embedding to logits; choose another size, or "
        "no random circuits"
    )


def _between(graph: Graph, mask: EdgeBools, random: np.random.Generator) -> Walk:
    """One absent edge between nodes that are in, or none."""
    nodes = graph.edges_to_nodes(mask)
    absent = np.argwhere(graph.nodes_to_edges(nodes) & ~mask)
    if not len(absent):
        return []
    row, column = absent[random.integers(len(absent))].tolist()
    return [(row, column)]
