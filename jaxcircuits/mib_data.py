"""MIB's prompts: rows of its data sets, from the hub or a copy, or this library's own prompts of the same template.

What a row is to a task is what hannamw/MIB-circuit-track (commit b759df3) makes of it: which rows count for a
tokenizer, which counterfactual is the corrupt prompt, and the first token of each answer. A prompt begins with BOS, or
with the end token where a tokenizer has no BOS, as TransformerLens has it.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .data import PromptPairs
from .files import read_json
from .tasks import by_name
from .texts import encode, pad, read_rows

OWNER = "mib-bench"
DATA_SETS = {
    "ioi": ("ioi", ""),
    "mcqa": ("copycolors_mcqa", "4_answer_choices"),
    "arithmetic-addition": ("arithmetic_addition", ""),
    "arithmetic-subtraction": ("arithmetic_subtraction", ""),
    "arc-easy": ("arc_easy", ""),
    "arc-challenge": ("arc_challenge", ""),
}
"""Of each task the data set, and the folder in it that is used."""

SPLITS = ("train", "validation", "test")
ENDINGS = (".jsonl", ".json", ".parquet")
OTHER_LENGTH = "clean and corrupt prompts of different lengths"
SAME_TOKEN = "right and wrong answers that begin with the same token"


class Example(NamedTuple):
    """One row, as texts."""

    clean: str
    corrupt: str
    right: str
    wrong: str


Row = Mapping[str, Any]
Count = Callable[[str], int]


def prompts_of_rows(
    task: str, rows: Iterable[Row], tokenizer: Any, size: int | None = None
) -> tuple[PromptPairs, dict[str, int]]:
    """The prompts of the first `size` rows that MIB's code takes for this tokenizer, and how many are left out.

    Left out of these are rows whose clean and corrupt prompt have different lengths, which cannot be patched token by
    token, and rows whose answers begin with the same token: their logit difference is 0 in every run, F stays the same.

    Raises ValueError, naming the row, for columns other than MIB's, and where no prompt remains.
    """
    taken: list[tuple[list[int], list[int], int, int]] = []
    left_out: Counter[str] = Counter()
    count = 0
    for number, row in enumerate(rows):
        if count == size:
            break
        try:
            example = _example(task, row, lambda text: len(_ids(tokenizer, text)))
            if example is None:
                continue
            ids = _tokens(example, tokenizer)
        except ValueError as error:
            raise ValueError(f"row {number} of {task}: {error}") from None
        count += 1
        if len(ids[0]) != len(ids[1]):
            left_out[OTHER_LENGTH] += 1
        elif ids[2] == ids[3]:
            left_out[SAME_TOKEN] += 1
        else:
            taken.append(ids)
    if not taken:
        raise ValueError(f"{task}: expected rows of MIB's that this tokenizer can read, got {dict(left_out) or 'none'}")
    clean, corrupt, right, wrong = zip(*taken, strict=True)
    lengths = np.array([len(ids) for ids in clean], np.int32)
    pairs = PromptPairs(pad(clean, 0), pad(corrupt, 0), np.array(right), np.array(wrong), lengths)
    return pairs, dict(left_out)


def generated(tokenizer: Any, size: int, seed: int) -> PromptPairs:
    """The IOI prompts of this library, made MIB's: one of its templates, either order of names, BOS, counterfactual.

    That exchanges the second subject with the indirect object (`s2_io_flip_counterfactual`): who gives, receives.
    """
    pairs = by_name("ioi").generate(tokenizer, seed=seed, size=size, order="mixed", bos=False)
    assert pairs.answer is not None and pairs.wrong is not None
    corrupt = pairs.clean.copy()
    last = corrupt.shape[1] - 1 - (corrupt == pairs.wrong)[:, ::-1].argmax(1)
    corrupt[np.arange(len(pairs)), last] = pairs.answer[:, 0]
    begin = np.tile(np.array(begin_of(tokenizer), np.int32), (len(pairs), 1))
    clean, corrupt = (np.hstack([begin, ids]) for ids in (pairs.clean, corrupt))
    assert pairs.length is not None
    return dataclasses.replace(pairs, clean=clean, corrupt=corrupt, length=pairs.length + begin.shape[1])


def begin_of(tokenizer: Any) -> list[int]:
    """The token before every prompt, as TransformerLens takes it; none where the tokenizer has neither."""
    ids = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    return [number for number in ids if number is not None][:1]


def rows_of(task: str, place: Path, split: str) -> list[Row]:
    """The rows of a split in a copy of the task's data set, or all of a file.

    Raises ValueError for a place without files of the split, for files that are no rows, and for parquet without
    pyarrow.
    """
    if place.is_file():
        return _read(place)
    folder = DATA_SETS[task][1]
    inside = place / folder if (place / folder).is_dir() else place
    every = (file for file in sorted(inside.rglob("*")) if file.suffix in ENDINGS)
    files = [file for file in every if any(part.startswith(split) for part in file.relative_to(inside).parts)]
    if not files:
        within = f" in {folder}" if folder else ""
        raise ValueError(
            f"{place}: expected files {split}*{' or '.join(ENDINGS)}{within}, as in the hub's {OWNER}/"
            f"{DATA_SETS[task][0]}, got none"
        )
    return [row for file in files for row in _read(file)]


def download(task: str) -> tuple[Path, str]:
    """A copy of the task's data set from the hub, and what to call it. Raises ValueError where the hub gives none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, folder = DATA_SETS[task]
    inside = f"{folder}/" if folder else ""
    try:
        patterns = [f"{inside}*{ending}" for ending in ENDINGS]
        place = snapshot_download(f"{OWNER}/{name}", repo_type="dataset", allow_patterns=patterns)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the hub did not give {OWNER}/{name}: {reason}; give a copy by --data FOLDER, or for ioi --data generator"
        ) from None
    return Path(place), f"hub {OWNER}/{name} at {Path(place).name}"


