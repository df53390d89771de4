"""`mib`: a submission to MIB's circuit localisation track, written, checked and evaluated."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .. import checkpoints, mib_data
from ..batching import use_compilation_cache
from ..circuit import RANKS, Circuit
from ..data import PromptPairs
from ..discovery import methods
from ..interchange import mib_circuits, mib_name, write_mib
from ..mib import MODELS, TASKS, check_graph, check_mib, check_result, mib_curve, read_result
from ..objective import Objective
from ..run import SOURCE, extended
from .config import Context, config_of
from .judged_lines import print_curve
from .options import (
    DEFAULT_MODEL,
    Cache,
    Checkpoint,
    Config,
    DtypeName,
    Seed,
    check_fillable,
    dtype_of,
    out,
    takes_groups,
    warnings_as_lines,
)

RECORD = ".evaluation.json"
HUB, GENERATOR = "hub", "generator"
GENERATED = (
    "this library's, not MIB's data: ioi in one template, which is one of MIB's, corrupt as MIB's "
    "s2_io_flip_counterfactual"
)


METHOD = "eap-ig-inputs"


class DataOptions(NamedTuple):
    """Which prompts."""

    data: Annotated[
        str | None,
        typer.Option(
            help=f"{HUB}: MIB's data set; {GENERATOR}: this library's prompts (ioi); or a folder or file of MIB's rows "
            f"(.jsonl, .json, .parquet); default: {HUB} for MIB's models, else {GENERATOR}"
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="of the data set, to judge on: validation (the default) or test; train is scored"),
    ] = None
    size: Annotated[int, typer.Option(help="prompts to score on; MIB's baselines: 1,000 of ioi", min=1)] = 100
    held_out: Annotated[int, typer.Option(help="other prompts to judge on; MIB takes all of the split", min=1)] = 100
    seed: Seed = 0


class FoundOptions(NamedTuple):
    """How circuits are found."""

    method: Annotated[str | None, typer.Option(help=f"see `jaxcircuits methods`; default: {METHOD}")] = None
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a method's hyperparameter; repeatable")] = None
    scores: Annotated[Path | None, typer.Option(help="submit this file of scores, without a method")] = None
    nine: Annotated[bool, typer.Option("--nine", help="write nine circuits, of which each has its size")] = False
    rank: Annotated[str, typer.Option(help="of --nine: signed (for CPR), or absolute (for CMD)")] = "signed"
    checkpoint: Checkpoint = None


@takes_groups
def mib(
    ctx: Context,
    task: Annotated[str | None, typer.Argument(help=f"one of {', '.join(TASKS)}")] = None,
    model: Annotated[
        str, typer.Option(help=f"one of MIB's, {', '.join(MODELS)}; or a folder, a hub name or a bundled model")
    ] = DEFAULT_MODEL,
    named: Annotated[str | None, typer.Option("--as", help="which of MIB's models a folder is")] = None,
    found: FoundOptions = FoundOptions(),
    prompts: DataOptions = DataOptions(),
    dtype: DtypeName = "float32",
    cache: Cache = None,
    config: Config = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="the submission's folder; further ones join")] = None,
    check: Annotated[Path | None, typer.Option(help="check this submission, and do nothing else")] = None,
) -> None:
    """Writes a submission to MIB's circuit track (2504.13151), checks it by MIB's rules, and evaluates it (CPR, CMD).

    jaxcircuits mib ioi --model gpt2 --method eap-ig-inputs --out submission

    jaxcircuits mib mcqa --model ./Qwen2.5-0.5B --as qwen2.5 --data ./copycolors_mcqa --nine --out submission

    jaxcircuits mib --check submission

    With another model than MIB's it is a rehearsal: the same files by the same rules.
    """
    if check is not None:
        if task is not None or out_folder is not None:
            raise ValueError("--check reads a submission: leave out the task and --out")
        return _check(check)
    if task is None or out_folder is None:
        raise ValueError(f"mib: expected a task ({', '.join(TASKS)}) and --out FOLDER, or --check FOLDER")
    task = task.replace("_", "-")
    name = _name_of(task, model, named)
    place = out_folder / mib_name(task, name)
    method = _method(found, prompts.seed)
    _check_free(out_folder, place)
    check_fillable(checkpoint=found.checkpoint)
    taken = dtype_of(dtype)
    if cache is not None:
        use_compilation_cache(cache)
    with warnings_as_lines():
        loaded = _load(model, name, taken)
        fit, judge, source = _prompts(task, name, loaded.tokenizer, prompts)
        _print_head(task, name, source, (fit, judge))
        objectives = [Objective(loaded.model, pairs, "logit_diff", "resample") for pairs in (fit, judge)]
        check_graph(loaded.graph, objectives[0].d_model, name)
        run = {"task": task, "model": loaded.source, "seed": prompts.seed, "data": source, "config": config_of(ctx)}
        run[SOURCE] = {"task": task, "model": loaded.source, "seed": prompts.seed}
        scored = method(objectives[0], run)
        write_mib({(task, name): mib_circuits(scored, rank=found.rank) if found.nine else scored}, out_folder)
        _print_checked(place)
        record = mib_curve(objectives[1], read_result(place))
    record = dataclasses.replace(record, run=extended(record.run, run))
    print_curve(record)
    record.save(path := out_folder / f"{place.name}{RECORD}")
    out.print(f"written to {path}", markup=False)


# --- before anything is computed ------------------------------------------------------------------


def _name_of(task: str, model: str, named: str | None) -> str:
    """What MIB calls the model, or for one that it has not the last part of its name.

    Raises ValueError for another task, a model that MIB does not score it on, and a folder that may be MIB's or not.
    """
    if task not in TASKS:
        raise ValueError(f"mib: expected one of {', '.join(TASKS)}, got {task!r}")
    known = next((name for name, entry in MODELS.items() if model in (name, entry.hub)), None)
    name = named or known or Path(model).resolve().name.removesuffix(".gguf").replace("_", "-")
    if named is not None and named not in MODELS:
        raise ValueError(f"--as: expected one of {', '.join(MODELS)}, got {named!r}; leave it out to rehearse")
    if named is None and known is None and name in MODELS:
        raise ValueError(f"--model: is {model} MIB's {name}? Then give --as {name}; else rename the folder")
    if name in MODELS and name not in TASKS[task]:
        raise ValueError(f"--model: expected {' or '.join(TASKS[task])} for {task}, got {name}: MIB has no other")
    return name


def _check_free(folder: Path, place: Path) -> None:
    """Raises ValueError for a folder that is no submission's, or that holds a result of this task and model."""
    check_fillable(out=folder)
    if not folder.exists():
        return
    for entry in sorted(folder.iterdir()):
        is_part = "_" in entry.name and entry.is_dir() or entry.name.endswith(RECORD)
        if not is_part and not entry.name.startswith((".", "README")):
            raise ValueError(
                f"--out: expected a new or empty folder, or a submission's, got {folder} with {entry.name}"
            )
    record = folder / f"{place.name}{RECORD}"
    if record.exists() or place.exists() and any(place.iterdir()):
        raise ValueError(
            f"--out: expected a folder without a result of {place.name}, got {folder}: it would be lost; move "
            f"{place} and {record} away, or give another folder"
        )


