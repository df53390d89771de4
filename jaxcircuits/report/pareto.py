"""How much of the metric how many edges buy: one point a circuit."""

import os
from collections.abc import Sequence

from ..circuit import Circuit
from ..files import write_whole
from .pictures import picture_path


def plot_pareto(circuits: Sequence[Circuit], path: str | os.PathLike) -> None:
    """Draws metric against edges of a sweep's circuits to a `.png`, `.svg` or `.pdf`; the Pareto front is joined.

    Raises ValueError for circuits without `metric_final` in their record and for other endings.
    """
    path = picture_path(path)
    if not circuits or any("metric_final" not in circuit.run for circuit in circuits):
        raise ValueError("expected circuits with 'metric_final' in their record, such as ACDC's")
    from matplotlib.figure import Figure

    points = sorted((circuit.num_edges, float(circuit.run["metric_final"])) for circuit in circuits)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*pareto_front(points), strict=True), color="tab:blue", drawstyle="steps-post")
    axes.scatter(*zip(*points, strict=True), color="tab:blue")
    for circuit in circuits:
        place = circuit.num_edges, float(circuit.run["metric_final"])
        axes.annotate(
            f"{float(circuit.run.get('threshold', 0)):g}", place, textcoords="offset points", xytext=(4, 4), size=7
        )
    axes.set_xlabel(f"edges of {circuits[0].graph.num_edges}")
    axes.set_ylabel(str(circuits[0].run.get("metric", "metric")))
    axes.set_xscale("symlog", linthresh=1)
    axes.spines[["top", "right"]].set_visible(False)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=150))


def pareto_front(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points that no other beats in both fewer edges and a lower metric."""
    front: list[tuple[int, float]] = []
    for edges, metric in sorted(points):
        if not front or metric < front[-1][1]:
            front.append((edges, metric))
    return front
