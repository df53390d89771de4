"""`PromptPairs`: clean and corrupt prompts with their answers, checked before anything is computed."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from .arguments import checked
from .finite import check_finite
from .framing import framed
from .named_spans import Ends, checked_ends, names_among, span_at
from .npz import read_arrays, write_arrays
from .texts import FIELDS, PADDING, read_rows, tokens_of


@dataclasses.dataclass(frozen=True, eq=False)
class PromptPairs:
    """Prompts of a behaviour, each with a corrupt version that has the same number of tokens.

    - `clean`, `corrupt`: token ids, padded on the right with any token.
    - `answer`, `wrong`: right and wrong next tokens, [batch], [batch, answers] (padded with -1), or
      [batch, position, answers] where each position has its own. Not needed by `kl` and `l2`.
    - `length`: tokens of each prompt; the answer is read at `length - 1`. Default: all positions.
    - `positions`: True where logits are scored instead; metrics are averaged over them.
    - `year`, `digits`: for the metric `greater_than`. `target`: for `l2`, [batch, vocab] or
      [batch, position, vocab].
    - `group`: which prompts belong together, a number each, such as their template; see `variation`.
    - `spans`: token positions by name, [batch, 2], the first and the one before which the span ends: where in each
      prompt (the clean and its corrupt one) the subject is, say. No two share a token.

    Raises ValueError for shapes or values that do not fit together; warns of prompts that are not corrupted.
    """

    __no_type_check__ = True  # of the constructor: lists are converted, what does not fit is a ValueError

    clean: Int[np.ndarray, "batch position"]
    corrupt: Int[np.ndarray, "batch position"]
    answer: Int[np.ndarray, "batch ..."] | None = None
    wrong: Int[np.ndarray, "batch ..."] | None = None
    length: Int[np.ndarray, " batch"] | None = None
    positions: Bool[np.ndarray, "batch position"] | None = None
    year: Int[np.ndarray, " batch"] | None = None
    digits: Int[np.ndarray, " years"] | None = None
    target: Float[np.ndarray, "batch ..."] | None = None
    group: Int[np.ndarray, " batch"] | None = None
    spans: dict[str, Ends] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in ("clean", "corrupt"):
                raise ValueError(f"prompts need {field.name!r}: token ids [batch, position]")
            if value is not None and field.name != "spans":
                object.__setattr__(self, field.name, _array(field.name, value))
        batch, width = self._check_tokens()
        if self.length is None:
            object.__setattr__(self, "length", np.full(batch, width, np.int32))
        self._check_shapes(batch, width)
        self._check_answers()
        if self.spans is not None:
            assert self.length is not None
            object.__setattr__(self, "spans", checked_ends(self.spans, self.length))
        same = ((self.clean == self.corrupt) | ~self.inside()).all(1)
        if same.any():
            rows = ", ".join(map(str, np.flatnonzero(same)[:5]))
            message = f"{same.sum()} of {batch} prompts do not differ from their corrupt version (rows {rows}...)"
            warnings.warn(message + ": removing their edges has no effect under resample ablation", stacklevel=3)

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> "PromptPairs":
        """Some of the prompts."""
        rows = np.arange(len(self))[rows]
        taken: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "spans" and value is not None:
                taken[field.name] = {name: ends[rows] for name, ends in value.items()}
            else:
                taken[field.name] = value if field.name == "digits" or value is None else value[rows]
        return dataclasses.replace(self, **taken)

    @checked
    def split(self, first: int) -> "tuple[PromptPairs, PromptPairs]":
        """The first prompts and the rest, e.g. to find a circuit on some and test it on others."""
        if not 0 < first < len(self):
            raise ValueError(f"split: expected a size between 1 and {len(self) - 1}, got {first}")
        return self[:first], self[first:]

    def scored(self) -> tuple[Int[np.ndarray, "batch scored"], Bool[np.ndarray, "batch scored"]]:
        """Positions at which logits are read, and which of them count (prompts may have different numbers)."""
        assert self.length is not None
        if self.positions is None:
            return self.length[:, None] - 1, np.ones((len(self), 1), bool)
        most = self.positions.sum(1).max()
        order = np.argsort(~self.positions, axis=1, kind="stable")[:, :most]
        return order.astype(np.int32), np.take_along_axis(self.positions, order, 1)

    def span_at(self, names: Sequence[str]) -> Int[np.ndarray, "batch position"] | None:
        """Which of the spans `names` each position is in, `len(names)` for none; None without names.

        Raises ValueError for a name that these prompts have no span of.
        """
        return span_at(self.spans, names, self.clean.shape[1]) if names else None

    def check_against(self, vocab_size: int, max_positions: int) -> None:
        """Raises ValueError for token ids outside the vocabulary or prompts longer than the model's context."""
        if self.clean.shape[1] > max_positions:
            raise ValueError(f"prompts have {self.clean.shape[1]} positions, the model has {max_positions}")
        for name in ("clean", "corrupt", "answer", "wrong", "digits"):
            ids = getattr(self, name)
            if ids is None:
                continue
            lowest = PADDING if name in ("answer", "wrong") else 0
            bad = (ids < lowest) | (ids >= vocab_size)
            if bad.any():
                raise ValueError(
                    f"{name} has token id {ids[bad][0]}, outside the model's vocabulary of {vocab_size}; "
                    "were the prompts made with this model's tokenizer?"
                )

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` that `load` reads."""
        arrays = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None and field.name != "spans"
        }
        write_arrays(path, arrays | (self.spans or {}), compressed=True)

    @classmethod
    @checked
    def load(
        cls, path: str | os.PathLike, tokenizer: Any = None, *, bos: bool | None = None, template: str | None = None
    ) -> "PromptPairs":
        """Reads `.npz` (token ids), `.jsonl` or `.csv` (text; needs the model's tokenizer).

        Text fields: `clean`, `corrupt`, and optionally `answer`, `wrong` (one token each; in jsonl also lists), and
        `group` (any name). Other columns (arrays [batch, 2]) are `spans`: a text that the clean prompt has once, or
        positions [first, end] among the text's own tokens.
        `bos`, `template`: what stands around each text, as `framed` says.
        Raises ValueError for a file that is missing, malformed, or has unknown fields or tokens.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no task file {path}")
        if path.suffix == ".npz":
            if bos is not None or template is not None:
                raise ValueError(f"{path} holds token ids: bos and template are for text")
            return cls(**_read_npz(path))
        if path.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"{path}: expected a task file ending in .npz, .jsonl or .csv")
        if tokenizer is None:
            raise ValueError(f"{path} holds text: reading it needs the model's tokenizer")
        return framed(from_text(read_rows(path), tokenizer), tokenizer, bos=bos, template=template)

    def inside(self) -> Bool[np.ndarray, "batch position"]:
        """True where a prompt has a token, False where it is padded."""
        assert self.length is not None
        return np.arange(self.clean.shape[1]) < self.length[:, None]

    def _check_tokens(self) -> tuple[int, int]:
        if self.clean.ndim != 2 or 0 in self.clean.shape:
            raise ValueError(f"clean: expected token ids [batch, position], got shape {self.clean.shape}")
        if self.corrupt.shape != self.clean.shape:
            raise ValueError(
                f"clean has shape {self.clean.shape}, corrupt {self.corrupt.shape}: "
                "they must agree prompt by prompt and token by token"
            )
        return self.clean.shape

    def _check_shapes(self, batch: int, width: int) -> None:
        shapes = {
            "answer": [(batch,), (batch, None), (batch, width, None)],
            "wrong": [(batch,), (batch, None), (batch, width, None)],
            "length": [(batch,)],
            "positions": [(batch, width)],
            "year": [(batch,)],
            "digits": [(None,)],
            "target": [(batch, None), (batch, width, None)],
            "group": [(batch,)],
        }
        for name, allowed in shapes.items():
            value = getattr(self, name)
            if value is not None and not any(_fits(value.shape, shape) for shape in allowed):
                wanted = " or ".join(str(shape).replace("None", "any") for shape in allowed)
                raise ValueError(f"{name}: expected shape {wanted}, got {value.shape}")
        assert self.length is not None
        if (self.length < 1).any() or (self.length > width).any():
            raise ValueError(f"length: expected values from 1 to {width}, got {self.length.min()}..{self.length.max()}")
        if self.target is not None:
            check_finite("target", self.target, prompt=None)
        years = 100 if self.digits is None else len(self.digits)
        if self.year is not None and ((self.year < 0) | (self.year >= years)).any():
            raise ValueError(f"year: expected two digits, 0 to {years - 1}, got {self.year.min()}..{self.year.max()}")
        if self.positions is not None and not self.positions.any(1).all():
            row = int(np.flatnonzero(~self.positions.any(1))[0])
            raise ValueError(f"positions: prompt {row} has no scored position")
        if self.positions is not None and (self.positions & ~self.inside()).any():
            raise ValueError("positions: a scored position lies in the padding after a prompt's length")

    def _check_answers(self) -> None:
        for name in ("answer", "wrong"):
            ids = getattr(self, name)
            if ids is None:
                continue
            if ids.ndim == 1:
                object.__setattr__(self, name, ids[:, None])
            empty = ~(getattr(self, name) >= 0).any(-1)
            if ids.ndim == 3:
                assert self.length is not None
                last = np.arange(ids.shape[1]) == self.length[:, None] - 1
                empty = (empty & (last if self.positions is None else self.positions)).any(1)
            if empty.any():
                raise ValueError(f"{name}: prompt {np.flatnonzero(empty)[0]} has none (only the padding -1)")
        if self.answer is None or self.wrong is None or self.answer.ndim != self.wrong.ndim:
            return
        both = (self.answer[..., :, None] == self.wrong[..., None, :]) & (self.answer[..., :, None] >= 0)
        if both.any():
            row = int(np.argwhere(both)[0][0])
            raise ValueError(f"prompt {row}: token {self.answer[both.any(-1)][0]} is both an answer and a wrong answer")


def from_text(rows: Sequence[dict[str, Any]], tokenizer: Any) -> PromptPairs:
    """`PromptPairs` of texts, as `texts.tokens_of` reads them."""
    return PromptPairs(**tokens_of(rows, tokenizer))


LARGEST = 2**31 - 1
"""Whole numbers beyond are clipped: no token, length or year is so large."""


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tracer):
        raise ValueError(f"{name}: expected values, got what JAX traces: make the prompts outside of jax.jit")
    value = np.asarray(value)
    kind = {"positions": "b", "target": "f"}.get(name, "i")
    if name == "group" and value.dtype.kind in "iu":
        value = _apart(value)
    if value.dtype.kind == "u" and kind == "i":
        value = np.minimum(value, np.uint64(LARGEST)).astype(np.int64)
    if name == "target" and value.dtype.kind in "iu":
        value = value.astype(np.float32)
    if value.dtype.kind != kind:
        wanted = {"i": "whole numbers", "b": "True and False", "f": "real numbers"}[kind]
        raise ValueError(f"{name}: expected {wanted}, got {value.dtype}")
    return value if kind != "i" else np.asarray(np.clip(value, -LARGEST - 1, LARGEST), np.int32)


def _apart(groups: np.ndarray) -> np.ndarray:
    """The same groups; numbered in their order where int32 has not all of their numbers."""
    fits = not groups.size or -LARGEST - 1 <= int(groups.min()) <= int(groups.max()) <= LARGEST
    return groups if fits else np.unique(groups, return_inverse=True)[1]


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def _read_npz(path: Path) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(PromptPairs)} - {"spans"}
    arrays: dict[str, Any] = read_arrays(path, "task file")
    names = [name for name in names_among([*arrays], FIELDS) if arrays[name].shape[1:] == (2,)]
    if unknown := arrays.keys() - known - set(names):
        raise ValueError(f"{path} has unknown arrays {sorted(unknown)}; expected some of {sorted(known)}")
    if missing := {"clean", "corrupt"} - arrays.keys():
        raise ValueError(f"{path} misses {sorted(missing)}: token ids [batch, position]")
    spans = {name: arrays.pop(name) for name in names}
    return {**arrays, "spans": spans} if spans else arrays
