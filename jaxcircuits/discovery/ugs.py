"""Uniform Gradient Sampling (Li & Janson 2409.09951): keep probabilities from gradients at random masks.

    minimise over theta:   E f(z) + strength * sum_e p_e,   p = sigmoid(theta)

Each draw takes, for a share `w = p (1 - p)` of the edges, z uniform in (0, 1); the others are 1 with probability
`p - w / 2`, else 0. All three come from one uniform u as `z = clip((p - u) / w + 1/2, 0, 1)`. Where an edge is uniform
the mean of `df/dz` is f with it minus f without it, the gradient with respect to p. With respect to theta it is w
times that: the mean over all draws of `df/dz` where the edge is uniform, and 0 where it is not, which has no bias. The
public code can divide by the number of uniform draws instead (`normalize_empirical_mask`, off by default): that is
`1 - (1 - w)^samples` of the gradient, as no draw may be uniform.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..arguments import MOST, check_count, checked
from ..conditional import Conditional, kept_edges, narrowed
from ..objective import Objective
from ..types import Mask, MaskLike
from .learning import LearntMask, Maskable, State, first_order, learn, result_of
from .measure import refuse_flat


class UGS(eqx.Module):
    """The hyperparameters. `start_at`: theta of every edge before the first step."""

    strength: float
    rate: float
    start_at: float
    samples: int = eqx.field(static=True)
    columns: ClassVar[tuple[str, ...]] = ("metric", "loss", "sparsity")

    def start(self, objective: Maskable, key: PRNGKeyArray) -> Mask:
        """The same for all edges."""
        return jnp.zeros(objective.graph.shape, objective.model.dtype) + self.start_at

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with a long memory of squares, on clipped gradients, as the public code."""
        return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(self.rate, b2=0.995))

    def loss(
        self, theta: Mask, objective: Maskable, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean metric over the draws, plus the expected number of edges."""
        valid = jnp.asarray(kept_edges(objective), theta.dtype)
        masks = sample(key, theta, self.samples)
        metric = jax.lax.map(partial(first_order, objective.value_and_gradient), masks).mean()
        kept = jnp.sum(jax.nn.sigmoid(theta) * valid)
        loss = metric + self.strength * kept
        return loss, {"metric": metric, "loss": loss, "sparsity": 1 - kept / jnp.sum(valid)}


def sample(key: PRNGKeyArray, theta: Mask, samples: int) -> Float[Array, "circuit sender receiver"]:
    """Draws of the mask, see `masks_at`."""
    return masks_at(jax.random.uniform(key, (samples, *theta.shape), theta.dtype), theta)


def masks_at(u: Float[Array, "circuit sender receiver"], theta: Mask) -> Float[Array, "circuit sender receiver"]:
    """The masks of uniform numbers u; `dz/dtheta` is 1 where z is uniform, else 0."""
    p = jax.nn.sigmoid(jax.lax.stop_gradient(theta))
    window = jnp.maximum(p * (1 - p), 1e-12)
    z = jnp.clip((p[None] - u) / window[None] + 0.5, 0, 1)
    return z + jnp.where((z > 0) & (z < 1), (theta - jax.lax.stop_gradient(theta))[None], 0)


@checked
def ugs(
    objective: Objective | Conditional,
    strength: float = 1e-3,
    *,
    steps: int = 3000,
    rate: float = 0.05,
    start_at: float = 1.0,
    samples: int = 12,
    batch: int = 5,
    seed: int = 0,
    within: MaskLike | None = None,
    progress: Callable[[State], object] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LearntMask:
    """Learns the probability of keeping each edge (2409.09951).

    - `strength`: what an edge may cost in units of `f`. `rate`: Adam's; the public code takes 0.15 for strengths up to
      1e-4, 0.1 up to 5e-4, else 0.05, and a fifth of these under `resample`.
    - `samples`: masks a step, each on the same `batch` prompts. `within`: as `edge_pruning`. `seed`, `progress`,
      `checkpoint`: as `learn`.

    The mask keeps edges with a probability over one half; scores are the probabilities. `samples` masked runs and
    backward passes a step. Not done here, unlike the public code: removing edges at dead ends from each draw, its
    penalty on nodes, and one mask for every prompt.

    Raises ValueError for settings out of range, a checkpoint of another run, and a run that diverged.
    """
    started = time.perf_counter()
    check_count("samples", samples, 1, MOST)
    if strength < 0 or rate <= 0:
        raise ValueError(f"expected strength >= 0, rate > 0; got {strength}, {rate}")
    learner = UGS(strength, rate, start_at, samples)
    own = narrowed(objective, within)
    refuse_flat(objective, "ugs", at_clean=False)
    state = learn(learner, own, steps=steps, batch=batch, seed=seed, progress=progress, checkpoint=checkpoint)
    theta, valid = np.asarray(state.parameters, np.float64), kept_edges(own)
    options = {"strength": strength, "steps": steps, "rate": rate, "start_at": start_at, "samples": samples}
    options |= {"batch": batch, "seed": seed}
    mask, scores = valid & (theta > 0), np.where(valid, 1 / (1 + np.exp(-theta)), 0)
    return result_of(state, own, mask, scores, method="ugs", started=started, options=options)
