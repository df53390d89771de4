"""The command line: the library's calls, in order."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import checkpoints, tasks
from .batching import compile_clock
from .circuit import Circuit
from .data import PromptPairs
from .discovery import Progress as ACDCProgress
from .discovery import acdc
from .discovery.schedule import HEAD_ORDERS, NAME_ORDERS
from .metrics import METRICS
from .metrics import by_name as metric_by_name
from .objective import REFERENCES, Objective

DEFAULT_MODEL = "tiny-gpt2"
DEFAULT_SIZE = 32
INTERRUPTED = 130  # the exit code of programs ended by Ctrl-C

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
UsageError: Any = typer.BadParameter.__base__  # typer may bring its own copy of click

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def main() -> None:
    """Runs the command line; every wrong use ends with one line on stderr and a non-zero exit code."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        if code == INTERRUPTED:
            _fail("interrupted", code)
    except (typer.Abort, KeyboardInterrupt):
        code = _fail("interrupted", INTERRUPTED)
    except UsageError as error:
        code = _fail(error.format_message(), error.exit_code)
    except (ValueError, OSError) as error:
        code = _fail(str(error), 1)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    err.print(f"error: {' '.join(message.split())}", markup=False)
    return code


@app.callback()
def _about() -> None:
    """Finds the circuit behind a behaviour of a language model."""


@app.command()
def discover(
    task: Annotated[str, typer.Argument(help="a built-in task, or a .npz, .jsonl or .csv file of prompts")],
    model: Annotated[str, typer.Option(help="a bundled model, a folder, or a name on the hub")] = DEFAULT_MODEL,
    threshold: Annotated[float, typer.Option(help="an edge goes if that raises the metric by less")] = 0.1,
    metric: Annotated[str, typer.Option(help=f"one of {', '.join(METRICS)}")] = "kl",
    reference: Annotated[str, typer.Option(help=f"what absent edges carry: {', '.join(REFERENCES)}")] = "resample",
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    batch: Annotated[int, typer.Option(help="most candidates evaluated at once")] = 16,
    size: Annotated[int | None, typer.Option(help="prompts; default 32, or all of a file's")] = None,
    seed: Annotated[int, typer.Option(help="of the prompts and of random orders")] = 0,
    order: Annotated[str, typer.Option(help=f"of senders by layer: {', '.join(NAME_ORDERS)}")] = "last_first",
    head_order: Annotated[str, typer.Option(help=f"of heads in a layer: {', '.join(HEAD_ORDERS)}")] = "descending",
    groups: Annotated[bool, typer.Option(help="first try all edges into a head's q, k or v at once")] = True,
    absolute: Annotated[bool, typer.Option(help="compare the size of the change")] = False,
    average: Annotated[str, typer.Option(help="several scored positions: together or per_prompt")] = "together",
    out_file: Annotated[Path | None, typer.Option("--out", help="write the circuit to this JSON file")] = None,
) -> None:
    """Finds a circuit with ACDC and prints it."""
    _check_writable(out_file)
    metric_by_name(metric)
    dtype = _dtype(dtype)
    with _warnings_as_lines():
        loaded = checkpoints.load(model, dtype=dtype)
        pairs, named = _prompts(task, loaded, size, seed)
        with compile_clock() as clock:
            objective = Objective(loaded.model, pairs, metric, reference, average=average)
        with _progress() as show:
            result = acdc(
                objective,
                threshold,
                order=order,
                head_order=head_order,
                groups=groups,
                absolute=absolute,
                width=batch,
                seed=seed,
                on_progress=show,
            )
    run = {"task": named, "model": loaded.source, "seed": seed, "seconds_compiling_objective": clock.seconds}
    circuit = Circuit.of(result, d_model=loaded.model.config.n_embd, **run)
    _print_circuit(circuit)
    if out_file is not None:
        circuit.save(out_file)
        out.print(f"written to {out_file}", markup=False)


@app.command(name="tasks")
def list_tasks() -> None:
    """Lists the built-in tasks."""
    for task in tasks.TASKS.values():
        out.print(f"{task.name:<14}{task.description}", markup=False)
        out.print(f"{'':<14}scored in its paper by {task.metric}; {task.source}", markup=False)
    out.print("or a file: .npz (token ids), .jsonl or .csv (text); see the README, 'Your own data'")


