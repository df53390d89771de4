"""`discover` and `sweep`: ACDC."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..arguments import check_number
from ..circuit import Circuit
from ..discovery import ACDCResult, Replicates, acdc, acdc_sweep, per_prompt, replicates
from ..discovery import Progress as ACDCProgress
from ..discovery.per_prompt import MOST_CLUSTERS
from ..discovery.schedule import HEAD_ORDERS, NAME_ORDERS
from ..files import short_name, write_text
from ..objective import Objective
from ..report import plot_pareto
from ..resampling import LEFT_OUT, RESAMPLES
from .config import Context, config_of
from .lists import print_circuit, print_cluster
from .options import (
    Checkpoint,
    Config,
    Loaded,
    PromptOptions,
    TaskName,
    check_fillable,
    check_writable,
    err,
    load,
    numbers_of,
    out,
    takes_groups,
    warnings_as_lines,
)
from .report import PROMPTS_SHOWN, check_page, write_report

Page = Annotated[Path | None, typer.Option(help="draw the result as a self-contained page, page.html")]


TABLE, PLOT = "table.csv", "pareto.png"
"""What a sweep writes beside its circuits."""


class SearchOptions(NamedTuple):
    """How ACDC goes through the edges."""

    order: Annotated[str, typer.Option(help=f"of senders by layer: {', '.join(NAME_ORDERS)}")] = "last_first"
    head_order: Annotated[str, typer.Option(help=f"of heads in a layer: {', '.join(HEAD_ORDERS)}")] = "descending"
    groups: Annotated[bool, typer.Option(help="first try all edges into a head's q, k or v at once")] = True
    absolute: Annotated[bool, typer.Option(help="compare the size of the change")] = False
    within: Annotated[
        Path | None, typer.Option(help="search only among the edges of this circuit file, e.g. of `prune`")
    ] = None
    batch: Annotated[int | None, typer.Option(help="candidates evaluated at once; default: what suits the guesses")] = (
        None
    )
    together: Annotated[
        int | None,
        typer.Option(help="searches in one call, of thresholds or replicates that parted; default: 1 on a CPU"),
    ] = None


class ReplicateOptions(NamedTuple):
    """Error bars: the search on resampled prompts."""

    replicates: Annotated[int, typer.Option(help="searches on resampled prompts; 0: none", min=0)] = 0
    resample: Annotated[str, typer.Option(help=f"how prompts are drawn: {', '.join(RESAMPLES)}")] = "bootstrap"
    per_prompt: Annotated[
        bool,
        typer.Option(help="search every prompt alone, and each cluster of prompts; --out c.json: c-1.json, ..."),
    ] = False
    clusters: Annotated[int | None, typer.Option(help="of prompts; default: as the silhouette says", min=1)] = None
    left_out: Annotated[
        float | None, typer.Option(help=f"share of the prompts that `--resample keep` leaves out; default: {LEFT_OUT}")
    ] = None

    def check(self) -> None:
        """Raises ValueError for an option that would do nothing beside the others."""
        if self.per_prompt and self.replicates:
            raise ValueError("--per-prompt: expected no --replicates besides: every prompt is searched alone")
        if self.clusters is not None and not self.per_prompt:
            raise ValueError("--clusters: expected --per-prompt besides: these are clusters of prompts")
        if self.resample not in RESAMPLES:
            raise ValueError(f"--resample: expected one of {', '.join(RESAMPLES)}, got {self.resample!r}")
        if self.resample != RESAMPLES[0] and not self.replicates:
            raise ValueError("--resample: expected --replicates besides, how often prompts are drawn")
        if self.left_out is not None and self.resample != "keep":
            raise ValueError("--left-out: expected --resample keep besides: a bootstrap draws as many as there are")


@takes_groups
def discover(
    ctx: Context,
    task: TaskName,
    threshold: Annotated[float, typer.Option(help="an edge goes if that raises the metric by less")] = 0.1,
    prompts: PromptOptions = PromptOptions(metric="kl"),
    search: SearchOptions = SearchOptions(),
    resampling: ReplicateOptions = ReplicateOptions(),
    checkpoint: Checkpoint = None,
    config: Config = None,
    report: Page = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the circuit to this JSON file")] = None,
) -> None:
    """Finds a circuit with ACDC and prints it."""
    check_number("threshold", threshold)
    check_writable(task, search.within, config, prompts.model, out=out_file, report=report)
    resampling.check()
    if resampling.per_prompt and out_file is not None:
        numbers = range(1, (resampling.clusters or MOST_CLUSTERS) + 1)
        numbered = {f"out {number}": _numbered(out_file, number) for number in numbers}
        check_writable(task, search.within, config, prompts.model, report=report, **numbered)
    check_fillable(checkpoint=checkpoint)
    check_page(report)

    def find(objective: Objective, told: Any, **options: Any) -> Sequence[ACDCResult | Replicates]:
        return _of_samples(objective, threshold, resampling, **options)

    circuits, loaded = _run(ctx, task, prompts, search, checkpoint, find)
    for number, circuit in enumerate(circuits, 1):
        if resampling.per_prompt:
            print_cluster(circuit, loaded.pairs, loaded.checkpoint)
        print_circuit(circuit)
        if out_file is not None:
            file = _numbered(out_file, number) if resampling.per_prompt else out_file
            circuit.save(file)
            out.print(f"written to {file}", markup=False)
    if report is not None:
        shown = len(loaded.pairs) if resampling.per_prompt else PROMPTS_SHOWN
        write_report(report, circuits, loaded.objective, loaded.checkpoint, shown)


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")


def _of_samples(
    objective: Objective, threshold: float, resampling: ReplicateOptions, seed: int, **options: Any
) -> Sequence[ACDCResult | Replicates]:
    """What ACDC finds: once, with replicates, or on each cluster of prompts."""
    if resampling.per_prompt:
        found = per_prompt(objective, threshold, clusters=resampling.clusters, seed=seed, **options)
        prompts = [found.prompts(number).tolist() for number in range(len(found.circuits))]
        clusters = [{"number": number, "prompts": own} for number, own in enumerate(prompts, 1)]
        each = zip(found.circuits, clusters, strict=True)
        return [dataclasses.replace(circuit, options={**circuit.options, "cluster": own}) for circuit, own in each]
    if resampling.replicates:
        count, resample = resampling.replicates, resampling.resample
        q = LEFT_OUT if resampling.left_out is None else resampling.left_out
        drawn = replicates(
            objective, threshold, count=count, resample=resample, q=q, seed=seed, order_seed=seed, **options
        )
        return [drawn]
    return [acdc(objective, threshold, seed=seed, **options)]


@takes_groups
def sweep(
    ctx: Context,
    task: TaskName,
    thresholds: Annotated[str, typer.Option(help="as 1,0.1,0.01")] = "1,0.3,0.1,0.03,0.01,0.003,0.001",
    prompts: PromptOptions = PromptOptions(metric="kl"),
    search: SearchOptions = SearchOptions(),
    checkpoint: Checkpoint = None,
    config: Config = None,
    report: Page = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="write circuits, table and plot here")] = None,
) -> None:
    """Finds the circuits of several thresholds, sharing the work, and prints a table."""
    chosen = numbers_of("thresholds", thresholds)
    check_fillable(out=out_folder, checkpoint=checkpoint)
    files = [] if out_folder is None else [out_folder / name for name in (*map(file_name, chosen), TABLE, PLOT)]
    own = {f"out {file.name}": file for file in files if file.parent.is_dir()}
    check_writable(task, search.within, config, prompts.model, report=report, **own)
    check_page(report)

    def keep(circuit: Circuit) -> None:
        if out_folder is not None:
            out_folder.mkdir(parents=True, exist_ok=True)
            circuit.save(out_folder / file_name(circuit.run["threshold"]))

    def find(objective: Objective, told: Any, **options: Any) -> Sequence[ACDCResult]:
        return acdc_sweep(objective, chosen, on_result=lambda result: keep(told(result)), **options)

    circuits, loaded = _run(ctx, task, prompts, search, checkpoint, find)
    rows = [(run["threshold"], run["edges_kept"], run["metric_final"]) for run in (c.run for c in circuits)]
    out.print(f"{'threshold':>12} {'edges':>8} {prompts.metric:>16}")
    for row in rows:
        out.print(f"{row[0]:>12g} {row[1]:>8} {row[2]:>16.6g}")
    if out_folder is not None:
        table = "".join(f"{t!r},{edges},{value!r}\n" for t, edges, value in rows)
        write_text(out_folder / TABLE, f"threshold,edges,{prompts.metric}\n{table}")
        plot_pareto(circuits, out_folder / PLOT)
        out.print(f"written to {out_folder}", markup=False)
    if report is not None:
        write_report(report, circuits, loaded.objective, loaded.checkpoint)


def file_name(threshold: float) -> str:
    """The file of a sweep's circuit."""
    return f"circuit-{short_name(threshold)}.json"


