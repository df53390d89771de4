"""What a model's layers are made of, as data: who reads together, who writes together, and what each is called.

A *receiver* computes something alone from what it reads (a query: norm, projection, rotation; an MLP: all of it). A
*node* computes what it writes from what its receivers computed (a head: attention; an MLP: nothing more). A layer is a
tuple of *moments*: ports, whose receivers read the same residual stream, and nodes, which write to it afterwards.

| block | moments |
|---|---|
| GPT-2, Llama | heads (q, k, v), then the MLP |
| NeoX (parallel) | heads and MLP in one |
| post-norm (OLMo-2, Gemma) | heads that meet in a norm (`is_joint`), then the MLP |
"""

import dataclasses
import itertools
import re
from typing import Any, NamedTuple

from .span_names import Span, is_span_name

Names = str | tuple[str, ...]
"""A pattern with `{layer}` and `{index}`, or the names themselves, for a single layer."""


@dataclasses.dataclass(frozen=True)
class Port:
    """`count` receivers a layer that compute alike.

    - `name`: what `model.read` is asked for. `is_local`: nodes need what it computes only where they write (a query),
      not at every position (a key).
    """

    name: str
    count: int
    is_local: bool
    names: Names


@dataclasses.dataclass(frozen=True)
class Nodes:
    """`count` nodes a layer that write alike.

    - `kind`: what `model.write` is asked for. `inputs`: of each port they read through, the receiver of each node.
    - `is_joint`: what one writes depends on all of them, so they are computed together.
    - `spans`: of positions (first, end), or by name; what a node writes in each of them, are senders apart.
      None: at the other positions. Without spans a node is one sender.
    """

    kind: str
    count: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    names: Names
    is_joint: bool = False
    spans: tuple[Span, ...] = ()

    @property
    def parts(self) -> int:
        """Senders that a node is."""
        return len(self.spans) or 1


class Moment(NamedTuple):
    """Receivers that read the same stream, and the nodes that write after it."""

    ports: tuple[Port, ...]
    nodes: tuple[Nodes, ...]

    @property
    def num_receivers(self) -> int:
        return sum(port.count for port in self.ports)

    @property
    def num_senders(self) -> int:
        return sum(nodes.count * nodes.parts for nodes in self.nodes)


class Stack(NamedTuple):
    """`layers` equal layers: one compiled body."""

    layers: int
    moments: tuple[Moment, ...]


class Layout(NamedTuple):
    """A model's units from the embeddings to `logits`.

    - `embeddings`: names of the senders before the first layer. `neighbours_only`: a receiver reads only what the
      moment before wrote (networks of units), not everything before it.
    """

    embeddings: tuple[str, ...]
    stacks: tuple[Stack, ...]
    neighbours_only: bool = False

    @property
    def num_layers(self) -> int:
        return sum(stack.layers for stack in self.stacks)


HEAD, HEAD_GROUP, MLP = "a{layer}.h{index}", "a{layer}.g{index}", "m{layer}"


