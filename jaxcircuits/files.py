"""Files are read as what they say they are, or refused; they are written whole or not at all."""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LARGEST = 1 << 30
"""Bytes of the largest text that is read."""

DEEPEST = 100
"""Lists and objects within each other, at most."""


def read_text(path: str | os.PathLike, what: str = "file", *, encoding: str = "utf-8") -> str:
    """The text of a file, its line ends as they are.

    Raises ValueError for a path that is no regular file (a pipe would be waited for), one of more than `LARGEST`
    bytes, and bytes that are no text.
    """
    if not os.path.exists(path):
        raise ValueError(f"no {what} {path}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file: expected a {what}")
    if (size := os.path.getsize(path)) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes: expected a {what} of at most {LARGEST:,}")
    try:
        return Path(path).read_bytes().decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is malformed: expected a {what} in UTF-8; {error}") from None


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """The value in a JSON file. Raises ValueError, naming the file, for what `read_text` and `parse_json` refuse."""
    text = read_text(path, what)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is malformed: expected a {what} in JSON; {error}") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError for what is not JSON, and for what readers of JSON take differently or cannot hold: a name twice
    in one object, numbers that float64 has not (NaN, 1e999), halves of surrogate pairs, more than `DEEPEST` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"expected at most {DEEPEST} lists and objects within each other, got more") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each name once in an object, got {twice!r} twice: keep one of them")
    return value


def _check(value: Any) -> None:
    """Raises ValueError, saying where, for the first value that is refused; without recursion."""
    todo: list[tuple[Any, tuple]] = [(value, ())]
    while todo:
        value, where = todo.pop()
        if isinstance(value, dict | list):
            if len(where) >= DEEPEST:
                raise ValueError(f"expected at most {DEEPEST} lists and objects within each other, got more")
            todo += [(entry, (*where, key)) for key, entry in _entries(value)]
            todo += [(key, (*where, key)) for key in value if isinstance(key, str) and not key.isascii()]
        elif isinstance(value, str):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{_place(where)}expected text, got half of a surrogate pair in {value!r}")
        elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
            got = value if isinstance(value, float) else f"one of {len(str(value))} digits"
            raise ValueError(f"{_place(where)}expected a finite number, got {got}")


def _entries(value: dict | list) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value)


def _place(where: tuple) -> str:
    return f"{' '.join(ascii(key).strip(chr(39)) for key in where[-3:])}: " if where else ""


# --- writing ---------------------------------------------------------------------------------------


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` and moves the result over `path` in one step; `path` is untouched on failure."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """`value` as JSON. Raises ValueError for a number that JSON cannot hold (NaN, infinity)."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def plain(value: Any) -> Any:
    """A value that JSON can hold: numbers and arrays become Python's, NaN and infinity their names."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
