"""One self-contained HTML page of finished records: no server, no network, nothing computed."""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..axes import Sender
from ..circuit import Circuit
from ..evaluation import Inspection, Record
from ..files import plain, write_text
from ..graph import Graph
from ..resampling import interval_of
from ..scores import Scores
from ..span_names import span_text
from .judged import judged

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("state", "drawing", "panel", "attention", "charts", "judged", "table", "sections", "main")
DIGITS = 6  # significant digits of scores and effects
SHADES = 255  # of an attention pattern


def write_page(
    path: str | os.PathLike,
    records: Sequence[Circuit | Scores],
    *,
    inspections: Sequence[Inspection] = (),
    judgements: Sequence[Record | dict[str, Any]] = (),
    title: str | None = None,
) -> None:
    """Writes `render_page` of the same arguments, whole or not at all."""
    page = render_page(records, inspections=inspections, judgements=judgements, title=title)
    write_text(path, page)


def render_page(
    records: Sequence[Circuit | Scores],
    *,
    inspections: Sequence[Inspection] = (),
    judgements: Sequence[Record | dict[str, Any]] = (),
    title: str | None = None,
) -> str:
    """An HTML page that draws one circuit, the circuits of a sweep, or the best edges of scores.

    - `records`: one circuit or scores; or several circuits of one graph, among which the page has a slider.
    - `inspections`: none, or one for each circuit, in the same order.
    - `judgements`: an `Evaluation` and `HypothesisTests` of the circuit, or one of them, or their JSON.

    Whatever comes from data is text in the page, never markup. Raises ValueError for records of different graphs
    and for inspections and judgements that cannot be drawn.
    """
    circuits = [Circuit.of(record) if isinstance(record, Scores) else record for record in records]
    _check(circuits, inspections)
    judging = [record.to_json() if isinstance(record, Record) else plain(record) for record in judgements]
    check_judgements(circuits, judging)
    title = title or _title(circuits[0].run)
    data = {
        "title": title,
        "graph": _graph(circuits[0].graph),
        **_edges_and_circuits(circuits, inspections),
        **_prompts(inspections),
        "judged": judged(judging),
        "records": judging,
    }
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    parts = {
        "title": html.escape(title),
        "script-hash": digest,
        "style": _asset("page.css"),
        "data": _embedded(data),
        "script": script,
    }
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _check(circuits: Sequence[Circuit], inspections: Sequence[Inspection]) -> None:
    if not circuits or any(circuit.graph != circuits[0].graph for circuit in circuits):
        raise ValueError(f"a page needs at least one record, all of one graph, got {len(circuits)}")
    if not inspections:
        return
    if len(inspections) != len(circuits):
        raise ValueError(f"inspections: expected one for each of {len(circuits)} circuits, got {len(inspections)}")
    for circuit, inspection in zip(circuits, inspections, strict=True):
        if inspection.edges and inspection.edges != circuit.edges:
            raise ValueError(
                f"inspections: expected one of the {circuit.num_edges} edges of the circuit, "
                f"got one of {len(inspection.edges)} edges; inspect this circuit"
            )
        if inspection.tokens != inspections[0].tokens:
            raise ValueError("inspections: expected the same prompts for all circuits")


