"""Methods side by side, as a picture: how faithful the best edges are, and what is left without them."""

import os
from typing import Any

from ..evaluation.comparison import Comparison
from ..files import write_whole
from .pictures import picture_path


def plot_comparison(comparison: Comparison, path: str | os.PathLike) -> None:
    """Draws F of each method's best edges, and of all others, against their share, to a `.png`, `.svg` or `.pdf`.

    A method that was refused, or whose F is, is not drawn. Raises ValueError where none is, and for other endings.
    """
    path = picture_path(path)
    drawn: list[Any] = [row for row in comparison.methods if row.curve is not None and row.curve.most is not None]
    if not drawn:
        raise ValueError("plot: expected a method with a curve, got none: F is refused on these prompts")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    kept, others = figure.subplots(1, 2, sharey=True)
    for row in drawn:
        shares = [100 * share for share in row.curve.shares]
        (line,) = kept.plot(shares, [point.value for point in row.curve.signed], marker="o", markersize=3)
        line.set_label(f"{row.name} (CPR {row.curve.cpr:.2f})")
        if row.necessity is not None and all(point.value is not None for point in row.necessity.points):
            values = [point.value for point in row.necessity.points]
            others.plot(
                [100 * share for share in row.necessity.shares],
                values,
                marker="o",
                markersize=3,
                color=line.get_color(),
            )
    for axes, title in ((kept, "the best edges alone"), (others, "all edges but the best")):
        axes.axhline(1, color="#8a93a3", linewidth=0.8, linestyle="dotted")
        axes.axhline(0, color="#8a93a3", linewidth=0.8, linestyle="dotted")
        axes.set(xscale="log", xlabel="% of the edges", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    kept.set_ylabel("faithfulness")
    kept.legend(frameon=False, fontsize=8)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=150))
