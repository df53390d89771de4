"""Edge Pruning (Bhaskar et al. 2406.16778): a distribution over masks, trained to a target sparsity.

    minimise over a, maximise over lam:   f(z) + sum_kind lam_1 (s - t) + lam_2 (s - t)^2

z is one hard concrete draw a step, s = 1 - mean z its sparsity, t a target that rises linearly from 0. Kinds are
edges and, if asked, nodes: a node's z multiplies all its outgoing edges.
"""

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..arguments import checked
from ..conditional import Conditional, kept_edges, narrowed
from ..objective import Objective
from ..types import EdgeBools, Mask, MaskLike
from . import hard_concrete
from .learning import LearntMask, Maskable, State, first_order, learn, result_of
from .measure import refuse_flat


class EdgePruning(eqx.Module):
    """The hyperparameters, with the paper's names for targets and steps."""

    sparsity: float
    node_sparsity: float | None
    steps: int
    ramp: int
    warm_up: int
    rate: float
    multiplier_rate: float
    decay: float
    columns: ClassVar[tuple[str, ...]] = ("metric", "loss", "sparsity", "target")

    def start(self, objective: Maskable, key: PRNGKeyArray) -> dict[str, dict[str, Array]]:
        """`a ~ N(10, 0.01)`, so that z starts at 1; multipliers at 0."""
        graph, dtype = objective.graph, objective.model.dtype
        shapes = {"edges": graph.shape} | ({} if self.node_sparsity is None else {"nodes": graph.shape[:1]})
        keys = jax.random.split(key, len(shapes))
        draws = zip(keys, shapes.items(), strict=True)
        return {
            "log_alpha": {kind: 10 + 0.01 * jax.random.normal(key, shape, dtype) for key, (kind, shape) in draws},
            "multipliers": {kind: jnp.zeros(2, dtype) for kind in shapes},
        }

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW on clipped gradients; the rates rise linearly over the warm-up and fall linearly to 0."""

        def adamw(peak: Any) -> optax.GradientTransformation:
            def rate(count: Any) -> Any:
                return peak * jnp.minimum(count / self.warm_up, (self.steps - count) / (self.steps - self.warm_up))

            return optax.adamw(rate, weight_decay=self.decay)

        rates = {"log_alpha": self.rate, "multipliers": self.multiplier_rate}
        steps = optax.partition({name: adamw(peak) for name, peak in rates.items()}, {name: name for name in rates})
        return optax.chain(optax.clip_by_global_norm(1.0), steps)

    def loss(
        self, parameters: dict[str, dict[str, Array]], objective: Maskable, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The Lagrangian at one draw; its gradient in the multipliers is reversed, so that descent ascends there."""
        valid = jnp.asarray(kept_edges(objective), objective.model.dtype)
        ramped = jnp.minimum(step.astype(valid.dtype) / self.ramp, 1)
        exists = {"edges": valid, "nodes": jnp.ones(valid.shape[:1], valid.dtype)}
        targets = {"edges": self.sparsity, "nodes": self.node_sparsity}
        z, penalty, sparsities = {}, jnp.zeros((), valid.dtype), {}
        for kind, log_alpha in parameters["log_alpha"].items():
            key, own = jax.random.split(key)
            z[kind] = hard_concrete.sample(own, log_alpha, margin=1e-6)
            sparsities[kind] = 1 - jnp.sum(z[kind] * exists[kind]) / jnp.sum(exists[kind])
            gap = sparsities[kind] - ramped * targets[kind]
            multipliers = _reversed_gradient(parameters["multipliers"][kind])
            penalty = penalty + multipliers[0] * gap + multipliers[1] * gap**2
        metric = first_order(objective.value_and_gradient, _mask_of(z))
        seen = {"metric": metric, "loss": metric + penalty, "sparsity": sparsities["edges"]}
        return metric + penalty, {**seen, "target": ramped * self.sparsity}


MOST_SPARSITY = 1.5
"""The largest target: beyond 1 no share of edges is, yet it presses harder; authors go to 1.1."""


