"""Runs that survive: a folder keeps how far a run is, and the same run, started again, goes on from there.

    with Savepoint(folder, identity) as point:
        state = point.get("state") or start
        while ...:
            state = step(state)
            point.reached(lambda: point.put("state", ...))

What is read is what was written, or a ValueError; what is written is whole (`files.write_whole`) and checksummed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import check_can_fill, parse_json, plain, write_whole

FORMAT = "jaxcircuits-savepoint/1"
EVERY = 30.0
"""Seconds after which a run saves at the next moment at which it can."""
SHARE = 0.05
"""Of a run's time that is spent on saving, at most, between those."""
ENDING = ".state"

Arrays = Mapping[str, np.ndarray]

opened: "weakref.WeakSet[Savepoint]" = weakref.WeakSet()
"""Those of this process that are in use: what ends it in the middle of a computation says what they have `kept`."""


class Savepoint:
    """A folder that keeps how far one run is, for one process at a time; a context manager.

    Inside the `with`, SIGINT and SIGTERM wait for the next moment at which the run can save (`reached`); a second one
    does not.

    - `folder`: made if it is not there. `identity`: names and values of all that would change the answer.

    Raises ValueError for a folder that another process uses, that has other files, that is damaged, or that has another
    run, naming what differs.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        check_can_fill(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._handlers: dict[int, Any] = {}
        self._signal: int | None = None
        self._began = self._saved = time.monotonic()
        self._cost = 0.0
        self._is_failing = False
        self._lock = _locked(self.folder)
        try:
            self._compare(flat(json.loads(json.dumps(plain(dict(identity))))))
        except BaseException:
            os.close(self._lock)
            raise
        opened.add(self)

    def _compare(self, identity: dict[str, Any]) -> None:
        saved = self.get("run")
        if saved is None:
            others = [path.name for path in self.folder.iterdir() if path.name != "lock" and path.suffix != ".tmp"]
            if states := [name for name in others if name.endswith(ENDING)]:
                raise ValueError(
                    f"{self.folder} keeps {states[0]}, but run{ENDING}, which says of what run, is gone: put it back, "
                    "or remove the folder to begin anew"
                )
            if others:
                raise ValueError(f"{self.folder} has other files ({others[0]}): choose a new folder, or an empty one")
            return self.put("run", identity)
        if told := differences(saved[0], identity):
            raise ValueError(f"{self.folder} keeps another run: {told}; choose another folder")

    # --- what is kept ----------------------------------------------------------------------------

    def put(self, name: str, record: Any, arrays: Arrays | None = None) -> None:
        """Keeps JSON's values and arrays under a name. Raises OSError or ValueError if they cannot be written."""
        values = {key: np.asarray(array) for key, array in (arrays or {}).items()}
        table = [[key, array.dtype.name, list(array.shape)] for key, array in values.items()]
        head = json.dumps({"record": record, "arrays": table}, allow_nan=False).encode() + b"\n"
        parts = [head, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in values.values())]

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(f"{FORMAT} {_checksum(parts)} {sum(map(len, parts))}\n".encode())
                for part in parts:
                    file.write(part)

        write_whole(self.folder / (name + ENDING), write)

    def get(self, name: str) -> tuple[Any, dict[str, np.ndarray]] | None:
        """What `put` kept; None where there is nothing. Raises ValueError for a file that is not as it was written."""
        path = self.folder / (name + ENDING)
        if not path.exists():
            return None
        first, _, rest = path.read_bytes().partition(b"\n")
        if first.split(b" ") != [FORMAT.encode(), _checksum([rest]).encode(), str(len(rest)).encode()]:
            raise ValueError(
                f"{path} is damaged: its length or checksum is not what it was. Put back an intact copy, or remove "
                f"{self.folder} to begin anew"
            )
        head, _, rest = rest.partition(b"\n")
        value, arrays, first = parse_json(head.decode()), {}, 0
        for key, dtype, shape in value["arrays"]:
            count, kind = int(np.prod(shape, dtype=np.int64)), np.dtype(dtype)
            arrays[key] = np.frombuffer(rest, kind, count, first).reshape(shape)
            first += count * kind.itemsize
        return value["record"], arrays

    def keep_only(self, names: Iterable[str]) -> None:
        """Removes what is kept under other names."""
        kept = {name + ENDING for name in ("run", *names)}
        for path in self.folder.glob(f"*{ENDING}"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    # --- when ------------------------------------------------------------------------------------

    def reached(self, save: Callable[[], object], *, milestone: bool = True) -> None:
        """A moment at which `save` would keep a whole state: it does if it is time to, or a signal waits for it.

        - `milestone`: whether it is one to go on from; others are saved when `EVERY` seconds have passed.

        Warns, once, where saving fails: the run goes on without.
        """
        since = time.monotonic() - self._saved
        if self._signal is not None or since >= EVERY or (milestone and self._cost <= SHARE * since):
            self.save(save)
        if self._signal is not None:
            self._let_through()

    def save(self, save: Callable[[], object]) -> None:
        """Saves now."""
        began = time.monotonic()
        try:
            save()
            self._is_failing = False
        except (OSError, ValueError) as error:
            if not self._is_failing:
                warnings.warn(f"cannot save in {self.folder}: {error}; the run goes on unsaved", stacklevel=3)
            self._is_failing = True
        self._saved = time.monotonic()
        self._cost = self._saved - began

    @property
    def kept(self) -> str:
        """What the user is told who ended the run; nothing if it could not be saved."""
        if self._is_failing:
            return ""
        return f"what is done is kept in {self.folder}, and the same command goes on from there"

    def __enter__(self) -> "Savepoint":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler is not None and handler is not signal.SIG_IGN:
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        opened.discard(self)
        self._restore()
        os.close(self._lock)
        if error is not None and not isinstance(error, Exception) and self.kept:
            error.add_note(self.kept)
        if error is None and self._signal is not None:
            self._let_through()

    def _defer(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            self._let_through()
        self._signal = number

    def _let_through(self) -> None:
        """Does as would have been done when the signal came."""
        number, self._signal = self._signal, None
        assert number is not None
        handler = self._handlers[number]
        self._restore()
        outer = getattr(handler, "__self__", None)
        if isinstance(outer, Savepoint):
            outer._signal = number
            outer._let_through()
        elif callable(handler):
            handler(number, None)
        else:
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class Journal:
    """Results of a run's computations in their order: those that are kept are given again, the others computed.

    Saves as it goes on, and when its `with` ends, however it does.
    """

    def __init__(self, point: Savepoint, name: str = "journal"):
        self.point, self.name = point, name
        keys, values = point.get(name) or ([], {})
        self.entries = [(key, values[str(number)]) for number, key in enumerate(keys)]
        self.next = 0

    def call(self, key: str, compute: Callable[[], Any]) -> np.ndarray:
        """The next result; `key` says what it is of. Raises ValueError where another one is kept."""
        if self.next < len(self.entries):
            kept, value = self.entries[self.next]
            if kept != key:
                raise ValueError(f"{self.point.folder} keeps results of another run: remove the folder to begin anew")
            self.next += 1
            return value
        value = np.asarray(compute())
        self.entries.append((key, value))
        self.next += 1
        self.point.reached(self._save)
        return value

    def _save(self) -> None:
        values = {str(number): value for number, (_, value) in enumerate(self.entries)}
        self.point.put(self.name, [key for key, _ in self.entries], values)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self.point.save(self._save)


@contextlib.contextmanager
def journal_of(folder: str | os.PathLike | None, identity: Callable[[], Mapping[str, Any]]) -> Iterator[Journal | None]:
    """The journal of a folder; None without one, and then `identity` is not asked for."""
    if folder is None:
        yield None
    else:
        with Savepoint(folder, identity()) as point, Journal(point) as journal:
            yield journal


def _locked(folder: Path) -> int:
    """An open file of the folder that no other process holds. Raises ValueError if one does."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{folder} is in use by another process: wait for it, or choose another folder") from None
    except OSError:  # a file system without locks
        pass
    return handle


def _checksum(parts: Iterable[Any]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, by name; empty if nothing does."""
    before, now = flat(before), flat(now)
    differs = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}" for name in differs)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables within tables as one, its names joined by dots."""
    found: dict[str, Any] = {}
    for name, entry in value.items():
        found |= flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {prefix + name: entry}
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
