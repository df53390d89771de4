"""What a page draws of an evaluation's JSON; the only place that knows its form."""

from typing import Any


def faithfulness_curve(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """`[{"edges": n, "faithfulness": y}, ...]` of `evaluation["curve"]`; empty without one.

    Raises ValueError for a curve whose columns do not fit together.
    """
    curve = (evaluation or {}).get("curve")
    if curve is None:
        return []
    if not isinstance(curve, dict) or not {"edges", "faithfulness"} <= curve.keys():
        raise ValueError("evaluation: expected a curve with 'edges' and 'faithfulness'")
    edges, values = curve["edges"], curve["faithfulness"]
    if len(edges) != len(values):
        raise ValueError(
            f"evaluation: expected as many edges as values of faithfulness, got {len(edges)}, {len(values)}"
        )
    return [{"edges": n, "faithfulness": y} for n, y in zip(edges, values, strict=True) if y is not None]
