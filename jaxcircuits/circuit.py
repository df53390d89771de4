"""The `Circuit` record and its file: JSON that MIB and EAP-IG read too, and theirs read here."""

import dataclasses
import heapq
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from . import notebook
from .arguments import check_number, checked, is_count
from .circuit_file import FORMAT, cfg_of, contents_of
from .files import plain, read_json, write_json
from .finite import check_finite, real_array, untraced
from .graph import Graph
from .masks import edges_of
from .run import extended
from .scores import Scores
from .scores import could_be_in as could_be_in
from .types import EdgeBools, EdgeScores, MaskLike

if TYPE_CHECKING:
    import pandas

RANKS = ("signed", "absolute")

OF_ANOTHER = ("metric_final", "groups_kept", "kept_groups")
"""Entries of a run's record that hold for the circuit that it found, not for one that is selected by its scores."""


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
        if not isinstance(self.graph, Graph):
            raise ValueError(f"graph: expected a Graph, got {self.graph!r:.60}")
        object.__setattr__(self, "mask", untraced("mask", self.mask))
        if self.mask.dtype != bool:
            raise ValueError(f"mask: expected True and False, got {self.mask.dtype}; choose edges, as by mask > 0.5")
        object.__setattr__(self, "scores", untraced("scores", real_array("scores", self.scores)))
        if not isinstance(self.run, dict) or not is_count(self.d_model):
            got = f"{self.run!r:.60} and {self.d_model!r:.60}"
            raise ValueError(f"run, d_model: expected a dict and a whole number, got {got}")
        for name in ("mask", "scores"):
            if getattr(self, name).shape != self.graph.shape:
                raise ValueError(f"{name}: expected shape {self.graph.shape}, got {getattr(self, name).shape}")
        check_finite("scores", self.scores, sender=self.graph.senders, receiver=self.graph.receivers)
        object.__setattr__(self, "mask", self.mask & self.graph.valid)

    @classmethod
    def of(cls, result: Any, *, d_model: int = 0, **run: Any) -> "Circuit":
        """The circuit of a discovery result (`graph`, `mask`, `scores`, `run`).

        - `run` adds to its record: `task`, `model` and the prompts' `seed` let it be judged from its file alone.

        Raises ValueError for what is no result.
        """
        if missing := [name for name in ("graph", "mask", "scores", "run") if not hasattr(result, name)]:
            raise ValueError(f"expected a discovery result, got {type(result).__name__}, which has no {missing[0]}")
        return cls(result.graph, result.mask, result.scores, extended(result.run, run), d_model)

    @classmethod
    @checked
    def select(
        cls,
        scored: "Scores | Circuit",
        *,
        edges: int | None = None,
        threshold: float | None = None,
        at_least: float | None = None,
        rank: str = "signed",
        greedy: bool = False,
        within: MaskLike | None = None,
    ) -> "Circuit":
        """The circuit of the best edges, without dead ends.

        - `scored`: scores, or a scored circuit as it is loaded from a file.
        - `edges`: take so many, ties by edge order; or `threshold`: take those that score at least this; or
          `at_least`: those that at least so large a share of a circuit's replicates keeps (`shares`).
        - `rank`: by "signed" scores or by their "absolute" values.
        - `greedy`: from the logits on, repeatedly the best edge into a node that is in already.
        - `within`: a mask of the edges among which to choose; default all.

        Edges that were absent when they were scored come last, and reach no threshold.
        Dead ends go after that; the record has both counts. Raises ValueError for a bad choice.
        """
        if not hasattr(scored, "graph"):
            raise ValueError(f"select: expected scores or a scored circuit, got a {type(scored).__name__}")
        graph = scored.graph
        if rank not in RANKS:
            raise ValueError(f"rank: expected one of {', '.join(RANKS)}, got {rank!r}")
        if sum(choice is not None for choice in (edges, threshold, at_least)) != 1:
            raise ValueError("select: expected one of a number of edges, a threshold and a share of the replicates")
        if edges is not None and not (is_count(edges) and edges <= graph.num_edges):
            raise ValueError(f"edges: expected 0 to {graph.num_edges}, got {edges!r:.60}")
        if threshold is not None:
            check_number("threshold", threshold)
        strength = np.abs(scored.scores) if rank == "absolute" else scored.scores
        strength = np.where(could_be_in(scored), strength, -np.inf)
        if at_least is not None:
            strength, threshold = _shares(scored, at_least), at_least
        count = graph.num_edges if edges is None else edges
        least = -np.inf if threshold is None else threshold
        offered = graph.valid if within is None else graph.valid & edges_of(within, graph, "within")
        mask = (_greedy if greedy else _best)(graph, offered, strength, count, least)
        if at_least is None:
            chosen = {"rank": rank, "greedy": greedy, "edges": edges, "threshold": threshold}
        else:
            chosen = {"at_least": at_least, "greedy": greedy}
        run = {key: value for key, value in scored.run.items() if key not in OF_ANOTHER}
        run["selection"] = {key: value for key, value in chosen.items() if value is not None}
        return cls(graph, mask, scored.scores, run, getattr(scored, "d_model", 0)).drop_dead_ends()

    @property
    def shares(self) -> EdgeScores | None:
        """The share of its replicates that keep each edge (`replicates`); None without replicates."""
        if (replicates := self.run.get("replicates")) is None:
            return None
        shares = np.zeros(self.graph.shape)
        for name, kept in replicates["kept"].items():
            shares[self.graph.edge_index(name)] = kept / replicates["count"]
        return shares

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

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Writes the circuit as JSON, whole or not at all."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The circuit as its file has it, in JSON's types."""
        graph = self.graph
        cfg = cfg_of(graph)
        kept = set(self.nodes) | {*graph.embeddings, "logits"}
        return {
            "format": FORMAT,
            "cfg": {**cfg, "d_model": self.d_model},
            "nodes": {name: {"in_graph": name in kept} for name in graph.nodes},
            "edges": {
                graph.edge_name(s, r): {"score": float(self.scores[s, r]), "in_graph": bool(self.mask[s, r])}
                for s, r in graph.edges
            },
            "run": {key: plain(entry) for key, entry in self.run.items()},
        }

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike) -> "Circuit":
        """Reads a circuit of this library, of MIB or of EAP-IG. Raises ValueError for anything malformed."""
        value = read_json(path, "circuit file")
        try:
            return cls(*contents_of(value))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _shares(scored: "Scores | Circuit", at_least: float) -> EdgeScores:
    check_number("at_least", at_least, 0.0, 1.0)
    if not at_least:
        raise ValueError("at_least: expected a share above 0, got 0: every edge has that")
    shares = getattr(scored, "shares", None)
    if shares is None:
        raise ValueError("at_least: expected a circuit with replicates (`replicates`, `discover --replicates`)")
    return shares


def _best(graph: Graph, offered: EdgeBools, strength: EdgeScores, count: int, least: float) -> EdgeBools:
    """The `count` strongest of the edges on offer that are at least `least`; ties by edge order."""
    values = strength[offered]
    first = np.argsort(-values, kind="stable")[:count]
    chosen = np.zeros(len(values), bool)
    chosen[first[values[first] >= least]] = True
    mask = np.zeros(graph.shape, bool)
    mask[offered] = chosen
    return mask


def _greedy(graph: Graph, offered: EdgeBools, strength: EdgeScores, count: int, least: float) -> EdgeBools:
    """Repeatedly the strongest edge on offer into a node that is in, starting at `logits`; ties by edge order."""
    mask = np.zeros(graph.shape, bool)
    offered = offered.copy()
    edges: list[tuple[float, int, int]] = []

    def offer(node: str) -> None:
        for receiver in graph.inputs(node):
            for sender in np.flatnonzero(offered[:, receiver]):
                heapq.heappush(edges, (-strength[sender, receiver], int(sender), int(receiver)))
            offered[:, receiver] = False

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
