"""`reproduce`: the ACDC paper's tables, published beside computed."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable

from .. import reproduce as tables
from ..batching import use_compilation_cache
from ..reproduce import Settings, Table
from .config import Context, config_of
from .options import (
    Cache,
    Config,
    DtypeName,
    Seed,
    check_fillable,
    dtype_of,
    err,
    numbers_of,
    out,
    warnings_as_lines,
)


def reproduce(
    ctx: Context,
    table: Annotated[str, typer.Argument(help=f"one of {', '.join(tables.TABLES)}")],
    task: Annotated[str | None, typer.Option(help="of roc: ioi, greater_than or docstring")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="default: the paper's; or a folder with its weights, or a bundled one to rehearse"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="prompts; default: the paper's number")] = None,
    thresholds: Annotated[str | None, typer.Option(help="of ACDC, as 1,0.1; default: the paper's")] = None,
    strengths: Annotated[str | None, typer.Option(help="of Subnetwork Probing's penalty, as 0.1,1,10")] = None,
    steps: Annotated[int, typer.Option(help="of Subnetwork Probing's training")] = 3000,
    dtype: DtypeName = "float32",
    seed: Seed = 0,
    cache: Cache = None,
    config: Config = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="keep circuits, table and plot here; default: reproduced/TABLE")
    ] = None,
) -> None:
    """Computes a table of the ACDC paper and prints it beside the published one; goes on where it was interrupted."""
    compute = tables.by_name(table)
    folder = out_folder or Path("reproduced") / table
    check_fillable(out=folder)
    dtype_of(dtype)
    if cache is not None:
        use_compilation_cache(cache)
    began = time.perf_counter()

    def tell(step: str) -> None:
        err.print(f"{time.perf_counter() - began:7.1f} s  {step}", markup=False)

    settings = Settings(
        folder,
        model=model,
        task=task,
        size=size,
        thresholds=None if thresholds is None else tuple(numbers_of("thresholds", thresholds)),
        strengths=None if strengths is None else tuple(numbers_of("strengths", strengths)),
        steps=steps,
        seed=seed,
        config=config_of(ctx),
        on_step=tell,
    )
    with warnings_as_lines():
        result = compute(settings)
    folder.mkdir(parents=True, exist_ok=True)
    paths = result.save(folder)
    _print(result)
    out.print(f"written to {', '.join(map(str, paths))}", markup=False)


def _print(result: Table) -> None:
    head, *rows = result.cells()
    notes = list(dict.fromkeys(note for *_, note in rows if note))
    table = RichTable(*head, title=result.title, box=None)
    for column in table.columns:
        column.overflow = "fold"
    for *cells, note in rows:
        table.add_row(*cells, f"see {notes.index(note) + 1}" if note else "")
    out.print(table, markup=False)
    for number, note in enumerate(notes, 1):
        out.print(f"{number}: {note}", markup=False)
    out.print(f"published: {result.source}", markup=False)