@app.command(name="models")
def list_models() -> None:
    """Lists the bundled models."""
    for name in checkpoints.bundled():
        config, graph = (loaded := checkpoints.load(name)).model.config, loaded.graph
        out.print(
            f"{name:<14}{config.n_layer} layers x {config.n_head} heads, width {config.n_embd}, "
            f"{config.vocab_size} tokens, {graph.num_edges} edges"
        )
    out.print("or a folder with config.json and model.safetensors, or a GPT-2 on the Hugging Face hub (gpt2)")


@app.command()
def show(file: Annotated[Path, typer.Argument(help="a circuit's JSON: this library's, MIB's or EAP-IG's")]) -> None:
    """Prints a circuit file."""
    _print_circuit(Circuit.load(file))


def _prompts(task: str, loaded: checkpoints.Checkpoint, size: int | None, seed: int) -> tuple[PromptPairs, str]:
    """The prompts of a built-in task or a file, and their name for the record."""
    if size is not None and size < 1:
        raise ValueError(f"--size: expected at least 1 prompt, got {size}")
    path = Path(task)
    if task not in tasks.TASKS and (path.exists() or path.suffix in (".npz", ".jsonl", ".csv")):
        pairs = PromptPairs.load(path, None if path.suffix == ".npz" else loaded.tokenizer)
        return (pairs if size is None else pairs[:size]), path.name
    known = tasks.by_name(task)
    return known.generate(loaded.tokenizer, seed=seed, size=size or DEFAULT_SIZE), task


def _dtype(name: str) -> Literal["float32", "float64"]:
    if name == "float64":
        jax.config.update("jax_enable_x64", True)
        return "float64"
    if name != "float32":
        raise ValueError(f"--dtype: expected float32 or float64, got {name!r}")
    return "float32"


def _check_writable(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder: expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--out: the folder {path.absolute().parent} does not exist; create it first")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: err.print(f"warning: {message}", markup=False)
        yield


@contextmanager
def _progress() -> Iterator[Any]:
    columns = (
        TextColumn("{task.completed}/{task.total} edges"),
        BarColumn(),
        TextColumn("{task.fields[kept]} kept, {task.fields[evaluations]} evaluations"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        line = bar.add_task("", total=None, kept=0, evaluations=0)

        def draw(now: ACDCProgress) -> None:
            bar.update(
                line, completed=now.edges_done, total=now.edges_total, kept=now.edges_kept, evaluations=now.evaluations
            )

        yield draw


def _print_circuit(circuit: Circuit) -> None:
    run, graph = circuit.run, circuit.graph
    head = [f"{run['task']} on {run['model']}"] if {"task", "model"} <= run.keys() else []
    head += [f"{run['prompts']} prompts"] if "prompts" in run else []
    head += [str(run[key]) for key in ("method", "metric", "reference") if key in run]
    head += [f"threshold {run['threshold']:g}"] if "threshold" in run else []
    if head:
        out.print(", ".join(head), markup=False)
    for column in reversed(range(len(graph.receivers))):
        senders = np.flatnonzero(circuit.mask[:, column])[::-1]
        if len(senders):
            effects = "  ".join(f"{graph.senders[s]} {circuit.scores[s, column]:+.3g}" for s in senders)
            out.print(f"  {graph.receivers[column]:>9} <- {effects}", markup=False)
    groups = f", {run['groups_kept']} head inputs tested as groups stay" if run.get("groups_kept") else ""
    out.print(
        f"{circuit.num_edges} of {graph.num_edges} edges, {len(circuit.nodes)} of {len(graph.nodes)} nodes{groups}"
    )
    if {"metric_full", "metric_final"} <= run.keys():
        before, after = float(run["metric_full"]), float(run["metric_final"])
        out.print(f"{run.get('metric', 'metric')}: {before:.6g} whole model, {after:.6g} circuit", markup=False)
    if {"evaluations", "evaluations_wasted", "device_calls", "seconds"} <= run.keys():
        out.print(
            f"{run['evaluations']} evaluations (and {run['evaluations_wasted']} behind wrong guesses) in "
            f"{run['device_calls']} device calls, {run['seconds']:.1f} s ({run['seconds_compiling']:.1f} s compiling)"
        )