def _method(found: FoundOptions, seed: int) -> Callable[[Objective, dict[str, Any]], Circuit]:
    """What makes scores of an objective, with a record that has the entries `run` besides."""
    if found.rank not in RANKS:
        raise ValueError(f"--rank: expected one of {', '.join(RANKS)}, got {found.rank!r}")
    if found.rank != "signed" and not found.nine:
        raise ValueError(f"--rank {found.rank}: expected --nine besides: MIB ranks scores itself")
    if found.scores is not None:
        if found.method or found.option or found.checkpoint is not None:
            raise ValueError("--scores is a result: leave out --method, --option and --checkpoint")
        given = Circuit.load(found.scores)
        return lambda objective, run: _given(given, objective)
    chosen = methods.by_name(found.method or METHOD)
    taken = chosen.read(found.option or [])
    if "seed" in chosen.defaults:
        taken.setdefault("seed", seed)
    if found.checkpoint is not None:
        if not chosen.takes_checkpoint:
            raise ValueError(f"--checkpoint: {chosen.name} has nothing to keep: it takes {chosen.cost}; leave it out")
        taken["checkpoint"] = found.checkpoint
    return lambda objective, run: Circuit.of(chosen.run(objective, **taken), d_model=objective.d_model, **run)


def _given(scored: Circuit, objective: Objective) -> Circuit:
    if scored.graph != objective.graph:
        raise ValueError("--scores: expected scores of this model, --units ungrouped, got another graph's")
    return dataclasses.replace(scored, d_model=objective.d_model)


