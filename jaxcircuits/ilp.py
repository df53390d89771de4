"""The best edges of a graph without dead ends, as an integer linear program.

    maximise sum score x    over x in {0, 1}, sum x <= n,

where an edge needs one into its sender (but an embedding) and one out of a node that reads through its receiver (but
`logits`). Layers are ordered, so that is exactly: every edge lies on a path from an embedding to `logits`.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix, csr_matrix, hstack, identity, vstack

from .arguments import checked, is_count
from .circuit import OF_ANOTHER, RANKS, Circuit, could_be_in
from .graph import Graph
from .scores import Scores
from .types import EdgeBools, EdgeScores


@checked
def select_connected(scored: Scores | Circuit, edges: int, *, rank: str = "signed") -> Circuit:
    """The circuit of at most `edges` edges with the largest total score, none of them a dead end.

    - `rank`: by "signed" scores, of which none below 0 is worth taking but as a way to others; or "absolute" values.

    Raises ValueError for a bad choice, and where the solver fails.
    """
    graph = scored.graph
    if rank not in RANKS or not (is_count(edges) and edges <= graph.num_edges):
        raise ValueError(
            f"select: expected 0 to {graph.num_edges} edges by {' or '.join(RANKS)}, got {edges} by {rank!r}"
        )
    strength = np.abs(scored.scores) if rank == "absolute" else scored.scores
    before = {key: value for key, value in scored.run.items() if key not in OF_ANOTHER}
    run = {**before, "selection": {"rank": rank, "select": "ilp", "edges": edges}}
    mask = best_connected(graph, strength, edges, could_be_in(scored))
    return Circuit(graph, mask, scored.scores, run, getattr(scored, "d_model", 0)).drop_dead_ends()


def best_connected(graph: Graph, strength: EdgeScores, count: int, offered: EdgeBools) -> EdgeBools:
    """At most `count` of the edges on offer, of the largest total strength, without dead ends.

    Besides an entry an edge there is one a node that is fed and one a receiver that is heard, in [0, 1]. Raises
    ValueError where the solver fails.
    """
    edges = np.asarray(graph.edges)
    senders, receivers = graph.shape
    reads = np.zeros((senders, receivers))  # a node reads through a receiver
    for column, receiver in enumerate(graph.receiver_table):
        reads[list(receiver.readers), column] = 1
    out_of, into = (_incidence(edges[:, axis], size) for axis, size in enumerate(graph.shape))
    embeddings, last = graph.written == 0, np.arange(receivers) == receivers - 1
    zeros = {size: csr_matrix((len(edges), size)) for size in graph.shape}
    rows = vstack(
        [
            hstack([identity(len(edges)), -out_of.T, zeros[receivers]]),  # an edge: its sender is fed,
            hstack([identity(len(edges)), zeros[senders], -into.T]),  # its receiver heard
            hstack([-csr_matrix(reads) @ into, identity(senders), csr_matrix((senders, receivers))]),
            hstack([-csr_matrix(reads.T) @ out_of, csr_matrix((receivers, senders)), identity(receivers)]),
            hstack([csr_matrix(np.ones((1, len(edges)))), csr_matrix((1, senders + receivers))]),
        ]
    )
    most = np.concatenate([np.zeros(2 * len(edges)), embeddings, last, [count]])
    values = np.concatenate([strength[tuple(edges.T)], np.zeros(senders + receivers)])
    can_be_in = offered[tuple(edges.T)]
    highest = np.concatenate([can_be_in, np.ones(senders + receivers)])
    scale = float(np.abs(values).max()) or 1.0
    is_whole = np.concatenate([np.ones(len(edges)), np.zeros(senders + receivers)])
    found = milp(
        -values / scale,
        constraints=LinearConstraint(csr_matrix(rows), ub=most),  # type: ignore[arg-type]
        bounds=Bounds(0, highest),  # type: ignore[arg-type]
        integrality=is_whole,
        options={"mip_rel_gap": 0},
    )
    if found.x is None:
        raise ValueError(f"select: the integer program was not solved: {found.message}")
    mask = np.zeros(graph.shape, bool)
    mask[tuple(edges[found.x[: len(edges)] > 0.5].T)] = True
    return mask


def _incidence(ends: np.ndarray, size: int) -> csr_matrix:
    """[node, edge]: which edges have this end."""
    return csr_matrix(coo_matrix((np.ones(len(ends)), (ends, np.arange(len(ends)))), (size, len(ends))))
