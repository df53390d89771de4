"""`discover` and `sweep`: ACDC."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..circuit import Circuit
from ..discovery import Progress as ACDCProgress
from ..discovery import acdc_sweep
from ..discovery.schedule import HEAD_ORDERS, NAME_ORDERS
from ..files import write_whole
from ..report import plot_pareto
from .lists import print_circuit
from .options import (
    DEFAULT_MODEL,
    Average,
    Cache,
    Config,
    Context,
    Devices,
    DtypeName,
    Loaded,
    MetricName,
    ModelName,
    PromptOptions,
    ReferenceName,
    Seed,
    Size,
    TaskName,
    check_writable,
    config_of,
    err,
    load_all,
    numbers_of,
    out,
    warnings_as_lines,
)
from .report import check_page, write_report

Page = Annotated[Path | None, typer.Option(help="draw the result as a self-contained page, page.html")]
Batch = Annotated[int | None, typer.Option(help="candidates evaluated at once; default: the fastest measured")]
Order = Annotated[str, typer.Option(help=f"of senders by layer: {', '.join(NAME_ORDERS)}")]
HeadOrder = Annotated[str, typer.Option(help=f"of heads in a layer: {', '.join(HEAD_ORDERS)}")]
Groups = Annotated[bool, typer.Option(help="first try all edges into a head's q, k or v at once")]
Within = Annotated[Path | None, typer.Option(help="search only among the edges of this circuit file, e.g. of `prune`")]
Absolute = Annotated[bool, typer.Option(help="compare the size of the change")]


def discover(
    ctx: Context,
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
    within: Within = None,
    average: Average = "together",
    devices: Devices = 1,
    cache: Cache = None,
    config: Config = None,
    report: Page = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the circuit to this JSON file")] = None,
) -> None:
    """Finds a circuit with ACDC and prints it."""
    check_writable(out_file)
    check_page(report)
    options = _Options(order=order, head_order=head_order, groups=groups, absolute=absolute, width=batch, seed=seed)
    start = None if within is None else Circuit.load(within)
    prompts = PromptOptions(task, model, metric, reference, dtype, size, average, devices, cache)
    [circuit], loaded = _run(prompts, [threshold], options, start, config_of(ctx))
    print_circuit(circuit)
    if out_file is not None:
        circuit.save(out_file)
        out.print(f"written to {out_file}", markup=False)
    if report is not None:
        write_report(report, [circuit], loaded.objective, loaded.checkpoint)


def sweep(
    ctx: Context,
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
    within: Within = None,
    average: Average = "together",
    devices: Devices = 1,
    cache: Cache = None,
    config: Config = None,
    report: Page = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="write circuits, table and plot here")] = None,
) -> None:
    """Finds the circuits of several thresholds, sharing the work, and prints a table."""
    values = numbers_of(thresholds)
    check_page(report)
    if out_folder is not None and out_folder.exists() and not out_folder.is_dir():
        raise ValueError(f"--out: {out_folder} is a file: expected the name of a folder")
    options = _Options(order=order, head_order=head_order, groups=groups, absolute=absolute, width=batch, seed=seed)
    start = None if within is None else Circuit.load(within)
    prompts = PromptOptions(task, model, metric, reference, dtype, size, average, devices, cache)
    circuits, loaded = _run(prompts, values, options, start, config_of(ctx))
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
    if report is not None:
        write_report(report, circuits, loaded.objective, loaded.checkpoint)


class _Options(TypedDict):
    """What `acdc_sweep` takes from the command line."""

    order: str
    head_order: str
    groups: bool
    absolute: bool
    width: int | None
    seed: int


def _run(
    prompts: PromptOptions, thresholds: Sequence[float], options: _Options, within: Circuit | None, config: dict
) -> tuple[list[Circuit], Loaded]:
    """Loads, checks, computes; one circuit a threshold, and what they are circuits of."""
    with warnings_as_lines():
        loaded = load_all(prompts, options["seed"])
        if within is not None and within.graph != loaded.objective.graph:
            raise ValueError("--within: expected a circuit of this model, got one with other layers or heads")
        mask = None if within is None else within.mask
        with _progress() as show:
            results = acdc_sweep(loaded.objective, thresholds, on_progress=show, within=mask, **options)
    width = loaded.objective.d_model
    return [Circuit.of(result, d_model=width, config=config, **loaded.run) for result in results], loaded


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
