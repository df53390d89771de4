"""Which sender may feed which receiver: names, indices, the valid matrix. NumPy only.

The residual stream of a transformer is a sum, so its nodes form a graph: every node *sends* its output to
every later node, and every node *receives* through one or several inputs (a head through q, k and v).
Edge names are those of the public benchmark format (MIB, EAP-IG): `a0.h3->a5.h1<q>`, `m11->logits`.
"""

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from .types import EdgeBools


class Sender(NamedTuple):
    """A node's output; `time` is the half-layer at which it is written."""

    name: str
    time: int


class Receiver(NamedTuple):
    """A node's input; it reads every sender written at or before `time`."""

    name: str
    node: str
    time: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """The edges of one architecture; equal and hashable by value.

    - `num_layers`, `num_heads`: transformer blocks, query heads a block.
    - `num_kv_heads`: heads that own a key and a value (grouped-query attention); default `num_heads`.
    - `mlps`: whether blocks have an MLP: one bool, or one a layer.
    - `embeddings`: names of the senders that exist before the first block.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    mlps: bool | tuple[bool, ...] = True
    embeddings: tuple[str, ...] = ("input",)

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.num_heads < 1:
            raise ValueError(f"a graph needs at least 1 layer and 1 head, got {self.num_layers} and {self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of {self.num_heads} heads, got {self.kv_heads}")
        if len(self.has_mlp) != self.num_layers:
            raise ValueError(f"mlps: expected one bool or {self.num_layers} (one a layer), got {len(self.has_mlp)}")
        object.__setattr__(self, "num_kv_heads", self.kv_heads)
        object.__setattr__(self, "mlps", self.has_mlp)

    @property
    def kv_heads(self) -> int:
        """Heads a block that own a key and a value."""
        return self.num_kv_heads or self.num_heads

    @property
    def has_mlp(self) -> tuple[bool, ...]:
        """Whether each block has an MLP."""
        return (self.mlps,) * self.num_layers if isinstance(self.mlps, bool) else self.mlps

    # --- senders, receivers, edges -------------------------------------------------------------

    @cached_property
    def _senders(self) -> tuple[Sender, ...]:
        senders = [Sender(name, 0) for name in self.embeddings]
        for layer in range(self.num_layers):
            senders += [Sender(f"a{layer}.h{head}", 2 * layer + 1) for head in range(self.num_heads)]
            senders += [Sender(f"m{layer}", 2 * layer + 2)] * self.has_mlp[layer]
        return tuple(senders)

    @cached_property
    def _receivers(self) -> tuple[Receiver, ...]:
        receivers = []
        for layer in range(self.num_layers):
            for kind, heads in (("q", self.num_heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                for head in range(heads):
                    node = f"a{layer}.h{head}"
                    receivers.append(Receiver(f"{node}<{kind}>", node, 2 * layer))
            receivers += [Receiver(f"m{layer}", f"m{layer}", 2 * layer + 1)] * self.has_mlp[layer]
        return (*receivers, Receiver("logits", "logits", 2 * self.num_layers))

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names in the order of the mask's first axis, which is the order of computation."""
        return tuple(sender.name for sender in self._senders)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names in the order of the mask's second axis: a layer's q, k, v inputs, its MLP; last `logits`."""
        return tuple(receiver.name for receiver in self._receivers)

    @cached_property
    def valid(self) -> EdgeBools:
        """True where an edge exists: the sender is written before the receiver reads."""
        valid = self.sender_times[:, None] <= self.receiver_times[None, :]
        valid.setflags(write=False)
        return valid

    def _repr_html_(self) -> str:
        from .notebook import graph_html  # which knows graphs

        return graph_html(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(senders, receivers): the shape of a mask."""
        return self.valid.shape

    @cached_property
    def num_edges(self) -> int:
        return int(self.valid.sum())

    @cached_property
    def edges(self) -> Int[np.ndarray, "edge 2"]:
        """(sender, receiver) of every edge in edge order: sender-major."""
        return np.argwhere(self.valid)

    @cached_property
    def sender_times(self) -> Int[np.ndarray, " sender"]:
        """The half-layer at which each sender is written: 0 the embedding, 2l + 1 heads, 2l + 2 the MLP of layer l."""
        return np.array([sender.time for sender in self._senders])

    @cached_property
    def receiver_times(self) -> Int[np.ndarray, " receiver"]:
        """The half-layer at which each receiver reads: 2l the heads of layer l, 2l + 1 its MLP, last `logits`."""
        return np.array([receiver.time for receiver in self._receivers])

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The nodes that stand side by side in each layer of a drawing; an MLP stands beside its heads."""
        heads = range(self.num_heads)
        return tuple(tuple(f"a{layer}.h{head}" for head in heads) for layer in range(self.num_layers))

    @property
    def sizes(self) -> dict[str, Any]:
        """What it has how many of, for people."""
        return {"layers": self.num_layers, "heads a layer": self.num_heads, "MLPs": sum(self.has_mlp)}

    @property
    def sender_groups(self) -> np.ndarray:
        """Bool [group, sender]: senders written at one moment: the embeddings, a layer's heads, its MLP."""
        return self.sender_times[None, :] == np.unique(self.sender_times)[:, None]

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
        sender, arrow, receiver = name.partition("->")
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
        """The circuit made of the named edges."""
        mask = np.zeros(self.shape, bool)
        for name in names:
            mask[self.edge_index(name)] = True
        return mask

    def names_of(self, mask: EdgeBools) -> tuple[str, ...]:
        """The names of a circuit's edges, in edge order."""
        return tuple(self.edge_name(sender, receiver) for sender, receiver in np.argwhere(mask & self.valid))

    # --- nodes ---------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every sender, then `logits`, which only receives."""
        return (*self.senders, "logits")

    @cached_property
    def _inputs(self) -> np.ndarray:
        """[node, receiver] bool: the inputs of each node. Grouped heads share one key and one value input."""
        index = {name: i for i, name in enumerate(self.nodes)}
        inputs = np.zeros((len(self.nodes), len(self.receivers)), bool)
        group = self.num_heads // self.kv_heads
        for column, receiver in enumerate(self._receivers):
            if receiver.name.endswith(("<k>", "<v>")):
                layer, head = receiver.node[1:].split(".h")
                owners = [f"a{layer}.h{h}" for h in range(int(head) * group, (int(head) + 1) * group)]
            else:
                owners = [receiver.node]
            inputs[[index[owner] for owner in owners], column] = True
        return inputs

    def inputs(self, node: str) -> np.ndarray:
        """Columns through which a node reads: q, k and v of a head, one of an MLP or `logits`, none of `input`."""
        return np.flatnonzero(self._inputs[self.nodes.index(node)])

    def readers(self, receiver: int) -> np.ndarray:
        """Rows of the senders whose node reads through this column; none for `logits`."""
        return np.flatnonzero(self._inputs[:-1, receiver])

    def nodes_to_edges(self, node_mask: np.ndarray) -> EdgeBools:
        """The edges between kept nodes. `node_mask`: bool [node], in the order of `nodes`."""
        kept_receivers = node_mask @ self._inputs  # boolean product: or of ands
        return self.valid & node_mask[:-1, None] & kept_receivers[None, :]

    def edges_to_nodes(self, mask: EdgeBools) -> np.ndarray:
        """Bool [node]: the nodes that touch a kept edge."""
        kept = mask & self.valid
        sends = np.append(kept.any(1), False)
        return sends | (self._inputs @ kept.any(0))

    def drop_dead_ends(self, mask: EdgeBools) -> EdgeBools:
        """Without the edges that lie on no path from an embedding to `logits` (fix-point of both directions)."""
        kept = mask & self.valid
        embeddings = np.isin(self.senders, self.embeddings)
        while True:
            fed = embeddings | (self._inputs @ kept.any(0))[:-1]
            heard = np.append(kept.any(1), True)
            alive = heard @ self._inputs
            smaller = kept & fed[:, None] & alive[None, :]
            if (smaller == kept).all():
                return kept
            kept = smaller


