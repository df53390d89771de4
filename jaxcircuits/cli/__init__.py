"""The command line: the library's calls, in order."""

import importlib.util
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any, NoReturn

import jax
import typer

from ..arguments import is_memory_full
from ..batching import LESS
from .acdc import discover, sweep
from .backups import backups_of
from .judge import compare, evaluate_circuit, test_circuit
from .lists import list_methods, list_models, show
from .mib import mib
from .options import err, out
from .report import report
from .reproduce import reproduce
from .scores import prune, score
from .side_by_side import side_by_side
from .tasks import tasks_command
from .vary import vary

INTERRUPTED = 130  # the exit code of programs ended by Ctrl-C

COMPILER_FLAGS = (
    ("cuda", "XLA_FLAGS", "--xla_gpu_enable_command_buffer", "+WHILE,+CONDITIONAL"),
    ("libtpu", "LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib", "8192"),
)
"""What drives such devices, where their compiler's flags are set, and which. Loops and branches become command buffers,
which an NVIDIA GPU runs without the host, as far as its driver can. A TPU's operations work in half the fast memory of
the default: by the compiler's cycles a search takes 7 % longer, and it compiles in two thirds of the time.
"""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError: Any = typer.BadParameter.__base__  # typer may bring its own copy of click


def _version(is_asked: bool) -> bool:
    if is_asked:
        out.print(f"jaxcircuits {metadata.version('jaxcircuits')}")
        raise typer.Exit
    return is_asked


@app.callback()
def _about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Finds the circuit behind a behaviour of a language model."""


for command in (discover, sweep, score, prune, show, compare, vary, report, reproduce, mib):
    app.command()(command)
app.command(name="evaluate")(evaluate_circuit)
app.command(name="test")(test_circuit)
app.command(name="backups")(backups_of)
app.command(name="compare-methods")(side_by_side)
app.command(name="methods")(list_methods)
app.command(name="tasks")(tasks_command)
app.command(name="models")(list_models)


def run(arguments: Sequence[str]) -> int:
    """Runs a command; every wrong use ends with one line on stderr. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter is shown its number
    _set_compiler_flags()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts is of no concern here
    try:
        return app(args=list(arguments) or ["--help"], standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except UsageError as error:
        return _fail(error.format_message(), error.exit_code)
    except (ValueError, OSError, MemoryError) as error:
        return _fail(str(error) or "out of memory", 1)
    except jax.errors.JaxRuntimeError as error:
        if not is_memory_full(error):
            raise
        return _fail(f"out of memory: {error}; {LESS}", 1)


def _set_compiler_flags() -> None:
    """Sets those of `COMPILER_FLAGS` of which the user says nothing, for what is installed.

    A variable that names a file of flags, as XLA reads one that does not begin with a dash, stays as it is.
    """
    installed = [plugin.name for plugin in metadata.entry_points(group="jax_plugins")]
    installed += ["libtpu"] if importlib.util.find_spec("libtpu") else []
    for driver, variable, flag, value in COMPILER_FLAGS:
        given = os.environ.get(variable, "").strip()
        is_file = bool(given) and not given.startswith("-")
        if not is_file and flag not in given and any(driver in name for name in installed):
            os.environ[variable] = f"{given} {flag}={value}".strip()


def main() -> NoReturn:
    """Runs the command that was typed, in a process that is ended by others; the program is `jaxcircuits_program`."""
    sys.exit(run(sys.argv[1:]))


def _fail(message: str, code: int) -> int:
    err.print(f"error: {' '.join(message.split())}", markup=False)
    return code
