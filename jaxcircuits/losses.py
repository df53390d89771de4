"""The losses of an `Objective`'s circuits, compiled: of one or many, a number a prompt or a number a circuit."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Shaped

from . import batching
from .batching import CANDIDATES, constrain
from .types import PositionedMask


@eqx.filter_jit
def per_example(objective: Any, mask: PositionedMask) -> Float[Array, " batch"]:
    """One number a prompt."""

    def one(objective, prompt):
        tokens, reference, *rest = prompt
        return objective._score(objective.model.residual(tokens, mask, reference), *rest)

    return constrain(batching.over_prompts(objective, one, objective._prompts()), objective.mesh)


@eqx.filter_jit
def logits(objective: Any, mask: PositionedMask) -> Float[Array, "batch scored output"]:
    """What the circuit answers where prompts are scored."""

    def one(objective, prompt):
        tokens, reference, scored, *_ = prompt
        return objective.model.unembed(objective.model.residual(tokens, mask, reference)[scored])

    return batching.over_prompts(objective, one, objective._prompts())


@eqx.filter_jit
def mean(objective: Any, mask: PositionedMask) -> Float[Array, ""]:
    """Mean over the prompts."""
    return per_example(objective, mask).mean()


@eqx.filter_jit
def per_example_many(
    objective: Any, masks: Shaped[Array, "circuit sender receiver *position"], width: int
) -> Float[Array, "circuit batch"]:
    """Of many circuits, `width` of them at a time, one number a prompt."""

    def one(mask):
        return per_example(objective, mask.astype(objective.model.dtype))

    masks = constrain(masks, objective.mesh, CANDIDATES)
    return constrain(batching.chunked_vmap(one, masks, width), objective.mesh)


@eqx.filter_jit
def many(
    objective: Any, masks: Shaped[Array, "circuit sender receiver *position"], width: int
) -> Float[Array, " circuit"]:
    """Of many circuits, `width` of them at a time, mean over the prompts."""
    return per_example_many(objective, masks, width).mean(1)


@eqx.filter_jit
def clean_run(objective: Any) -> tuple[Float[Array, "batch scored vocab"], Float[Array, " batch"]]:
    """The whole model's logits where prompts are scored, and the loss of each prompt at them."""

    def one(objective, prompt):
        tokens, scored, weights, labels = prompt
        logits = objective.model.unembed(objective.model.residual(tokens)[scored])
        return logits, objective._loss(logits, weights, eqx.tree_at(lambda labels: labels.full, labels, logits))

    each = objective.clean, objective.scored, objective.weights, objective.labels
    logits, values = batching.over_prompts(objective, one, each)
    return logits, constrain(values, objective.mesh)
