"""`backups`: what the model falls back on when a circuit is absent."""

import dataclasses
from typing import Annotated

import typer

from ..circuit import Circuit
from ..evaluation.backups import UNITS, Backups, backups
from ..run import extended
from .config import Context, config_of
from .judge import File, JudgedOptions, Out, Width
from .options import Config, check_writable, named_in, out, recorded, takes_groups, warnings_as_lines

SHOWN = 10


@takes_groups
def backups_of(
    ctx: Context,
    file: File,
    nodes: Annotated[
        str | None, typer.Option(help="in place of the circuit's edges all edges out of these nodes, as a9.h6,a10.h0")
    ] = None,
    remove: Annotated[str, typer.Option(help=f"what is removed one by one: {', '.join(UNITS)}")] = "nodes",
    show: Annotated[int, typer.Option(help="so many of the first rows", min=0)] = SHOWN,
    options: JudgedOptions = JudgedOptions(),
    width: Width = 16,
    config: Config = None,
    out_file: Out = None,
) -> None:
    """Which nodes or edges matter more once a circuit is absent: their energies with it and without it."""
    check_writable(file, config, options.task, options.model, out=out_file)
    circuit = Circuit.load(file)
    check_writable(*named_in(circuit.run), out=out_file)
    absent = circuit if nodes is None else nodes.split(",")
    with warnings_as_lines():
        objective, run, *_ = recorded(circuit.run, options).load()
        record = backups(objective, absent, units=remove, width=width)
    record = dataclasses.replace(record, run=extended(record.run, {**run, "config": config_of(ctx)}))
    _print(record, show)
    if out_file is not None:
        record.save(out_file)
        out.print(f"written to {out_file}", markup=False)


def _print(record: Backups, shown: int) -> None:
    run = record.run
    out.print(
        f"{run['task']} on {run['model']}, {run['prompts']} prompts, {len(record.absent)} edges absent", markup=False
    )
    out.print(f"{run['metric']} {record.loss:.4g}, without them {record.loss_without:.4g}")
    out.print(f"{record.units:<22}{'ratio':>10}{'energy':>12}{'without':>12}")
    for row in record.rows[:shown]:
        ratio = "-" if row.ratio is None else f"{row.ratio:.4g}"
        out.print(f"  {row.name:<20}{ratio:>10}{row.energy:>12.4g}{row.energy_without:>12.4g}", markup=False)
    out.print(f"the first {min(shown, len(record.rows))} of {len(record.rows)} {record.units}")