def check_judgements(circuits: Sequence[Circuit], records: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for records that cannot be drawn, and for those that say they judge another circuit."""
    judged(records)
    if records and len(circuits) != 1:
        raise ValueError(f"judgements: expected one circuit, which they judge, got {len(circuits)}")
    for record in records:
        if record.get("run", {}).get("circuit", plain(circuits[0].run)) != plain(circuits[0].run):
            raise ValueError(f"judgements: expected records of this circuit, got {record.get('kind')!r} of another")


def _title(run: dict[str, Any]) -> str:
    if {"task", "model"} <= run.keys():
        return f"{run['task']} on {run['model']}"
    return f"{run.get('method', 'A')} circuit"


def _graph(graph: Graph) -> dict[str, Any]:
    columns = range(len(graph.receivers))
    return {
        "rows": [list(row) for row in graph.rows],
        "beside": [list(row) for row in graph.beside],
        "nodes": {sender.name: _node(graph, sender) for sender in graph.sender_table},
        "embeddings": list(graph.embeddings),
        "senders": list(graph.senders),
        "receivers": list(graph.receivers),
        "owners": [graph.owners(column) for column in columns],
        "kinds": [_kind(graph, column) for column in columns],
        "numEdges": graph.num_edges,
        "numNodes": len(graph.nodes),
    }


def _node(graph: Graph, sender: Sender) -> dict[str, Any]:
    """What a node is, for people: `span`, the positions that it is a part at; `isAlone`: its layer has one such."""
    block = graph.blocks[sender.block]  # embeddings are in the same spans as all blocks, also the last
    count = block.count if sender.block >= 0 else len(graph.embeddings) // block.parts
    span = next((text for text in map(span_text, block.spans) if sender.name.endswith(f"@{text}")), "")
    place = {"layer": sender.layer, "index": sender.index, "span": span}
    return {"kind": sender.kind, "node": sender.node, **place, "isAlone": count == 1}


def _kind(graph: Graph, column: int) -> str:
    """Through which of its node's inputs a column reads; where the node has one alone, what the node is."""
    owners = graph.receiver_table[column].owners
    return graph.input_kind(column) or (graph.sender_table[owners[0]].kind if owners else "logits")


def _edges_and_circuits(circuits: Sequence[Circuit], inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The edges that some record measured, as columns, and each circuit as places in them."""
    graph = circuits[0].graph
    ranking = _ranking(circuits)
    shares = circuits[0].shares
    measured = graph.valid if ranking else np.any([circuit.mask for circuit in circuits], axis=0)
    if shares is not None:
        measured = measured | (shares > 0)
    edges = np.argwhere(measured)
    places = np.zeros(graph.shape, int)
    places[measured] = np.arange(len(edges))
    entries = []
    for number, circuit in enumerate(circuits):
        entry = {
            "kept": places[circuit.mask].tolist(),
            "scores": _short(circuit.scores[measured]),
            "nodes": len(circuit.nodes),
            "run": {key: plain(value) for key, value in circuit.run.items()},
        }
        if len(circuits) == 1 and shares is not None:
            count = circuit.run["replicates"]["count"]
            ends = interval_of(np.round(shares[measured] * count).astype(int), count)
            entry |= {"shares": _short(shares[measured]), "intervals": _short(ends)}
        if inspections:
            inspection = inspections[number]
            entry["losses"] = _short(inspection.loss_circuit)
            if inspection.edges:
                entry["effects"] = _short(inspection.effects)
        entries.append(entry)
    columns = {"sender": edges[:, 0].tolist(), "receiver": edges[:, 1].tolist()}
    return {"edges": columns, "circuits": entries, "ranking": ranking}


def _ranking(circuits: Sequence[Circuit]) -> str | None:
    """By what all edges can be ranked; None where scores hold for a search's own path, or for kept edges alone."""
    first = circuits[0]
    dropped = first.graph.valid & ~first.mask
    if len(circuits) > 1 or "decisions" in first.run or (dropped.any() and not first.scores[dropped].any()):
        return None
    return first.run.get("selection", {}).get("rank", "signed")


def _prompts(inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The prompts, and for every head a picture of its pattern on each: bytes, row by row, in base 64."""
    if not inspections:
        return {"prompts": [], "patterns": {}}
    first = inspections[0]
    columns = first.tokens, first.answers, first.wrong, _short(first.loss_full), _short(first.loss_empty)
    keys = ("tokens", "answers", "wrong", "full", "empty")
    patterns = {}
    for inspection in inspections:
        for number, head in enumerate(inspection.heads):
            patterns[head] = [_shades(pattern[number]) for pattern in inspection.patterns]
    prompts = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    return {"prompts": prompts, "patterns": patterns, "metric": first.metric}


def _shades(pattern: np.ndarray) -> str:
    return base64.b64encode(np.round(pattern * SHADES).astype(np.uint8).tobytes()).decode()


def _short(values: np.ndarray) -> Any:
    """Nested lists of numbers with few digits."""
    if values.ndim == 1:
        return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
    return [_short(row) for row in values]


def _embedded(value: Any) -> str:
    """JSON, in ASCII, in which nothing is markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
