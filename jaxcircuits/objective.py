"""The centre: model + prompts + metric + reference values as one function of the mask."""

import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from . import batching, metrics
from .data import PromptPairs
from .graph import Graph
from .metrics import Labels, Metric
from .models import Held
from .types import Mask, Model

REFERENCES = ("resample", "zero", "mean")


class Objective(eqx.Module):
    """A circuit's loss as a function of its mask: `objective(mask)`, lower is better.

    - `objective(mask)`: mean over the prompts. `objective.per_example(mask)`: one number a prompt.
    - `objective.many(masks)`: one number a circuit. `objective.gradient(mask)`: one number an edge.

    It is a pytree, an argument of the compiled functions: new prompts, weights or masks of the same shapes
    compile nothing, and `jax.vmap`, `jax.grad` and `eqx.filter_jit` apply to it.
    """

    model: Model
    clean: Int[Array, "batch position"]
    scored: Int[Array, "batch scored"]
    weights: Float[Array, "batch scored"]
    labels: Labels
    reference: Float[Array, "sender batch position width"]
    metric: Metric
    metric_name: str = eqx.field(static=True)
    reference_name: str = eqx.field(static=True)
    average: str = eqx.field(static=True)
    microbatch: int = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        pairs: PromptPairs,
        metric: str | Metric = "kl",
        reference: str | ArrayLike = "resample",
        *,
        average: str = "together",
        microbatch: int | None = None,
    ):
        """Runs the clean prompts once, and the corrupt ones where the reference needs them.

        - `metric`: a name of `jaxcircuits.metrics`, or a function `(logits, labels) -> number`.
        - `reference`: what absent edges carry: "resample" (the corrupt prompt's values), "zero", "mean" (over
          the corrupt prompts, position by position), or an array [sender, batch, position, width].
        - `average`: over prompts with several scored positions: all positions "together" (as the original ACDC
          does), or "per_prompt" first.
        - `microbatch`: prompts computed at once; default: as many as fit into a quarter of the memory.

        Raises ValueError for prompts that do not fit the model, labels that the metric misses, and unknown names.
        """
        pairs.check_against(model.vocab_size, model.max_positions)
        self.metric = metrics.by_name(metric)
        self.metric_name = getattr(self.metric, "__name__", type(self.metric).__name__)
        if average not in ("together", "per_prompt"):
            raise ValueError(f"average: expected 'together' or 'per_prompt', got {average!r}")
        if isinstance(reference, str) and reference not in REFERENCES:
            raise ValueError(f"unknown reference {reference!r}: expected {', '.join(REFERENCES)}, or an array")
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"microbatch: expected at least 1 prompt, got {microbatch}")
        self.model, self.average = model, average
        self.reference_name = reference if isinstance(reference, str) else "array"
        self.clean = jnp.asarray(pairs.clean)
        scored, counts = pairs.scored()
        self.scored = jnp.asarray(scored, jnp.int32)
        per_prompt = counts.sum(1, keepdims=True) if average == "per_prompt" else counts.sum() / len(pairs)
        self.weights = jnp.asarray(counts / per_prompt, model.dtype)
        labels = _labels(pairs, scored, model)
        _check_metric(self.metric, labels, model)

        senders = len(model.graph.senders)
        width = jax.eval_shape(model.residual, jax.ShapeDtypeStruct(pairs.clean.shape[1:], jnp.int32)).shape[-1]
        bytes_per_prompt = 4 * senders * pairs.clean.shape[1] * width * np.dtype(model.dtype).itemsize
        self.microbatch = microbatch or batching.rows_that_fit(bytes_per_prompt, len(pairs))
        full = _scored_logits(model, self.clean, self.scored, self.microbatch)
        self.labels = eqx.tree_at(lambda labels: labels.full, labels, full)
        shape = (senders, *pairs.clean.shape, width)
        self.reference = _reference(reference, model, pairs, shape, self.microbatch)

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @property
    def num_prompts(self) -> int:
        return self.clean.shape[0]

    def __call__(self, mask: ArrayLike) -> Float[Array, ""]:
        """The circuit's loss, mean over the prompts. Raises ValueError for a mask of another shape."""
        return _mean(self, self._cast(mask))

    def per_example(self, mask: ArrayLike) -> Float[Array, " batch"]:
        """The circuit's loss on each prompt."""
        return _per_example(self, self._cast(mask))

    def many(self, masks: ArrayLike, width: int = 8) -> Float[Array, " circuit"]:
        """The losses of many circuits [circuit, sender, receiver], `width` of them at a time."""
        masks = jnp.asarray(masks)
        if masks.ndim != 3 or masks.shape[1:] != self.graph.shape:
            raise ValueError(f"masks: expected shape (circuits, *{self.graph.shape}), got {masks.shape}")
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        return _many(self, masks, width)

    def gradient(self, mask: ArrayLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`df/dmask` at any mask, 0 where there is no edge; at ones it is minus EAP (2310.10348).

        As `<z_s - ref_s, df/dx_r>` (sender's difference, gradient at what the receiver reads), which needs one
        backward pass and no copy of the senders' buffer for each layer.

        `spans`: bool [span, position]; one gradient for the mask of each span of positions.
        """
        return _gradient(self, self._cast(mask), self._cast_spans(spans))

    def clean_gradient(self, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`gradient` at ones, at the cost of one forward and one backward pass of the plain model."""
        return _clean_gradient(self, self._cast_spans(spans))

    def displacement_gradient(
        self, held: ArrayLike, alphas: ArrayLike, *, spans: ArrayLike | None = None
    ) -> Float[Array, "*span sender receiver"]:
        """Mean over points of `df_k/dmask` at ones, f_k the loss of a run with CONSTANT displacements.

        In run k the senders `held[k]` (bool [point, sender]) write `reference + alphas[k] (clean - reference)`,
        the others run freely, and every receiver r reads `sum_s (1 - mask_sr) (reference_s - clean_s)` besides. So
        the gradient is `-<reference_s - clean_s, df/dx_r(run k)>`.
        """
        held, alphas = jnp.asarray(held), jnp.asarray(alphas)
        if alphas.ndim != 1 or not alphas.size or held.shape != (alphas.size, self.graph.shape[0]):
            senders = self.graph.shape[0]
            raise ValueError(f"held: expected shape (points, {senders}) with points {alphas.shape}, got {held.shape}")
        points = held.astype(bool), alphas.astype(self.model.dtype)
        return _displacement_gradient(self, points, self._cast_spans(spans))

    def along(self, alphas: ArrayLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`displacement_gradient` with the embedding held: the path from the corrupt (0) to the clean prompt (1).

        Raises ValueError for another reference than "resample": only that one's embedding is a prompt's.
        """
        if self.reference_name != "resample":
            raise ValueError(
                f"a path of inputs goes from the corrupt to the clean prompt: expected reference 'resample', "
                f"got {self.reference_name!r}"
            )
        embeddings = np.isin(self.graph.senders, self.graph.embeddings)
        return self.displacement_gradient(np.tile(embeddings, (np.size(alphas), 1)), alphas, spans=spans)

    def full_mask(self) -> Mask:
        """All edges: the clean run."""
        return jnp.ones(self.graph.shape, self.model.dtype)

    def describe(self) -> dict[str, Any]:
        """What determines its values, for the record of a result."""
        device = jax.devices()[0]
        return {
            "metric": self.metric_name,
            "reference": self.reference_name,
            "ablation": {
                "granularity": "edge",
                "component": "residual stream edges",
                "value": self.reference_name,
                "reference_data": {"resample": "corrupt prompts, pairwise", "mean": "corrupt prompts, mean"}.get(
                    self.reference_name, self.reference_name
                ),
                "reference_size": self.num_prompts,
                "positions": "all",
                "direction": "clean run, absent edges replaced",
                "set": "complement of the circuit",
            },
            "average": self.average,
            "prompts": self.num_prompts,
            "microbatch": self.microbatch,
            "dtype": str(np.dtype(self.model.dtype)),
            "precision": self.model.precision,
            "device": f"{len(jax.devices())} x {device.platform} {device.device_kind}",
            "versions": {
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("jaxcircuits", "jax", "equinox", "numpy")},
            },
        }

    def _cast(self, mask: ArrayLike) -> Mask:
        mask = jnp.asarray(mask)
        if mask.shape != self.graph.shape:
            raise ValueError(f"mask: expected shape {self.graph.shape} (senders, receivers), got {mask.shape}")
        return mask.astype(self.model.dtype)

    def _cast_spans(self, spans: ArrayLike | None) -> Float[Array, "span position"] | None:
        if spans is None:
            return None
        spans = jnp.asarray(spans)
        if spans.ndim != 2 or spans.shape[1] != self.clean.shape[1]:
            raise ValueError(f"spans: expected shape (spans, {self.clean.shape[1]} positions), got {spans.shape}")
        return spans.astype(self.model.dtype)

    def _prompts(self) -> tuple:
        """Everything that has one row a prompt."""
        return self.clean, jnp.moveaxis(self.reference, 1, 0), self.scored, self.weights, self.labels

    def _score(self, residual: Float[Array, "position width"], scored, weights, labels) -> Float[Array, ""]:
        values = jax.vmap(self.metric)(self.model.unembed(residual[scored]), labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))


@eqx.filter_jit
def _per_example(objective: Objective, mask: Mask) -> Float[Array, " batch"]:
    def one(prompt):
        tokens, reference, *rest = prompt
        return objective._score(objective.model.residual(tokens, mask, reference), *rest)

    return batching.chunked_vmap(one, objective._prompts(), objective.microbatch)


@eqx.filter_jit
def _mean(objective: Objective, mask: Mask) -> Float[Array, ""]:
    return _per_example(objective, mask).mean()


@eqx.filter_jit
def _many(
    objective: Objective, masks: Shaped[Array, "circuit sender receiver"], width: int
) -> Float[Array, " circuit"]:
    return batching.chunked_vmap(lambda mask: _mean(objective, mask.astype(objective.model.dtype)), masks, width)


@eqx.filter_jit
def _gradient(objective: Objective, mask: Mask, spans: Float[Array, "span position"] | None) -> Array:
    def one(prompt):
        tokens, reference, *rest = prompt

        def loss(offsets):
            residual, delta = objective.model.masked_run(tokens, mask, reference, offsets)
            return objective._score(residual, *rest), delta

        zeros = jnp.zeros((mask.shape[1], *reference.shape[1:]), mask.dtype)
        slopes, delta = jax.grad(loss, has_aux=True)(zeros)
        return _contract(objective.model, delta, slopes, spans)

    return _mean_over_prompts(objective, one)


@eqx.filter_jit
def _clean_gradient(objective: Objective, spans: Float[Array, "span position"] | None) -> Array:
    def one(prompt):
        tokens, reference, *rest = prompt
        written, slopes = objective.model.receiver_slopes(tokens, lambda x: objective._score(x, *rest))
        return _contract(objective.model, written - reference, slopes, spans)

    return _mean_over_prompts(objective, one)


@eqx.filter_jit
def _displacement_gradient(objective: Objective, points: tuple, spans: Float[Array, "span position"] | None) -> Array:
    def one(prompt):
        tokens, reference, *rest = prompt
        delta = objective.model.sender_values(tokens) - reference

        def add_point(total, point):
            held, alpha = point
            run = Held(held, reference + alpha * delta)
            _, slopes = objective.model.receiver_slopes(tokens, lambda x: objective._score(x, *rest), run)
            return total + slopes, None

        zeros = jnp.zeros((objective.graph.shape[1], *reference.shape[1:]), reference.dtype)
        total, _ = jax.lax.scan(add_point, zeros, points)
        return _contract(objective.model, delta, total / points[1].shape[0], spans)

    return _mean_over_prompts(objective, one)


def _contract(model: Model, delta: Array, slopes: Array, spans: Float[Array, "span position"] | None) -> Array:
    """`<delta_s, slope_r>` of every pair, over all positions or those of each span."""
    with jax.default_matmul_precision(model.precision):
        if spans is None:
            return jnp.einsum("std,rtd->sr", delta, slopes)
        return jax.lax.map(lambda span: jnp.einsum("std,rtd->sr", delta * span[None, :, None], slopes), spans)


def _mean_over_prompts(objective: Objective, one: Callable) -> Array:
    each = batching.chunked_vmap(one, objective._prompts(), objective.microbatch)
    return jnp.where(jnp.asarray(objective.graph.valid), each.mean(0), 0)


@eqx.filter_jit
def _scored_logits(model: Model, tokens, scored, size: int) -> Float[Array, "batch scored vocab"]:
    def one(prompt):
        return model.unembed(model.residual(prompt[0])[prompt[1]])

    return batching.chunked_vmap(one, (tokens, scored), size)


@eqx.filter_jit
def sender_values(model: Model, tokens: Int[Array, "batch position"], size: int) -> Float[Array, "sender batch ..."]:
    """What every node of the clean run writes, [sender, batch, position, width]; `size` prompts at a time."""
    return jnp.moveaxis(batching.chunked_vmap(model.sender_values, tokens, size), 0, 1)


def _reference(
    reference: str | ArrayLike, model: Model, pairs: PromptPairs, shape: tuple[int, ...], size: int
) -> Float[Array, "sender batch position width"]:
    if not isinstance(reference, str):
        values = jnp.asarray(reference, model.dtype)
        if values.shape != shape:
            raise ValueError(f"reference: expected shape {shape} (sender, batch, position, width), got {values.shape}")
        return values
    if reference == "zero":
        return jnp.zeros(shape, model.dtype)
    values = sender_values(model, jnp.asarray(pairs.corrupt), size)
    if reference == "resample":
        return values
    inside = jnp.arange(shape[2], dtype=jnp.int32)[None, None, :, None] < jnp.asarray(pairs.length)[None, :, None, None]
    counts = jnp.maximum(inside.sum(1, keepdims=True), 1).astype(model.dtype)
    mean = jnp.where(inside, values, 0).sum(1, keepdims=True) / counts
    return jnp.broadcast_to(mean, shape)


def _labels(pairs: PromptPairs, scored: np.ndarray, model: Model) -> Labels:
    """Labels at the scored positions, [batch, scored, ...]; `full` still empty."""
    batch, several = scored.shape

    def spread(value: np.ndarray | None) -> Array | None:
        if value is None:
            return None
        if value.ndim == 3:  # each position has its own
            return jnp.asarray(np.take_along_axis(value, scored[..., None], 1))
        return jnp.asarray(np.broadcast_to(value[:, None], (batch, several, *value.shape[1:])))

    digits = None if pairs.digits is None else np.broadcast_to(pairs.digits, (batch, *pairs.digits.shape))
    return Labels(
        full=jnp.zeros((batch, several, model.vocab_size), model.dtype),
        answer=spread(pairs.answer),
        wrong=spread(pairs.wrong),
        target=None if pairs.target is None else spread(pairs.target.astype(np.dtype(model.dtype))),
        year=spread(pairs.year),
        digits=spread(digits),
    )


def _check_metric(metric: Metric, labels: Labels, model: Model) -> None:
    """Calls the metric on shapes alone, so that what it misses is said before any compute."""
    if labels.target is not None and labels.target.shape != labels.full.shape:
        raise ValueError(f"target: expected {model.vocab_size} values a position, got {labels.target.shape[-1]}")
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), labels)
    value = eqx.filter_eval_shape(metric, one.full, one)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"metric: expected a function that gives one number, got {value}")
