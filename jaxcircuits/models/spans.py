"""Spans of positions as units: what a node writes at some tokens is a sender apart from what it writes at others."""

import dataclasses

import equinox as eqx
from jaxtyping import Array, Float

from ..layout import Layout, Nodes, Span, part_names
from ..types import Tokens
from . import runs
from .regrouped import Ports, Regrouped


class Spanned(Regrouped):
    """The model with every node divided over `spans`: an edge is `this sender into this receiver, at these tokens`.

    The receiver reads position by position, so the edge from what a node writes in a span is the node's edge there.
    """

    spans: tuple[Span, ...] = eqx.field(static=True)

    @property
    def spans_text(self) -> str:
        return ",".join(f"{span[0]}:{span[1]}" for span in self.spans if span is not None)

    @property
    def layout(self) -> Layout:
        own = super().layout
        return own._replace(embeddings=part_names(own.embeddings, self.spans))

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        return ports, dataclasses.replace(nodes, spans=self.spans)

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """The model's, in each span."""
        rows = self.model.embeddings(tokens)
        return runs.in_spans(rows, self.spans, runs.positions_of(rows))


def spans_of(text: str) -> tuple[tuple[int, int], ...]:
    """The spans of `0:4,4:8`; each ends before its second number. Raises ValueError for another text."""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and all(map(str.isdecimal, pair)) for pair in pairs):
        raise ValueError(f"spans: expected first and end positions, as 0:4,4:8, got {text!r}")
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
