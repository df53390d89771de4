"""The page of methods side by side: a table, the curves, what was run. Plain HTML and SVG; no script, no network."""

import html
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from ..evaluation.comparison import Compared, Comparison
from ..evaluation.faithfulness import Faithfulness
from ..files import plain, write_text
from .page import ASSETS

COLOURS = ("#1f6fd0", "#c2541b", "#1c8a52", "#8a4fc4", "#b3832a", "#c23a6b", "#2a93a3", "#7a8090")
"""Of the methods in turn; the next round is dashed, the one after dotted."""

DASHES = ("none", "7 4", "2 4")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440.0, 280.0, 46.0, 12.0, 12.0, 44.0

COLUMNS = (
    ("CPR", "area under faithfulness of the best edges", max),
    ("CMD", "area between it and 1, by absolute score", min),
    ("acc-AUC", "share of prompts answered right, over the logarithm of the size", max),
    ("Without", "area under faithfulness of all edges but the best", min),
    ("Most F", "the largest faithfulness: far above 1, CPR says little", None),
    ("Seconds", "of scoring, compilation included", min),
    ("MiB", "most memory of the process so far", None),
)
"""Title, meaning, and which end is best."""


def write_comparison(path: str | os.PathLike, comparison: Comparison) -> None:
    """Writes `render_comparison`, whole or not at all."""
    write_text(path, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """A page of the methods that were compared, each with its numbers, its curves and its record, or its refusal.

    Whatever comes from data is text in the page, never markup.
    """
    run, scored = comparison.run, comparison.scored_on
    title = f"{run['task']} on {run['model']}" if {"task", "model"} <= run.keys() else "Methods"
    lead = (
        f"{len(comparison.methods)} methods, scored on {scored['prompts']} prompts by {run['metric']} "
        f"({run['reference']}), judged on {run['prompts']} others."
    )
    charts = (
        _chart(
            "The best edges alone",
            "Faithfulness of the best edges by signed score; 1 is the whole model.",
            _kept(comparison),
        ),
        _chart(
            "All edges but the best", "Faithfulness of what is left without them; lower is better.", _left(comparison)
        ),
    )
    parts = {
        "title": html.escape(title),
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "lead": html.escape(lead),
        "table": _table(comparison.methods),
        "charts": "\n".join(charts),
        "record": _record(comparison),
        "version": html.escape(str(run.get("versions", {}).get("jaxcircuits", ""))),
    }
    page = (ASSETS / "side_by_side.html").read_text(encoding="utf-8")
    before, *rest = page.split("{{")
    pieces = (piece.split("}}", 1) for piece in rest)
    return before + "".join(parts[name] + after for name, after in pieces)


# --- the table -----------------------------------------------------------------------------------


def _numbers(row: Compared) -> list[float | None]:
    assert row.curve is not None and row.necessity is not None
    curve, memory = row.curve, None if row.peak_bytes is None else row.peak_bytes / 2**20
    return [curve.cpr, curve.cmd, curve.acc_auc, row.necessity.area, curve.most, row.seconds, memory]


def _table(rows: Sequence[Compared]) -> str:
    judged = [_numbers(row) for row in rows if row.curve is not None]
    best = []
    for (_, _, end), column in zip(COLUMNS, zip(*judged, strict=True) if judged else [()] * len(COLUMNS), strict=True):
        known = [value for value in column if value is not None]
        best.append(end(known) if end is not None and len(known) > 1 else None)
    head = "".join(
        f'<th scope="col" class="number" title="{html.escape(what)}">{name}</th>' for name, what, _ in COLUMNS
    )
    body = "\n".join(_row(row, best) for row in rows)
    return f'<table><thead><tr><th scope="col">Method</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def _row(row: Compared, best: Sequence[float | None]) -> str:
    name = f'<th scope="row">{html.escape(row.name)}</th>'
    if row.curve is None:
        reason = html.escape(row.refused or "")
        return f'<tr>{name}<td colspan="{len(COLUMNS)}" class="refused">refused: {reason}</td></tr>'
    cells = []
    for value, most in zip(_numbers(row), best, strict=True):
        text = "–" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")
        cells.append(f'<td class="number">{f"<b>{text}</b>" if value is not None and value == most else text}</td>')
    return f"<tr>{name}{''.join(cells)}</tr>"


# --- the curves ----------------------------------------------------------------------------------

Series = tuple[str, tuple[float, ...], tuple[float, ...]]


def _kept(comparison: Comparison) -> dict[int, Series]:
    rows = enumerate(comparison.methods)
    return _drawn({i: (row.name, row.curve.shares, row.curve.signed) for i, row in rows if row.curve is not None})


def _left(comparison: Comparison) -> dict[int, Series]:
    rows = enumerate(comparison.methods)
    return _drawn(
        {i: (row.name, row.necessity.shares, row.necessity.points) for i, row in rows if row.necessity is not None}
    )


def _drawn(found: dict[int, tuple[str, Sequence[float], Sequence[Faithfulness]]]) -> dict[int, Series]:
    """Those whose F is nowhere refused, by their number."""
    series = {}
    for number, (name, shares, points) in found.items():
        values = tuple(point.value for point in points if point.value is not None)
        if len(values) == len(shares):
            series[number] = name, tuple(shares), values
    return series


def _chart(title: str, note: str, series: dict[int, Series]) -> str:
    head = f'<figure class="card"><h2>{title}</h2><p class="hint">{note}</p>'
    if not series:
        return f'{head}<p class="empty">Faithfulness is refused on these prompts.</p></figure>'
    shares = [share for _, shares, _ in series.values() for share in shares]
    values = [0.0, 1.0, *(value for _, _, values in series.values() for value in values)]
    first, last = math.log(min(shares)), math.log(max(shares))
    low, high = min(values), max(values)

    def x(share: float) -> float:
        return LEFT + 8 + (math.log(share) - first) / (last - first or 1) * (WIDTH - RIGHT - LEFT - 16)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        _rule(y(tick), f"{tick:g}".replace("-", "−"), "rule" if tick in (0, 1) else "grid")
        for tick in _ticks(low, high)
    ]
    for power in range(math.ceil(first / math.log(10) - 1e-9), math.floor(last / math.log(10) + 1e-9) + 1):
        parts.append(_text(x(10.0**power), HEIGHT - BOTTOM + 18, f"{100 * 10.0**power:g} %", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "of the edges", "middle"))
    parts += [_line(number, one, x, y) for number, one in series.items()]
    picture = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    names = "".join(
        f'<span class="sign"><svg width="26" height="8" aria-hidden="true">'
        f'<path class="series" {_look(number)} d="M1 4H25"/></svg>{html.escape(name)}</span>'
        for number, (name, _, _) in series.items()
    )
    return f'{head}{picture}<p class="legend">{names}</p></figure>'


