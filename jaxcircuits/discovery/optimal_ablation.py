"""Optimal ablation (Li & Janson 2409.09951): absent edges carry learnt constants.

    minimise over c:   mean over circuits of f(mask), sender s of every prompt replaced by c_s where edges are absent

With one circuit a sender, that sender's edges absent, the constants do not meet and each loss is that sender's
optimal ablation loss; its excess over the clean run's says how much the sender matters.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..arguments import checked
from ..finite import check_finite
from ..graph import Graph
from ..masks import masks_of
from ..objective import Objective
from ..references import mean_inside, within_spans, written_at
from ..types import MaskLike
from .learning import State, first_order, learn
from .measure import refuse_flat

Constants = Float[Array, "sender positions width"]


@dataclasses.dataclass(frozen=True, eq=False)
class OptimalReference:
    """Learnt reference values.

    - `values`: [sender, position, width]; one position where all share their constants.
    - `losses`: of each circuit under them; `losses_start`: under the constants that the run began with.
    """

    graph: Graph
    values: Float[np.ndarray, "sender positions width"]
    losses: Float[np.ndarray, " circuit"]
    losses_start: Float[np.ndarray, " circuit"]
    history: dict[str, np.ndarray]
    state: State
    run: dict[str, Any]

    def array(self, prompts: int, positions: int) -> Float[np.ndarray, "sender batch position width"]:
        """The values as `jc.Objective(..., reference=...)` takes them, for prompts of this number and length.

        Raises ValueError if the values were learnt position by position for another length.
        """
        senders, own, width = self.values.shape
        if own not in (1, positions):
            raise ValueError(f"the values were learnt for {own} positions, these prompts have {positions}")
        return np.broadcast_to(self.values[:, None], (senders, prompts, positions, width))


class OptimalAblation(eqx.Module):
    """The hyperparameters, the circuits and the constants to begin with."""

    masks: Bool[Array, "circuit sender receiver"]
    constants: Constants
    rate: float
    samples: int = eqx.field(static=True)
    columns: ClassVar[tuple[str, ...]] = ("loss",)

    def start(self, objective: Objective, key: PRNGKeyArray) -> Constants:
        """The given constants."""
        return self.constants

    def optimiser(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.adam(self.rate)

    def loss(
        self, constants: Constants, objective: Objective, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over some of the circuits."""
        masks = self.masks[jax.random.permutation(key, len(self.masks))[: self.samples]]

        def one(mask: Bool[Array, "sender receiver"]) -> Float[Array, ""]:
            return first_order(jax.value_and_grad(partial(_ablated, objective, mask)), constants)

        loss = jax.lax.map(one, masks).mean()
        return loss, {"loss": loss}


@checked
def optimal_ablation(
    objective: Objective,
    masks: MaskLike | None = None,
    *,
    own_positions: bool = False,
    steps: int = 1000,
    rate: float = 2e-3,
    samples: int = 8,
    batch: int | None = None,
    seed: int = 0,
    progress: Callable[[State], object] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> OptimalReference:
    """Learns the constants that absent edges carry, beginning with the means of the objective's reference values.

    The means are those of each prompt's own tokens: padding does not count, nor what is outside of a node's span.

    - `masks`: circuits, or masks [circuit, sender, receiver], or one; default: one a sender, without its edges.
    - `own_positions`: a constant a position (begins at the "mean" reference); else one for all positions, as published.
    - `rate`: Adam's. `samples`: circuits a step. `batch`: prompts a step, default all.
    - `seed`, `progress`, `checkpoint`: as `learn`.

    The result serves every method: `jc.Objective(model, pairs, metric, result.array(len(pairs), positions))`.

    Raises ValueError for a loss without gradients, masks of another shape, settings out of range, a checkpoint of
    another run, and divergence.
    """
    refuse_flat(objective, "optimal-ablation", at_clean=False)
    started = time.perf_counter()
    graph, kind = objective.graph, "given" if masks is not None else "one a sender"
    if masks is None:
        masks = graph.valid[None] & ~np.eye(graph.shape[0], dtype=bool)[:, :, None]
    masks = masks_of(masks, graph, "masks")
    if rate <= 0 or samples < 1:
        raise ValueError(f"expected rate > 0 and samples >= 1; got {rate}, {samples}")
    batch = objective.num_prompts if batch is None else batch
    inside = written_at(objective.model, objective.inside, objective.span_at)
    constants = mean_inside(objective.reference, inside, (1,) if own_positions else (1, 2))[:, 0]
    learner = OptimalAblation(jnp.asarray(masks), constants, rate, samples)
    state = learn(learner, objective, steps=steps, batch=batch, seed=seed, progress=progress, checkpoint=checkpoint)
    losses = np.asarray(_losses(objective, learner.masks, state.parameters), np.float64)
    check_finite("optimal-ablation diverged (lower `rate`): losses", losses, circuit=None)
    run = {
        **{"method": "optimal-ablation", **objective.describe(), "circuits": len(masks), "masks": kind},
        **{"own_positions": own_positions, "steps": steps, "rate": rate, "samples": samples, "batch": batch},
        **{"seed": seed, "seconds": time.perf_counter() - started},
    }
    run["ablation"] |= {"value": "optimal", "reference_data": "learnt on the clean prompts"}
    start = np.asarray(_losses(objective, learner.masks, constants), np.float64)
    values = np.asarray(state.parameters, np.float64)
    history = {name: np.asarray(column, np.float64) for name, column in state.history.items()}
    return OptimalReference(graph, values, losses, start, history, state, run)


def _ablated(objective: Objective, mask: Bool[Array, "sender receiver"], constants: Constants) -> Float[Array, ""]:
    reference = jnp.broadcast_to(constants[:, None], objective.reference.shape)
    reference = within_spans(objective.model, reference, objective.span_at)
    return eqx.tree_at(lambda o: o.reference, objective, reference)(mask)


@eqx.filter_jit
def _losses(objective: Objective, masks: Bool[Array, "circuit sender receiver"], constants: Constants) -> Array:
    return jax.lax.map(lambda mask: _ablated(objective, mask, constants), masks)
