"""The circuit localisation track of MIB (2504.13151): its models and tasks, what a submission must be, how it scores.

What submitters are told (README of hannamw/MIB-circuit-track, commit b759df3), and what the evaluator of submissions
does (mttk/MIB-circuit-track-autoeval, commit b48d9ba):

- One folder a task and model, `{task}_{model}`, as `arc-easy_llama3`; of the pairs in `TASKS`.
- In it one file, the scores of all edges, or nine, circuits of which the i-th smallest has at most the i-th of
  `MIB_PERCENT` of all edges; and nothing else, since a second file makes scores a set of circuits.
- A file is EAP-IG's JSON: `cfg`, `nodes` and `edges`, in a graph in which every head has its own key and value input.
- EAP-IG holds scores as float32: scores that are equal there tie, and its sort does not promise which of them go first.

The score is `faithfulness_curve`'s CPR and CMD under the logit difference, absent edges resampled. Of nine circuits it
is the same area over F of the nine, by size, and of the whole model at 100 %.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import checked
from .circuit import Circuit
from .circuit_file import cfg_of, contents_of
from .evaluation import MIB_SHARES, Ablated, FaithfulnessCurve, ablated, faithfulness_curve, faithfulness_many
from .evaluation.faithfulness import acc_auc, area_beside_1, area_under
from .files import read_json
from .graph import Graph
from .interchange import MIB_PERCENT
from .objective import Objective


@dataclasses.dataclass(frozen=True)
class MibModel:
    """A model of MIB's: its name on the hub, its sizes, and how MIB's own run of it differs from one here."""

    hub: str
    layers: int
    heads: int
    width: int
    differs: str = ""

    @property
    def cfg(self) -> dict[str, Any]:
        """The sizes as a file states them."""
        return {**cfg_of(Graph.transformer(self.layers, self.heads)), "d_model": self.width}


BFLOAT16 = "MIB runs this model in bfloat16"
NORMS = "and norms the mix of heads that each receiver reads, where here a head's share is under the run's own scale"

MODELS = {
    "gpt2": MibModel("gpt2", 12, 12, 768),
    "qwen2.5": MibModel("Qwen/Qwen2.5-0.5B", 24, 14, 896, BFLOAT16),
    "gemma2": MibModel("google/gemma-2-2b", 26, 8, 2304, f"{BFLOAT16}, {NORMS}"),
    "llama3": MibModel("meta-llama/Llama-3.1-8B", 32, 32, 4096, BFLOAT16),
}

TASKS = {
    "ioi": ("gpt2", "qwen2.5", "gemma2", "llama3"),
    "mcqa": ("qwen2.5", "gemma2", "llama3"),
    "arithmetic-addition": ("llama3",),
    "arithmetic-subtraction": ("llama3",),
    "arc-easy": ("gemma2", "llama3"),
    "arc-challenge": ("llama3",),
}
"""Of each task the models that MIB scores it on; not InterpBench, which it compares with a known circuit."""

PUBLIC = frozenset(cfg_of(Graph.transformer(1, 1)))
LEAST = 2  # tasks, and models, that the evaluator asks of a submission


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check_mib` found.

    - `folders`: one a task and model. `problems`: what MIB would refuse or take for something else, each with its
      file, what was expected and what to do. `notes`: what it takes, but may take otherwise than one thinks.
    """

    folders: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@checked
