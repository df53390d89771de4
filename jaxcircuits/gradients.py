"""The gradient of the loss at every edge: `df/dmask_sr = <z_s - ref_s, df/dx_r>` at three kinds of runs.

`z_s - ref_s` is what sender s writes minus the reference, `df/dx_r` the gradient of the loss at what receiver r reads.
First of one prompt, which is its tokens and the reference (`score`: its loss as a function of what `logits` reads);
then the mean over the prompts of an `Objective`, compiled.

`spans`: bool as numbers [span, position]; one gradient for the mask of each span of positions; None: of all together.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import batching
from .batching import constrain
from .models import Held
from .types import Mask, Model, ReceiverValues, SenderValues, Tokens

Prompt = tuple[Tokens, SenderValues]
Score = Callable[[Float[Array, "position width"]], Float[Array, ""]]
Spans = Float[Array, "span position"] | None
Gradient = Float[Array, "*span sender receiver"]


def at_mask(model: Model, score: Score, prompt: Prompt, mask: Mask, spans: Spans) -> tuple[Float[Array, ""], Gradient]:
    """The loss of a circuit, and its gradient."""
    tokens, reference = prompt

    def loss(offsets):
        residual, delta = model.masked_run(tokens, mask, reference, offsets)
        return score(residual), delta

    zeros = jnp.zeros((mask.shape[1], *reference.shape[1:]), mask.dtype)
    (value, delta), slopes = jax.value_and_grad(loss, has_aux=True)(zeros)
    return value, _contract(model, delta, slopes, spans)


def at_clean_run(model: Model, score: Score, prompt: Prompt, spans: Spans) -> Gradient:
    """The gradient at all edges, from the plain model."""
    tokens, reference = prompt
    written, slopes = model.receiver_slopes(tokens, score)
    return _contract(model, written - reference, slopes, spans)


def at_held_runs(
    model: Model,
    score: Score,
    prompt: Prompt,
    points: tuple[Bool[Array, "point sender"], Float[Array, " point"]],
    spans: Spans,
    mask: Mask | None,
) -> Gradient:
    """Mean over points (held, alpha) of `<clean_s - ref_s, df/dx_r>` where the held senders write constants.

    These are `reference + alpha (clean - reference)`. With a mask, clean is what they write in that circuit, and so are
    all runs.
    """
    tokens, reference = prompt
    zeros = jnp.zeros((model.graph.shape[1], *reference.shape[1:]), reference.dtype)

    def slopes_of(held: Held) -> ReceiverValues:
        if mask is None:
            return model.receiver_slopes(tokens, score, held)[1]
        return jax.grad(lambda moved: score(model.masked_run(tokens, mask, reference, moved, held)[0]))(zeros)

    def add_point(total, point):
        held, alpha = point
        return total + slopes_of(Held(held, reference + alpha * delta)), None

    if mask is None:
        delta = model.sender_values(tokens) - reference
    else:
        _, delta = model.masked_run(tokens, mask, reference)
    total, _ = jax.lax.scan(add_point, zeros, points)
    return _contract(model, delta, total / points[1].shape[0], spans)


def _contract(model: Model, delta: SenderValues, slopes: ReceiverValues, spans: Spans) -> Gradient:
    """`<delta_s, slope_r>` of every pair, over all positions or those of each span."""
    with jax.default_matmul_precision(model.precision):
        if spans is None:
            return jnp.einsum("std,rtd->sr", delta, slopes)
        return jax.lax.map(lambda span: jnp.einsum("std,rtd->sr", delta * span[None, :, None], slopes), spans)


@eqx.filter_jit
def value_and_gradient(objective: Any, mask: Mask, spans: Spans) -> tuple[Float[Array, ""], Array]:
    """The loss of a circuit, and its gradient."""
    values, each = _of_each(objective, at_mask, mask, spans)
    return constrain(values.mean(), objective.mesh), _mean_gradient(objective, each)


@eqx.filter_jit
def clean_gradient(objective: Any, spans: Spans) -> Array:
    """`at_clean_run`."""
    return _mean_gradient(objective, _of_each(objective, at_clean_run, spans))


@eqx.filter_jit
def displacement_gradient(objective: Any, points: tuple, spans: Spans, mask: Mask | None) -> Array:
    """`at_held_runs`."""
    return _mean_gradient(objective, _of_each(objective, at_held_runs, points, spans, mask))


def _of_each(objective: Any, gradient: Callable, *arguments: Any) -> Any:
    """What a function of `gradients` gives of every prompt."""

    def one(objective, prompt):
        tokens, reference, *rest = prompt
        return gradient(objective.model, lambda x: objective._score(x, *rest), (tokens, reference), *arguments)

    return batching.over_prompts(objective, one, objective._prompts())


def _mean_gradient(objective: Any, each: Float[Array, "batch *span sender receiver"]) -> Array:
    return constrain(jnp.where(jnp.asarray(objective.graph.valid), each.mean(0), 0), objective.mesh)
