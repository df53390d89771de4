"""`tasks`: lists the built-in tasks, shows prompts, checks a task against a model."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .. import checkpoints, metrics, tasks
from ..data import PromptPairs
from ..objective import Objective
from ..texts import PADDING
from .options import DEFAULT_MODEL, Bos, ModelName, Seed, Size, Template, err, out, prompts_of, warnings_as_lines

FEW = 6
"""Answers of a prompt that are printed."""

FIRST = 5
"""Prompts that are printed where nobody says how many."""


def tasks_command(
    name: Annotated[
        str | None, typer.Argument(help="a built-in task or a file, to be shown; or check, with one of these")
    ] = None,
    file: Annotated[str | None, typer.Argument(help="after check: the built-in task or the file to be checked")] = None,
    model: ModelName = DEFAULT_MODEL,
    show: Annotated[int | None, typer.Option(help=f"prompts to print; default: the first {FIRST}")] = None,
    size: Size = None,
    seed: Seed = 0,
    bos: Bos = None,
    template: Template = None,
) -> None:
    """Lists the built-in tasks, prints prompts of one, or checks one: does it fit the model, does the model do it."""
    if name is None:
        return _list()
    if name == "check" and file is None:
        raise ValueError("tasks check: expected a built-in task or a .npz, .jsonl or .csv file")
    if name != "check" and file is not None:
        raise ValueError(f"tasks {name}: unexpected {file!r}; only check takes a second name")
    if show is not None and show < 1:
        raise ValueError(f"--show: expected at least 1, got {show}")
    task = file if name == "check" and file is not None else name
    with warnings_as_lines():
        loaded = checkpoints.load(model)
        wanted = size if name == "check" or show is None else max(2, show)
        pairs, named = prompts_of(
            task, loaded, size if Path(task).is_file() else wanted, seed, bos=bos, template=template
        )
        if name == "check":
            _check(pairs, named, loaded)
        else:
            _show(pairs[: show or FIRST], named, loaded)


def _list() -> None:
    for task in tasks.TASKS.values():
        out.print(f"{task.name:<18}{task.description}", markup=False)
        known = "; its circuit is known" if task.circuit else ""
        out.print(f"{'':<18}scored in its paper by {task.metric}; {task.source}{known}", markup=False)
    out.print("or a file: .npz (token ids), .jsonl or .csv (text); see the README, 'Your own data'")


# --- show ------------------------------------------------------------------------------------------


def _show(pairs: PromptPairs, named: str, loaded: checkpoints.Checkpoint) -> None:
    """Clean and corrupt text, answers, number of tokens."""
    text = _decoder(loaded)
    pairs.check_against(loaded.model.vocab_size, loaded.model.max_positions)
    lengths = _lengths(pairs)
    for row, length in enumerate(lengths):
        out.print(f"{named} {row}: {length} tokens", markup=False)
        out.print(f"  clean    {text(pairs.clean[row, :length])}", markup=False)
        out.print(f"  corrupt  {text(pairs.corrupt[row, :length])}", markup=False)
        for label, ids in (("answer", pairs.answer), ("wrong", pairs.wrong)):
            if ids is not None and ids.ndim == 2:
                out.print(f"  {label:<9}{_some(ids[row], text)}", markup=False)
        for name, ends in (pairs.spans or {}).items():
            out.print(f"  {name:<9}{text(pairs.clean[row, slice(*ends[row])])} at {ends[row].tolist()}", markup=False)
        if pairs.positions is not None:
            out.print(f"  scored   at {pairs.positions[row].sum()} positions", markup=False)


def _decoder(loaded: checkpoints.Checkpoint) -> Any:
    """Token ids to text in quotes; to numbers where the model has no tokenizer."""
    try:
        tokenizer = loaded.tokenizer
    except ValueError:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: repr(tokenizer.decode(ids))


def _some(ids: np.ndarray, text: Any) -> str:
    ids = ids[ids != PADDING]
    more = f" and {len(ids) - FEW} more" if len(ids) > FEW else ""
    return ", ".join(text([int(one)]) for one in ids[:FEW]) + more


def _lengths(pairs: PromptPairs) -> np.ndarray:
    assert pairs.length is not None
    return pairs.length


# --- check -----------------------------------------------------------------------------------------


def _check(pairs: PromptPairs, named: str, loaded: checkpoints.Checkpoint) -> None:
    """Raises ValueError for prompts that do not fit the model; prints what they are and how the model fares."""
    pairs.check_against(loaded.model.vocab_size, loaded.model.max_positions)
    lengths, different = _lengths(pairs), ((pairs.clean != pairs.corrupt) & pairs.inside()).sum(1)
    scored = pairs.scored()[1].sum()
    left_out = tasks.TASKS[named].left_out(loaded.tokenizer) if named in tasks.TASKS else {}
    distinct = len({tuple(row[:length]) for row, length in zip(pairs.clean.tolist(), lengths, strict=True)})
    out.print(f"{named} on {loaded.source}: {len(pairs)} prompts, {distinct} of them different", markup=False)
    out.print(f"{_range(lengths)} tokens, {_range(different)} of them corrupted; {scored} scored positions in all")
    for name, words in left_out.items():
        of = len(tasks.TASKS[named].words.get(name, ()))
        why = f"of {of} {name} are not one token" if of else f"{name} do not split as the task needs"
        out.print(f"{len(words)} {why} and are left out: {', '.join(words[:FEW])}", markup=False)
    metric = _metric_of(pairs, named)
    if metric is None:
        out.print("no answers: nothing says what the model should do; use kl or l2 (without a target, both ask for")
        out.print("what the whole model does)")
        return
    clean, corrupt = _both(loaded, pairs, metric)
    better = corrupt - clean
    out.print(f"{metric} (a loss: lower is better): {_mean(clean)} on clean, {_mean(corrupt)} on corrupt prompts")
    right = [0 - values.mean() for values in _both(loaded, pairs, "accuracy")]
    out.print(f"the most likely token is an answer: {right[0]:.1%} on clean, {right[1]:.1%} on corrupt prompts")
    if len(pairs) > 1 and better.mean() < 2 * _error(better):
        err.print(f"warning: by {metric} the model does no better on clean than on corrupt prompts", markup=False)


def _metric_of(pairs: PromptPairs, named: str) -> str | None:
    """A task's own metric; of a file, what its labels allow."""
    own = tasks.TASKS[named].metric if named in tasks.TASKS else "kl"
    if own not in ("kl", "l2"):
        return own
    if pairs.year is not None and pairs.digits is not None:
        return metrics.greater_than.__name__
    if pairs.answer is None:
        return None
    return metrics.nll.__name__ if pairs.wrong is None else metrics.logit_diff.__name__


def _both(loaded: checkpoints.Checkpoint, pairs: PromptPairs, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The metric on every clean prompt (all edges) and every corrupt one (no edge)."""
    objective = Objective(loaded.model, pairs, metric, average="per_prompt")
    masks = (loaded.graph.valid, np.zeros(loaded.graph.shape, bool))
    clean, corrupt = (np.asarray(objective.per_example(mask)) for mask in masks)
    return clean, corrupt


def _range(numbers: np.ndarray) -> str:
    return str(numbers.min()) if numbers.min() == numbers.max() else f"{numbers.min()} to {numbers.max()}"


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _mean(values: np.ndarray) -> str:
    error = f" +- {_error(values):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{error}"
