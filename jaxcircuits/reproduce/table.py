"""The record of a table: published beside computed, the curves behind it, how it was made; and its files."""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import plain, write_json, write_text, write_whole

FORMAT = "jaxcircuits-table/1"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: a quantity of a method on a system; `published` and `computed` are None where there is no number."""

    system: str
    method: str
    quantity: str
    published: float | int | None
    computed: float | int | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a method, one a circuit: (false, true positive rate), or (edges, metric) of a Pareto plot."""

    system: str
    method: str
    points: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    - `axes`: what the curves' points are. `source`: of the published numbers. `run`: the full configuration.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    axes: tuple[str, str]
    run: dict[str, Any]

    def save(self, folder: Path) -> list[Path]:
        """Writes `NAME.md`, `.csv`, `.json` and a plot `.png`; each whole or not at all."""
        paths = [folder / f"{self.name}.{ending}" for ending in ("md", "csv", "json", "png")]
        write_text(paths[0], self.markdown())
        write_text(paths[1], self._csv())
        record = {"format": FORMAT, **json.loads(json.dumps(plain(dataclasses.asdict(self))))}
        write_json(paths[2], record)
        write_whole(paths[3], self._draw)
        return paths

    def cells(self) -> list[list[str]]:
        """The table as text, its head first."""
        head = [field.name for field in dataclasses.fields(Row)]
        return [head, *([_text(value) for value in dataclasses.astuple(row)] for row in self.rows)]

    def markdown(self) -> str:
        """The table as Markdown."""
        head, *rows = self.cells()
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"# {self.title}\n\n{body}\n\nPublished: {self.source}\n"

    def _csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.cells())
        return text.getvalue()

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        systems = list(dict.fromkeys(curve.system for curve in self.curves))
        figure = Figure(figsize=(4.5 * len(systems), 4), layout="constrained")
        for axes, system in zip(figure.subplots(1, len(systems), squeeze=False)[0], systems, strict=True):
            _draw_curves(axes, [curve for curve in self.curves if curve.system == system], self.axes)
            axes.set_title(system, fontsize=10)
        figure.savefig(path, format="png", dpi=150)


def _draw_curves(axes: Any, curves: Sequence[Curve], names: tuple[str, str]) -> None:
    for curve, marker in zip(curves, itertools.cycle("os^Dvx*P"), strict=False):
        axes.plot(*zip(*sorted(curve.points), strict=True), marker=marker, markersize=4, lw=1, label=curve.method)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    if "rate" in names[0]:
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_xscale("symlog", linthresh=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