def _run(
    ctx: Context,
    task: str,
    prompts: PromptOptions,
    search: SearchOptions,
    checkpoint: Path | None,
    find: Callable[..., Sequence[ACDCResult | Replicates]],
) -> tuple[list[Circuit], Loaded]:
    """Loads, checks, computes; the circuits that `find` gives, and what they are circuits of.

    - `find(objective, told, **options)`: results of ACDC; `told` makes a result a circuit.
    """
    options = search._asdict()
    width, within = options.pop("batch"), options.pop("within")
    start = None if within is None else Circuit.load(within)
    with warnings_as_lines():
        loaded = load(task, prompts)
        if start is not None and start.graph != loaded.objective.graph:
            raise ValueError("--within: expected a circuit of this model, got one with other layers or heads")
        options |= {"width": width, "seed": prompts.seed, "within": None if start is None else start.mask}
        options["checkpoint"] = checkpoint

        def circuit_of(result: ACDCResult | Replicates) -> Circuit:
            return Circuit.of(result, d_model=loaded.objective.d_model, config=config_of(ctx), **loaded.run)

        with _progress() as show:
            results = find(loaded.objective, circuit_of, on_progress=show, **options)
    return [circuit_of(result) for result in results], loaded


@contextmanager
def _progress() -> Iterator[Any]:
    if not err.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.completed}/{task.total} edges"),
        BarColumn(),
        TextColumn("{task.fields[kept]} kept, {task.fields[evaluations]} evaluations"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        line = bar.add_task("", total=None, kept=0, evaluations=0)

        def draw(now: ACDCProgress) -> None:
            bar.update(
                line, completed=now.edges_done, total=now.edges_total, kept=now.edges_kept, evaluations=now.evaluations
            )

        yield draw
