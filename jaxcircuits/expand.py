"""A circuit of coarse units as one of finer units of the same model: the same function."""

import numpy as np
from jaxtyping import Bool

from .arguments import checked
from .axes import Sender
from .graph import Graph
from .masks import edges_of
from .span_names import Span, part_names
from .types import MaskLike

PARTS = {"attention": ("head",), "mlp": ("neurons",), "block": ("attention", "head", "mlp", "neurons")}
"""Of which kinds of nodes in its layer a node of a kind is made."""


@checked
def expand(mask: MaskLike, coarse: Graph, fine: Graph) -> Bool[np.ndarray, "finer_sender finer_receiver"]:
    """The edges of the graph `fine` that are in the circuit `mask` of `coarse`, or inside of one of its nodes.

    - `mask`: a circuit of `coarse`, or bool [sender, receiver]. The objective has the same value at both, each with the
      model as these units; as `within=` of a search, finer units are looked for in a circuit of coarse ones.

    Raises ValueError for a mask of another shape, and for graphs the second of which is not the first, divided.
    """
    mask = edges_of(mask, coarse)
    rows = np.array([_whole(sender, fine, coarse) for sender in fine.sender_table])
    columns = np.array([_column(column, fine, coarse, rows) for column in range(len(fine.receivers))])
    inside = ~coarse.valid[rows[:, None], columns[None]]
    return fine.valid & (mask[rows[:, None], columns[None]] | inside)


def _whole(sender: Sender, fine: Graph, coarse: Graph) -> int:
    """The row of the coarse node that a fine one is, or is a part of."""
    for row, node in enumerate(coarse.sender_table):
        is_there = node.layer == sender.layer and _span(node) in ("", _span(sender))
        is_same = node.kind == sender.kind and sender.node in (node.node, *part_names((node.node,), _spans(fine)))
        if is_there and (is_same or sender.kind in PARTS.get(node.kind, ())):
            return row
    raise ValueError(f"expand: expected units of which those of the circuit are made, got {sender.name}, part of none")


def _spans(graph: Graph) -> tuple[Span, ...]:
    """What its embeddings are divided over, as all nodes are."""
    return graph.blocks[0].spans


def _span(sender: Sender) -> str:
    """The positions that a node is a part at; all of them: nothing."""
    return sender.name.removeprefix(sender.node)


def _column(column: int, fine: Graph, coarse: Graph, rows: np.ndarray) -> int:
    """The coarse receiver that a fine one is a part of."""
    receiver = fine.receiver_table[column]
    if not receiver.owners:
        return len(coarse.receivers) - 1
    inputs = [set(coarse.inputs(coarse.senders[row])) for row in rows[list(receiver.owners)]]
    shared = sorted(set.intersection(*inputs))
    named = [i for i in shared if coarse.receiver_table[i].port == receiver.port]
    found = named if named else shared if len(set(map(len, inputs))) == 1 and len(inputs[0]) == 1 else []
    if len(found) != 1:
        raise ValueError(
            f"expand: expected units of which those of the circuit are made, got {receiver.name}, which is read by "
            f"{', '.join(fine.owners(column))} and is a part of no input of theirs"
        )
    return int(found[0])
