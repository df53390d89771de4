"""The command line: the library's calls, in order."""

import os
import sys
from typing import Any

import typer

from .acdc import discover, sweep
from .judge import compare, evaluate_circuit, test_circuit
from .lists import list_methods, list_models, show
from .options import err
from .report import report
from .reproduce import reproduce
from .scores import prune, score
from .tasks import tasks_command

INTERRUPTED = 130  # the exit code of programs ended by Ctrl-C

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError: Any = typer.BadParameter.__base__  # typer may bring its own copy of click


@app.callback()
def _about() -> None:
    """Finds the circuit behind a behaviour of a language model."""


for command in (discover, sweep, score, prune, show, compare, report, reproduce):
    app.command()(command)
app.command(name="evaluate")(evaluate_circuit)
app.command(name="test")(test_circuit)
app.command(name="methods")(list_methods)
app.command(name="tasks")(tasks_command)
app.command(name="models")(list_models)


def main() -> None:
    """Runs the command line; every wrong use ends with one line on stderr and a non-zero exit code."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except UsageError as error:
        code = _fail(error.format_message(), error.exit_code)
    except (ValueError, OSError, MemoryError) as error:
        code = _fail(str(error), 1)
    if code == INTERRUPTED:
        _fail("interrupted", code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # programs that still run on the device's threads must not meet a half-closed interpreter
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    err.print(f"error: {' '.join(message.split())}", markup=False)
    return code
