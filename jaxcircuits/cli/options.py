"""What several commands share: their options, the prompts and the model that these name, the two consoles."""

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import jax
import typer
from jax.sharding import Mesh
from rich.console import Console

from .. import checkpoints, tasks
from ..arguments import check_number
from ..batching import compile_clock, device_mesh, use_compilation_cache
from ..data import PromptPairs
from ..files import check_can_fill, check_can_write, visible
from ..metrics import METRICS
from ..metrics import by_name as metric_by_name
from ..objective import Objective
from ..precision import HIGHEST, PRECISIONS
from ..references import REFERENCES
from ..run import SOURCE, Source
from ..tensors import WEIGHT_FILES
from .config import read_config

DEFAULT_MODEL = "tiny-gpt2"


class Terminal(Console):
    """A console whose texts cannot steer it: what files say is shown, control characters as escapes.

    Where nobody reads on (`| head`), the command does: it may have a file to write.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(part) if isinstance(part, str) else part for part in objects), **options)

    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


out = Terminal(soft_wrap=True, highlight=False)
err = Terminal(stderr=True, soft_wrap=True, highlight=False)


TaskName = Annotated[str, typer.Argument(help="a built-in task, or a .npz, .jsonl or .csv file of prompts")]
ModelName = Annotated[str, typer.Option(help="a bundled model, a folder, or a name on the hub")]
DtypeName = Annotated[str, typer.Option(help="float32 or float64")]
Precision = Annotated[str, typer.Option(help=f"how exactly matrices are multiplied: {', '.join(PRECISIONS)}")]
Size = Annotated[int | None, typer.Option(help="prompts; default 32, or all of a file's")]
Seed = Annotated[int, typer.Option(help="of the prompts and of random orders")]
Bos = Annotated[bool | None, typer.Option("--bos/--no-bos", help="begin with BOS; default: as the tokenizer does")]
Template = Annotated[
    str | None,
    typer.Option(
        help="what the user says in the model's chat template; the prompt is in place of {prompt}, or follows"
    ),
]
Units = Annotated[
    str, typer.Option(help="what the nodes are: split, ungrouped, unsplit, layers, blocks, neurons:GROUPS[@LAYER]")
]
Spans = Annotated[
    str | None,
    typer.Option(help="nodes are apart at these positions, as 0:4,4:8, or columns of a task file, as subject,verb"),
]
Average = Annotated[str, typer.Option(help="several scored positions: together or per_prompt")]
Devices = Annotated[int, typer.Option(help="devices to spread over; 0: all there are")]
SplitWeights = Annotated[int, typer.Option(help="devices that the weights are split among, where one is too small")]
Cache = Annotated[Path | None, typer.Option(help="keep compiled programs in this folder for the next run")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="keep in this folder how far the run is; the same command goes on from there, also when it ended"
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="take what is not typed from this YAML or JSON file", callback=read_config, is_eager=True),
]


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command take groups of options: parameters whose default is a NamedTuple of typer's options.

    Typer is shown the fields in the group's place, with that default's values; the command gets the group again.
    """
    shown: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if not hasattr(parameter.default, "_fields"):
            shown.append(parameter)
            continue
        group = groups[name] = type(parameter.default)
        types, defaults = get_type_hints(group, include_extras=True), parameter.default._asdict()
        shown += [parameter.replace(name=f, annotation=types[f], default=defaults[f]) for f in group._fields]

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in group._fields})
        command(**values)

    keyword_only = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in shown]
    gathered.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    gathered.__annotations__ = {option.name: option.annotation for option in shown}
    return gathered


class PromptOptions(NamedTuple):
    """What makes the objective of a task."""

    model: ModelName = DEFAULT_MODEL
    metric: Annotated[str, typer.Option(help=f"one of {', '.join(METRICS)}")] = "kl"
    reference: Annotated[str, typer.Option(help=f"what absent edges carry: {', '.join(REFERENCES)}")] = "resample"
    dtype: DtypeName = "float32"
    precision: Precision = HIGHEST
    size: Size = None
    seed: Seed = 0
    average: Average = "together"
    devices: Devices = 1
    split_weights: SplitWeights = 1
    cache: Cache = None
    bos: Bos = None
    template: Template = None
    units: Units = "split"
    spans: Spans = None


