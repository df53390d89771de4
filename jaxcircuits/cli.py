"""The command line: the library's calls, in order."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jax
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import checkpoints, tasks
from .batching import compile_clock, device_mesh, use_compilation_cache
from .circuit import Circuit
from .data import PromptPairs
from .discovery import Progress as ACDCProgress
from .discovery import acdc_sweep
from .discovery.schedule import HEAD_ORDERS, NAME_ORDERS
from .files import write_whole
from .metrics import METRICS
from .metrics import by_name as metric_by_name
from .objective import REFERENCES, Objective
from .report import plot_pareto

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


@app.callback()
def _about() -> None:
    """Finds the circuit behind a behaviour of a language model."""


TaskName = Annotated[str, typer.Argument(help="a built-in task, or a .npz, .jsonl or .csv file of prompts")]
ModelName = Annotated[str, typer.Option(help="a bundled model, a folder, or a name on the hub")]
MetricName = Annotated[str, typer.Option(help=f"one of {', '.join(METRICS)}")]
ReferenceName = Annotated[str, typer.Option(help=f"what absent edges carry: {', '.join(REFERENCES)}")]
DtypeName = Annotated[str, typer.Option(help="float32 or float64")]
Batch = Annotated[int | None, typer.Option(help="candidates evaluated at once; default: the fastest measured")]
Size = Annotated[int | None, typer.Option(help="prompts; default 32, or all of a file's")]
Seed = Annotated[int, typer.Option(help="of the prompts and of random orders")]
Order = Annotated[str, typer.Option(help=f"of senders by layer: {', '.join(NAME_ORDERS)}")]
HeadOrder = Annotated[str, typer.Option(help=f"of heads in a layer: {', '.join(HEAD_ORDERS)}")]
Groups = Annotated[bool, typer.Option(help="first try all edges into a head's q, k or v at once")]
Absolute = Annotated[bool, typer.Option(help="compare the size of the change")]
Average = Annotated[str, typer.Option(help="several scored positions: together or per_prompt")]
Devices = Annotated[int, typer.Option(help="devices to spread over; 0: all there are")]
Cache = Annotated[Path | None, typer.Option(help="keep compiled programs in this folder for the next run")]


@app.command()
def discover(
    task: TaskName,
    model: ModelName = DEFAULT_MODEL,
    threshold: Annotated[float, typer.Option(help="an edge goes if that raises the metric by less")] = 0.1,
    metric: MetricName = "kl",
    reference: ReferenceName = "resample",
    dtype: DtypeName = "float32",
    batch: Batch = None,
    size: Size = None,
    seed: Seed = 0,
    order: Order = "last_first",
    head_order: HeadOrder = "descending",
    groups: Groups = True,
    absolute: Absolute = False,
    average: Average = "together",
    devices: Devices = 1,
    cache: Cache = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the circuit to this JSON file")] = None,
) -> None:
    """Finds a circuit with ACDC and prints it."""
    _check_writable(out_file)
    options = _Options(order=order, head_order=head_order, groups=groups, absolute=absolute, width=batch, seed=seed)
    prompts = _PromptOptions(task, model, metric, reference, dtype, size, average, devices, cache)
    [circuit] = _run(prompts, [threshold], options)
    _print_circuit(circuit)
    if out_file is not None:
        circuit.save(out_file)
        out.print(f"written to {out_file}", markup=False)


@app.command()
def sweep(
    task: TaskName,
    thresholds: Annotated[str, typer.Option(help="as 1,0.1,0.01")] = "1,0.3,0.1,0.03,0.01,0.003,0.001",
    model: ModelName = DEFAULT_MODEL,
    metric: MetricName = "kl",
    reference: ReferenceName = "resample",
    dtype: DtypeName = "float32",
    batch: Batch = None,
    size: Size = None,
    seed: Seed = 0,
    order: Order = "last_first",
    head_order: HeadOrder = "descending",
    groups: Groups = True,
    absolute: Absolute = False,
    average: Average = "together",
    devices: Devices = 1,
    cache: Cache = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="write circuits, table and plot here")] = None,
) -> None:
    """Finds the circuits of several thresholds, sharing the work, and prints a table."""
    values = _thresholds(thresholds)
    if out_folder is not None and out_folder.exists() and not out_folder.is_dir():
        raise ValueError(f"--out: {out_folder} is a file: expected the name of a folder")
    options = _Options(order=order, head_order=head_order, groups=groups, absolute=absolute, width=batch, seed=seed)
    prompts = _PromptOptions(task, model, metric, reference, dtype, size, average, devices, cache)
    circuits = _run(prompts, values, options)
    rows = [(run["threshold"], run["edges_kept"], run["metric_final"]) for run in (c.run for c in circuits)]
    out.print(f"{'threshold':>12} {'edges':>8} {metric:>16}")
    for row in rows:
        out.print(f"{row[0]:>12g} {row[1]:>8} {row[2]:>16.6g}")
    if out_folder is not None:
        out_folder.mkdir(parents=True, exist_ok=True)
        for circuit in circuits:
            circuit.save(out_folder / f"circuit-{circuit.run['threshold']:g}.json")
        table = "".join(f"{t!r},{edges},{value!r}\n" for t, edges, value in rows)
        write_whole(out_folder / "table.csv", lambda path: path.write_text(f"threshold,edges,{metric}\n{table}"))
        plot_pareto(circuits, out_folder / "pareto.png")
        out.print(f"written to {out_folder}", markup=False)


class _Options(TypedDict):
    """What `acdc_sweep` takes from the command line."""

    order: str
    head_order: str
    groups: bool
    absolute: bool
    width: int | None
    seed: int


class _PromptOptions(NamedTuple):
    """What makes the objective."""

    task: str
    model: str
    metric: str
    reference: str
    dtype: str
    size: int | None
    average: str
    devices: int
    cache: Path | None


def _run(prompts: _PromptOptions, thresholds: Sequence[float], options: _Options) -> list[Circuit]:
    """Loads, checks, computes; one circuit a threshold."""
    metric_by_name(prompts.metric)
    dtype = _dtype(prompts.dtype)
    if prompts.cache is not None:
        use_compilation_cache(prompts.cache)
    with _warnings_as_lines():
        loaded = checkpoints.load(prompts.model, dtype=dtype)
        pairs, named = _prompts(prompts.task, loaded, prompts.size, options["seed"])
        mesh = None if prompts.devices == 1 else device_mesh(len(pairs), prompts.devices or None)
        with compile_clock() as clock:
            objective = Objective(
                loaded.model, pairs, prompts.metric, prompts.reference, average=prompts.average, mesh=mesh
            )
        with _progress() as show:
            results = acdc_sweep(objective, thresholds, on_progress=show, **options)
    run = {"task": named, "model": loaded.source, "seed": options["seed"], "seconds_compiling_objective": clock.seconds}
    return [Circuit.of(result, d_model=loaded.model.config.n_embd, **run) for result in results]


def _thresholds(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--thresholds: expected numbers separated by commas, got {text!r}") from None


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
