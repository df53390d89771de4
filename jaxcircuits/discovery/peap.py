"""PEAP (2502.04577), position-aware edge attribution patching: edges within spans and between, see `crossings.py`."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import batching
from ..arguments import checked
from ..crossings import Peap, check_crossing, names_of_spans
from ..gradients import score_of
from ..objective import Objective
from .attribution import eap
from .measure import ruled


@checked
def peap(objective: Objective) -> Peap:
    """Position-aware edge attribution patching (2502.04577) of a model that is divided at spans.

    - `objective`: of `load(..., spans=...)` or `with_units(model, spans=...)`; heads read through q, k and v.

    One forward and backward pass more than `eap`, and three outputs of every head for every key position. Raises
    ValueError as `eap`, for a model without spans, and where the heads of a layer meet in a norm.
    """
    check_crossing(objective.graph)
    objective = ruled(objective, "plain")
    within = eap(objective)
    within = dataclasses.replace(within, method="peap", run={**within.run, "forward_passes": 2, "backward_passes": 2})
    return Peap(within, np.asarray(_crossing(objective), np.float64), _last(objective))


def _last(objective: Objective) -> tuple[str, ...]:
    """The spans in which a prompt is scored."""
    model, scored = objective.model, np.asarray(objective.scored)
    if objective.span_at is None:
        inside = model.inside(jnp.arange(objective.clean.shape[1], dtype=jnp.int32))
        span_at = np.broadcast_to(np.asarray(inside).argmax(0), objective.clean.shape)
    else:
        span_at = np.asarray(objective.span_at)
    found = np.take_along_axis(span_at, scored, 1)[np.asarray(objective.weights) > 0]
    return tuple(names_of_spans(objective.graph)[span] for span in np.unique(found))


@eqx.filter_jit
def _crossing(objective: Objective) -> Float[Array, "layer head port span span"]:
    def one(objective, prompt):
        tokens, reference, *rest = prompt
        return objective.model.crossing(tokens, reference, score_of(objective, *rest))

    return batching.over_prompts(objective, one, objective._prompts()).mean(0)