class Loaded(NamedTuple):
    """What the options name; `run` is what of them goes into the record."""

    objective: Objective
    run: dict[str, Any]
    pairs: PromptPairs
    checkpoint: checkpoints.Checkpoint


def load(task: str, prompts: PromptOptions, change: Callable[[Any], Any] | None = None) -> Loaded:
    """The objective that the options name, and what it was made of; `change` makes another model of the loaded one."""
    metric_by_name(prompts.metric)
    dtype = dtype_of(prompts.dtype)
    if prompts.cache is not None:
        use_compilation_cache(prompts.cache)
    how = {"units": prompts.units, "spans": prompts.spans, "precision": prompts.precision}
    loaded = checkpoints.load(prompts.model, dtype=dtype, **how)
    framing = {"bos": prompts.bos, "template": prompts.template}
    pairs, named = prompts_of(task, loaded, prompts.size, prompts.seed, **framing)
    mesh = devices_of(prompts, len(pairs))
    options = {"average": prompts.average, "mesh": mesh}
    model = loaded.model if change is None else change(loaded.model)
    with compile_clock() as clock:
        objective = Objective(model, pairs, prompts.metric, prompts.reference, **options)
    run = {"task": named, "model": loaded.source, "seed": prompts.seed, "seconds_compiling_objective": clock.seconds}
    run[SOURCE] = {"task": task, "model": loaded.source, "seed": prompts.seed}
    run |= {name: value for name, value in framing.items() if value is not None}
    if named in tasks.TASKS and (left_out := tasks.TASKS[named].left_out(loaded.tokenizer)):
        run["words_left_out"] = {name: len(words) for name, words in left_out.items()}
    return Loaded(objective, run, pairs, loaded)


def devices_of(options: PromptOptions, prompts: int) -> Mesh | None:
    """The devices that the options name, for so many prompts. Raises ValueError for what `device_mesh` refuses."""
    if options.devices != 1:
        return device_mesh(prompts, options.devices or None, options.split_weights)
    if options.split_weights != 1:
        raise ValueError(f"--split-weights: expected --devices besides, got {options.split_weights} of one device")
    return None


class Recorded(NamedTuple):
    """What a record names; `digest` of its prompts, None where others were asked for; `by_file`: it names the model."""

    task: str
    options: PromptOptions
    digest: str | None
    by_file: bool

    def load(self, change: Callable[[Any], Any] | None = None) -> Loaded:
        """`load` of it. Raises ValueError where the prompts come out as others than those of the record."""
        if self.by_file and self.options.model.removeprefix("bundled ") not in checkpoints.bundled():
            out.print(f"the file names the model {self.options.model}", markup=False)
        loaded = load(self.task, self.options, change)
        made = loaded.objective.describe()[SOURCE].get("digest_of_pairs")
        if self.digest and made and self.digest != made:
            raise ValueError(
                f"the prompts of {self.task} (size {self.options.size}, seed {self.options.seed}) are others than the "
                "record's: the file has changed, or they were made otherwise; give --task, --size or --seed"
            )
        return loaded


def recorded(run: dict[str, Any], typed: Any = None) -> Recorded:
    """What a record says that its objective was made of.

    - `typed`: another group of options and a task; what is not None goes first.

    Raises ValueError for a record that names no task or no model, unless they are typed.
    """
    source = Source.of(run)
    given = {} if typed is None else {name: value for name, value in typed._asdict().items() if value is not None}
    said = dataclasses.asdict(source)
    said["size"] = said.pop("prompts")
    digest = said.pop("digest")
    values = {"metric": "logit_diff", **{name: value for name, value in said.items() if value is not None}, **given}
    if not values.get("task") or not values.get("model"):
        raise ValueError("the file does not say which task and model it is about: give --task and --model")
    asks_for_others = given.keys() & {"task", "model", "size", "seed", "bos", "template", "spans"}
    options = PromptOptions(**{name: value for name, value in values.items() if name != "task"})
    return Recorded(values["task"], options, None if asks_for_others else digest, "model" not in given)