# --- rows ------------------------------------------------------------------------------------------


def _example(task: str, row: Row, count: Count) -> Example | None:
    """A row of a task; None where MIB's code leaves it out for this tokenizer."""
    if task == "ioi":
        return _names(row, count)
    return _sum(task, row, count) if task.startswith("arithmetic") else _choice(row, count)


def _names(row: Row, count: Count) -> Example | None:
    receiver, giver, other = (f" {_text(row, 'metadata', name)}" for name in ("indirect_object", "subject", "random_c"))
    if not count(receiver) == count(giver) == count(other):
        return None
    return Example(_text(row, "prompt"), _text(row, "s2_io_flip_counterfactual", "prompt"), receiver, giver)


def _choice(row: Row, count: Count) -> Example | None:
    other = _at(row, "symbol_counterfactual")
    right, wrong = (_label(part) for part in (row, other))
    if count(right) != count(wrong):
        return None
    return Example(_text(row, "prompt"), _text(row, "symbol_counterfactual", "prompt"), right, wrong)


def _sum(task: str, row: Row, count: Count) -> Example | None:
    other, right = _at(row, "random_counterfactual"), str(_at(row, "label"))
    operator = {"arithmetic-addition": "+", "arithmetic-subtraction": "-"}[task]
    if other is None or _at(row, "random_counterfactual", "prompt") is None or _at(row, "operator") != operator:
        return None
    wrong = str(_at(row, "random_counterfactual", "label"))
    if count(right) != 1 or count(wrong) != 1:
        return None
    return Example(_text(row, "prompt"), _text(row, "random_counterfactual", "prompt"), right, wrong)


def _label(row: Any) -> str:
    labels, key = _at(row, "choices", "label"), _at(row, "answerKey")
    if not isinstance(labels, Sequence) or not isinstance(key, int) or not 0 <= key < len(labels):
        raise ValueError(f"expected answerKey to be the number of one of the labels, got {key!r:.60}")
    return str(labels[key])


def _at(row: Any, *names: str) -> Any:
    for depth, name in enumerate(names):
        if not isinstance(row, Mapping) or name not in row:
            raise ValueError(f"expected MIB's columns, got no {'.'.join(names[: depth + 1])}")
        row = row[name]
    return row


def _text(row: Row, *names: str) -> str:
    value = _at(row, *names)
    if not isinstance(value, str):
        raise ValueError(f"expected a text as {'.'.join(names)}, got {value!r:.60}")
    return value


def _tokens(example: Example, tokenizer: Any) -> tuple[list[int], list[int], int, int]:
    begin = begin_of(tokenizer)
    clean, corrupt = ([*begin, *encode(tokenizer, text)] for text in (example.clean, example.corrupt))
    right, wrong = (encode(tokenizer, text)[0] for text in (example.right, example.wrong))
    return clean, corrupt, right, wrong


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _read(file: Path) -> list[Row]:
    if file.suffix == ".jsonl":
        return list(read_rows(file))
    if file.suffix == ".json":
        rows = read_json(file, "list of rows")
    elif file.suffix == ".parquet":
        try:
            from pyarrow import parquet  # type: ignore[import-not-found]
        except ImportError:
            raise ValueError(f"{file}: reading parquet needs pyarrow: pip install pyarrow; or give .jsonl") from None
        rows = parquet.read_table(file).to_pylist()
    else:
        raise ValueError(f"{file}: expected rows in a file that ends in {' or '.join(ENDINGS)}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: expected a list of JSON objects, one a row")
    return rows