def check_mib(folder: str | os.PathLike) -> Checked:
    """Checks a submission against the rules above. Raises ValueError for what is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a submission, a folder that holds folders 'task_model'")
    places, notes = tuple(_places(folder)), []
    problems = [] if places else [f"{folder}: expected folders 'task_model', got none; give the one above or below"]
    for place in places:
        try:
            notes += check_result(place)
        except ValueError as error:
            problems.append(str(error))
    names = {place.name.partition("_")[::2] for place in places if not _of_another(place.name)}
    if len({task for task, _ in names}) < LEAST or len({model for _, model in names}) < LEAST:
        notes.append(f"{folder}: MIB's evaluator asks for at least {LEAST} tasks and {LEAST} models in a submission")
    problems += [problem for place in places if (problem := _of_another(place.name))]
    return Checked(tuple(place.name for place in places), tuple(problems), tuple(notes))


def check_result(place: str | os.PathLike) -> tuple[str, ...]:
    """Checks the folder of one task and model but for their names; the notes of it.

    Raises ValueError for the first rule that it breaks.
    """
    circuits = read_result(place)
    if len(circuits) != 1:
        return ()
    strength = circuits[0].scores[circuits[0].graph.valid]
    if not np.ptp(strength):
        raise ValueError(f"{place}: expected scores that differ, got {strength[0]:g} of every edge; give circuits")
    if not (tied := _ties(strength)):
        return ()
    cuts = ", ".join(f"{100 * share:g} %" for share in tied)
    return (f"{place}: edges of equal scores at the cut of {cuts}: MIB's sort may take others of them than edge order",)


def read_result(place: str | os.PathLike) -> tuple[Circuit, ...]:
    """The circuits in the folder of one task and model as MIB reads them: one with scores in float32, or nine by size.

    Raises ValueError for another number of files, files that EAP-IG does not read or reads as another graph, graphs
    other than that of the model in the folder's name, and circuits that are too large.
    """
    files = sorted(Path(place).iterdir())
    if len(files) not in (1, len(MIB_PERCENT)):
        names = ", ".join(file.name for file in files[:3]) or "none"
        raise ValueError(
            f"{place}: expected one file of scores or {len(MIB_PERCENT)} circuits, and nothing else, got {len(files)} "
            f"files ({names}); MIB takes two or more for circuits: move the others away"
        )
    model = Path(place).name.partition("_")[2]
    circuits = [_read(file, model, is_alone=len(files) == 1) for file in files]
    if len(circuits) == 1:
        return (_in_float32(circuits[0], files[0]),)
    order = sorted(range(len(files)), key=lambda number: circuits[number].num_edges)
    for percent, number in zip(reversed(MIB_PERCENT), reversed(order), strict=True):
        circuit, most = circuits[number], percent / 100 * circuits[number].graph.num_edges
        if circuit.num_edges > most:
            raise ValueError(
                f"{files[number]}: expected at most {percent} % of {circuit.graph.num_edges} edges ({int(most)}), got "
                f"{circuit.num_edges}; by size, the circuits may have {', '.join(map(str, MIB_PERCENT))} %"
            )
    return tuple(circuits[number] for number in order)


def mib_curve(objective: Objective | Ablated, circuits: Sequence[Circuit]) -> FaithfulnessCurve:
    """CPR and CMD of what `read_result` gives: one scored circuit, or nine.

    Of nine both areas are under the same ten points, which are in order of size, then of F, as MIB has them.
    Raises ValueError for another number of circuits, or another graph's.
    """
    judged = ablated(objective)
    if len(circuits) == 1:
        return faithfulness_curve(judged, circuits[0])
    if len(circuits) != len(MIB_PERCENT):
        raise ValueError(f"expected one circuit with scores or {len(MIB_PERCENT)} circuits, got {len(circuits)}")
    whole = Circuit(judged.graph, judged.graph.valid, np.zeros(judged.graph.shape), {})
    *points, last = faithfulness_many(judged, [*circuits, whole])
    points = (*sorted(points, key=lambda point: (point.edges, point.value or 0.0)), last)
    sizes = tuple(point.edges for point in points)
    areas = area_under(MIB_SHARES, points), area_beside_1(MIB_SHARES, points)
    run = {**judged.describe(), "scores": circuits[0].run}
    return FaithfulnessCurve(MIB_SHARES, sizes, points, points, *areas, run, acc_auc(MIB_SHARES, points))


def check_graph(graph: Graph, d_model: int | None, model: str) -> None:
    """Raises ValueError for a graph that is not MIB's, or not that of its model, if it has one of this name.

    `d_model`: None if not yet known.
    """
    cfg = cfg_of(graph)
    if cfg.keys() != PUBLIC:
        raise ValueError(
            "expected MIB's graph: heads, each with its own query, key and value input, and an MLP in every layer; "
            "got other nodes; take --units ungrouped, or another model"
        )
    if model not in MODELS:
        return
    wanted = MODELS[model].cfg
    got = {**cfg, "d_model": wanted["d_model"] if d_model is None else d_model}
    if got != wanted:
        raise ValueError(f"expected the sizes of {model}, {wanted}, got {got}; is it another model's?")


# --- the files -------------------------------------------------------------------------------------


def _places(folder: Path) -> Iterator[Path]:
    """The folders of tasks and models; also in those for one ranking, as `abs_True`, which the evaluator enters."""
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            is_ranking = re.fullmatch(r"(?i)(?=.*abs).*(true|false).*", place.name)
            yield from _places(place) if is_ranking else (place,)


def _of_another(name: str) -> str | None:
    """Why MIB has no column for a folder of this name; None where it has."""
    task, _, model = name.partition("_")
    if task not in TASKS:
        return f"{name}: expected one of {', '.join(TASKS)}, an underscore and a model, got {task!r}; rename the folder"
    if model not in TASKS[task]:
        return f"{name}: expected {' or '.join(TASKS[task])} as the model of {task}, got {model!r}: MIB has no other"
    return None


def _read(file: Path, model: str, *, is_alone: bool) -> Circuit:
    if file.suffix != ".json" or not file.is_file():
        raise ValueError(f"{file}: expected a .json file; a .pt is a pickle, which is not read here: save by to_json")
    value = read_json(file, "circuit file")
    if missing := [key for key in ("cfg", "nodes", "edges") if not isinstance(value, dict) or key not in value]:
        raise ValueError(f"{file}: expected a JSON object with cfg, nodes and edges, got no {missing[0]}; EAP-IG's own")
    try:
        circuit = Circuit(*contents_of(value))
        if missing := sorted((PUBLIC | {"d_model"}) - value["cfg"].keys()):
            raise ValueError(f"cfg: expected {missing[0]}, which EAP-IG's loader needs, got none; add it")
        check_graph(circuit.graph, circuit.d_model, model)
        if is_alone and (unscored := [name for name, edge in value["edges"].items() if "score" not in edge]):
            raise ValueError(f"edges: expected a score of every edge, got none of {unscored[0]}; or give nine circuits")
        if is_alone and len(value["edges"]) < circuit.graph.num_edges:
            raise ValueError(
                f"edges: expected all {circuit.graph.num_edges}, got {len(value['edges'])}; EAP-IG gives those that "
                "are left out the score 0: list every edge"
            )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return circuit


def _in_float32(circuit: Circuit, file: Path) -> Circuit:
    with np.errstate(over="ignore"):
        scores = circuit.scores.astype(np.float32)
    if not np.isfinite(scores).all():
        most = np.abs(circuit.scores).max()
        raise ValueError(f"{file}: expected scores that float32 can hold, got {most:g}; divide all by the same number")
    return dataclasses.replace(circuit, scores=scores.astype(np.float64))


def _ties(strength: np.ndarray) -> list[float]:
    """Shares of the edges at whose cut, by one ranking or the other, the last edge in and the first out are equal."""
    tied = set()
    for values in (strength, np.abs(strength)):
        falling = -np.sort(-values)
        cuts = ((share, int(share * len(values))) for share in MIB_SHARES)
        tied |= {share for share, cut in cuts if 0 < cut < len(values) and falling[cut - 1] == falling[cut]}
    return sorted(tied)
