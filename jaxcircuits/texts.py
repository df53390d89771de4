"""Prompts that are texts: their rows in a file, and the token ids that a tokenizer makes of them."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .files import is_text, parse_json, read_text, repeated
from .named_spans import names_among, read_span

PADDING = -1
FIELDS = ("clean", "corrupt", "answer", "wrong", "length", "positions", "year", "digits", "target", "group", "spans")
"""Of `PromptPairs`; a column whose name is almost one of these is mistyped."""

POSITIONS = re.compile(r"\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]")
"""A span's first and end position in a cell of a table."""

SENTENCEPIECE_SPACE = "\u2581"


def tokens_of(rows: Sequence[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Fields of `PromptPairs` from dicts with `clean`, `corrupt` and optionally `answer`, `wrong` (text or lists).

    Names of a `group` are numbered in their order; other columns are spans by name, as `read_span` reads them. Prompts
    of different lengths are padded on the right. Raises ValueError, naming the row, for a clean and a corrupt prompt of
    different lengths, for unknown tokens, for answers that are not one token, for a group in some rows only, and for
    columns that are no span.
    """
    if not isinstance(rows, Sequence) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"rows: expected a list of dicts, one a prompt, got {rows!r:.60}")
    if not rows:
        raise ValueError("no prompts: expected at least one row")
    clean, corrupt = [], []
    answers: dict[str, list[list[int]]] = {"answer": [], "wrong": []}
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in names_among([*rows[0]], FIELDS)}
    for number, row in enumerate(rows):
        missing = {"clean", "corrupt", *spans} - row.keys()
        unknown = row.keys() - {"clean", "corrupt", "answer", "wrong", "group", *spans}
        if missing or unknown:
            problem = f"misses {sorted(missing)}" if missing else f"has unknown fields {sorted(map(str, unknown))}"
            raise ValueError(
                f"row {number} {problem}; expected clean, corrupt and optionally answer, wrong, group, spans by name"
            )
        try:
            clean.append(encode(tokenizer, row["clean"]))
            corrupt.append(encode(tokenizer, row["corrupt"]))
            for name, ids in answers.items():
                if row.get(name) is not None:
                    texts = row[name] if isinstance(row[name], list) else [row[name]]
                    ids.append([encode_one(tokenizer, text) for text in texts])
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if len(clean[-1]) != len(corrupt[-1]):
            raise ValueError(
                f"row {number}: clean has {len(clean[-1])} tokens, corrupt {len(corrupt[-1])}: "
                "patching compares them token by token, so they must have the same number"
            )
        for name, ends in spans.items():
            try:
                ends.append(read_span(row[name], row["clean"], row["corrupt"], len(clean[-1]), tokenizer))
            except ValueError as error:
                raise ValueError(f"row {number}: {name}: {error}") from None
    for name, ids in answers.items():
        if ids and len(ids) != len(rows):
            raise ValueError(f"{len(ids)} of {len(rows)} rows have {name!r}: expected all or none")
    return {
        "clean": pad(clean, 0),
        "corrupt": pad(corrupt, 0),
        "length": np.array([len(ids) for ids in clean], np.int32),
        **{name: pad(ids, PADDING) for name, ids in answers.items() if ids},
        **_groups_of(rows),
        **({"spans": spans} if spans else {}),
    }


def _groups_of(rows: Sequence[dict[str, Any]]) -> dict[str, Int[np.ndarray, " row"]]:
    """The number of each row's `group`; nothing where no row has one. Raises ValueError where some have none."""
    names = [row.get("group") for row in rows]
    if all(name is None for name in names):
        return {}
    for number, name in enumerate(names):
        if not isinstance(name, str | int) or name == "":
            raise ValueError(
                f"row {number}: group: expected a text or a whole number in all rows or none, got {name!r:.60}"
            )
    return {"group": np.unique([str(name) for name in names], return_inverse=True)[1].astype(np.int32)}


def encode(tokenizer: Any, text: object) -> list[int]:
    """Token ids of a text, nothing added. Raises ValueError for text that the tokenizer does not know."""
    if not isinstance(text, str) or not text or not is_text(text):
        raise ValueError(f"expected a text, got {text!r:.60}")
    ids = tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and ids.count(unknown) > text.count(tokenizer.unk_token):
        words = [word for word in text.split() if unknown in tokenizer.encode(word, add_special_tokens=False)]
        raise ValueError(f"the model's tokenizer does not know {words[0] if words else text!r} in {text!r}")
    if not ids:
        raise ValueError(f"{text!r} has no tokens")
    return list(ids)


def encode_after(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on from another, nothing added, also by a tokenizer that begins with a space."""
    pieces = tokenizer.tokenize("a") if hasattr(tokenizer, "tokenize") else []
    if not "".join(pieces).startswith(SENTENCEPIECE_SPACE):
        return list(tokenizer.encode(text, add_special_tokens=False))
    before = tokenizer.encode("\n", add_special_tokens=False)
    return list(tokenizer.encode(f"\n{text}", add_special_tokens=False))[len(before) :]


def encode_one(tokenizer: Any, text: object) -> int:
    """The id of a text that is one token after another text. Raises ValueError for any other."""
    encode(tokenizer, text)
    ids = encode_after(tokenizer, str(text))
    if len(ids) != 1:
        raise ValueError(f"expected one token, but {text!r} has {len(ids)} (is a leading space missing or too many?)")
    return ids[0]


def pad(rows: Sequence[Sequence[int]], value: int) -> Int[np.ndarray, "row longest"]:
    """Rows of different lengths as one array, filled up on the right."""
    padded = np.full((len(rows), max(map(len, rows))), value, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` or `.csv` file. Raises ValueError for one that is malformed."""
    text = read_text(path, "task file", encoding="utf-8-sig")
    try:
        if path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="beyond the columns")
            if (twice := repeated(reader.fieldnames or ())) is not None:
                raise ValueError(f"it has two columns {twice!r}: keep one of them")
            return [{name: _cell(name, value) for name, value in row.items()} for row in reader]
        return [_row(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is malformed: {error}") from None


def _cell(name: str, value: Any) -> Any:
    """A cell of a table; of a span that it says by positions, those."""
    ends = POSITIONS.fullmatch(value) if name not in FIELDS and isinstance(value, str) else None
    return value if ends is None else [int(end) for end in ends.groups()]


def _row(number: int, line: str) -> dict[str, Any]:
    """A line of JSON. Raises ValueError, naming it, for one that is no object."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row
