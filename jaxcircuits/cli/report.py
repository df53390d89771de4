"""`report`: a page, a picture or a text of a finished result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import checkpoints
from ..circuit import Circuit
from ..evaluation import Inspection, inspect_circuit, read_record
from ..files import read_json, write_text, write_whole
from ..objective import Objective
from ..report import plot, to_dot, to_markdown, write_page
from ..report.page import check_judgements
from ..report.pictures import PICTURES
from ..run import Source
from .config import Context
from .options import Config, check_writable, named_in, out, recorded, warnings_as_lines

TEXTS = {".dot": to_dot, ".md": to_markdown}
PROMPTS_SHOWN = 8


def report(
    ctx: Context,
    files: Annotated[
        list[Path],
        typer.Argument(help="a circuit, scores, the circuits of a sweep; what evaluate and test wrote"),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="a page .html, a picture .svg .png .pdf, a text .dot .md")],
    inspection: Annotated[Path | None, typer.Option(help="what an earlier report kept with --keep")] = None,
    model: Annotated[bool, typer.Option(help="run the model for prompts, attention and effects on them")] = True,
    effects: Annotated[bool, typer.Option(help="run the circuit once without each of its edges")] = True,
    prompts: Annotated[int, typer.Option(help="so many of the prompts")] = PROMPTS_SHOWN,
    keep: Annotated[Path | None, typer.Option(help="write what the model was run for to this JSON file")] = None,
    config: Config = None,
) -> None:
    """Draws results: a self-contained page for .html, one circuit as a picture or text for other endings.

    Of an evaluation or tests alone, the circuit is read from the file that they judged.
    """
    check_writable(*files, inspection, config, out=out_file, keep=keep)
    circuits, judgements = _read(files)
    check_writable(*named_in(*(circuit.run for circuit in circuits)), out=out_file, keep=keep)
    if len(circuits) > 1 and (keep or inspection):
        raise ValueError("--keep and --inspection: expected one FILE, as an inspection is of one circuit")
    if (keep or inspection) and out_file.suffix != ".html":
        raise ValueError(f"--keep and --inspection: expected an --out ending in .html, got {out_file}")
    if keep and not (model or inspection):
        raise ValueError("--keep: with --no-model there is nothing to keep")
    check_judgements(circuits, judgements)
    circuits.sort(key=lambda circuit: -float(circuit.run.get("threshold", 0)))
    if out_file.suffix != ".html":
        if judgements:
            raise ValueError(f"--out: evaluations and tests are drawn on a page, ending in .html; got {out_file}")
        _write_one(out_file, circuits)
    else:
        inspections = []
        if inspection is not None:
            inspections = [Inspection.load(inspection)]
        elif model:
            with warnings_as_lines():
                inspections = _inspect_again(circuits, prompts, effects)
        if keep is not None:
            inspections[0].save(keep)
        write_page(out_file, circuits, inspections=inspections, judgements=judgements)
    out.print(f"written to {out_file}", markup=False)


def write_report(
    path: Path,
    circuits: Sequence[Circuit],
    objective: Objective,
    checkpoint: checkpoints.Checkpoint,
    prompts: int = PROMPTS_SHOWN,
) -> None:
    """The page of circuits that were found just now."""
    write_page(path, circuits, inspections=_inspect(circuits, objective, checkpoint, prompts))
    out.print(f"report written to {path}", markup=False)


def check_page(path: Path | None) -> None:
    """Raises ValueError for a report that is no page."""
    if path is not None and path.suffix != ".html":
        raise ValueError(f"--report: expected a page ending in .html, got {path}")


def _inspect(
    circuits: Sequence[Circuit],
    objective: Objective,
    checkpoint: checkpoints.Checkpoint,
    prompts: int = PROMPTS_SHOWN,
    effects: bool = True,
) -> list[Inspection]:
    """One inspection a circuit; edges of scores, which choose none, are not tried one by one."""
    tokenizer = checkpoint.tokenizer if checkpoint.has_tokenizer else None
    return [
        inspect_circuit(
            objective,
            circuit,
            tokenizer,
            prompts=prompts,
            effects=effects and circuit.num_edges < circuit.graph.num_edges,
        )
        for circuit in circuits
    ]


def _inspect_again(circuits: Sequence[Circuit], prompts: int, effects: bool) -> list[Inspection]:
    """With the prompts and the model that the record of the run names."""
    run: dict[str, Any] = circuits[0].run
    source = Source.of(run)
    if missing := [name for name in ("task", "model", "metric", "reference") if getattr(source, name) is None]:
        raise ValueError(
            f"the record names no {' and no '.join(missing)}, so the model cannot be run for the report: "
            "use --no-model or --inspection"
        )
    loaded = recorded(run).load()
    return _inspect(circuits, loaded.objective, loaded.checkpoint, prompts, effects)


def _write_one(path: Path, circuits: Sequence[Circuit]) -> None:
    if path.suffix not in (*PICTURES, *TEXTS):
        raise ValueError(f"--out: expected a file ending in .html, {', '.join((*PICTURES, *TEXTS))}, got {path}")
    if len(circuits) != 1:
        raise ValueError(f"--out: {path.suffix} shows one circuit, got {len(circuits)}; a .html page shows several")
    if path.suffix in TEXTS:
        text = TEXTS[path.suffix](circuits[0])
        write_text(path, text)
    else:
        figure = plot(circuits[0])
        write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=200))


def _read(files: Sequence[Path]) -> tuple[list[Circuit], list[dict[str, Any]]]:
    """The circuits and the records of evaluations and tests in some files; of records alone, the circuit they judge."""
    circuits, judgements = [], []
    for file in files:
        value = read_json(file, "circuit file")
        if isinstance(value, dict) and "kind" in value:
            judgements.append(read_record(file))
        else:
            circuits.append(Circuit.load(file))
    return circuits or [_judged_circuit(files[0], judgements[0])], judgements


def _judged_circuit(file: Path, record: dict[str, Any]) -> Circuit:
    """From the file that was typed for it, or one of its name beside the record."""
    judged = Path(str(record.get("run", {}).get("config", {}).get("file", "")))
    found = next((path for path in (judged, file.parent / judged.name) if path.is_file()), None)
    if found is None:
        raise ValueError(f"{file}: the file of the circuit that it judges, {judged}, is not there: give it as well")
    return Circuit.load(found)
