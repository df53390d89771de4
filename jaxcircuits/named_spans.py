"""Spans of a task's prompts by name: where in each prompt its subject is, say, as columns of a task file tell."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Int

from .arguments import is_count
from .span_names import is_span_name

Ends = Int[np.ndarray, "batch 2"]
"""Of each prompt, the first token position of a span and the one before which it ends."""

REMEDY = "give its token positions, [first, end]"


def names_among(columns: Sequence[str], fields: Sequence[str]) -> list[str]:
    """The columns beside `fields` that name spans; what is nearly the name of a field is none: it was mistyped."""
    others = [name for name in columns if name not in fields and is_span_name(name)]
    return [name for name in others if not difflib.get_close_matches(name, fields, 1, 0.8)]


def read_span(value: Any, clean: str, corrupt: str, tokens: int, tokenizer: Any) -> tuple[int, int]:
    """The token positions of a span, as a column has it: the positions, or a text that the clean prompt has once.

    - `tokens`: how many the clean and the corrupt prompt have. A text's span are all tokens with a letter of it.

    Raises ValueError for positions beyond the prompt, and for a text that it has not exactly once, or that the corrupt
    prompt has at other tokens only.
    """
    if isinstance(value, str):
        return _of_text(value, clean, corrupt, tokens, tokenizer)
    is_pair = isinstance(value, list) and len(value) == 2 and all(map(is_count, value))
    if not is_pair or not value[0] < value[1] <= tokens:
        raise ValueError(
            f"expected a span: [first, end] of the {tokens} token positions, or a text that the clean prompt has once; "
            f"got {value!r:.60}"
        )
    return value[0], value[1]


def _of_text(text: str, clean: str, corrupt: str, tokens: int, tokenizer: Any) -> tuple[int, int]:
    places = _places(text, clean, tokens, tokenizer)
    if len(places) != 1:
        raise ValueError(
            f"expected a text that the clean prompt has once, got {text!r:.60}, which it has {len(places)} times: take "
            f"a longer one, or {REMEDY}"
        )
    elsewhere = _places(text, corrupt, tokens, tokenizer)
    if elsewhere and places[0] not in elsewhere:
        raise ValueError(
            f"expected the same tokens in both prompts, got {text!r:.60} at {list(places[0])} in the clean and at "
            f"{list(elsewhere[0])} in the corrupt one: {REMEDY} of both"
        )
    return places[0]


def _places(text: str, prompt: str, tokens: int, tokenizer: Any) -> list[tuple[int, int]]:
    """The token positions of every place where a prompt has a text."""
    if not text.strip():
        return []
    starts = [start for start in range(len(prompt)) if prompt.startswith(text, start)]
    if not starts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"the model's tokenizer does not say where in a text its tokens are: {REMEDY}")
    read = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    before, size = len(text) - len(text.lstrip()), len(text.strip())
    found = []
    for first in (start + before for start in starts):
        inside = [number for number, (begin, end) in enumerate(read) if begin < first + size and end > first]
        if not inside or len(read) != tokens:
            raise ValueError(f"no token of the prompt is known to have a letter of {text!r:.60}: {REMEDY}")
        found.append((inside[0], inside[-1] + 1))
    return found


def checked_ends(spans: Any, length: Int[np.ndarray, " batch"]) -> dict[str, Ends] | None:
    """Spans by name as int32 arrays; None for none. `length`: tokens of each prompt.

    Raises ValueError for names that are none, ends of another shape or kind, and, naming the prompt, for spans that are
    empty, lie beyond a prompt, or share a token.
    """
    if not isinstance(spans, Mapping) or not all(map(is_span_name, spans)):
        raise ValueError(
            "spans: expected ends by name (letters, digits, underscores; not rest), as {'subject': [[1, 3], ...]}, "
            f"got {spans!r:.60}"
        )
    checked = {}
    for name, ends in spans.items():
        ends = np.asarray(ends)
        if ends.shape != (len(length), 2) or ends.dtype.kind not in "iu":
            raise ValueError(f"spans: {name}: expected whole numbers ({len(length)}, 2), got {ends.dtype} {ends.shape}")
        good = (ends[:, 0] >= 0) & (ends[:, 0] < ends[:, 1]) & (ends[:, 1] <= length)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"spans: {name}: prompt {row}: expected first and end positions from 0 to {length[row]}, got "
                f"{ends[row].tolist()}"
            )
        checked[name] = ends.astype(np.int32)
    for one, other in combinations(checked, 2):
        (first, end), (begin, last) = checked[one].T, checked[other].T
        if (both := (first < last) & (begin < end)).any():
            row = int(np.flatnonzero(both)[0])
            raise ValueError(f"spans: prompt {row}: {one} and {other} share a token; expected no position twice")
    return checked or None


def span_at(spans: dict[str, Ends] | None, names: Sequence[str], width: int) -> Int[np.ndarray, "batch position"]:
    """Of each position of prompts of `width` tokens: which of the spans `names` it is in, `len(names)` for none.

    Raises ValueError for a name that the prompts have no span of.
    """
    if missing := [name for name in names if name not in (spans or {})]:
        own = f"those of {', '.join(spans)}" if spans else "prompts without spans"
        raise ValueError(
            f"spans: the model is divided at {', '.join(names)}: expected prompts that say where {', '.join(missing)} "
            f"is, in a column (an array) of that name in the task file or by `spans=`, got {own}"
        )
    assert spans is not None
    at, found = np.arange(width), np.full((len(spans[names[0]]), width), len(names), np.int32)
    for number, name in enumerate(names):
        first, end = spans[name].T[..., None]
        found[(first <= at) & (at < end)] = number
    return found
