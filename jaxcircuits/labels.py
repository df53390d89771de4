"""The labels of prompts where they are scored, and whether a metric can do with them."""

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from . import metrics
from .batching import PROMPTS, place
from .data import PromptPairs
from .metrics import Labels, Metric


def labels_of(pairs: PromptPairs, scored: np.ndarray, logits: jax.ShapeDtypeStruct, mesh: Mesh | None) -> Labels:
    """Labels at the scored positions, [batch, scored, ...]; `full` still empty. `logits`: those of one prompt.

    Raises ValueError for a target of another size.
    """
    batch, several = scored.shape

    def spread(value: np.ndarray | None) -> Array | None:
        if value is None:
            return None
        if value.ndim == 3:  # each position has its own
            return place(np.take_along_axis(value, scored[..., None], 1), mesh, PROMPTS)
        return place(np.broadcast_to(value[:, None], (batch, several, *value.shape[1:])), mesh, PROMPTS)

    outputs = logits.shape[-1]
    if pairs.target is not None and pairs.target.shape[-1] != outputs:
        raise ValueError(f"target: expected {outputs} values, the model's logits, got {pairs.target.shape[-1]}")
    digits = None if pairs.digits is None else np.broadcast_to(pairs.digits, (batch, *pairs.digits.shape))
    return Labels(
        full=place(np.zeros((batch, several, outputs), np.dtype(logits.dtype)), mesh, PROMPTS),
        answer=spread(pairs.answer),
        wrong=spread(pairs.wrong),
        target=None if pairs.target is None else spread(pairs.target.astype(np.dtype(logits.dtype))),
        year=spread(pairs.year),
        digits=spread(digits),
    )


def check_metric(metric: Metric, labels: Labels) -> None:
    """Calls the metric on shapes alone, so that what it misses is said before any compute.

    Raises ValueError for a target of another width than the logits', for a metric that compares outputs where there is
    one alone, and for a metric that gives no number.
    """
    if labels.target is not None and labels.target.shape != labels.full.shape:
        raise ValueError(f"target: expected {labels.full.shape[-1]} values a position, got {labels.target.shape[-1]}")
    if labels.full.shape[-1] == 1 and metric in metrics.COMPARES_OUTPUTS:
        raise ValueError(
            f"{metric.__name__}: expected a model with several outputs to compare, got one with a single output, on "
            "which it is constant; choose l2"
        )
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), labels)
    value = eqx.filter_eval_shape(metric, one.full, one)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"metric: expected a function that gives one number, got {value}")
