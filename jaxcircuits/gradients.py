"""The gradient of the loss at every edge: `df/dmask_sr = <z_s - ref_s, df/dx_r>` at four kinds of runs.

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
from .precision import products
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
    reference, delta = prompt[1], _delta(model, prompt, mask)

    def add_point(total, point):
        held, alpha = point
        return total + _held_slopes(model, score, prompt, Held(held, reference + alpha * delta), mask), None

    total, _ = jax.lax.scan(add_point, _no_slopes(model, reference), points)
    return _contract(model, delta, total / points[1].shape[0], spans)


def on_gradient_path(
    model: Model,
    score: Score,
    prompt: Prompt,
    towards: tuple[Tokens, Bool[Array, " position"]],
    steps: int,
    spans: Spans,
    mask: Mask | None,
) -> Gradient:
    """Mean over j = 1..steps of `<clean_s - ref_s, df/dx_r(y_j)>` in runs whose embeddings sum to y_j.

    From the clean embeddings y_0 on, `y_j = y_(j-1) - v / |v|` with v the derivative at y_(j-1) of the squared distance
    of the logits to those of the corrupt prompt, at all of its tokens.

    - `towards`: that prompt, and which positions are its tokens. `v` is a derivative whatever rules the model has.
    - `mask`: the runs, the clean one too, are those of this circuit. The corrupt prompt's is the whole model's: absent
      edges carry what the others do. Of several embeddings the first is what moves, in the span of each position.
    """
    (tokens, reference), (corrupt, inside) = prompt, towards
    plain, delta, embeddings = model.with_backward("plain"), _delta(model, prompt, mask), model.embeddings(tokens)
    there = plain(corrupt)
    which = jnp.arange(reference.shape[0]) < len(embeddings)
    at = jnp.arange(len(tokens), dtype=jnp.int32)
    parts = jnp.ones((1, len(at)), bool) if model.spans_text is None else model.inside(at)
    moves = jnp.zeros((*embeddings.shape[:2], 1), bool).at[: len(parts), :, 0].set(parts)

    def held(y):
        return Held(which, jnp.zeros_like(reference).at[: len(y)].set(y))

    def distance(y):
        x = plain.residual_of(y.sum(0)) if mask is None else plain.masked_run(tokens, mask, reference, None, held(y))[0]
        return jnp.sum(jnp.where(inside[:, None], plain.unembed(x) - there, 0) ** 2)

    def step(carry, _):
        y, total = carry
        v = jnp.where(moves, jax.grad(distance)(y), 0)
        norm = jnp.sqrt(jnp.sum(v**2))
        y = y - v / jnp.where(norm > 0, norm, 1)
        return (y, total + _held_slopes(model, score, prompt, held(y), mask)), None

    (_, total), _ = jax.lax.scan(step, (embeddings, _no_slopes(model, reference)), None, length=steps)
    return _contract(model, delta, total / steps, spans)


def _delta(model: Model, prompt: Prompt, mask: Mask | None) -> SenderValues:
    """What every sender writes minus the reference, in the clean run or a circuit."""
    tokens, reference = prompt
    return model.sender_values(tokens) - reference if mask is None else model.masked_run(tokens, mask, reference)[1]


def _held_slopes(model: Model, score: Score, prompt: Prompt, held: Held, mask: Mask | None) -> ReceiverValues:
    """The gradient of the loss at what each receiver reads where some senders are held, in the model or a circuit."""
    tokens, reference = prompt
    if mask is None:
        return model.receiver_slopes(tokens, score, held)[1]
    loss = lambda moved: score(model.masked_run(tokens, mask, reference, moved, held)[0])  # noqa: E731
    return jax.grad(loss)(_no_slopes(model, reference))


def _no_slopes(model: Model, reference: SenderValues) -> ReceiverValues:
    return jnp.zeros((model.graph.shape[1], *reference.shape[1:]), reference.dtype)


def _contract(model: Model, delta: SenderValues, slopes: ReceiverValues, spans: Spans) -> Gradient:
    """`<delta_s, slope_r>` of every pair, over all positions or those of each span."""
    slopes = jax.lax.optimization_barrier(slopes)  # of constant zeros XLA's CPU makes NaN here (jaxlib 0.10.2)
    with products(model.precision):
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


@eqx.filter_jit
def path_gradient(objective: Any, steps: int, spans: Spans, mask: Mask | None) -> Array:
    """`on_gradient_path`, from each prompt to its corrupt one."""

    def one(objective, prompt):
        (tokens, reference, *rest), towards = prompt
        score = score_of(objective, *rest)
        return on_gradient_path(objective.model, score, (tokens, reference), towards, steps, spans, mask)

    prompts = objective._prompts(), (objective.corrupt, objective.inside)
    return _mean_gradient(objective, batching.over_prompts(objective, one, prompts))


def _of_each(objective: Any, gradient: Callable, *arguments: Any) -> Any:
    """What a function of `gradients` gives of every prompt."""

    def one(objective, prompt):
        tokens, reference, *rest = prompt
        return gradient(objective.model, score_of(objective, *rest), (tokens, reference), *arguments)

    return batching.over_prompts(objective, one, objective._prompts())


def score_of(objective: Any, *of_prompt: Any) -> Score:
    """A prompt's loss, whose slope is NaN where the loss is no finite number: a metric's own may be one even there."""

    def score(residual: Float[Array, "position width"]) -> Float[Array, ""]:
        value = objective._score(residual, *of_prompt)
        return value * jnp.where(jnp.isfinite(value), 1, jnp.nan)

    return score


def _mean_gradient(objective: Any, each: Float[Array, "batch *span sender receiver"]) -> Array:
    return constrain(jnp.where(jnp.asarray(objective.graph.valid), each.mean(0), 0), objective.mesh)


def microbatch_that_fits(objective: Any) -> int:
    """All prompts where their buffers are a small share of the memory; else what a compiled gradient leaves.

    Raises MemoryError if not even one fits.
    """
    if batching.from_first_process(16 * objective.reference.nbytes < batching.memory_limit() // 4):
        return objective.num_prompts

    def needed(size: int) -> int:
        sized = batching.with_microbatch(objective, size)
        return batching.memory_needed(value_and_gradient, sized, sized.full_mask(), None)

    return batching.largest_that_fits(needed, objective.num_prompts)
