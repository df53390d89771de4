"""What a circuit's JSON says: a graph, its kept edges with scores, and the record of the run; or why it is refused.

The graph is what `cfg` and `nodes` state, never a guess from some of its edges, and nothing is built before its size
is known to be what the file itself lists.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from . import layout as layouts
from .arguments import is_count, is_number
from .graph import Graph
from .layout import MOST_ENTRIES
from .types import EdgeBools, EdgeScores

FORMAT, PEAP = "jaxcircuits/1", "jaxcircuits-peap"

TEXTS = (
    "task",
    "model",
    "method",
    "metric",
    "reference",
    "dtype",
    "precision",
    "average",
    "order",
    "head_order",
    "template",
    "units",
    "spans",
)
NUMBERS = ("threshold", "metric_full", "metric_final", "seconds", "seconds_compiling")
COUNTS = (
    "seed",
    "order_seed",
    "prompts",
    "edges_kept",
    "groups_kept",
    "evaluations",
    "evaluations_wasted",
    "device_calls",
)
FLAGS = ("signed", "groups", "absolute", "bos")
TABLES = ("config", "selection", "source", "replicates", "cluster")
"""Entries of a run's record that programs read, by their kind; every other one is for people, and may be anything."""


class Contents(NamedTuple):
    """A circuit's parts, as `Circuit` takes them."""

    graph: Graph
    mask: EdgeBools
    scores: EdgeScores
    run: dict[str, Any]
    d_model: int


def contents_of(value: Any) -> Contents:
    """The parts of a circuit's JSON. Raises ValueError, saying where, for anything malformed or contradictory."""
    if isinstance(value, dict) and str(value.get("format")).startswith(PEAP):
        raise ValueError(
            "expected a circuit or scores of a graph's edges, got PEAP's, which have edges between spans as well: "
            "`show` prints them, `prune --edges` takes a circuit from the scores"
        )
    if not isinstance(value, dict) or not all(isinstance(value.get(key), dict) for key in ("cfg", "edges")):
        raise ValueError("expected a circuit: a JSON object with 'cfg' and 'edges'")
    if value.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format {value['format']!r} is not known; this version reads {FORMAT!r}")
    if part := next((key for key in value if key.startswith("neurons")), None):
        raise ValueError(f"{part!r}: a circuit of single neurons cannot be read; give one at the level of edges")
    cfg, nodes, edges, run = value["cfg"], value.get("nodes"), value["edges"], value.get("run", {})
    d_model = cfg.get("d_model", 0)
    if not is_count(d_model):
        raise ValueError(f"cfg: d_model: expected a whole number, got {d_model!r}")
    _check_nodes(nodes)
    check_run(run)
    graph = graph_of(cfg, nodes, edges)
    if nodes is not None and nodes.keys() != set(graph.nodes):
        odd = sorted(nodes.keys() ^ set(graph.nodes))[0]
        raise ValueError(f"nodes: expected the {len(graph.nodes)} nodes that cfg states, got more or less: {odd!r}")
    for name in (*run.get("replicates", {}).get("kept", ()), *run.get("within", ()), *run.get("without", ())):
        graph.edge_index(name)
    mask, scores = np.zeros(graph.shape, bool), np.zeros(graph.shape)
    for name, edge in edges.items():
        index = graph.edge_index(name)
        mask[index], scores[index] = _edge(name, edge)
    without = [name for name, edge in edges.items() if "score" not in edge]
    if 0 < len(without) < len(edges):
        raise ValueError(f"edge {without[0]}: expected a score, as other edges have one")
    if len(edges) < graph.num_edges and ("format" in value or run.get("edges_kept", mask.sum()) != mask.sum()):
        recorded = f", of which its run kept {run['edges_kept']}" if "edges_kept" in run else ""
        raise ValueError(
            f"edges: expected all {graph.num_edges} of the graph{recorded}; the file lists {len(edges)}, "
            f"{mask.sum()} of them kept: it was cut, save the circuit again"
        )
    _check_ends(graph, mask, nodes or {})
    return Contents(graph, mask, scores, run, d_model)


# --- the graph -------------------------------------------------------------------------------------


def cfg_of(graph: Graph) -> dict[str, Any]:
    """A graph as a file states it: in the public format's words where these say it all, else with its layout."""
    layout, layers = graph.layout, range(graph.num_layers)
    kinds = [(sender.layer, sender.kind) for sender in graph.sender_table]
    cfg: dict[str, Any] = {"n_layers": len(layers), "n_heads": kinds.count((0, "head")), "parallel_attn_mlp": False}
    if layout.neighbours_only:
        names = [sender.name for sender in graph.sender_table]
        units = [[name for name, (at, _) in zip(names, kinds, strict=True) if at == layer] for layer in (-1, *layers)]
        return {**cfg, "n_heads": 1, "units": units}
    if not all(has_mlp := [(layer, "mlp") in kinds for layer in layers]):
        cfg["mlps"] = has_mlp
    if graph.embeddings != ("input",):
        cfg["embeddings"] = list(graph.embeddings)
    moments = {moment for stack in layout.stacks for moment in stack.moments}
    cfg["parallel_attn_mlp"] = any(
        {"head", "attention"} & kinds and {"mlp", "neurons"} & kinds
        for kinds in ({nodes.kind for nodes in moment.nodes} for moment in moments)
    )
    if cfg["n_heads"] and not cfg["parallel_attn_mlp"] and graph_of(cfg, graph.nodes, ()) == graph:
        return cfg
    return {**cfg, "layout": layouts.to_json(layout)}


