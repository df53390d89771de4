"""The `Scores` record: one number an edge, and how it was found."""

import dataclasses
from typing import Any

from .graph import Graph
from .types import EdgeScores


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """How much each edge matters.

    - `values`: [sender, receiver], higher = keep. `signed`: whether the sign means anything.
    - `method`, `run`: the method's name; what determines the values.
    """

    graph: Graph
    values: EdgeScores
    signed: bool
    method: str
    run: dict[str, Any]
