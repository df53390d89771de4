"""Spans of token positions, over which nodes may be divided, and what they are called."""

import re
from typing import Any

Span = tuple[int, int] | str | None
"""Positions from the first on, before the end; a name: where each prompt says; None: those of no other span."""

REST = "rest"
"""What the positions of no other span are called."""


def is_span_name(name: Any) -> bool:
    """Whether it can be the name of a span: letters, digits and underscores, a letter first, and not `REST`."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None and name != REST


def span_text(span: Span) -> str:
    """What a span is called in the name of a sender."""
    return REST if span is None else span if isinstance(span, str) else f"{span[0]}:{span[1]}"


def part_names(names: tuple[str, ...], spans: tuple[Span, ...]) -> tuple[str, ...]:
    """Names of the senders that nodes of these names are."""
    return tuple(f"{name}@{span_text(span)}" for name in names for span in spans) if spans else names