def graph_of(cfg: dict[str, Any], nodes: Collection[str] | None, edges: Collection[str]) -> Graph:
    """The graph that a file states by `cfg`, and by `nodes` where `cfg` does not say which layers have MLPs.

    Raises ValueError for sizes beyond what the file lists or `MOST_ENTRIES`, before a graph is built of them.
    """
    if "layout" in cfg:
        layout = layouts.from_json(cfg["layout"])
        senders, receivers = layouts.counts(layout)
        if senders + 1 != len(nodes or ()):
            raise ValueError(f"layout: expected the {len(nodes or ())} nodes that the file lists, got {senders + 1}")
        _check_size(senders * receivers, f"a layout of {senders} senders")
        return Graph(layout)
    layers: Any = cfg.get("n_layers")
    heads: Any = cfg.get("n_heads")
    if not is_count(layers, 1) or not is_count(heads, 1):
        raise ValueError(f"cfg: expected whole numbers n_layers, n_heads above 0, got {[layers, heads]}")
    if cfg.get("parallel_attn_mlp"):
        raise ValueError("cfg: circuits of models with parallel attention and MLP are not supported")
    if "units" in cfg:
        if not isinstance(cfg["units"], list) or not all(map(_are_names, cfg["units"])):
            raise ValueError("cfg: units: expected a list of layers, each a list of the names of units")
        count = sum(map(len, cfg["units"]))
        _check_size(count * count, f"{count} units")
        return Graph(layouts.of_units(tuple(map(tuple, cfg["units"]))))
    embeddings = cfg.get("embeddings", ["input"])
    if not _are_names(embeddings):
        raise ValueError("cfg: embeddings: expected a list of the names of senders")
    listed = len(edges) if nodes is None else len(nodes)
    if layers * heads > listed:
        what = "edges, and no nodes" if nodes is None else "nodes"
        raise ValueError(f"cfg: expected as many heads as the file lists, got {layers} x {heads} with {listed} {what}")
    size = (layers * (heads + 1) + len(embeddings)) * (layers * (3 * heads + 1) + 1)
    _check_size(size, f"{layers} layers of {heads} heads")
    mlps = cfg.get("mlps")
    if mlps is None:
        named = {name.partition("->")[0] for name in edges} if nodes is None else nodes
        mlps = [f"m{layer}" in named for layer in range(layers)]
    if not isinstance(mlps, list) or not all(type(has_mlp) is bool for has_mlp in mlps):
        raise ValueError("cfg: mlps: expected a list of true and false, one a layer")
    graph = Graph.transformer(layers, heads, mlps=tuple(mlps), embeddings=tuple(embeddings))
    if nodes is None and "mlps" not in cfg and len(edges) != graph.num_edges:
        raise ValueError(
            f"expected 'nodes', or all edges of the graph: by {len(edges)} edges alone, it is not known which layers "
            "of the model have MLPs"
        )
    return graph


def _check_size(entries: int, what: str) -> None:
    if entries > MOST_ENTRIES:
        raise ValueError(f"cfg: expected a mask of at most {MOST_ENTRIES:,} entries, got {what}, {entries:,}")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.isprintable() for name in value)


# --- nodes, edges, the record ----------------------------------------------------------------------


def _check_nodes(nodes: Any) -> None:
    """Raises ValueError for nodes that are none, or only in part."""
    if nodes is not None and not isinstance(nodes, dict):
        raise ValueError("nodes: expected a JSON object, the nodes by name")
    for name, node in (nodes or {}).items():
        if not isinstance(node, bool) and not (isinstance(node, dict) and isinstance(node.get("in_graph", True), bool)):
            raise ValueError(f"node {name}: expected an object with 'in_graph' true or false, got {node!r:.60}")
        if isinstance(node, dict) and (part := _neurons(node)) is not None:
            raise ValueError(
                f"node {name} has {part!r}: a circuit of single neurons cannot be read, as nodes are whole here; "
                "give one at the level of edges"
            )


def _neurons(node: dict[str, Any]) -> str | None:
    """The entry that chooses or scores some neurons of a node, or of an edge's sender; None where it is whole."""
    whole = node.get("neurons")
    if whole is not None and not (isinstance(whole, list) and whole and all(neuron is True for neuron in whole)):
        return "neurons"
    return next((key for key in node if key.startswith("neurons") and key != "neurons" and node[key] is not None), None)


