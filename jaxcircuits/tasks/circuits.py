"""Known circuits from rules: which nodes feed which, as edge names of a graph.

Rules name groups of nodes; `edges` gives every edge of the graph from one group to another. That a receiver must read
after its sender is written (a head a strictly earlier layer, an MLP also the heads of its own) is the graph's doing.
"""

from collections.abc import Iterable

from ..graph import Graph

GPT2_SMALL = Graph.transformer(12, 12)


def heads(numbers: str) -> tuple[str, ...]:
    """`"9.9 10.0"` as the papers write heads -> `("a9.h9", "a10.h0")`."""
    return tuple(f"a{layer}.h{head}" for layer, head in (number.split(".") for number in numbers.split()))


def mlps(layers: Iterable[int]) -> tuple[str, ...]:
    """The MLPs of some layers."""
    return tuple(f"m{layer}" for layer in layers)


def edges(graph: Graph, senders: Iterable[str], receivers: Iterable[str], inputs: str = "qkv") -> set[str]:
    """The graph's edges from any of the senders to any of the receiving nodes; into heads through `inputs` only."""
    names = [name for node in receivers for name in ([f"{node}<{i}>" for i in inputs] if ".h" in node else [node])]
    columns = [(name, graph.receiver_index(name)) for name in names]
    rows = [(name, graph.sender_index(name)) for name in senders]
    return {f"{sender}->{receiver}" for sender, s in rows for receiver, r in columns if graph.valid[s, r]}


def in_order(graph: Graph, names: Iterable[str]) -> tuple[str, ...]:
    """Edges without repetition, in edge order. Raises ValueError for a name that is no edge of the graph."""
    return graph.names_of(graph.mask_of(list(names)))


def check_graph(graph: Graph, expected: Graph, model: str) -> None:
    """Raises ValueError for the graph of another model than the one whose circuit is known."""
    if graph != expected:
        raise ValueError(f"this circuit is known for {model} ({_sizes(expected)}), got a graph with {_sizes(graph)}")


def _sizes(graph: Graph) -> str:
    return ", ".join(f"{count} {name}" for name, count in {**graph.sizes, "edges": graph.num_edges}.items())


def internal_edges(names: Iterable[str]) -> tuple[str, ...]:
    """What the original ACDC counts besides: `a9.h9<q>` where a kept edge goes into this input and the head sends.

    The original has an edge from each query, key and value input of a head to the head; here they are one node.
    """
    ends = [name.split("->") for name in names]
    senders = {sender for sender, _ in ends}
    return tuple(dict.fromkeys(end for _, end in ends if "<" in end and end.partition("<")[0] in senders))