@dataclasses.dataclass(frozen=True, init=False)
class UnitGraph(Graph):
    """Every unit of a layer reads every unit of the layer before, `logits` reads the last layer.

    - `units`: names of the inputs, then of each layer's units. It has layers, but neither heads nor MLPs.
    """

    units: tuple[tuple[str, ...], ...] = ()

    def __init__(self, units: tuple[tuple[str, ...], ...]):
        names = [name for layer in units for name in layer]
        if len(units) < 2 or not all(units) or len({*names, "logits"}) <= len(names):
            raise ValueError(
                "units: expected inputs and at least one layer of units, all names different and none of them "
                f"'logits', got {units}"
            )
        object.__setattr__(self, "units", units)
        super().__init__(len(units) - 1, num_heads=1, mlps=False, embeddings=units[0])

    @cached_property
    def _senders(self) -> tuple[Sender, ...]:
        return tuple(Sender(name, time) for time, layer in enumerate(self.units) for name in layer)

    @cached_property
    def _receivers(self) -> tuple[Receiver, ...]:
        units = [Receiver(name, name, time) for time, layer in enumerate(self.units[1:]) for name in layer]
        return (*units, Receiver("logits", "logits", self.num_layers))

    @cached_property
    def valid(self) -> EdgeBools:
        """True where a connection is: between neighbouring layers."""
        valid = self.sender_times[:, None] == self.receiver_times[None, :]
        valid.setflags(write=False)
        return valid

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        return self.units[1:]

    @property
    def sizes(self) -> dict[str, Any]:
        return {"layers": self.num_layers, "inputs": len(self.embeddings), "units": sum(map(len, self.rows))}


def _look_up(indices: dict[str, int], name: str, kind: str) -> int:
    if name not in indices:
        names = list(indices)
        raise ValueError(f"unknown {kind} {name!r}: expected one of {names[0]!r}, {names[1]!r}, ..., {names[-1]!r}")
    return indices[name]
