"""Files are read as what they say they are, or refused; they are written whole or not at all."""

import contextlib
import fcntl
import glob
import json
import math
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LARGEST = 1 << 30
"""Bytes of the largest text that is read."""

DEEPEST = 100
"""Lists and objects within each other, at most."""


def read_text(path: str | os.PathLike, what: str = "file", *, encoding: str = "utf-8", most: int | None = None) -> str:
    """The text of a file, its line ends as they are.

    Raises ValueError for a path that is no regular file, one of more than `most` bytes (None: `LARGEST`), and bytes
    that are no text.
    """
    check_regular(path, what)
    most = LARGEST if most is None else most
    if (size := os.path.getsize(path)) > most:
        raise ValueError(f"{path} has {size:,} bytes: expected a {what} of at most {most:,}")
    try:
        return Path(path).read_bytes().decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is malformed: expected a {what} in UTF-8; {error}") from None


def check_regular(path: str | os.PathLike, what: str = "file") -> None:
    """Raises ValueError for what is not there, and for what is no regular file: a pipe would be waited for."""
    if not os.path.exists(path):
        raise ValueError(f"no {what} {path}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file: expected a {what}")


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
        twice = repeated(name for name, _ in pairs)
        raise ValueError(f"expected each name once in an object, got {twice!r} twice: keep one of them")
    return value


def repeated(names: Iterable[str]) -> str | None:
    """The first of some names that was there before; None if all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of surrogate pairs cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def visible(text: str) -> str:
    """The text with its control characters as escapes, so that a terminal shows them and does not obey them."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


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
            if not is_text(value):
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
    """Calls `write(temporary)` and moves the result over `path` in one step; `path` is untouched on failure.

    A file that is replaced leaves its permissions to the new one; a link leads to the file that is written. What
    writers that were killed left behind goes.

    Raises ValueError as `check_can_write` does.
    """
    path = _checked(path)
    _remove_abandoned(path)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    temporary, handle = _temporary(path, 0o666 if mode is None else 0o600)
    try:
        write(temporary)
        if mode is not None:
            os.fchmod(handle, mode)
        os.fsync(handle)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(path, error)
        raise
    finally:
        os.close(handle)
    with contextlib.suppress(OSError):  # some file systems cannot
        _sync(path.parent)


def write_folder(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """As `write_whole`, but of a folder: `write` fills it. An empty folder may be at `path`.

    Raises ValueError where no folder can be made, OSError where something else is at `path`.
    """
    path = Path(os.path.realpath(path))
    _remove_abandoned(path)
    temporary, handle = _temporary(path, None)
    try:
        write(temporary)
        for part in filter(Path.is_file, temporary.rglob("*")):
            _sync(part)
        with contextlib.suppress(OSError):  # some file systems cannot, of folders
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(path, error)
        raise
    finally:
        os.close(handle)
    with contextlib.suppress(OSError):
        _sync(path.parent)


def _name(path: Path, error: BaseException) -> None:
    """Has an error of the system name the file that was to be written: a full disk's names none."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def check_can_write(path: str | os.PathLike) -> None:
    """Raises ValueError for what `write_whole` could not write: found out by trying, with nothing left behind."""
    path = _checked(path)
    temporary, handle = _temporary(path, 0o600)
    try:
        os.write(handle, bytes(4096))  # for which a full disk has no room
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another place") from None
    finally:
        os.close(handle)
        temporary.unlink()


def short_name(number: float) -> str:
    """A number in a file's name: in six digits where these say the whole of it, so that no two share a name."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def check_can_fill(folder: str | os.PathLike) -> None:
    """Raises ValueError for a folder, there or not yet there, into which no files could be written."""
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected the name of a folder")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    check_can_write(there / "file")


def _checked(path: str | os.PathLike) -> Path:
    """The file that a path leads to. Raises ValueError for one that no file can take the place of."""
    named, path = Path(path), Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(f"{named} is a folder: expected the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {named}: the folder {named.parent} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise ValueError(f"{named} is a device, a pipe or a socket: expected the name of a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {named}: the file is read-only; choose another place")
    return path


def _temporary(path: Path, mode: int | None) -> tuple[Path, int]:
    """A new file beside `path`, or a folder (mode None), open, and locked as long as that."""
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        if mode is None:
            temporary.mkdir()
            handle = os.open(temporary, os.O_RDONLY)
        else:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another place") from None
    return temporary, handle


def _remove_abandoned(path: Path) -> None:
    """Removes temporary files and folders of `path` that no writer holds."""
    for name in glob.glob(
        f".{glob.escape(path.name[:100])}.{'[0-9a-f]' * 8}.tmp", root_dir=path.parent, include_hidden=True
    ):
        left = path.parent / name
        with contextlib.suppress(OSError):  # held by its writer, or gone
            handle = os.open(left, os.O_RDONLY if left.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str) -> None:
    """A text in UTF-8, its line ends as they are, see `readable`."""
    data = readable(text).encode("utf-8")
    write_whole(path, lambda temporary: temporary.write_bytes(data))


def readable(text: str) -> str:
    """The text, with bytes of command lines and file names that Python could not decode (as under `LC_ALL=C`) decoded.

    They are UTF-8; of those that are not, a replacement character tells.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """`value` as JSON. Raises ValueError for a number that JSON cannot hold (NaN, infinity)."""
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text)


def plain(value: Any) -> Any:
    """A value that JSON can hold: numbers and arrays become Python's, NaN and infinity their names."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, str):
        return value if value.isascii() else readable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