def prompts_of(
    task: str, loaded: checkpoints.Checkpoint, size: int | None, seed: int, **framing: Any
) -> tuple[PromptPairs, str]:
    """The prompts of a built-in task or a file, and their name for the record; `framing`: bos, template."""
    if size is not None and size < 1:
        raise ValueError(f"--size: expected at least 1 prompt, got {size}")
    path = Path(task)
    if task not in tasks.TASKS and (path.exists() or path.suffix in (".npz", ".jsonl", ".csv")):
        pairs = PromptPairs.load(path, None if path.suffix == ".npz" else loaded.tokenizer, **framing)
        return (pairs if size is None else pairs[:size]), path.name
    known = tasks.by_name(task)
    sized = {} if size is None else {"size": size}
    return known.generate(loaded.tokenizer, seed=seed, **sized, **framing), task


def dtype_of(name: str) -> Literal["float32", "float64"]:
    """A dtype by its name; float64 is switched on."""
    if name == "float64":
        jax.config.update("jax_enable_x64", True)
        return "float64"
    if name != "float32":
        raise ValueError(f"--dtype: expected float32 or float64, got {name!r}")
    return "float32"


def numbers_of(name: str, text: str) -> list[float]:
    """The numbers of an option such as `1,0.1,0.01`. Raises ValueError for NaN and infinity."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected numbers separated by commas, got {text!r}") from None
    for number in numbers:
        check_number(name, number)
    return numbers


def span_of(text: str) -> tuple[int, int]:
    """The token positions of `3`, or of `3:7`, which ends before 7."""
    first, colon, end = text.partition(":")
    if not first.isdecimal() or (colon and not end.isdecimal()):
        raise ValueError(f"--positions: expected a position, as 3, or a span, as 3:7; got {text!r}")
    return int(first), int(end) if colon else int(first) + 1


MODEL_FILES = (*WEIGHT_FILES, *"*.safetensors *.msgpack *.gguf config.json *token* vocab* merges*".split())
"""What a command reads of a model's folder, where its results may lie too."""


def check_writable(*inputs: str | Path | None, **outputs: Path | None) -> None:
    """Raises ValueError, before anything is computed, for result files that could not be written or would be lost.

    - `inputs`: what the command reads, where that are files, or folders of models. `outputs`: the file that each option
      names.
    """
    read = [found for path in inputs if path is not None for found in _files_of(Path(path))]
    named = {option: path for option, path in outputs.items() if path is not None}
    for option, path in named.items():
        try:
            check_can_write(path)
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from None
        if path.exists() and any(path.samefile(file) for file in read):
            raise ValueError(f"--{option}: expected another file than {path}, which is read: it would be lost")
    files = [path.resolve() for path in named.values()]
    if same := {option: str(path) for option, path in named.items() if files.count(path.resolve()) > 1}:
        options = " and ".join(f"--{option}" for option in same)
        raise ValueError(f"{options}: expected different files, got {' and '.join(same.values())}")


def named_in(*runs: dict[str, Any]) -> list[str]:
    """The tasks and models that records name, which are read with their files."""
    sources = [Source.of(run) for run in runs]
    return [name for source in sources for name in (source.task, source.model) if name is not None]


def _files_of(path: Path) -> Iterator[Path]:
    """The file, or a model's in a folder."""
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for pattern in MODEL_FILES for file in path.glob(pattern) if file.is_file())


def check_fillable(**folders: Path | None) -> None:
    """Raises ValueError, before anything is computed, for the folder of an option that could not be filled."""
    for option, folder in folders.items():
        try:
            if folder is not None:
                check_can_fill(folder)
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from None


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints the library's warnings to stderr, one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: err.print(f"warning: {message}", markup=False)
        yield
