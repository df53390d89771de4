"""`compare-methods`: the table of scoring methods on one task."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data import PromptPairs
from ..discovery.methods import METHODS, by_name
from ..evaluation.comparison import Comparison, compare_methods
from ..objective import Objective
from ..report import plot_comparison, write_comparison
from ..report.pictures import picture_path
from ..run import extended
from .config import Context, config_of
from .options import (
    Config,
    PromptOptions,
    TaskName,
    check_writable,
    devices_of,
    load,
    out,
    takes_groups,
    warnings_as_lines,
)
from .report import check_page

DEFAULT = "random,eap,eap-ig-inputs,mattr"


@takes_groups
def side_by_side(
    ctx: Context,
    task: TaskName,
    methods: Annotated[str, typer.Option(help="names joined by commas, see `jaxcircuits methods`")] = DEFAULT,
    option: Annotated[
        list[str] | None, typer.Option(help="METHOD:NAME=VALUE of a method's hyperparameter; repeatable")
    ] = None,
    held_out: Annotated[int | None, typer.Option(help="the last so many prompts judge; default: a third")] = None,
    prompts: PromptOptions = PromptOptions(metric="logit_diff"),
    config: Config = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the record to this JSON file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the curves: .png, .svg or .pdf")] = None,
    report: Annotated[Path | None, typer.Option(help="write a page with the table, the curves and the records")] = None,
) -> None:
    """Scores with several methods and judges their rankings on other prompts, side by side."""
    picture = plot if plot is None else picture_path(plot)
    check_writable(task, config, prompts.model, out=out_file, plot=picture, report=report)
    check_page(report)
    chosen = _methods(methods.split(","), option or [], prompts.seed)
    with warnings_as_lines():
        whole, run, pairs, _ = load(task, prompts)
        count = max(1, len(pairs) // 3) if held_out is None else held_out
        if not 0 < count < len(pairs):
            raise ValueError(f"--held-out: expected 1 to {len(pairs) - 1} of {len(pairs)} prompts, got {count}")
        fit, judge = (_part(whole, part, prompts) for part in (pairs[:-count], pairs[-count:]))
        record = compare_methods(fit, judge, chosen)
    record = dataclasses.replace(record, run=extended(record.run, {**run, "config": config_of(ctx)}))
    _print(record)
    if out_file is not None:
        record.save(out_file)
        out.print(f"written to {out_file}", markup=False)
    if plot is not None:
        plot_comparison(record, plot)
        out.print(f"written to {plot}", markup=False)
    if report is not None:
        write_comparison(report, record)
        out.print(f"report written to {report}", markup=False)


def _part(whole: Objective, pairs: PromptPairs, prompts: PromptOptions) -> Objective:
    mesh = devices_of(prompts, len(pairs))
    return Objective(whole.model, pairs, prompts.metric, prompts.reference, average=prompts.average, mesh=mesh)


def _methods(names: Sequence[str], options: Sequence[str], seed: int) -> dict[str, Callable[[Objective], Any]]:
    """What to run, by name. Raises ValueError for unknown methods, one named twice, and options of none of them."""
    given: dict[str, list[str]] = {name: [] for name in names}
    if len(given) < len(names):
        raise ValueError(f"--methods: expected each method once, got {','.join(names)}")
    for text in options:
        name, colon, value = text.partition(":")
        if not colon or name not in given:
            raise ValueError(f"--option: expected METHOD:NAME=VALUE of one of {', '.join(given)}, got {text!r}")
        given[name].append(value)
    return {name: _method(name, values, seed) for name, values in given.items()}


def _method(name: str, values: Sequence[str], seed: int) -> Callable[[Objective], Any]:
    method = by_name(name)
    taken = method.read(values)
    if "seed" in method.defaults:
        taken.setdefault("seed", seed)
    return lambda objective: METHODS[name].run(objective, **taken)


def _print(record: Comparison) -> None:
    run, scored = record.run, record.scored_on
    title = f"{run['task']} on {run['model']}, {run['metric']}, {run['reference']}"
    out.print(f"{title}: scored on {scored['prompts']} prompts, judged on {run['prompts']} others", markup=False)
    out.print(f"{'method':<24}{'CPR':>9}{'CMD':>9}{'acc-AUC':>9}{'without':>9}{'most F':>9}{'s':>8}{'MiB':>8}")
    for row in record.methods:
        if row.curve is None or row.necessity is None:
            out.print(f"{row.name:<24}refused: {row.refused}", markup=False)
            continue
        numbers = row.curve.cpr, row.curve.cmd, row.curve.acc_auc, row.necessity.area, row.curve.most
        texts = "".join(f"{'-' if number is None else f'{number:.3f}':>9}" for number in numbers)
        out.print(f"{row.name:<24}{texts}{row.seconds:>8.1f}{(row.peak_bytes or 0) >> 20:>8}", markup=False)
    out.print("without: area under F without the best edges, lower is better; MiB: most memory of the process so far")
