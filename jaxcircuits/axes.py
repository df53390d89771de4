"""What each row and each column of a mask is: the tables of a layout's senders and receivers."""

import dataclasses

from .layout import Layout, Names
from .span_names import part_names

EMBEDDING = "embedding"
"""The kind of the senders before the first layer."""

KINDS = {EMBEDDING: "inputs", "head": "heads", "mlp": "MLPs", "unit": "units"}
"""What people call nodes of a kind."""


@dataclasses.dataclass(frozen=True)
class Sender:
    """A node's output: the `index`-th of its `kind` in its layer (-1: before the first), there from `written` on.

    `node` is its node's name, of whose writing this may be one span of positions. `block` counts the layout's groups of
    equal nodes, in all layers: nodes of one block are computed alike.
    """

    name: str
    kind: str
    layer: int
    index: int
    written: int
    block: int
    node: str


@dataclasses.dataclass(frozen=True)
class Receiver:
    """A node's input: the `index`-th of its `port` in its layer, which reads at moment `reads`.

    - `owners`: rows of the senders that it belongs to. `readers`: of those that write something else when it changes:
      the same, or all that are computed jointly with them. `is_local`: as of a `Port`. None reads through `logits`.
    """

    name: str
    port: str
    layer: int
    index: int
    reads: int
    is_local: bool
    owners: tuple[int, ...]
    readers: tuple[int, ...]


def tables(layout: Layout) -> tuple[tuple[Sender, ...], tuple[Receiver, ...]]:
    """What the rows and the columns of a layout's masks are, in order of computation; the last column is `logits`."""
    senders = [Sender(name, EMBEDDING, -1, i, 0, -1, name) for i, name in enumerate(layout.embeddings)]
    receivers: list[Receiver] = []
    layer = now = block = 0
    for stack in layout.stacks:
        for layer in range(layer, layer + stack.layers):  # noqa: B020
            for moment in stack.moments:
                owners: dict[tuple[str, int], list[int]] = {}
                together: dict[str, tuple[int, ...]] = {}
                for nodes in moment.nodes:
                    rows = tuple(range(len(senders), len(senders) + nodes.count * nodes.parts))
                    for port, inputs in nodes.inputs:
                        for node, index in enumerate(inputs):
                            own = rows[node * nodes.parts : (node + 1) * nodes.parts]
                            owners.setdefault((port, index), []).extend(own)
                        if nodes.is_joint:  # one tuple for all receivers: each of its own would be a mask's size
                            together[port] = rows
                    named = _names(nodes.names, layer, nodes.count)
                    for part, name in enumerate(part_names(named, nodes.spans)):
                        node = part // nodes.parts
                        senders.append(Sender(name, nodes.kind, layer, node, now + 1, block, named[node]))
                    block += 1
                for port in moment.ports:
                    for i, name in enumerate(_names(port.names, layer, port.count)):
                        own, place = tuple(owners[port.name, i]), (port.name, layer, i, now, port.is_local)
                        receivers.append(Receiver(name, *place, own, together.get(port.name, own)))
                now += 1
        layer += 1
    receivers.append(Receiver("logits", "logits", layout.num_layers, 0, now, True, (), ()))
    return tuple(senders), tuple(receivers)


def _names(names: Names, layer: int, count: int) -> tuple[str, ...]:
    if isinstance(names, tuple):
        return names
    return tuple(names.format(layer=layer, index=index) for index in range(count))
