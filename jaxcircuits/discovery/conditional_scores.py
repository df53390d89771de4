"""Conditional scores (CoAx, 2607.01940): what a method's scores change by when some edges are absent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import checked
from ..conditional import Absent, kept_edges, without
from ..objective import Objective
from ..scores import Scores


@checked
def conditional_scores(
    objective: Objective,
    method: Callable[..., Any],
    absent: Absent,
    *,
    checkpoint: str | os.PathLike | None = None,
    **hyperparameters: Any,
) -> Scores:
    """The method's scores given that some edges are absent, minus its scores on the whole model; 0 at absent edges.

    - `method`: to `Scores`, or to a result that has `as_scores`, as those of `jaxcircuits methods` that take an
      objective without some edges. `absent`: as `without`. With none absent the scores are 0.
    - `checkpoint`: a folder in which a method that takes one keeps how far both runs are.

    The record is that of the run without them; its `method` is the name, `on_whole_model` the other record. Raises
    ValueError for names and masks that are none of the model's, and for methods that refuse either objective.
    """
    given = without(objective, absent)

    def run(name: str, one: Any) -> Scores:
        folder = {} if checkpoint is None else {"checkpoint": Path(checkpoint) / name}
        result = method(one, **hyperparameters, **folder)
        return result if isinstance(result, Scores) else result.as_scores()

    first, second = run("given", given), run("whole", objective)
    kept = kept_edges(given)
    record = {**first.run, "conditional": "less the scores on the whole model", "on_whole_model": second.run}
    return Scores(
        objective.graph, np.where(kept, first.values - second.values, 0), True, first.method, record, first.positions
    )