def _check_ends(graph: Graph, mask: EdgeBools, nodes: dict[str, Any]) -> None:
    """Raises ValueError for a kept edge of a node that is said not to be in the circuit."""
    is_in = {name: node if isinstance(node, bool) else node.get("in_graph") for name, node in nodes.items()}
    left_out = {name for name, kept in is_in.items() if kept is False}
    for sender, receiver in np.argwhere(mask) if left_out else ():
        name, readers = graph.senders[sender], graph.owners(receiver)
        if name in left_out or left_out.issuperset(readers):
            out = name if name in left_out else readers[0]
            raise ValueError(f"nodes: {out} is not in the circuit, but edge {graph.edge_name(sender, receiver)} is")


def _edge(name: str, edge: Any) -> tuple[bool, float]:
    if not isinstance(edge, dict) or not isinstance(edge.get("in_graph"), bool):
        raise ValueError(f"edge {name}: expected an object with 'in_graph' true or false")
    if (part := _neurons(edge)) is not None:
        raise ValueError(f"edge {name} has {part!r}: a circuit of single neurons cannot be read")
    score = edge.get("score", 0.0)
    if not is_number(score):
        raise ValueError(f"edge {name}: expected a finite number as score, got {score!r}")
    return edge["in_graph"], float(score)


def check_run(run: Any) -> None:
    """Raises ValueError for a record with an entry of another kind than programs read there."""
    if not isinstance(run, dict):
        raise ValueError("run: expected a JSON object")
    typed, selection, source, replicates, cluster = (run.get(name, {}) for name in TABLES)
    for names, is_so, kind in (
        (TEXTS, _is_text, "a text"),
        (NUMBERS, _is_recorded, "a number"),
        (COUNTS, is_count, "a whole number, 0 or more"),
        (FLAGS, _is_flag, "true or false"),
        (TABLES, _is_table, "a JSON object"),
    ):
        for name in names:
            if name in run and not is_so(run[name]):
                raise ValueError(f"run: {name}: expected {kind}, got {run[name]!r:.60}")
    for where, table, name, is_so, kind in (
        ("config", typed, "task", _is_text, "a text"),
        ("config", typed, "model", _is_text, "a text"),
        ("config", typed, "size", is_count, "a whole number, 0 or more"),
        ("config", typed, "seed", is_count, "a whole number, 0 or more"),
        ("source", source, "task", _is_text, "a text"),
        ("source", source, "model", _is_text, "a text"),
        ("source", source, "digest_of_pairs", _is_text, "a text"),
        ("source", source, "seed", is_count, "a whole number, 0 or more"),
        ("selection", selection, "rank", _is_text, "a text"),
    ):
        if table.get(name) is not None and not is_so(table[name]):
            raise ValueError(f"run: {where}: {name}: expected {kind}, got {table[name]!r:.60}")
    if "replicates" in run:
        _check_replicates(replicates)
    weights = run.get("prompt_weights", [])
    if not isinstance(weights, list) or not all(is_number(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"run: prompt_weights: expected a list of numbers, 0 or more, got {weights!r:.60}")
    for name in ("within", "without"):
        if not isinstance(run.get(name, []), list) or not all(map(_is_text, run.get(name, []))):
            raise ValueError(f"run: {name}: expected a list of edges' names, got {run[name]!r:.60}")
    prompts = cluster.get("prompts", [])
    if not isinstance(prompts, list) or not all(map(is_count, prompts)):
        raise ValueError(f"run: cluster: prompts: expected a list of the numbers of prompts, got {prompts!r:.60}")


def _check_replicates(value: dict[str, Any]) -> None:
    """Raises ValueError for replicates that do not say how many of how many keep each edge."""
    count, kept = value.get("count"), value.get("kept")
    if not is_count(count, 1):
        raise ValueError(f"run: replicates: count: expected a whole number above 0, got {count!r:.60}")
    if not isinstance(kept, dict) or not all(is_count(number) and number <= count for number in kept.values()):
        raise ValueError(f"run: replicates: kept: expected up to {count} for edges by name, got {kept!r:.60}")
    left_out = value.get("left_out", 0.5)
    if not is_number(left_out) or not 0 < left_out < 1:
        raise ValueError(f"run: replicates: left_out: expected a share above 0 and below 1, got {left_out!r:.60}")
    for name in ("edges", "metrics", "jaccards"):
        if not isinstance(value.get(name), list) or not value[name] or not all(map(is_number, value[name])):
            raise ValueError(f"run: replicates: {name}: expected a list of numbers, got {value.get(name)!r:.60}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_recorded(value: Any) -> bool:
    """A number as records hold it: NaN and infinity by their names."""
    return is_number(value) or value in ("nan", "inf", "-inf")
