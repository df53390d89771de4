"""Spans of positions as units: what a node writes at some tokens is a sender apart from what it writes at others."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..layout import Layout, Nodes, Port
from ..span_names import Span, is_span_name, part_names, span_text
from ..types import SenderValues, Tokens
from . import crossing, runs
from .architecture import Layer, Positions
from .regrouped import Ports, Regrouped


class Spanned(Regrouped):
    """The model with every node divided over `spans`: an edge is `this sender into this receiver, at these tokens`.

    The receiver reads position by position, so the edge from what a node writes in a span is the node's edge there.
    """

    spans: tuple[Span, ...] = eqx.field(static=True)

    @property
    def spans_text(self) -> str:
        return ",".join(span_text(span) for span in self.spans if span is not None)

    @property
    def layout(self) -> Layout:
        own = super().layout
        return own._replace(embeddings=part_names(own.embeddings, self.spans))

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        return ports, dataclasses.replace(nodes, spans=self.spans)

    def read_all(
        self, port: Port, layer: Layer, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "receiver at *features"]:
        """The model's own."""
        return self.model.read_all(port, layer, x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """The model's own; `runs.written` divides the rows over spans."""
        return self.model.write_all(nodes, layer, ys, at)

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """The model's, in each span."""
        rows = self.model.embeddings(tokens)
        return self.in_spans(rows, runs.positions_of(rows))

    def inside(self, at: Positions) -> Bool[Array, "span at"]:
        """Which of the positions `at` lie in each span."""
        ends = [span if isinstance(span, tuple) else (0, 0) for span in self.spans]
        first, end = np.array(ends, np.int32).T[..., None]
        named = (jnp.asarray(first) <= at[None]) & (at[None] < jnp.asarray(end))
        is_rest = jnp.array([[span is None] for span in self.spans])
        return jnp.where(is_rest, ~jnp.any(named, 0)[None], named)

    def in_spans(self, rows: Float[Array, "node at width"], at: Positions) -> Float[Array, "row at width"]:
        """Each row's part in each span of positions, nothing elsewhere."""
        return jnp.where(self.inside(at)[None, :, :, None], rows[:, None], 0).reshape(-1, *rows.shape[1:])

    def crossing(
        self,
        tokens: Tokens,
        reference: SenderValues,
        score: Callable[[Float[Array, "position width"]], Float[Array, ""]],
    ) -> Float[Array, "layer head port span span"]:
        """What every head takes from each span at each, as the gradient of `score(residual)` counts it; `crossing.py`.

        `reference`: what senders write in the run whose queries, keys and values take the place of the clean ones.
        """
        written, slopes = self.receiver_slopes(tokens, score)
        clean, other = self.node_values(written), self.node_values(reference)
        with self.computing():
            return crossing.effects(self, clean, other, slopes)


class NamedSpans(Spanned):
    """The model with every node divided over spans that lie elsewhere in each prompt, `a0.h3@subject`.

    - `span_at`: which of the spans each position of ONE prompt is in; `of_prompt` says so, first in every run.
    """

    span_at: Int[Array, " position"] | None = None

    @property
    def span_names(self) -> tuple[str, ...]:
        return tuple(span for span in self.spans if isinstance(span, str))

    def of_prompt(self, span_at: Int[Array, " position"] | None) -> "NamedSpans":
        """The model of a prompt whose spans lie there, as `PromptPairs.span_at` says."""
        return dataclasses.replace(self, span_at=span_at)

    def inside(self, at: Positions) -> Bool[Array, "span at"]:
        """Which of the positions `at` lie in each span of the prompt. Raises ValueError for a model of no prompt."""
        if self.span_at is None:
            raise ValueError(
                f"spans: the model is divided at {self.spans_text}, which lie elsewhere in each prompt: run its "
                "`of_prompt(span_at)`, an objective, or its `model`, which is not divided"
            )
        return self.span_at[at][None] == jnp.arange(len(self.spans), dtype=self.span_at.dtype)[:, None]


def spans_of(text: str) -> tuple[tuple[int, int], ...] | tuple[str, ...]:
    """The spans of `0:4,4:8`, each ends before its second number, or of names, `subject,verb`.

    Raises ValueError for another text.
    """
    parts = text.split(",")
    if all(map(is_span_name, parts)):
        return tuple(parts)
    pairs = [part.split(":") for part in parts]
    if not all(len(pair) == 2 and all(map(str.isdecimal, pair)) for pair in pairs):
        raise ValueError(
            "spans: expected first and end positions, as 0:4,4:8, or names of spans of the prompts, as subject,verb "
            f"(letters, digits, underscores; not rest), got {text!r}"
        )
    return tuple((int(first), int(end)) for first, end in pairs)


def checked_spans(spans: tuple[tuple[int, int], ...], positions: int) -> tuple[Span, ...]:
    """The spans, and one of the other positions if there are some, of prompts of up to so many.

    Raises ValueError for spans that are empty, share a position, or lie beyond the longest prompt.
    """
    ordered = sorted(spans)
    is_apart = all(before[1] <= after[0] for before, after in zip(ordered, ordered[1:], strict=False))
    if not spans or not is_apart or not all(0 <= first < end <= positions for first, end in spans):
        raise ValueError(
            f"spans: expected first and end positions from 0 to {positions}, no position twice, got {list(spans)}"
        )
    covers = sum(end - first for first, end in spans) == positions
    return tuple(spans) if covers else (*spans, None)


def checked_names(names: tuple[Any, ...]) -> tuple[Span, ...]:
    """The spans of these names, and the one of the other positions. Raises ValueError for a name twice, or no name."""
    if not all(map(is_span_name, names)) or len(set(names)) < len(names):
        raise ValueError(
            "spans: expected different names of letters, digits and underscores, not rest, or first and end "
            f"positions alone, got {list(names)}"
        )
    return *names, None
