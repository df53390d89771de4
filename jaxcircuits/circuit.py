"""The `Circuit` record and its file: JSON that MIB and EAP-IG read too, and theirs read here."""

import dataclasses
import heapq
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import layout as layouts
from . import notebook
from .files import plain, write_json
from .graph import Graph
from .scores import Scores
from .types import EdgeBools, EdgeScores

if TYPE_CHECKING:
    import pandas

FORMAT = "jaxcircuits/1"
RANKS = ("signed", "absolute")


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
    """Which edges are in, their scores, and how that was found.

    - `mask`: bool [sender, receiver]. `scores`: higher = keep; `run["signed"]` says whether the sign means anything.
    - `run`: the record of the run: method, task, metric, reference, ablation, threshold, decisions, versions, ...
    - `d_model`: the model's width, 0 if unknown.
    """

    graph: Graph
    mask: EdgeBools
    scores: EdgeScores
    run: dict[str, Any]
    d_model: int = 0

    def __post_init__(self) -> None:
        for name in ("mask", "scores"):
            if getattr(self, name).shape != self.graph.shape:
                raise ValueError(f"{name}: expected shape {self.graph.shape}, got {getattr(self, name).shape}")
        if not np.isfinite(self.scores).all():
            raise ValueError("scores: expected finite numbers, got NaN or infinity")
        object.__setattr__(self, "mask", self.mask.astype(bool) & self.graph.valid)

    @classmethod
    def of(cls, result: Any, *, d_model: int = 0, **run: Any) -> "Circuit":
        """The circuit of a discovery result (`graph`, `mask`, `scores`, `run`); `run` adds to its record."""
        return cls(result.graph, result.mask, result.scores, {**result.run, **run}, d_model)

    @classmethod
    def select(
        cls,
        scored: "Scores | Circuit",
        *,
        edges: int | None = None,
        threshold: float | None = None,
        rank: str = "signed",
        greedy: bool = False,
    ) -> "Circuit":
        """The circuit of the best edges, without dead ends.

        - `scored`: scores, or a scored circuit as it is loaded from a file.
        - `edges`: take so many, ties by edge order; or `threshold`: take those that score at least this.
        - `rank`: by "signed" scores or by their "absolute" values.
        - `greedy`: from the logits on, repeatedly the best edge into a node that is in already.

        Dead ends go after that; the record has both counts. Raises ValueError for a bad choice.
        """
        graph = scored.graph
        if rank not in RANKS:
            raise ValueError(f"rank: expected one of {', '.join(RANKS)}, got {rank!r}")
        if (edges is None) == (threshold is None):
            raise ValueError("select: expected either a number of edges or a threshold")
        if edges is not None and not 0 <= edges <= graph.num_edges:
            raise ValueError(f"edges: expected 0 to {graph.num_edges}, got {edges}")
        if threshold is not None and not np.isfinite(threshold):
            raise ValueError(f"threshold: expected a finite number, got {threshold}")
        strength = np.abs(scored.scores) if rank == "absolute" else scored.scores
        count = graph.num_edges if edges is None else edges
        least = -np.inf if threshold is None else threshold
        mask = (_greedy if greedy else _best)(graph, strength, count, least)
        chosen = {"rank": rank, "greedy": greedy, "edges": edges, "threshold": threshold}
        run = {**scored.run, "selection": {key: value for key, value in chosen.items() if value is not None}}
        return cls(graph, mask, scored.scores, run, getattr(scored, "d_model", 0)).drop_dead_ends()

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the edges in the circuit, in edge order."""
        return self.graph.names_of(self.mask)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that touch an edge of the circuit."""
        kept = self.graph.edges_to_nodes(self.mask)
        return tuple(name for name, is_kept in zip(self.graph.nodes, kept, strict=True) if is_kept)

    @property
    def num_edges(self) -> int:
        return int(self.mask.sum())

    def to_pandas(self) -> "pandas.DataFrame":
        """One row an edge of the graph: edge, sender, receiver, kind, score, kept. Needs pandas."""
        return notebook.edges_frame(self.graph, self.mask, self.scores)

    def _repr_html_(self) -> str:
        title = f"Circuit: {self.num_edges:,} of {self.graph.num_edges:,} edges, {len(self.nodes)} nodes"
        return notebook.edges_html(title, self.graph, self.mask, self.scores, self.run)

    def drop_dead_ends(self) -> "Circuit":
        """Without the edges on no path from an embedding to `logits`; the record gets both counts."""
        mask = self.graph.drop_dead_ends(self.mask)
        run = {**self.run, "edges_with_dead_ends": self.num_edges, "edges_kept": int(mask.sum())}
        return dataclasses.replace(self, mask=mask, run=run)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the circuit as JSON, whole or not at all."""
        graph = self.graph
        kept = set(self.nodes) | {*graph.embeddings, "logits"}
        value = {
            "format": FORMAT,
            "cfg": {**_cfg(graph), "d_model": self.d_model},
            "nodes": {name: {"in_graph": name in kept} for name in graph.nodes},
            "edges": {
                graph.edge_name(s, r): {"score": float(self.scores[s, r]), "in_graph": bool(self.mask[s, r])}
                for s, r in graph.edges
            },
            "run": {key: plain(entry) for key, entry in self.run.items()},
        }
        write_json(path, value)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Circuit":
        """Reads a circuit of this library, of MIB or of EAP-IG. Raises ValueError for anything malformed."""
        path = Path(path)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"no circuit file {path}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no JSON file: {error}") from None
        try:
            return cls._from_json(value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_json(cls, value: Any) -> "Circuit":
        if not isinstance(value, dict) or not all(isinstance(value.get(key), dict) for key in ("cfg", "edges")):
            raise ValueError("expected a circuit: a JSON object with 'cfg' and 'edges'")
        if value.get("format", FORMAT) != FORMAT:
            raise ValueError(f"format {value['format']!r} is not known; this version reads {FORMAT!r}")
        cfg = value["cfg"]
        d_model = cfg.get("d_model", 0)
        if type(d_model) is not int or d_model < 0:
            raise ValueError(f"cfg: d_model: expected a whole number, got {d_model!r}")
        graph = _graph(cfg, {name.partition("->")[0] for name in value["edges"]})
        mask, scores = np.zeros(graph.shape, bool), np.zeros(graph.shape)
        for name, edge in value["edges"].items():
            index = graph.edge_index(name)
            mask[index], scores[index] = _edge(name, edge)
        run = value.get("run", {})
        if not isinstance(run, dict):
            raise ValueError("run: expected a JSON object")
        return cls(graph, mask, scores, run, d_model)


def _cfg(graph: Graph) -> dict[str, Any]:
    """A graph as a file states it: in the public format's words where these say it all, else with its layout."""
    layout, layers = graph.layout, range(graph.num_layers)
    kinds = [(sender.layer, sender.kind) for sender in graph.sender_table]
    cfg = {"n_layers": len(layers), "n_heads": kinds.count((0, "head")), "parallel_attn_mlp": False}
    if layout.neighbours_only:
        names = [sender.name for sender in graph.sender_table]
        units = [[name for name, (at, _) in zip(names, kinds, strict=True) if at == layer] for layer in (-1, *layers)]
        return {**cfg, "n_heads": 1, "units": units}
    if not all(has_mlp := [(layer, "mlp") in kinds for layer in layers]):
        cfg["mlps"] = has_mlp
    if graph.embeddings != ("input",):
        cfg["embeddings"] = list(graph.embeddings)
    if cfg["n_heads"] and _graph(cfg, graph.senders) == graph:
        return cfg
    return {**cfg, "layout": layouts.to_json(layout)}


