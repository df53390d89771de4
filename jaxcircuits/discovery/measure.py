"""What all scoring methods share: spans of positions, refusals, and the record of a run with its cost."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .. import metrics
from ..batching import compile_clock
from ..conditional import Conditional
from ..nodes import NodeObjective
from ..objective import Objective
from ..scores import Positions, Scores, Span, positions_inside, spans_within
from ..types import Model, Tokens


def scored(
    objective: Objective | Conditional | NodeObjective,
    method: str,
    values: Callable[[], ArrayLike],
    *,
    passes: tuple[int, int],
    signed: bool = True,
    positions: tuple[Span, ...] | None = None,
    **hyperparameters: Any,
) -> Scores:
    """`values()` as `Scores`, with what it cost.

    - `passes`: forward and backward passes of the model for each prompt.
    """
    start = time.perf_counter()
    with compile_clock() as clock:
        computed = np.asarray(values(), np.float64)
    run = {
        **objective.describe(),
        **hyperparameters,
        "forward_passes": passes[0],
        "backward_passes": passes[1],
        "seconds": time.perf_counter() - start,
        "seconds_compiling": clock.seconds,
        "edges_total": objective.graph.num_edges,
    }
    return Scores(objective.graph, computed, signed, method, run, positions)


def spans_of(
    objective: Objective | Conditional, positions: Positions | None
) -> tuple[tuple[Span, ...] | None, Bool[np.ndarray, "span position"] | None]:
    """Spans, each scored on its own, as (first, before which) and as bool [span, position]; both None for None.

    Raises ValueError for a span that is empty or beyond the prompts.
    """
    if positions is None:
        return None, None
    width = objective.clean.shape[1]
    spans = spans_within(positions, width)
    return spans, positions_inside(spans, width)


def can_be_read(
    model: Model, tokens: Tokens, scored: Int[Array, " scored"], weights: Float[Array, " scored"]
) -> Bool[Array, " position"]:
    """Which positions of a prompt what is scored may depend on: of a causal model, those up to the last scored one."""
    at = jnp.arange(tokens.shape[0], dtype=scored.dtype)
    return at <= (jnp.max(jnp.where(weights > 0, scored, 0)) if model.is_causal else at[-1])


def refuse_flat(objective: Objective | Conditional, method: str, *, at_clean: bool = True) -> None:
    """Raises ValueError for a loss without a slope.

    Accuracy, and a model of steps, have none anywhere; KL, and L2 to the model's own output, have none at the clean run
    (`at_clean`). A user's metric is tried: it has none if the slopes of all edges are 0, but for rounding, while its
    value without edges is another one; at the clean run, or also half way and at no edges. Without some edges there is
    no clean run.
    """
    at_clean = at_clean and isinstance(objective, Objective)
    metric = objective.metric
    if not getattr(objective.model, "has_slopes", True):
        raise ValueError(
            f"{method}: expected a model with gradients, got {type(objective.model).__name__} whose units are steps; "
            "choose a method without gradients (exact, acdc), or a network of ReLU units (gate-xor_relu)"
        )
    if metric is metrics.accuracy:
        raise ValueError(f"{method}: accuracy has no gradient; choose logit_diff, prob_diff or nll")
    if at_clean and (metric is metrics.kl or (metric is metrics.l2 and objective.labels.target is None)):
        raise ValueError(
            f"{method}: {objective.metric_name} to the model's own output is least at the clean run, so its gradient "
            "there is zero for every edge; choose another metric (logit_diff), or a method that leaves the clean run "
            "(eap-ig-inputs, mask-ig, exact)"
        )

    if metric not in metrics.METRICS.values():
        _refuse_without_slopes(objective, method, at_clean)


def _refuse_without_slopes(objective: Objective | Conditional, method: str, at_clean: bool) -> None:
    shape, eps = objective.graph.shape, float(jnp.finfo(objective.model.dtype).eps)
    full, empty = float(objective(np.ones(shape))), float(objective(np.zeros(shape)))
    alphas = (1.0,) if at_clean else (1.0, 0.5, 0.0)
    slopes = [np.abs(np.asarray(objective.gradient(np.full(shape, alpha)))).max() for alpha in alphas]
    if not np.isclose(full, empty) and max(slopes) <= 100 * eps * abs(full - empty):
        raise ValueError(
            f"{method}: the metric {objective.metric_name} is {full:.3g} with all edges and {empty:.3g} with none, but "
            "its gradient is zero for every edge; choose a metric with a slope (logit_diff, prob_diff, nll), or a "
            "method without gradients (exact, acdc)"
        )


def ruled(objective: Any, backward: str) -> Any:
    """The same values, with gradients by rules of `models/backward.py`. Raises ValueError for an unknown name."""
    if isinstance(objective, Conditional):
        return Conditional(ruled(objective.objective, backward), objective.kept)
    return eqx.tree_at(lambda o: o.model, objective, objective.model.with_backward(backward))
