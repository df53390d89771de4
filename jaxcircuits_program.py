"""The program `jaxcircuits`: Ctrl-C and SIGTERM end it with one line at any moment, also while the library is imported.

It stands beside the package because importing anything of that imports JAX first, which takes a second or more.
"""

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False  # importing `typing` would take as long as all that comes before the handlers
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

GRACE = 5.0
"""Seconds that a run has, after a signal, to keep what is done; then it is ended where it is."""


class Interrupted(BaseException):
    """A signal came. No KeyboardInterrupt, of which command-line libraries print their own lines."""


def main() -> "NoReturn":
    """Runs the command line and ends the process: with 130 (143) and one line if a signal cut it short."""
    _open_what_is_closed()
    ending = _Ending(sys._getframe())
    code, note = 1, ""
    try:
        ending.listen()
        from jaxcircuits.cli import run

        ending.can_unwind = True
        code = run(sys.argv[1:])
        ending.can_unwind = False
    except BaseException as error:
        ending.can_unwind = False
        if ending.signal is None:
            raise
        note = "; ".join(getattr(error, "__notes__", ()))
    ending.finish(code, note)


def _open_what_is_closed() -> None:
    """Standard streams that the shell closed (`>&-`): else the next files that are opened would be taken for them."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


class _Ending:
    """How the process ends, once: by the command that is done, by a signal's handler, or by the thread that watches.

    - `signal`: the first that came. `can_unwind`: whether a command runs, which may have something to keep.
    - `is_unwinding`: whether `Interrupted` was raised in it, and not swallowed by a callback of compiled code.
    """

    def __init__(self, outermost: "FrameType"):
        self.outermost = outermost
        self.signal: int | None = None
        self.can_unwind = self.is_unwinding = False
        self.once = _thread.allocate_lock()
        for number in CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` asks for
                signal.signal(number, self._handle)

    def listen(self) -> None:
        """Starts the thread that sees signals also while Python waits for compiled code."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        _thread.start_new_thread(self._watch, (reading,))
        sys.unraisablehook = self._unraisable

    def _handle(self, number: int, frame: "FrameType | None") -> None:
        if self.once.locked():
            return
        self.signal = self.signal or number
        if not self.can_unwind or self.is_unwinding or frame is self.outermost:
            self.finish()
        self.is_unwinding = True
        raise Interrupted

    def _watch(self, reading: int) -> None:
        while (number := os.read(reading, 1)[0]) not in CODES:
            continue  # another signal, with a handler of someone else
        end = time.monotonic() + GRACE
        while (self.can_unwind or self.is_unwinding) and time.monotonic() < end:
            time.sleep(0.05)
            if self.signal is not None and self.can_unwind and not self.is_unwinding:
                _thread.interrupt_main(signal.Signals(self.signal))
        self.signal = self.signal or number
        savepoints = getattr(sys.modules.get("jaxcircuits.savepoint"), "opened", ())
        self.finish(note="; ".join(filter(None, [point.kept for point in savepoints])))

    def _unraisable(self, caught: "Any") -> None:
        if isinstance(caught.exc_value, Interrupted):
            self.is_unwinding = False
        else:
            sys.__unraisablehook__(caught)

    def finish(self, code: int = 1, note: str = "") -> "NoReturn":
        """Ends the process at once: threads that still run on the device must not meet a half-closed interpreter."""
        if not self.once.acquire(blocking=False):
            while True:
                time.sleep(GRACE)  # the process is ending
        if self.signal is None:
            os._exit(_flush(code))
        _say("; ".join(filter(None, (WORDS[signal.Signals(self.signal)], note))))
        os._exit(CODES[signal.Signals(self.signal)])


def _flush(code: int) -> int:
    """The exit code, which is not 0 if the last of the output could not be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError) as error:
        _say(str(error))
        return code or 1
    return code


def _say(line: str) -> None:
    """Writes past Python's streams, whose locks the main thread may hold; shows the cursor that a bar has hidden."""
    shown = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
    try:
        os.write(2, f"{shown}error: {line}\n".encode(errors="replace"))
    except OSError:  # nobody reads it
        return


if __name__ == "__main__":
    main()
