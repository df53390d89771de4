"""Matryoshka Attribution (MAttr, 2609.25518): one score an edge, learnt so that every prefix is a good circuit.

A step draws a size k and keeps that many edges softly, `m = sigmoid((a - tau) / T)` with tau such that the mask sums
to k; the loss is that of the mask. With `p = m (1 - m)` and `g = dL/dm` the slope, tau's included, is

    dL/da = (p / T) (g - sum(g p) / sum p)

Without learning a stays 0 and the score is the mean of -dL/da over the sizes: integrated gradients of the mask with
the weight t (1 - t) at the share t of all edges.
"""

import os
import time
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from ..arguments import checked
from ..conditional import Conditional, kept_edges, narrowed
from ..objective import Objective
from ..types import Mask, MaskLike
from .learning import LearntMask, Maskable, State, first_order, learn, result_of
from .measure import refuse_flat
from .noise import of_removal

RATES = {"adam": 0.05, "sgd": 3.0, "none": None}
"""The optimisers, and the rates that the authors take."""

SIZES, LOSSES = ("uniform", "log"), ("objective", "cmd")
HALVINGS = 50
NOISES = 2.0
"""A gap is refused when it is at most so many float errors."""


class MAttr(eqx.Module):
    """The hyperparameters. `gap`: by how much f differs without edges, what `cmd` divides by."""

    temperature: float
    rate: float
    gap: float
    optimiser_name: str = eqx.field(static=True)
    sizes: str = eqx.field(static=True)
    loss_name: str = eqx.field(static=True)
    columns: ClassVar[tuple[str, ...]] = ("metric", "loss", "size")

    def start(self, objective: Maskable, key: PRNGKeyArray) -> Mask:
        """Zeros."""
        return jnp.zeros(objective.graph.shape, objective.model.dtype)

    def optimiser(self) -> optax.GradientTransformation:
        """Adam or plain steps; without learning the sum of steps of `rate`."""
        return optax.adam(self.rate) if self.optimiser_name == "adam" else optax.sgd(self.rate)

    def loss(
        self, a: Mask, objective: Maskable, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Of the mask of one size; without learning, of a mask whose entries are all equal."""
        kept = kept_edges(objective)
        edges = jnp.asarray(kept.sum(), a.dtype)
        u = jax.random.uniform(key, (), a.dtype)
        size = jnp.exp(u * jnp.log(edges)) if self.sizes == "log" else 1 + u * (edges - 1)
        if self.optimiser_name == "none":
            a = a - jax.lax.stop_gradient(a)
        mask = mask_of_size(a, size, self.temperature, kept)
        metric = loss = first_order(objective.value_and_gradient, mask)
        if self.loss_name == "cmd":
            full = jax.vmap(objective._loss)(objective.labels.full, objective.weights, objective.labels).mean()
            loss = jnp.abs(metric - full) / self.gap
        return loss, {"metric": metric, "loss": loss, "size": size}


def mask_of_size(a: Mask, size: Float[Array, ""], temperature: Float[Array, ""] | float, valid: ArrayLike) -> Mask:
    """`sigmoid((a - tau) / temperature)` on the edges, tau by bisection such that they sum to `size`.

    The derivative by `a` is that of the exact tau.
    """
    fixed, edges = jax.lax.stop_gradient(a), jnp.asarray(valid)

    def soft(tau: Array) -> Mask:
        return jnp.where(edges, jax.nn.sigmoid((fixed - tau) / temperature), 0)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_large = soft(middle).sum() > size
        return jnp.where(is_large, middle, low), jnp.where(is_large, high, middle)

    low = jnp.where(edges, fixed, jnp.inf).min() - 10 * temperature
    high = jnp.where(edges, fixed, -jnp.inf).max() + 10 * temperature
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    m = soft((low + high) / 2)
    p, change = m * (1 - m), a - fixed
    return m + p / temperature * (change - (p * change).sum() / jnp.maximum(p.sum(), 1e-8))


@checked
def mattr(
    objective: Objective | Conditional,
    *,
    optimiser: str = "adam",
    steps: int = 5000,
    rate: float | None = None,
    sizes: str = "uniform",
    loss: str = "objective",
    temperature: float = 0.5,
    batch: int = 1,
    seed: int = 0,
    within: MaskLike | None = None,
    progress: Callable[[State], object] | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LearntMask:
    """Learns a ranking of the edges all of whose prefixes do well (2609.25518).

    - `optimiser`: "adam", "sgd", or "none": no learning, the mean slope at masks of equal entries.
    - `rate`: default 0.05 of Adam, 3 of SGD (the paper's). `temperature`: T.
    - `sizes`: number of edges a step, "uniform" in 1 to all or "log": its logarithm is.
    - `loss`: the "objective" itself, or "cmd": the distance of f to that of the whole model on the same prompts, over
      what f differs without edges (|1 - faithfulness|).
    - `within`: a mask or circuit: sizes are numbers of its edges, the others are absent. Default: all edges.
    - `batch`, `seed`, `progress`, `checkpoint`: as `learn`.

    Scores are `a` minus the least one: 0 or more, so that their sizes rank as they do; only their order means anything.
    Without learning they are slopes, and have a sign. The mask has all edges: choose how many by `Circuit.select`.
    Where some edges are absent (`within`, `without`), these score 0, and what is learnt of the others is 1 more.
    One masked run and one backward pass a step.

    Raises ValueError for settings out of range, a `cmd` whose f is the same without edges but for rounding, a
    checkpoint of another run, and a run that diverged.
    """
    started = time.perf_counter()
    for name, value, known in (("optimiser", optimiser, RATES), ("sizes", sizes, SIZES), ("loss", loss, LOSSES)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if rate is not None and optimiser == "none":
        raise ValueError(f"rate: without learning there is none, got {rate}; leave it out")
    own = narrowed(objective, within)
    rate = RATES[optimiser] if rate is None else rate
    if temperature <= 0 or (rate is not None and rate <= 0):
        raise ValueError(f"expected temperature > 0, rate > 0; got {temperature}, {rate}")
    refuse_flat(objective, "mattr", at_clean=False)
    step = rate if rate is not None else 1 / max(steps, 1)
    learner = MAttr(temperature, step, _gap(own) if loss == "cmd" else 1.0, optimiser, sizes, loss)
    state = learn(learner, own, steps=steps, batch=batch, seed=seed, progress=progress, checkpoint=checkpoint)
    valid = kept_edges(own)
    a = np.asarray(state.parameters, np.float64)
    is_signed = optimiser == "none"
    least = a[valid].min() - isinstance(own, Conditional)
    scores = np.where(valid, a if is_signed else a - least, 0)
    options = {"optimiser": optimiser, "steps": steps, "rate": rate, "sizes": sizes, "loss": loss}
    options |= {"temperature": temperature, "batch": batch, "seed": seed, "signed": is_signed}
    return result_of(state, own, valid, scores, method="mattr", started=started, options=options)


def _gap(objective: Objective | Conditional) -> float:
    whole = objective.objective if isinstance(objective, Conditional) else objective
    full = whole.full_mask()
    gap = abs(float(whole(full)) - float(whole(np.zeros(full.shape))))
    if gap <= NOISES * (noise := of_removal(whole)):
        raise ValueError(
            f"mattr: cmd divides by what f differs without edges, which is {gap:.3g} with a float error of "
            f"{noise:.1g}; choose another loss or metric, or corrupt prompts that differ from the clean ones"
        )
    return gap
