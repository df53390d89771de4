"""The centre: model + prompts + metric + reference values as one function of the mask."""

import dataclasses
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

from . import batching, gradients, metrics
from .arguments import check_count, checked
from .batching import CANDIDATES, PROMPTS, constrain, place
from .data import PromptPairs
from .finite import check_finite, check_weights, weights_are_finite
from .gradients import Spans
from .graph import Graph
from .labels import check_metric, labels_of
from .metrics import Labels, Metric
from .models import Held as Held
from .references import REFERENCES, name_of, reference_values, sender_values
from .run import SOURCE, digest
from .types import Mask, MaskLike, Model, PositionedMask


class Objective(eqx.Module):
    """A circuit's loss as a function of its mask: `objective(mask)`, lower is better.

    - `objective(mask)`: mean over the prompts. `objective.per_example(mask)`: one number a prompt.
    - `objective.many(masks)`: one number a circuit. `objective.gradient(mask)`: one number an edge.

    A mask is [sender, receiver]; for values, not gradients, it may have a third axis, position: an edge is in at some
    token positions and carries the reference at others.

    It is a pytree, an argument of the compiled functions: new prompts, weights or masks of the same shapes
    compile nothing, and `jax.vmap`, `jax.grad` and `eqx.filter_jit` apply to it; to `jax.jit` it is one function, whose
    weights and prompts are constants. A circuit is taken as its mask.
    """

    model: Model
    clean: Int[Array, "batch position"]
    inside: Bool[Array, "batch position"]
    scored: Int[Array, "batch scored"]
    weights: Float[Array, "batch scored"]
    labels: Labels
    reference: Float[Array, "sender batch position width"]
    metric: Metric
    metric_name: str = eqx.field(static=True)
    reference_name: str = eqx.field(static=True)
    average: str = eqx.field(static=True)
    microbatch: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    @checked
    def __init__(
        self,
        model: Model,
        pairs: PromptPairs,
        metric: str | Metric = "kl",
        reference: str | ArrayLike | Model = "resample",
        *,
        average: str = "together",
        microbatch: int | None = None,
        mesh: Mesh | None = None,
    ):
        """Runs the clean prompts once, and the corrupt ones where the reference needs them.

        - `metric`: a name of `jaxcircuits.metrics`, or a function `(logits, labels) -> number`.
        - `reference`: what absent edges carry: "resample" (the corrupt prompt's values), "zero", "mean" (over
          the corrupt prompts, position by position), an array [sender, batch, position, width], or another model of
          the same graph, whose values on the corrupt prompts they are.
        - `average`: over prompts with several scored positions: all positions "together" (as the original ACDC
          does), or "per_prompt" first.
        - `microbatch`: prompts computed at once; default: as many as fit into half of the memory.
        - `mesh`: the devices to spread over (`jaxcircuits.device_mesh`): prompts along its axis `prompts`, circuits
          along `candidates`; weights on every device, or split among them if they do not fit.

        Raises ValueError for prompts that do not fit the model or the mesh, labels that the metric misses, unknown
        names, and NaN or infinity in a weight, the clean run, the reference or the metric; MemoryError if not even one
        prompt fits.
        """
        if not hasattr(model, "residual"):
            raise ValueError(f"model: expected a model, as `load(...).model`, got a {type(model).__name__}")
        pairs.check_against(model.vocab_size, model.max_positions)
        self.metric = metrics.by_name(metric)
        self.metric_name = metrics.name_of(self.metric)
        _check_options(reference, average, microbatch, mesh, len(pairs))
        for runs in (model, reference):
            _check_padding(runs, pairs)
        self.mesh, self.average = mesh, average
        self.model = model = batching.place_weights(model, mesh)
        self.reference_name = name_of(reference)
        self.clean, self.inside = (place(x, mesh, PROMPTS) for x in (pairs.clean, pairs.inside()))
        scored, counts = pairs.scored()
        self.scored = place(scored.astype(np.int32), mesh, PROMPTS)
        per_prompt = counts.sum(1, keepdims=True) if average == "per_prompt" else counts.sum() / len(pairs)
        self.weights = place((counts / per_prompt).astype(np.dtype(model.dtype)), mesh, PROMPTS)
        prompt = jax.ShapeDtypeStruct(pairs.clean.shape[1:], jnp.int32)
        labels = labels_of(pairs, scored, jax.eval_shape(model, prompt), mesh)
        check_metric(self.metric, labels)

        senders = len(model.graph.senders)
        shape = (senders, *pairs.clean.shape, jax.eval_shape(model.residual, prompt).shape[-1])
        zeros = place(np.zeros(shape, np.dtype(model.dtype)), mesh, None, PROMPTS)
        self.labels, self.reference = labels, zeros
        self.microbatch = microbatch or self._microbatch_that_fits()
        full = _scored_logits(model, self.clean, self.scored, self.microbatch)
        self.labels = eqx.tree_at(lambda labels: labels.full, labels, full)
        self.reference = reference_values(reference, model, pairs, zeros, size=self.microbatch, mesh=mesh)
        self._check_finite()

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.reference.shape[-1]

    @property
    def num_prompts(self) -> int:
        return self.clean.shape[0]

    def __call__(self, mask: MaskLike) -> Float[Array, ""]:
        """The circuit's loss, mean over the prompts. Raises ValueError for a mask of another shape."""
        return _mean(self, self._cast(mask, positioned=True))

    def per_example(self, mask: MaskLike) -> Float[Array, " batch"]:
        """The circuit's loss on each prompt."""
        return _per_example(self, self._cast(mask, positioned=True))

    def many(self, masks: MaskLike, width: int = 8) -> Float[Array, " circuit"]:
        """The losses of many circuits [circuit, sender, receiver, *position], `width` of them at a time."""
        return _many(self, *self._cast_many(masks, width))

    def per_example_many(self, masks: MaskLike, width: int = 8) -> Float[Array, "circuit batch"]:
        """`many`, one number a prompt."""
        return _per_example_many(self, *self._cast_many(masks, width))

    def memory_needed(self, width: int) -> int:
        """Bytes that `many` takes for `width` circuits at a time."""
        check_count("width", width, 1)
        masks = self._placed(np.zeros((width, *self.graph.shape), bool))
        return batching.memory_needed(_many, self, masks, self._rounded(width))

    def gradient(self, mask: MaskLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`df/dmask` at any mask, 0 where there is no edge; at ones it is minus EAP (2310.10348).

        As `<z_s - ref_s, df/dx_r>` (sender's difference, gradient at what the receiver reads), which needs one
        backward pass and no copy of the senders' buffer for each layer.

        `spans`: bool [span, position]; one gradient for the mask of each span of positions.
        """
        return _value_and_gradient(self, self._cast(mask), self._cast_spans(spans))[1]

    def value_and_gradient(self, mask: MaskLike) -> tuple[Float[Array, ""], Mask]:
        """`objective(mask)` and `objective.gradient(mask)` from one forward and one backward pass."""
        return _value_and_gradient(self, self._cast(mask), None)

    def take(self, rows: ArrayLike) -> "Objective":
        """The same function on some of the prompts, e.g. a batch of them; `rows` may be traced."""
        rows = jnp.asarray(rows)
        each = self.clean, self.inside, self.scored, self.weights, self.labels
        taken = *jax.tree.map(lambda x: x[rows], each), self.reference[:, rows]
        return eqx.tree_at(lambda o: (o.clean, o.inside, o.scored, o.weights, o.labels, o.reference), self, taken)

    def restoring(self, pairs: PromptPairs | None) -> "Objective":
        """The same loss, against the same labels, of the corrupt prompts' run, where absent edges carry clean values.

        - `pairs`: the prompts that this objective was made of.

        Raises ValueError for other prompts, and for another reference than "resample".
        """
        if self.reference_name != "resample":
            raise ValueError(
                f"restoring starts from a corrupt run: expected reference 'resample', got {self.reference_name!r}"
            )
        if pairs is None or not np.array_equal(pairs.clean, np.asarray(self.clean)):
            raise ValueError("restoring needs the prompts that the objective was made of, as `pairs`")
        swapped = dataclasses.replace(pairs, clean=pairs.corrupt, corrupt=pairs.clean)
        options = {"average": self.average, "microbatch": self.microbatch, "mesh": self.mesh}
        restoring = Objective(self.model, swapped, self.metric, "resample", **options)
        return eqx.tree_at(lambda o: o.labels.full, restoring, self.labels.full)

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
        return place(np.ones(self.graph.shape, np.dtype(self.model.dtype)), self.mesh)

    def describe(self) -> dict[str, Any]:
        """What determines its values, for the record of a result."""
        device = jax.devices()[0]
        count = 1 if self.mesh is None else self.mesh.size
        return {
            SOURCE: {} if self.mesh is not None else {"digest": self._digest()},
            "metric": self.metric_name,
            "reference": self.reference_name,
            "ablation": {
                "granularity": "edge",
                "component": "all",
                "value": self.reference_name,
                "reference_data": {"resample": "corrupt prompts, pairwise", "mean": "corrupt prompts, mean"}.get(
                    self.reference_name, self.reference_name
                ),
                "reference_size": self.num_prompts,
                "positions": "all",
                "direction": "ablate",
                "set": "circuit",
            },
            "average": self.average,
            "prompts": self.num_prompts,
            "microbatch": self.microbatch,
            "dtype": str(np.dtype(self.model.dtype)),
            "precision": self.model.precision,
            **({} if self.model.units_name == "split" else {"units": self.model.units_name}),
            **({} if self.model.spans_text is None else {"spans": self.model.spans_text}),
            "device": f"{count} x {device.platform} {device.device_kind}",
            "mesh": None if self.mesh is None else dict(self.mesh.shape),
            "versions": {
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("jaxcircuits", "jax", "equinox", "numpy")},
            },
        }

    def _digest(self) -> str:
        """Of the prompts and labels, not of what a model makes of them."""
        labels = self.labels.answer, self.labels.wrong, self.labels.year
        return digest((self.clean, self.scored, *(label for label in labels if label is not None)))

    def _check_finite(self) -> None:
        """Raises ValueError for NaN or infinity, naming the weight, else where in the runs it arises first.

        Of traced values (`eqx.filter_eval_shape` of the constructor) nothing is known.
        """
        if isinstance(self.reference, Tracer):
            return
        weights, clean, reference, metric = _finite_parts(self)
        check_weights(self.model, weights)
        if not np.asarray(clean).all():
            written = sender_values(self.model, self.clean, self.microbatch)
            check_finite("clean run", written, sender=self.graph.senders, prompt=None)
        check_finite("logits of the clean run", np.where(clean, 0, np.nan), prompt=None)
        bad = np.where(reference, 0, np.nan)
        check_finite(f"reference {self.reference_name!r}", bad, sender=self.graph.senders, prompt=None)
        check_finite(f"metric {self.metric_name} of the whole model", metric, prompt=None)

    def _microbatch_that_fits(self) -> int:
        """All prompts where their buffers are a small share of the memory; else what a compiled gradient leaves."""
        if batching.from_first_process(16 * self.reference.nbytes < batching.memory_limit() // 4):
            return self.num_prompts

        def needed(size: int) -> int:
            self.microbatch = size
            return batching.memory_needed(_value_and_gradient, self, self.full_mask(), None)

        return batching.largest_that_fits(needed, self.num_prompts)

    def _rounded(self, width: int) -> int:
        """A number of circuits that spreads evenly over the devices."""
        devices = 1 if self.mesh is None else self.mesh.shape[CANDIDATES]
        return -(-width // devices) * devices

    def _placed(self, x: ArrayLike) -> Array:
        return x if isinstance(x, jax.Array) else place(x, self.mesh)

    def _cast(self, mask: MaskLike, *, positioned: bool = False) -> PositionedMask:
        mask = self._placed(mask_of(mask, self.graph))
        if mask.shape != self.graph.shape and not (positioned and mask.shape == self._positioned_shape):
            raise ValueError(f"mask: expected shape {self.graph.shape} (senders, receivers), got {mask.shape}")
        return mask.astype(self.model.dtype)

    @property
    def _positioned_shape(self) -> tuple[int, int, int]:
        return *self.graph.shape, self.clean.shape[1]

    def _cast_many(self, masks: MaskLike, width: int) -> tuple[Array, int]:
        if isinstance(masks, list | tuple):
            each: list[Any] = [mask_of(mask, self.graph) for mask in masks]
            masks = jnp.stack(each) if any(isinstance(mask, Tracer) for mask in each) else np.stack(each)
        masks = self._placed(mask_of(masks, self.graph))
        if masks.shape[1:] not in (self.graph.shape, self._positioned_shape):
            raise ValueError(f"masks: expected shape (circuits, *{self.graph.shape}), got {masks.shape}")
        check_count("width", width, 1)
        return masks, self._rounded(width)

    def _cast_spans(self, spans: ArrayLike | None) -> Spans:
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
        return self._loss(self.model.unembed(residual[scored]), weights, labels)

    def _loss(self, logits: Float[Array, "scored vocab"], weights, labels) -> Float[Array, ""]:
        values = jax.vmap(self.metric)(logits, labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))


def _check_options(
    reference: str | ArrayLike | Model, average: str, microbatch: int | None, mesh: Mesh | None, prompts: int
) -> None:
    if average not in ("together", "per_prompt"):
        raise ValueError(f"average: expected 'together' or 'per_prompt', got {average!r}")
    if isinstance(reference, str) and reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}: expected {', '.join(REFERENCES)}, or an array")
    if microbatch is not None:
        check_count("microbatch", microbatch, 1)
    if mesh is not None and getattr(mesh, "axis_names", None) != (CANDIDATES, PROMPTS):
        raise ValueError(f"mesh: expected the axes {CANDIDATES} and {PROMPTS}, as `device_mesh` has, got {mesh!r:.60}")
    if mesh is not None and prompts % mesh.shape[PROMPTS]:
        raise ValueError(f"mesh: expected prompts in multiples of {mesh.shape[PROMPTS]} devices, got {prompts}")


def _check_padding(model: Any, pairs: PromptPairs) -> None:
    """Raises ValueError for padding that a model would read: one whose positions read later ones."""
    padded = np.flatnonzero(~pairs.inside().all(1))
    if isinstance(model, eqx.Module) and len(padded) and not getattr(model, "is_causal", False):
        width, row = pairs.clean.shape[1], padded[0]
        raise ValueError(
            f"length: expected {width} tokens in every prompt, got {pairs.inside()[row].sum()} in prompt {row}: "
            f"positions of this {type(model).__name__} read later ones, and so the padding; make one objective of the "
            "prompts of each length (a model whose positions do not says so by `is_causal`)"
        )


BEYOND = 1e-3
"""How far a mask's numbers may lie beyond 0 and 1: slopes there are also taken by a small step to either side."""


def mask_of(mask: Any, graph: Graph) -> ArrayLike:
    """The mask that something is: an array, or that of a circuit.

    Raises ValueError for scores, which choose no edges, for a circuit of another graph, and for values that are no
    numbers from 0 to 1. Of a traced mask these are not known.
    """
    if hasattr(mask, "graph"):
        if hasattr(mask, "values"):
            raise ValueError("mask: scores choose no edges; take Circuit.select(scores, edges=...)")
        if mask.graph != graph:
            shapes = f"{graph.shape}, got one of {mask.graph.shape}"
            raise ValueError(f"mask: expected a circuit of the model's graph, {shapes}")
        mask = mask.mask
    if isinstance(mask, Tracer):
        return mask
    array = np.asarray(mask)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise ValueError(f"mask: expected an array of numbers from 0 to 1, or a circuit, got {mask!r:.60}")
    check_finite("mask", array)
    if array.dtype != bool and array.size and not -BEYOND <= array.min() <= array.max() <= 1 + BEYOND:
        raise ValueError(f"mask: expected numbers from 0 to 1, got {array.min()} to {array.max()}")
    return mask if hasattr(mask, "dtype") else array


@eqx.filter_jit
def _finite_parts(objective: Objective) -> tuple[Array, Array, Array, Array]:
    """Whether each weight, the clean logits of each prompt and each reference are finite; the whole model's metric."""
    labels = objective.labels
    logits, reference = jnp.isfinite(labels.full).all((1, 2)), jnp.isfinite(objective.reference).all((2, 3))
    metric = jax.vmap(objective._loss)(labels.full, objective.weights, labels)
    parts = weights_are_finite(objective.model), logits, reference, metric
    return jax.tree.map(lambda x: constrain(x, objective.mesh), parts)


@eqx.filter_jit
def _per_example(objective: Objective, mask: PositionedMask) -> Float[Array, " batch"]:
    def one(prompt):
        tokens, reference, *rest = prompt
        return objective._score(objective.model.residual(tokens, mask, reference), *rest)

    values = batching.chunked_vmap(one, objective._prompts(), objective.microbatch)
    return constrain(values, objective.mesh)


@eqx.filter_jit
def _mean(objective: Objective, mask: PositionedMask) -> Float[Array, ""]:
    return _per_example(objective, mask).mean()


@eqx.filter_jit
def _per_example_many(
    objective: Objective, masks: Shaped[Array, "circuit sender receiver *position"], width: int
) -> Float[Array, "circuit batch"]:
    def one(mask):
        return _per_example(objective, mask.astype(objective.model.dtype))

    masks = constrain(masks, objective.mesh, CANDIDATES)
    return constrain(batching.chunked_vmap(one, masks, width), objective.mesh)


@eqx.filter_jit
def _many(
    objective: Objective, masks: Shaped[Array, "circuit sender receiver *position"], width: int
) -> Float[Array, " circuit"]:
    return _per_example_many(objective, masks, width).mean(1)


@eqx.filter_jit
def _value_and_gradient(objective: Objective, mask: Mask, spans: Spans) -> tuple[Float[Array, ""], Array]:
    values, each = _of_each(objective, gradients.at_mask, mask, spans)
    return constrain(values.mean(), objective.mesh), _mean_gradient(objective, each)


@eqx.filter_jit
def _clean_gradient(objective: Objective, spans: Spans) -> Array:
    return _mean_gradient(objective, _of_each(objective, gradients.at_clean_run, spans))


@eqx.filter_jit
def _displacement_gradient(objective: Objective, points: tuple, spans: Spans) -> Array:
    return _mean_gradient(objective, _of_each(objective, gradients.at_held_runs, points, spans))


def _of_each(objective: Objective, gradient: Callable, *arguments: Any) -> Any:
    """What a function of `gradients` gives of every prompt."""

    def one(prompt):
        tokens, reference, *rest = prompt
        return gradient(objective.model, lambda x: objective._score(x, *rest), (tokens, reference), *arguments)

    return batching.chunked_vmap(one, objective._prompts(), objective.microbatch)


def _mean_gradient(objective: Objective, each: Float[Array, "batch *span sender receiver"]) -> Array:
    return constrain(jnp.where(jnp.asarray(objective.graph.valid), each.mean(0), 0), objective.mesh)


@eqx.filter_jit
def _scored_logits(model: Model, tokens, scored, size: int) -> Float[Array, "batch scored vocab"]:
    def one(prompt):
        return model.unembed(model.residual(prompt[0])[prompt[1]])

    return batching.chunked_vmap(one, (tokens, scored), size)