def heads(count: int, groups: int | None = None, *, is_joint: bool = False) -> Moment:
    """Attention heads that read through a query, a key and a value each; `groups` keys and values are shared."""
    groups = count if groups is None else groups
    if count < 1 or groups < 1 or count % groups:
        raise ValueError(f"heads: expected at least 1, in equal groups, got {count} heads in {groups} groups")
    shared = HEAD if groups == count else HEAD_GROUP
    own, group = tuple(range(count)), tuple(head * groups // count for head in range(count))
    ports = Port("q", count, True, HEAD + "<q>"), *(Port(c, groups, False, f"{shared}<{c}>") for c in "kv")
    return Moment(ports, (Nodes("head", count, (("q", own), ("k", group), ("v", group)), HEAD, is_joint),))


def mlp() -> Moment:
    """One MLP, which is computed where it reads."""
    return Moment((Port("m", 1, True, MLP),), (Nodes("mlp", 1, (("m", (0,)),), MLP),))


def parallel(*moments: Moment) -> Moment:
    """Moments at once: all read the same stream."""
    return Moment(sum((moment.ports for moment in moments), ()), sum((moment.nodes for moment in moments), ()))


def transformer(
    layers: int,
    num_heads: int,
    num_groups: int | None = None,
    mlps: bool | tuple[bool, ...] = True,
    embeddings: tuple[str, ...] = ("input",),
) -> Layout:
    """Layers of heads, each followed by an MLP where `mlps` (of all layers, or of each) says so.

    Raises ValueError for sizes below 1, heads that make no equal groups, and `mlps` of another number of layers.
    """
    if layers < 1:
        raise ValueError(f"expected at least 1 layer, got {layers}")
    each = (mlps,) * layers if isinstance(mlps, bool) else mlps
    if len(each) != layers:
        raise ValueError(f"mlps: expected one bool or {layers} (one a layer), got {len(each)}")
    attention = heads(num_heads, num_groups)
    runs = [(has_mlp, len(list(equal))) for has_mlp, equal in itertools.groupby(each)]
    return Layout(embeddings, tuple(Stack(n, (attention, mlp())[: 1 + has_mlp]) for has_mlp, n in runs))


def of_units(layers: tuple[tuple[str, ...], ...]) -> Layout:
    """Inputs, then layers of units, each of which reads every unit of the layer before.

    Raises ValueError for no layer, an empty one, and names that repeat.
    """
    names = [name for layer in layers for name in layer]
    if len(layers) < 2 or not all(layers) or len({*names, "logits"}) <= len(names):
        raise ValueError(
            "units: expected inputs and at least one layer of units, all names different and none of them "
            f"'logits', got {layers}"
        )

    def stack(units: tuple[str, ...]) -> Stack:
        own = Nodes("unit", len(units), (("unit", tuple(range(len(units)))),), units)
        return Stack(1, (Moment((Port("unit", len(units), True, units),), (own,)),))

    return Layout(layers[0], tuple(map(stack, layers[1:])), neighbours_only=True)


def counts(layout: Layout) -> tuple[int, int]:
    """How many senders and receivers a graph has."""
    moments = [(stack.layers, moment) for stack in layout.stacks for moment in stack.moments]
    senders = sum(layers * moment.num_senders for layers, moment in moments)
    return len(layout.embeddings) + senders, 1 + sum(layers * moment.num_receivers for layers, moment in moments)


def check(layout: Layout) -> None:
    """Raises ValueError for what is no layout: parts that are empty or misfit, receivers that no node reads through."""
    _check(bool(layout.embeddings and layout.stacks), "at least one embedding and one layer")
    for stack in layout.stacks:
        _check(stack.layers > 0 and bool(stack.moments), "at least one layer and moment in a stack")
        for moment in stack.moments:
            _check_moment(moment, stack.layers)


def _check_moment(moment: Moment, layers: int) -> None:
    ports = {port.name: port for port in moment.ports}
    _check(bool(moment.ports and moment.nodes), "at least one port and one group of nodes in a moment")
    _check(len(ports) == len(moment.ports), f"ports of different names, got {[port.name for port in moment.ports]}")
    for part in (*moment.ports, *moment.nodes):
        what = part.name if isinstance(part, Port) else part.kind
        _check(part.count > 0, f"at least one of {what}, got {part.count}")
        if not isinstance(part.names, str):
            fit = layers == 1 and len(part.names) == part.count
            _check(fit, f"names of {what}: a pattern, or {part.count} names of a single layer")
    readers = [(name, nodes) for nodes in moment.nodes for name, _ in nodes.inputs]
    _check(sorted(ports) == sorted(name for name, _ in readers), "each port to be read by one group of nodes")
    for nodes in moment.nodes:
        _check(bool(nodes.inputs), f"inputs of {nodes.kind}")
        for name, indices in nodes.inputs:
            fit = len(indices) == nodes.count and set(indices) == set(range(ports[name].count))
            _check(fit, f"inputs of {nodes.kind}: one receiver of {name} for each node, none left over")


def _check(is_so: bool, expected: str) -> None:
    if not is_so:
        raise ValueError(f"layout: expected {expected}")


def to_json(layout: Layout) -> dict[str, Any]:
    """A layout as a file holds it."""
    stacks = [
        {
            "layers": stack.layers,
            "moments": [
                {"ports": [*map(dataclasses.asdict, m.ports)], "nodes": [*map(dataclasses.asdict, m.nodes)]}
                for m in stack.moments
            ],
        }
        for stack in layout.stacks
    ]
    return {"embeddings": list(layout.embeddings), "stacks": stacks, "neighbours_only": layout.neighbours_only}


def from_json(value: Any) -> Layout:
    """The layout that `to_json` wrote. Raises ValueError for anything else, and for sizes beyond `MOST`."""
    try:
        stacks = tuple(
            Stack(_count(stack["layers"]), tuple(_moment(moment) for moment in stack["moments"]))
            for stack in value["stacks"]
        )
        layout = Layout(_strings(value["embeddings"]), stacks, value["neighbours_only"] is True)
        total = sum(counts(layout))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"layout: expected embeddings and stacks of layers, ports and nodes; {error!r}") from None
    if total > MOST:
        raise ValueError(f"layout: expected at most {MOST} senders and receivers, got {total}")
    return layout


MOST = 1 << 17
"""Senders and receivers of the largest graph that a file may describe."""

MOST_ENTRIES = 1 << 27
"""Entries (senders x receivers) of the largest mask that is read from a file."""

LONGEST, MOST_INPUTS = 256, 16
"""Letters of the longest name, and inputs of a node, that a file may describe: they come once for every node."""


def _moment(value: Any) -> Moment:
    ports = [
        Port(_string(p["name"]), _count(p["count"]), p["is_local"] is True, _names_of(p["names"], p["count"]))
        for p in value["ports"]
    ]
    nodes = []
    for n in value["nodes"]:
        if len(n["inputs"]) > MOST_INPUTS:
            raise ValueError(f"layout: expected at most {MOST_INPUTS} inputs of a node, got {len(n['inputs'])}")
        inputs = tuple((_string(port), tuple(map(_index, indices))) for port, indices in n["inputs"])
        names = _names_of(n["names"], n["count"])
        spans = tuple(map(_span, n.get("spans", ())))
        nodes.append(Nodes(_string(n["kind"]), _count(n["count"]), inputs, names, n["is_joint"] is True, spans))
    return Moment(tuple(ports), tuple(nodes))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MOST:
        raise ValueError(f"layout: expected a count from 1 to {MOST}, got {value!r}")
    return value


def _span(value: Any) -> Span:
    if value is None or (isinstance(value, str) and is_span_name(_string(value))):
        return value
    if isinstance(value, str):
        raise ValueError(f"layout: expected the name of a span, got {value!r}")
    first, end = value
    return _index(first), _index(end)


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"layout: expected the number of a receiver, got {value!r}")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"layout: expected a name of at most {LONGEST} letters, got {value!r:.60}")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"layout: expected a list of names, got {value!r}")
    return tuple(map(_string, value))


def _names_of(value: Any, count: int) -> Names:
    if isinstance(value, list) and len(value) == count:
        return _strings(value)
    if isinstance(value, str) and re.fullmatch(r"([^{}]|{layer}|{index})+", _string(value)):
        return value
    raise ValueError(f"layout: names: expected {count}, or a pattern with {{layer}} and {{index}}, got {value!r:.60}")