def _line(number: int, series: Series, x: Any, y: Any) -> str:
    name, shares, values = series
    at = [(f"{x(share):.1f}", f"{y(value):.1f}") for share, value in zip(shares, values, strict=True)]
    points = "".join(
        f'<circle class="point" cx="{left}" cy="{top}" r="3">'
        f"<title>{html.escape(name)}, {100 * share:.3g} %: {value:.3g}</title></circle>"
        for (left, top), share, value in zip(at, shares, values, strict=True)
    )
    path = " ".join(f"{left},{top}" for left, top in at)
    return f'<g {_look(number)}><polyline class="series" points="{path}"/>{points}</g>'


def _look(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return f'style="--line-colour:{COLOURS[number % len(COLOURS)]};--dash:{dash}"'


def _rule(y: float, text: str, kind: str) -> str:
    line = f'<line class="{kind}" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, text, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(times * unit for times in (1, 2, 5, 10) if times * unit >= rough * 0.999)
    return [
        round(index * step, 10) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


# --- what was run --------------------------------------------------------------------------------


def _record(comparison: Comparison) -> str:
    runs = [("judged on", comparison.run), ("scored on", comparison.scored_on)]
    runs += [(row.name, row.run) for row in comparison.methods if row.run is not None]
    return "\n".join(
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(_json(run))}</pre></details>"
        for name, run in runs
    )


def _json(value: Any) -> str:
    return json.dumps(plain(value), indent=1, ensure_ascii=False)