def _graph(cfg: dict[str, Any], senders: Collection[str]) -> Graph:
    """The graph that a file states; which layers have MLPs, if it does not say so, is what its `senders` tell."""
    if "layout" in cfg:
        return Graph(layouts.from_json(cfg["layout"]))
    layers, heads = cfg.get("n_layers"), cfg.get("n_heads")
    if type(layers) is not int or type(heads) is not int or layers < 1 or heads < 1:
        raise ValueError(f"cfg: expected whole numbers n_layers, n_heads above 0, got {[layers, heads]}")
    if cfg.get("parallel_attn_mlp"):
        raise ValueError("cfg: circuits of models with parallel attention and MLP are not supported")
    if "units" in cfg:
        if not isinstance(cfg["units"], list) or not all(map(_are_names, cfg["units"])):
            raise ValueError("cfg: units: expected a list of layers, each a list of the names of units")
        return Graph(layouts.of_units(tuple(map(tuple, cfg["units"]))))
    mlps = cfg.get("mlps") or [f"m{layer}" in senders for layer in range(layers)]
    if not isinstance(mlps, list) or not all(type(has_mlp) is bool for has_mlp in mlps):
        raise ValueError("cfg: mlps: expected a list of true and false, one a layer")
    embeddings = cfg.get("embeddings", ["input"])
    if not _are_names(embeddings):
        raise ValueError("cfg: embeddings: expected a list of the names of senders")
    return Graph.transformer(layers, heads, mlps=tuple(mlps), embeddings=tuple(embeddings))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _best(graph: Graph, strength: EdgeScores, count: int, least: float) -> EdgeBools:
    """The `count` strongest edges that are at least `least`; ties by edge order."""
    values = strength[graph.valid]
    first = np.argsort(-values, kind="stable")[:count]
    chosen = np.zeros(len(values), bool)
    chosen[first[values[first] >= least]] = True
    mask = np.zeros(graph.shape, bool)
    mask[graph.valid] = chosen
    return mask


def _greedy(graph: Graph, strength: EdgeScores, count: int, least: float) -> EdgeBools:
    """Repeatedly the strongest edge into a node that is in, starting at `logits`; ties by edge order."""
    mask = np.zeros(graph.shape, bool)
    offered = np.zeros(graph.shape, bool)
    edges: list[tuple[float, int, int]] = []

    def offer(node: str) -> None:
        for receiver in graph.inputs(node):
            for sender in np.flatnonzero(graph.valid[:, receiver] & ~offered[:, receiver]):
                heapq.heappush(edges, (-strength[sender, receiver], int(sender), int(receiver)))
            offered[:, receiver] = True

    offer("logits")
    while edges and count > 0:
        value, sender, receiver = heapq.heappop(edges)
        if -value < least:
            break
        is_new = not mask[sender].any()
        mask[sender, receiver] = True
        count -= 1
        if is_new:
            offer(graph.senders[sender])
    return mask


def _edge(name: str, edge: Any) -> tuple[bool, float]:
    if not isinstance(edge, dict) or not isinstance(edge.get("in_graph"), bool):
        raise ValueError(f"edge {name}: expected an object with 'in_graph' true or false")
    score = edge.get("score", 0.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:
        raise ValueError(f"edge {name}: expected a finite number as score, got {score!r}")
    return edge["in_graph"], float(score)
