"""Which sender may feed which receiver: names, indices, the valid matrix. NumPy only.

The residual stream of a transformer is a sum, so its nodes form a graph: every node *sends* its output to
every later node, and every node *receives* through one or several inputs (a head through q, k and v).
Edge names are those of the public benchmark format (MIB, EAP-IG): `a0.h3->a5.h1<q>`, `m11->logits`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from jaxtyping import Int

from . import layout as layouts
from .arguments import checked
from .axes import KINDS, Receiver, Sender, tables
from .layout import Layout, Nodes
from .types import EdgeBools


@dataclasses.dataclass(frozen=True)
class Graph:
    """The edges of one layout; equal and hashable by value.

    Raises ValueError for what is no layout, and for names that repeat.
    """

    layout: Layout

    def __post_init__(self) -> None:
        layouts.check(self.layout)
        for names, what in ((self.nodes, "nodes"), (self.receivers, "receivers")):
            if repeated := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"layout: expected {what} of different names, got {repeated[0]!r} more than once")

    @classmethod
    @checked
    def transformer(
        cls,
        layers: int,
        heads: int,
        groups: int | None = None,
        mlps: bool | tuple[bool, ...] = True,
        embeddings: tuple[str, ...] = ("input",),
    ) -> "Graph":
        """The graph of layers of heads, each followed by an MLP: `jaxcircuits.layout.transformer`."""
        return cls(layouts.transformer(layers, heads, groups, mlps, embeddings))

    # --- senders, receivers, edges -------------------------------------------------------------

    @cached_property
    def _tables(self) -> tuple[tuple[Sender, ...], tuple[Receiver, ...]]:
        return tables(self.layout)

    @property
    def sender_table(self) -> tuple[Sender, ...]:
        """What each row of a mask is."""
        return self._tables[0]

    @property
    def receiver_table(self) -> tuple[Receiver, ...]:
        """What each column of a mask is."""
        return self._tables[1]

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names in the order of the mask's first axis, which is the order of computation."""
        return tuple(sender.name for sender in self.sender_table)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names in the order of the mask's second axis: a layer's q, k, v inputs, its MLP; last `logits`."""
        return tuple(receiver.name for receiver in self.receiver_table)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the senders before the first layer."""
        return self.layout.embeddings

    @property
    def num_layers(self) -> int:
        return self.layout.num_layers

    @cached_property
    def valid(self) -> EdgeBools:
        """True where an edge exists: the sender is written before the receiver reads."""
        written, reads = self.written[:, None], self.reads[None, :]
        valid = written == reads if self.layout.neighbours_only else written <= reads
        valid.setflags(write=False)
        return valid

    def _repr_html_(self) -> str:
        from .notebook import graph_html  # which knows graphs

        return graph_html(self)

    def __str__(self) -> str:
        nodes = self.nodes if len(self.nodes) < 7 else (*self.nodes[:3], "...", *self.nodes[-2:])
        return f"{self.num_edges} edges between {len(self.nodes)} nodes ({', '.join(nodes)})"

    @property
    def shape(self) -> tuple[int, int]:
        """(senders, receivers): the shape of a mask."""
        return len(self.senders), len(self.receivers)

    @cached_property
    def num_edges(self) -> int:
        return int(self.valid.sum())

    @cached_property
    def edges(self) -> Int[np.ndarray, "edge 2"]:
        """(sender, receiver) of every edge in edge order: sender-major."""
        return np.argwhere(self.valid)

    @cached_property
    def written(self) -> Int[np.ndarray, " sender"]:
        """The moment before which each sender is written: 0 the embeddings."""
        return np.array([sender.written for sender in self.sender_table])

    @cached_property
    def reads(self) -> Int[np.ndarray, " receiver"]:
        """The moment at which each receiver reads; the last is that of `logits`."""
        return np.array([receiver.reads for receiver in self.receiver_table])

    @property
    def sender_groups(self) -> np.ndarray:
        """Bool [group, sender]: nodes that are alike: the embeddings, a layer's heads, its MLP (parallel ones too)."""
        block = np.array([sender.block for sender in self.sender_table])
        return block[None, :] == np.unique(block)[:, None]

    @cached_property
    def blocks(self) -> tuple[Nodes, ...]:
        """The layout's groups of equal nodes in all layers: what a sender's `block` counts."""
        every = ((stack.layers, stack.moments) for stack in self.layout.stacks)
        return tuple(nodes for layers, moments in every for _ in range(layers) for m in moments for nodes in m.nodes)

    @cached_property
    def _blocks(self) -> list[list[list[str]]]:
        """Of each layer, of each of its groups of equal nodes, the names."""
        layers: list[dict[int, list[str]]] = [{} for _ in range(self.num_layers)]
        for sender in self.sender_table[len(self.embeddings) :]:
            layers[sender.layer].setdefault(sender.block, []).append(sender.name)
        return [list(layer.values()) for layer in layers]

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The nodes that stand side by side in each layer of a drawing: those of its first group."""
        return tuple(tuple(blocks[0]) for blocks in self._blocks)

    @property
    def beside(self) -> tuple[tuple[str, ...], ...]:
        """The other nodes of each layer (an MLP beside its heads)."""
        return tuple(tuple(name for block in blocks[1:] for name in block) for blocks in self._blocks)

    @property
    def sizes(self) -> dict[str, int]:
        """What it has how many of, for people."""
        counts = Counter(sender.kind for sender in self.sender_table)
        named = {name: counts[kind] for kind, name in KINDS.items() if counts[kind]}
        others = {f"{kind} nodes": count for kind, count in counts.items() if kind not in KINDS}
        return {"layers": self.num_layers, **named, **others}

    # --- names <-> indices ---------------------------------------------------------------------

    @cached_property
    def _sender_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.senders)}

    @cached_property
    def _receiver_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.receivers)}

    def sender_index(self, name: str) -> int:
        """Row of a sender in a mask. Raises ValueError for an unknown name."""
        return _look_up(self._sender_indices, name, "sender")

    def receiver_index(self, name: str) -> int:
        """Column of a receiver in a mask. Raises ValueError for an unknown name."""
        return _look_up(self._receiver_indices, name, "receiver")

    def edge_index(self, name: str) -> tuple[int, int]:
        """(sender, receiver) of `"a0.h3->m5"`. Raises ValueError for a name that is no edge of this graph."""
        sender, arrow, receiver = name.partition("->") if isinstance(name, str) else ("", "", "")
        if not arrow:
            raise ValueError(f"expected an edge as 'sender->receiver', got {name!r}")
        index = self.sender_index(sender), self.receiver_index(receiver)
        if not self.valid[index]:
            raise ValueError(f"{name!r} is no edge of this graph: {receiver} does not read {sender}")
        return index

    def edge_name(self, sender: int | np.integer, receiver: int | np.integer) -> str:
        """`"a0.h3->m5"` of a mask's row and column."""
        return f"{self.senders[sender]}->{self.receivers[receiver]}"

    def mask_of(self, names: "list[str] | tuple[str, ...]") -> EdgeBools:
        """The circuit made of the named edges. Raises ValueError for what names no edge, or is one name."""
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ValueError(f"expected names of edges in a list, got {names!r:.60}")
        mask = np.zeros(self.shape, bool)
        for name in names:
            mask[self.edge_index(name)] = True
        return mask

    def names_of(self, mask: EdgeBools) -> tuple[str, ...]:
        """The names of a circuit's edges, in edge order. Raises ValueError for what is no mask of this graph."""
        kept = self._edges_in(mask)
        return tuple(self.edge_name(sender, receiver) for sender, receiver in np.argwhere(kept))

    def _edges_in(self, mask: EdgeBools) -> EdgeBools:
        mask = np.asarray(mask)
        is_fit = mask.dtype == bool or (mask.dtype.kind in "iuf" and np.isin(mask, (0, 1)).all())
        if mask.shape != self.shape or not is_fit:
            got = f"{mask.dtype} {mask.shape}"
            raise ValueError(f"mask: expected True or False for each edge, shape {self.shape}, got {got}")
        return mask.astype(bool) & self.valid

    # --- nodes ---------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every sender, then `logits`, which only receives."""
        return (*self.senders, "logits")

    def _relation(self, field: str) -> np.ndarray:
        """Bool [node, receiver]: the senders that a field of the receivers' table names; `logits` reads its own."""
        relation = np.zeros((len(self.nodes), len(self.receivers)), bool)
        for column, receiver in enumerate(self.receiver_table):
            relation[list(getattr(receiver, field)), column] = True
        relation[-1, -1] = True
        return relation

    @cached_property
    def _inputs(self) -> np.ndarray:
        """The inputs of each node. Grouped heads share one key and one value input."""
        return self._relation("owners")

    @cached_property
    def _num_inputs(self) -> np.ndarray:
        return self._inputs.sum(1)

    @cached_property
    def _reads_through(self) -> np.ndarray:
        """The receivers that what each node writes depends on."""
        return self._relation("readers")

    def inputs(self, node: str) -> np.ndarray:
        """Columns through which a node reads: q, k and v of a head, one of an MLP or `logits`, none of `input`."""
        if node not in self.nodes:
            raise ValueError(f"unknown node {node!r:.60}: expected one of {self.nodes[0]!r}, ..., {self.nodes[-1]!r}")
        return np.flatnonzero(self._inputs[self.nodes.index(node)])

    def owners(self, receiver: int | np.integer) -> tuple[str, ...]:
        """Names of the nodes that this column is an input of."""
        owners = self.receiver_table[receiver].owners
        return tuple(self.senders[row] for row in owners) if owners else ("logits",)

    def input_kind(self, receiver: int | np.integer) -> str:
        """Through which of its node's inputs a column reads: "q", "k", "v"; "" where the node has one alone."""
        own = self.receiver_table[receiver]
        return own.port if (self._num_inputs[list(own.owners)] > 1).any() else ""

    def readers(self, receiver: int | np.integer) -> np.ndarray:
        """Rows of the senders whose node reads through this column; none for `logits`."""
        return np.array(self.receiver_table[receiver].readers, int)

    def nodes_to_edges(self, node_mask: np.ndarray) -> EdgeBools:
        """The edges between kept nodes. `node_mask`: bool [node], in the order of `nodes`, else a ValueError."""
        node_mask = np.asarray(node_mask)
        if node_mask.shape != (len(self.nodes),) or node_mask.dtype != bool:
            got = f"{node_mask.dtype} {node_mask.shape}"
            raise ValueError(f"node_mask: expected True or False for each of {len(self.nodes)} nodes, got {got}")
        kept_receivers = node_mask @ self._inputs  # boolean product: or of ands
        return self.valid & node_mask[:-1, None] & kept_receivers[None, :]

    def edges_to_nodes(self, mask: EdgeBools) -> np.ndarray:
        """Bool [node]: the nodes that touch a kept edge. Raises ValueError as `names_of` does."""
        kept = self._edges_in(mask)
        sends = np.append(kept.any(1), False)
        return sends | (self._inputs @ kept.any(0))

    def drop_dead_ends(self, mask: EdgeBools) -> EdgeBools:
        """Without the edges that lie on no path from an embedding to `logits` (fix-point of both directions).

        Raises ValueError as `names_of` does.
        """
        kept = self._edges_in(mask)
        embeddings = self.written == 0
        while True:
            fed = embeddings | (self._reads_through @ kept.any(0))[:-1]
            heard = np.append(kept.any(1), True)
            alive = heard @ self._reads_through
            smaller = kept & fed[:, None] & alive[None, :]
            if (smaller == kept).all():
                return kept
            kept = smaller


def _look_up(indices: dict[str, int], name: str, kind: str) -> int:
    if not isinstance(name, str) or name not in indices:
        names = list(indices)
        raise ValueError(f"unknown {kind} {name!r}: expected one of {names[0]!r}, {names[1]!r}, ..., {names[-1]!r}")
    return indices[name]
