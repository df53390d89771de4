"""Random scores: the baseline that stands beside every method."""

import numpy as np

from ..arguments import checked
from ..conditional import Conditional, kept_edges
from ..objective import Objective
from ..scores import Scores
from .measure import scored


@checked
def random_scores(objective: Objective | Conditional, *, seed: int = 0) -> Scores:
    """Uniform scores in [0, 1), from a seed.

    Raises ValueError for a seed below 0.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, got {seed}")
    draw = np.where(kept_edges(objective), np.random.default_rng(seed).random(objective.graph.shape), 0)
    return scored(objective, "random", lambda: draw, passes=(0, 0), signed=False, seed=seed)
