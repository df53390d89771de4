"""The `Scores` record: one number an edge, higher = keep, and how it came about."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from . import notebook
from .arguments import is_count
from .finite import check_finite, real_array, untraced
from .graph import Graph
from .types import EdgeBools, EdgeScores

if TYPE_CHECKING:
    import pandas

Span = tuple[int, int]
"""Token positions from the first to before the second."""

Positions = Sequence[int | Sequence[int]]
"""Token positions, or spans of them as (first, before which)."""


def spans_within(positions: Positions, width: int) -> tuple[Span, ...]:
    """Positions and spans, all as spans, in prompts of `width` tokens.

    Raises ValueError for none, and for a span that is empty or beyond the prompts.
    """
    if not isinstance(positions, Sequence | np.ndarray) or isinstance(positions, str):
        raise ValueError(f"positions: expected a list of positions or spans, got {positions!r:.60}")
    spans = []
    for span in positions:
        ends: Any = (span, span + 1) if is_count(span) else span  # type: ignore[operator]
        is_pair = isinstance(ends, tuple | list | np.ndarray) and len(ends) == 2 and all(map(is_count, ends))
        if not is_pair or not ends[0] < ends[1] <= width:
            raise ValueError(f"positions: expected positions 0 to {width - 1} or spans (first, end), got {span!r}")
        spans.append((int(ends[0]), int(ends[1])))
    if not spans:
        raise ValueError("positions: expected at least one position or span, got none")
    return tuple(spans)


def positions_inside(spans: Sequence[Span], width: int) -> Bool[np.ndarray, "span position"]:
    """Which of `width` positions lie in each span."""
    where = np.arange(width)
    return np.array([(first <= where) & (where < end) for first, end in spans])


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """One number an edge; higher = keep.

    - `values`: [sender, receiver] float64, 0 where there is no edge; [span, sender, receiver] with `positions`.
    - `signed`: whether the sign means anything: below 0, removing the edge lowers the loss.
    - `method`: its name. `run`: hyperparameters, cost, and what the objective was.
    - `positions`: the spans of token positions at which edges were scored one by one; None: all at once.

    Raises ValueError for values of another shape, NaN or infinity.
    """

    graph: Graph
    values: Float[np.ndarray, "*span sender receiver"]
    signed: bool
    method: str
    run: dict[str, Any]
    positions: tuple[Span, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.graph, Graph) or not isinstance(self.signed, bool | np.bool_):
            raise ValueError(
                f"graph, signed: expected a Graph, True or False, got {self.graph!s:.60}, {self.signed!r:.60}"
            )
        if not isinstance(self.method, str) or not isinstance(self.run, dict):
            raise ValueError(f"method, run: expected a text and a dict, got {self.method!r:.60} and {self.run!r:.60}")
        values = untraced(f"scores ({self.method})", real_array(f"scores ({self.method})", self.values)).astype(
            np.float64
        )
        if self.positions is not None and not isinstance(self.positions, tuple | list):
            raise ValueError(f"positions: expected spans (first, end), got {self.positions!r:.60}")
        shape = self.graph.shape if self.positions is None else (len(self.positions), *self.graph.shape)
        if values.shape != shape:
            raise ValueError(f"values: expected shape {shape}, got {values.shape}")
        values = np.where(self.graph.valid, values, 0.0)
        axes = {} if self.positions is None else {"span": [f"{first}:{end}" for first, end in self.positions]}
        axes |= {"sender": self.graph.senders, "receiver": self.graph.receivers}
        check_finite(f"scores ({self.method})", values, **axes)
        record = {**self.run, "method": self.method, "signed": self.signed}
        if self.positions is not None:
            record["positions"] = [list(span) for span in self.positions]
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "run", record)

    @property
    def scores(self) -> EdgeScores:
        """`values` as a circuit holds them. Raises ValueError for scores of several spans of positions."""
        if self.positions is not None:
            raise ValueError(f"scores at {len(self.positions)} spans of positions: choose one, at(i), or take total()")
        return self.values

    @property
    def mask(self) -> EdgeBools:
        """Every edge: scores alone choose none, so `Circuit.of(scores)` is the whole graph, scored."""
        return self.graph.valid

    def to_pandas(self) -> "pandas.DataFrame":
        """One row an edge of the graph: edge, sender, receiver, kind, score, kept. Needs pandas."""
        return notebook.edges_frame(self.graph, self.mask, self.scores)

    def _repr_html_(self) -> str:
        spans = "" if self.positions is None else f" at {len(self.positions)} spans of positions, summed"
        title = f"Scores by {self.method}{spans}"
        return notebook.edges_html(title, self.graph, self.mask, self.total().values, self.run)

    def at(self, span: int) -> "Scores":
        """The scores of one span of positions. Raises ValueError for a number that is none."""
        if self.positions is None or not is_count(span) or not span < len(self.positions):
            raise ValueError(f"at: expected the number of one of {len(self.positions or ())} spans, got {span}")
        run = {**self.run, "positions": [list(self.positions[span])]}
        return dataclasses.replace(self, values=self.values[span], run=run, positions=None)

    def total(self) -> "Scores":
        """The sum over the spans: of a gradient method with spans that part the prompt, the score of the whole edge."""
        if self.positions is None:
            return self
        return dataclasses.replace(self, values=self.values.sum(0), positions=None)

    def of(self, edge: str) -> float:
        """The score of an edge, by its name. Raises ValueError for a name that is no edge."""
        return float(self.scores[self.graph.edge_index(edge)])


def ensemble(parts: Sequence[Scores], *, scale: str = "rank") -> Scores:
    """The mean of several methods' scores, or of one method's on several data sets, each scaled first.

    - `scale`: "rank": an edge's place among all edges that could be in, from 0 (lowest) to 1, ties by their mean place;
      or "norm": divided by the L2 norm.

    Raises ValueError for an unknown scale, no parts, parts of different graphs or without different edges, and scores
    without a sign mixed with signed ones.
    """
    if scale not in ("rank", "norm"):
        raise ValueError(f"scale: expected 'rank' or 'norm', got {scale!r}")
    if not isinstance(parts, Sequence) or not all(isinstance(part, Scores) for part in parts):
        raise ValueError(f"ensemble: expected a list of scores, got {parts!r:.60}")
    if not parts or any(part.graph != parts[0].graph for part in parts):
        raise ValueError(f"ensemble: expected at least one part, all of one graph, got {len(parts)} parts")
    signed = {part.signed for part in parts}
    if len(signed) > 1:
        names = ", ".join(f"{part.method} ({'' if part.signed else 'un'}signed)" for part in parts)
        raise ValueError(f"ensemble: expected scores that all have a sign or all have none, got {names}")
    graph, offered = parts[0].graph, could_be_in(parts[0])
    if any((could_be_in(part) != offered).any() for part in parts):
        raise ValueError("ensemble: expected scores of the same edges, got some that are `within` or `without` others")
    scaled = [(_ranks if scale == "rank" else _unit)(part.scores[offered]) for part in parts]
    values = np.zeros(graph.shape)
    values[offered] = np.mean(scaled, axis=0)
    fewer = {name: parts[0].run[name] for name in ("within", "without", "edges_within") if name in parts[0].run}
    run = {"scale": scale, "parts": [part.run for part in parts], **fewer}
    return Scores(graph, values, scale == "norm" and signed == {True}, "ensemble", run)


def could_be_in(scored: Any) -> EdgeBools:
    """The edges that could be in when they were scored, by the record: those `within`, or all but those `without`.

    - `scored`: scores or a circuit.
    """
    graph, run = scored.graph, scored.run
    return graph.mask_of(run["within"]) if "within" in run else graph.valid & ~graph.mask_of(run.get("without", []))


def _ranks(values: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    places = np.cumsum(counts) - (counts + 1) / 2
    return places[inverse] / max(1, len(values) - 1)


def _unit(values: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    values = np.ldexp(values, -np.frexp(np.abs(values).max(initial=0))[1])  # to the same bits, with a norm that exists
    return values / (np.linalg.norm(values) or 1.0)