# --- model and prompts -----------------------------------------------------------------------------


def _load(model: str, name: str, dtype: Any) -> checkpoints.Checkpoint:
    """The model as MIB's graph has it. Raises ValueError for one that has no such graph, or other sizes than MIB's."""
    source = MODELS[model].hub if model in MODELS and not Path(model).exists() else model
    loaded = checkpoints.load(source, dtype=dtype, units="ungrouped")
    try:
        check_graph(loaded.graph, None, name)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
    return loaded


def _prompts(task: str, name: str, tokenizer: Any, asked: DataOptions) -> tuple[PromptPairs, PromptPairs, str]:
    """Prompts to score on, others to judge on, and where they are from."""
    if asked.split not in (None, *mib_data.SPLITS[1:]):
        raise ValueError(f"--split: expected {' or '.join(mib_data.SPLITS[1:])}, got {asked.split!r}")
    split = asked.split or mib_data.SPLITS[1]
    data = asked.data or (HUB if name in MODELS else GENERATOR)
    if asked.split and data != HUB and not Path(data).is_dir():
        raise ValueError(f"--split: expected MIB's data set or a folder of it, got {data}, which has no splits")
    if data == GENERATOR:
        if task != "ioi":
            raise ValueError(f"--data: this library makes no prompts of {task}: give {HUB}, or a copy of MIB's rows")
        both = mib_data.generated(tokenizer, asked.size + asked.held_out, asked.seed)
        return *both.split(asked.size), GENERATED
    if data != HUB and not Path(data).exists():
        raise ValueError(f"--data: expected {HUB}, {GENERATOR}, or a folder or file of MIB's rows, got no such: {data}")
    place, source = mib_data.download(task) if data == HUB else (Path(data), data)
    if place.is_file():
        both = _rows(task, place, "", tokenizer, asked.size + asked.held_out)
        if len(both) <= asked.size:
            raise ValueError(f"--size: expected fewer than the {len(both)} prompts of {place}, which judge too")
        return *both.split(asked.size), f"{source}, its first rows scored"
    fit, judge = (
        _rows(task, place, split, tokenizer, size) for split, size in (("train", asked.size), (split, asked.held_out))
    )
    return fit, judge, f"{source}, train scored, {split} judged"


def _rows(task: str, place: Path, split: str, tokenizer: Any, size: int) -> PromptPairs:
    rows = mib_data.rows_of(task, place, split)
    pairs, left_out = mib_data.prompts_of_rows(task, rows, tokenizer, size)
    for reason, count in left_out.items():
        out.print(f"left out of {split or place.name}: {count} of {count + len(pairs)} with {reason}", markup=False)
    return pairs


# --- what is printed ------------------------------------------------------------------------------


def _print_head(task: str, name: str, source: str, prompts: tuple[PromptPairs, PromptPairs]) -> None:
    is_theirs = name in MODELS
    kind = "one of MIB's models" if is_theirs else f"a rehearsal, no submission: MIB has no model {name}"
    out.print(f"{task} on {name}, {kind}", markup=False)
    out.print(f"prompts: {source}; {len(prompts[0])} scored, {len(prompts[1])} others judged", markup=False)
    if is_theirs and MODELS[name].differs:
        out.print(f"note: {MODELS[name].differs}", markup=False)


def _print_checked(place: Path) -> None:
    notes = check_result(place)
    out.print(f"written to {place}, and checked by MIB's rules", markup=False)
    for note in notes:
        out.print(f"note: {note}", markup=False)


def _check(folder: Path) -> None:
    found = check_mib(folder)
    out.print(f"results: {', '.join(found.folders) or 'none'}", markup=False)
    for line in (*(f"note: {note}" for note in found.notes), *found.problems):
        out.print(line, markup=False)
    if found.problems:
        raise ValueError(f"{folder}: {len(found.problems)} of MIB's rules are broken, see above")
    out.print("as MIB's rules say")
