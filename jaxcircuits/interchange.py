"""Circuits of other tools: MIB's submission folders, AutoCircuit's edge names. EAP-IG's JSON is `Circuit.load`'s own.

MIB (2504.13151) expects one folder for each task and model, `{task}_{model}` with dashes inside the task's name, as
`arc-easy_llama3`. It holds `importances.json`, the scores of all edges, or nine circuits, the largest of which has at
most each of `MIB_PERCENT` of the edges. AutoCircuit names edges `A0.3->MLP 5` and `Resid Start->A5.1.Q`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .arguments import check_number, checked
from .circuit import Circuit
from .graph import Graph

IMPORTANCES = "importances.json"
MIB_PERCENT = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Sizes of a submission's nine circuits, in percent of all edges."""


@checked
def write_mib(
    results: Mapping[tuple[str, str], Circuit | Sequence[Circuit]], folder: str | os.PathLike
) -> tuple[Path, ...]:
    """Writes a submission: for every (task, model) scores, or nine circuits of the sizes `MIB_PERCENT`.

    - `results`: a scored circuit, of which all scores count (`Circuit.of(scores)`), or nine circuits by size.
    - `folder`: made if it does not exist.

    Returns the files. Raises ValueError for names with an underscore at the wrong place and for circuits too large.
    """
    files: dict[Path, Circuit] = {}
    for key, result in results.items():
        if not isinstance(key, tuple) or len(key) != 2:
            raise ValueError(f"MIB: expected results by (task, model), got {key!r:.60}")
        task, model = key
        place = Path(folder) / mib_name(task, model)
        if isinstance(result, Circuit):
            files[place / IMPORTANCES] = result
            continue
        _check_sizes(result)
        for percent, circuit in zip(MIB_PERCENT, result, strict=True):
            files[place / f"{str(percent).replace('.', '_')}.json"] = circuit
    for path, circuit in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        circuit.save(path)
    return tuple(files)


@checked
def read_mib(folder: str | os.PathLike) -> dict[tuple[str, str], tuple[Circuit, ...]]:
    """The circuits of a submission by (task, model), the smallest first; one where there are only scores.

    Raises ValueError for a folder without any and for files that are no circuits.
    """
    found: dict[tuple[str, str], tuple[Circuit, ...]] = {}
    for path in sorted(Path(folder).glob("*_*/")):
        task, _, model = path.name.partition("_")
        circuits = [Circuit.load(file) for file in sorted(path.glob("*.json"))]
        if circuits:
            found[task, model] = tuple(sorted(circuits, key=lambda circuit: circuit.num_edges))
    if not found:
        raise ValueError(f"{folder} holds no folder 'task_model' with JSON files; .pt files are not read")
    return found


@checked
def mib_name(task: str, model: str) -> str:
    """`{task}_{model}`, the folder of a submission.

    Raises ValueError for a model with an underscore, no name, and names that lead out of the submission's folder.
    """
    if not task or not model or "_" in model:
        raise ValueError(f"MIB: expected a task and a model without underscore, got {task!r} and {model!r}")
    for name in (task, model):
        if not name.isprintable() or name.startswith(".") or any(mark in name for mark in "/\\:"):
            raise ValueError(f"MIB: expected the name of a folder, without / \\ : and a dot in front, got {name!r}")
    return f"{task.replace('_', '-')}_{model}"


def autocircuit_name(edge: str) -> str:
    """AutoCircuit's name of an edge: `a0.h3->m5` is `A0.3->MLP 5`. Raises ValueError for what is no edge's name."""
    return "->".join(_their_node(node) for node in _two(edge))


def from_autocircuit_name(edge: str) -> str:
    """The edge that AutoCircuit calls so: `Resid Start->A5.1.Q` is `input->a5.h1<q>`.

    Raises ValueError for what is no name of an edge.
    """
    return "->".join(_our_node(node) for node in _two(edge))


@checked
def from_autocircuit(graph: Graph, edges: Iterable[str] | Mapping[str, float], *, d_model: int = 0) -> Circuit:
    """The circuit of edges in AutoCircuit's names; with scores where they are given.

    - `edges`: names, or names to scores. An edge is in the circuit if it is named.

    Raises ValueError for names that are no edge of the graph, and scores that are not finite.
    """
    if isinstance(edges, str) or not isinstance(edges, Iterable):
        raise ValueError(f"edges: expected names of edges, or names to scores, got {edges!r:.60}")
    given = edges if isinstance(edges, Mapping) else {"->".join(_two(edge)): 0.0 for edge in edges}
    mask, scores = np.zeros(graph.shape, bool), np.zeros(graph.shape)
    for name, score in given.items():
        index = graph.edge_index(from_autocircuit_name(name))
        check_number(f"score of {name}", score)
        mask[index], scores[index] = True, score
    return Circuit(graph, mask, scores, {"source": "AutoCircuit"}, d_model)


@checked
def to_autocircuit(circuit: Circuit) -> dict[str, float]:
    """The circuit's edges in AutoCircuit's names, with their scores, in edge order."""
    edges = np.argwhere(circuit.mask)
    return {autocircuit_name(circuit.graph.edge_name(s, r)): float(circuit.scores[s, r]) for s, r in edges}


@checked
def mib_circuits(scored: Circuit, *, rank: str = "signed") -> tuple[Circuit, ...]:
    """Nine circuits of the sizes `MIB_PERCENT`, of the best edges without dead ends."""
    sizes = [int(percent / 100 * scored.graph.num_edges) for percent in MIB_PERCENT]
    return tuple(Circuit.select(scored, edges=size, rank=rank) for size in sizes)


def _check_sizes(circuits: Sequence[Circuit]) -> None:
    if len(circuits) != len(MIB_PERCENT):
        raise ValueError(f"MIB: expected {len(MIB_PERCENT)} circuits, of {MIB_PERCENT} percent, got {len(circuits)}")
    for percent, circuit in zip(MIB_PERCENT, circuits, strict=True):
        if circuit.num_edges > percent / 100 * circuit.graph.num_edges:
            raise ValueError(
                f"MIB: expected at most {percent} % of {circuit.graph.num_edges} edges, got {circuit.num_edges}"
            )


def _two(edge: str) -> tuple[str, str]:
    sender, arrow, receiver = edge.partition("->") if isinstance(edge, str) else ("", "", "")
    if not arrow:
        raise ValueError(f"expected an edge as 'sender->receiver', got {edge!r}")
    return sender, receiver


def _our_node(name: str) -> str:
    match = re.fullmatch(r"(Resid Start)|(Resid End)|MLP (\d+)|A(\d+)\.(\d+)(?:\.([QKV]))?", name)
    if match is None:
        raise ValueError(f"{name!r} is no node of AutoCircuit: expected 'Resid Start', 'A0.3', 'A0.3.Q', 'MLP 5', ...")
    start, end, mlp, layer, head, kind = match.groups()
    if start or end:
        return "input" if start else "logits"
    return f"m{mlp}" if mlp else f"a{layer}.h{head}" + (f"<{kind.lower()}>" if kind else "")


def _their_node(name: str) -> str:
    match = re.fullmatch(r"(input)|(logits)|m(\d+)|a(\d+)\.h(\d+)(?:<([qkv])>)?", name)
    if match is None:
        raise ValueError(f"{name!r} has no name in AutoCircuit: expected input, logits, an attention head or an MLP")
    start, end, mlp, layer, head, kind = match.groups()
    if start or end:
        return "Resid Start" if start else "Resid End"
    return f"MLP {mlp}" if mlp else f"A{layer}.{head}" + (f".{kind.upper()}" if kind else "")