@checked
def edge_pruning(
    objective: Objective | Conditional,
    sparsity: float = 0.95,
    *,
    node_sparsity: float | None = None,
    steps: int = 3000,
    ramp: int | None = None,
    warm_up: int | None = None,
    rate: float = 0.8,
    multiplier_rate: float | None = None,
    decay: float = 0.01,
    batch: int = 32,
    seed: int = 0,
    within: MaskLike | None = None,
    progress: Callable[[State], object] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LearntMask:
    """Learns which edges to keep so that `f` stays low at a given sparsity (2406.16778; the paper's `f` is KL).

    - `sparsity`: target share of edges removed; the public code also goes beyond 1 (to 1.1) for very small circuits.
      `node_sparsity`: of senders; None has no node masks. The paper's IOI runs: 0.94 to 1.1, and 0.72.
    - `ramp`: steps in which the target rises; default 5/6 of `steps` (the paper: 2,500 of 3,000). `warm_up`: of the
      rates; default 1/15 (200).
    - `rate`: AdamW's, for masks; `multiplier_rate`: for multipliers, default the same. `decay`: its weight decay.
      The authors' scripts for compiled tracr models take 0.03 and 0.001 (6,000 steps), or 1 and 0.0001 (720).
    - `within`: a mask or circuit, such as the best edges by a cheap score: only its edges are learnt, the others are
      absent (HAP). `sparsity` is a share of its edges. Default: all edges.
    - `batch`, `seed`, `progress`, `checkpoint`: as `learn`.

    The mask keeps what the deterministic values keep at the sparsity that was reached (`binarise`). Scores are
    `sigmoid(a)`, times the sender's. One masked run and one backward pass a step.

    Raises ValueError for targets, steps or rates out of range, a checkpoint of another run, and a run that diverged.
    """
    started = time.perf_counter()
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, one of them beyond the warm-up, got {steps}")
    ramp = max(1, steps * 5 // 6) if ramp is None else ramp
    warm_up = max(1, steps // 15) if warm_up is None else warm_up
    multiplier_rate = rate if multiplier_rate is None else multiplier_rate
    positive = {"sparsity": sparsity, "node_sparsity": node_sparsity, "rate": rate, "multiplier_rate": multiplier_rate}
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}: expected a number above 0, got {value}")
    for name, share in (("sparsity", sparsity), ("node_sparsity", node_sparsity)):
        if share is not None and share > MOST_SPARSITY:
            raise ValueError(f"{name}: expected a share of at most {MOST_SPARSITY}, got {share}")
    if decay < 0:
        raise ValueError(f"decay: expected a number of at least 0, got {decay}")
    if not 1 <= ramp <= steps or not 1 <= warm_up < steps:
        raise ValueError(f"ramp and warm_up: expected 1 to {steps} steps, warm_up fewer; got {ramp} and {warm_up}")
    learner = EdgePruning(sparsity, node_sparsity, steps, ramp, warm_up, rate, multiplier_rate, decay)
    own = narrowed(objective, within)
    refuse_flat(objective, "edge-pruning", at_clean=False)
    state = learn(learner, own, steps=steps, batch=batch, seed=seed, progress=progress, checkpoint=checkpoint)
    log_alpha = {kind: np.asarray(a, np.float64) for kind, a in state.parameters["log_alpha"].items()}
    options = {
        **{"sparsity": sparsity, "node_sparsity": node_sparsity, "steps": steps, "ramp": ramp},
        **{"warm_up": warm_up, "rate": rate, "multiplier_rate": multiplier_rate, "decay": decay},
        **{"batch": batch, "seed": seed},
    }
    mask, scores = _circuit(kept_edges(own), log_alpha)
    return result_of(state, own, mask, scores, method="edge-pruning", started=started, options=options)


def binarise(log_alpha: Float[np.ndarray, " entry"]) -> Bool[np.ndarray, " entry"]:
    """The entries that stay, as many as the deterministic values sum to (the public code's evaluation).

    As many of the lowest entries as are expected to be 0 become 0, the others `sigmoid(0.8 a / beta)`; then the
    threshold is found by bisection at which 0 and 1 have that same mean.
    """
    soft = 1 / (1 + np.exp(-0.8 / hard_concrete.BETA * log_alpha))
    with jax.enable_x64(True):
        expected = np.asarray(hard_concrete.expected_l0(jnp.asarray(log_alpha)))
    zeros = round(float(np.sum(1 - expected)))
    soft[np.argsort(soft, kind="stable")[:zeros]] = 0
    reached, low, high = soft.mean(), 0.0, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if (soft > middle).mean() < reached else (middle, high)
    return soft > low


def _circuit(edges: EdgeBools, log_alpha: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    mask, scores = np.zeros(edges.shape, bool), np.where(edges, _sigmoid(log_alpha["edges"]), 0)
    mask[edges] = binarise(log_alpha["edges"][edges])
    if "nodes" in log_alpha:
        mask &= binarise(log_alpha["nodes"])[:, None]
        scores = scores * _sigmoid(log_alpha["nodes"])[:, None]
    return mask, scores


def _mask_of(z: dict[str, Array]) -> Mask:
    return z["edges"] * z["nodes"][:, None] if "nodes" in z else z["edges"]


def _reversed_gradient(x: Array) -> Array:
    return 2 * jax.lax.stop_gradient(x) - x


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
