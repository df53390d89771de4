"""`vary`: how much a result owes to its prompts, templates, corruption and seed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..discovery import acdc
from ..discovery.methods import by_name
from ..evaluation.variation import Variation, variation
from ..objective import Objective
from ..run import extended
from ..scores import Scores
from .config import Context, config_of
from .options import (
    Checkpoint,
    Config,
    PromptOptions,
    TaskName,
    check_fillable,
    check_writable,
    load,
    out,
    takes_groups,
    warnings_as_lines,
)


@takes_groups
def vary(
    ctx: Context,
    task: TaskName,
    method: Annotated[str | None, typer.Option(help="a scoring method; default: ACDC at --threshold")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a hyperparameter; repeatable")] = None,
    threshold: Annotated[float | None, typer.Option(help="of ACDC")] = None,
    bootstrap: Annotated[int, typer.Option(help="runs on prompts drawn with replacement")] = 20,
    groups: Annotated[
        bool | None, typer.Option(help="runs without each group of the task file (or template); default: if it has any")
    ] = None,
    corruptions: Annotated[int, typer.Option(help="runs with the corrupt versions of other prompts")] = 10,
    seeds: Annotated[int, typer.Option(help="runs with other seeds of the method")] = 0,
    prompts: PromptOptions = PromptOptions(metric="kl"),
    config: Config = None,
    checkpoint: Checkpoint = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the record to this JSON file")] = None,
) -> None:
    """Runs a method again with other prompts, templates, corruption or seeds: a table of variance components."""
    check_writable(task, config, prompts.model, out=out_file)
    check_fillable(checkpoint=checkpoint)
    run_method = _method(method, option or [], threshold, seeds)
    with warnings_as_lines():
        objective, run, pairs, _ = load(task, prompts)
        if groups is None:
            groups = pairs.group is not None and bool(np.ptp(pairs.group))
        if groups and pairs.group is None:
            raise ValueError(f"--groups: {task} has no column `group`")
        given = pairs.group if groups else None
        counts = {"bootstrap": bootstrap, "corruptions": corruptions, "seeds": seeds, "seed": prompts.seed or 0}
        record = variation(objective, run_method, groups=given, **counts, checkpoint=checkpoint)
    record = dataclasses.replace(record, run=extended(record.run, {**run, "config": config_of(ctx)}))
    _print(record)
    if out_file is not None:
        record.save(out_file)
        out.print(f"written to {out_file}", markup=False)


def _method(name: str | None, options: list[str], threshold: float | None, seeds: int) -> Callable[..., Any]:
    """What is run again. Raises ValueError for options of another method than that."""
    if name is None:
        if threshold is None or options or seeds:
            raise ValueError("ACDC needs --threshold and takes no --option or --seeds; or give --method")
        return lambda objective: acdc(objective, threshold)
    if threshold is not None:
        raise ValueError("--threshold is of ACDC: leave out --method, or the threshold")
    found = by_name(name)
    taken = found.read(options)
    if seeds and ("seed" not in found.defaults or "seed" in taken):
        raise ValueError(f"--seeds: expected a method with a seed that no --option sets, got {name}")

    def scored(objective: Objective, **seeded: int) -> Scores:
        result = found.run(objective, **taken, **seeded)
        return result if isinstance(result, Scores) else result.as_scores()

    return scored


def _print(record: Variation) -> None:
    run = record.run
    out.print(
        f"{run['method']}: {run['task']} on {run['model']}, {run['prompts']} prompts, {run['metric']}", markup=False
    )
    out.print(f"{'choice':<14}{'runs':>6}{'variance':>12}{'share':>8}{'alike':>8}{'least':>8}   edges")
    for row in record.components:
        alike = f"{'-':>8}{'-':>8}" if row.likeness is None else f"{row.likeness[0]:>8.3f}{row.likeness[1]:>8.3f}"
        numbers = f"{row.runs:>6}{row.variance:>12.4g}{record.shares[row.choice]:>8.1%}{alike}"
        out.print(f"{row.choice:<14}{numbers}   {row.edges[0]} to {row.edges[1]}", markup=False)
    out.print(
        "variance: summed over the edges, each choice alone; alike: to the result of all prompts, Jaccard or rank"
    )
