"""The centre: model + prompts + metric + reference values as one function of the mask."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from . import batching, gradients, losses, metrics
from .arguments import check_count, checked, fitting
from .batching import PROMPTS, place
from .data import PromptPairs
from .finite import check_finite, real_array
from .graph import Graph
from .identity import description
from .labels import check_metric, labels_of
from .masks import cast, cast_many, cast_spans, from_0_to_1, placed, rounded_width
from .metrics import Labels, Metric
from .models import Held as Held
from .objective_checks import (
    check_ends,
    check_options,
    check_padding,
    check_parts_finite,
    check_reference,
    prompts_to_restore,
    residual_shape,
    rows_of,
)
from .references import name_of, reference_values, sender_values
from .types import Mask, MaskLike, Model


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
    corrupt: Int[Array, "batch position"]
    inside: Bool[Array, "batch position"]
    span_at: Int[Array, "batch position"] | None
    scored: Int[Array, "batch scored"]
    weights: Float[Array, "batch scored"]
    labels: Labels
    reference: Float[Array, "sender batch position width"]
    metric: Metric
    metric_name: str = eqx.field(static=True)
    reference_name: str = eqx.field(static=True)
    average: str = eqx.field(static=True)
    is_restoring: bool = eqx.field(static=True)
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
          along `candidates`, weights along `model`; see `batching.weight_shardings`.

        Raises ValueError for prompts that do not fit the model or the mesh, or have not the spans that it is divided
        at, labels that the metric misses, unknown names, and NaN or infinity in a weight, the clean run, the reference
        or the metric; MemoryError if not even one prompt fits.
        """
        if not hasattr(model, "residual"):
            raise ValueError(f"model: expected a model, as `load(...).model`, got a {type(model).__name__}")
        pairs.check_against(model.vocab_size, model.max_positions)
        span_at = pairs.span_at(model.span_names)
        self.metric = metrics.by_name(metric)
        self.metric_name = metrics.name_of(self.metric)
        check_options(reference, average, microbatch, mesh, len(pairs))
        check_reference(reference, model, pairs)
        for runs in (model, reference):
            check_padding(runs, pairs)
        self.mesh, self.average, self.is_restoring = mesh, average, False
        self.model = model = batching.place_weights(model, mesh)
        self.reference_name = name_of(reference)
        tokens = pairs.clean, pairs.corrupt, pairs.inside()
        self.clean, self.corrupt, self.inside = (place(x, mesh, PROMPTS) for x in tokens)
        self.span_at = None if span_at is None else place(span_at, mesh, PROMPTS)
        scored, counts = pairs.scored()
        self.scored = place(scored.astype(np.int32), mesh, PROMPTS)
        per_prompt = counts.sum(1, keepdims=True) if average == "per_prompt" else counts.sum() / len(pairs)
        self.weights = place((counts / per_prompt).astype(np.dtype(model.dtype)), mesh, PROMPTS)
        residual = residual_shape(model, pairs)
        labels = labels_of(pairs, scored, jax.eval_shape(model.unembed, residual), mesh)
        check_metric(self.metric, labels)

        senders = len(model.graph.senders)
        shape = (senders, *pairs.clean.shape, residual.shape[-1])
        zeros = place(np.zeros(shape, np.dtype(model.dtype)), mesh, None, PROMPTS)
        self.labels, self.reference = labels, zeros
        self.microbatch = microbatch or gradients.microbatch_that_fits(self)

        def clean_and_reference(objective: "Objective") -> tuple[Any, ...]:
            size = objective.microbatch
            prompts = objective.corrupt, objective.inside
            values = reference_values(reference, model, prompts, zeros, objective.span_at, size, mesh)
            return size, losses.clean_run(objective), values

        self.microbatch, (full, values), self.reference = fitting(clean_and_reference)(self)
        self.labels = eqx.tree_at(lambda labels: labels.full, labels, full)
        check_parts_finite(self, values)

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

    @fitting
    def __call__(self, mask: MaskLike) -> Float[Array, ""]:
        """The circuit's loss, mean over the prompts. Raises ValueError for a mask of another shape."""
        return losses.mean(self, cast(self, mask, positioned=True))

    @fitting
    def per_example(self, mask: MaskLike) -> Float[Array, " batch"]:
        """The circuit's loss on each prompt, so that their mean is the circuit's loss.

        Averaged "together" over uneven numbers of scored positions, a prompt with more than the mean number counts so
        many times more: this is then its share, its own mean loss times its positions over their mean number.
        """
        return losses.per_example(self, cast(self, mask, positioned=True))

    @fitting
    def many(self, masks: MaskLike, width: int = 8) -> Float[Array, " circuit"]:
        """The losses of many circuits [circuit, sender, receiver, *position], `width` of them at a time."""
        return losses.many(self, *cast_many(self, masks, width))

    @fitting
    def per_example_many(self, masks: MaskLike, width: int = 8) -> Float[Array, "circuit batch"]:
        """`many`, one number a prompt."""
        return losses.per_example_many(self, *cast_many(self, masks, width))

    def memory_needed(self, width: int) -> int:
        """Bytes that `many` takes for `width` circuits at a time."""
        check_count("width", width, 1)
        masks = placed(self, np.zeros((width, *self.graph.shape), bool))
        return batching.memory_needed(losses.many, self, masks, rounded_width(self, int(width)))

    @fitting
    def gradient(self, mask: MaskLike, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`df/dmask` at any mask, 0 where there is no edge; at ones it is minus EAP (2310.10348).

        As `<z_s - ref_s, df/dx_r>` (sender's difference, gradient at what the receiver reads), which needs one
        backward pass and no copy of the senders' buffer for each layer.

        `spans`: bool [span, position]; one gradient for the mask of each span of positions.
        """
        return gradients.value_and_gradient(self, cast(self, mask), cast_spans(self, spans))[1]

    @fitting
    def value_and_gradient(self, mask: MaskLike) -> tuple[Float[Array, ""], Mask]:
        """`objective(mask)` and `objective.gradient(mask)` from one forward and one backward pass."""
        return gradients.value_and_gradient(self, cast(self, mask), None)

    def take(self, rows: ArrayLike) -> "Objective":
        """The same function on some of the prompts, e.g. a batch of them; `rows` may be traced.

        They have the weights that they have here: `per_example` gives the same numbers. Raises ValueError for rows
        that are none.
        """
        rows = rows_of(rows, self.num_prompts)

        def parts(of: "Objective") -> tuple[Any, ...]:
            return of.clean, of.corrupt, of.inside, of.span_at, of.scored, of.weights, of.labels

        taken = *jax.tree.map(lambda x: x[rows], parts(self)), self.reference[:, rows]
        return eqx.tree_at(lambda o: (*parts(o), o.reference), self, taken, is_leaf=lambda x: x is None)

    def halved(self) -> "Objective":
        """The same function, computed half as many prompts at once."""
        return batching.with_microbatch(self, -(-self.microbatch // 2))

    def with_precision(self, name: str) -> "Objective":
        """The same function with other products of matrices (`precision.py`): the model's runs that labels and the
        reference "resample" are of, too. Other references are kept as they are.

        Raises ValueError for products that the device has not.
        """
        other = eqx.tree_at(lambda o: o.model, self, self.model.with_precision(name))
        labelled = eqx.tree_at(lambda o: o.clean, other, self.corrupt) if self.is_restoring else other
        full, reference = losses.clean_run(labelled)[0], self.reference
        if self.reference_name == "resample":
            reference = sender_values(other.model, self.corrupt, self.microbatch, self.span_at)
        return eqx.tree_at(lambda o: (o.labels.full, o.reference), other, (full, reference))

    def restoring(self, pairs: PromptPairs | None) -> "Objective":
        """The same loss, against the same labels, of the corrupt prompts' run, where absent edges carry clean values.

        - `pairs`: the prompts that this objective was made of.

        Raises ValueError for other prompts, and for another reference than "resample".
        """
        pairs = prompts_to_restore(self, pairs)
        swapped = dataclasses.replace(pairs, clean=pairs.corrupt, corrupt=pairs.clean)
        options = {"average": self.average, "microbatch": self.microbatch, "mesh": self.mesh}
        restoring = Objective(self.model, swapped, self.metric, "resample", **options)
        object.__setattr__(restoring, "is_restoring", True)
        return eqx.tree_at(lambda o: o.labels.full, restoring, self.labels.full)

    @fitting
    def clean_gradient(self, *, spans: ArrayLike | None = None) -> Float[Array, "*span sender receiver"]:
        """`gradient` at ones, at the cost of one forward and one backward pass of the plain model."""
        return gradients.clean_gradient(self, cast_spans(self, spans))

    @fitting
    def displacement_gradient(
        self, held: ArrayLike, alphas: ArrayLike, *, spans: ArrayLike | None = None, mask: MaskLike | None = None
    ) -> Float[Array, "*span sender receiver"]:
        """Mean over points of `df_k/dmask` at ones, f_k the loss of a run with CONSTANT displacements.

        In run k the senders `held[k]` (bool [point, sender]) write `reference + alphas[k] (clean - reference)`,
        the others run freely, and every receiver r reads `sum_s (1 - mask_sr) (reference_s - clean_s)` besides. So
        the gradient is `-<reference_s - clean_s, df/dx_r(run k)>`.

        `mask`: the runs, the clean one too, are those of this circuit in place of the whole model.
        """
        held, alphas = jnp.asarray(from_0_to_1(held, "held")), jnp.asarray(real_array("alphas", alphas))
        if not isinstance(alphas, Tracer):
            check_finite("alphas", alphas)
        if alphas.ndim != 1 or not alphas.size or held.shape != (alphas.size, self.graph.shape[0]):
            senders = self.graph.shape[0]
            raise ValueError(f"held: expected shape (points, {senders}) with points {alphas.shape}, got {held.shape}")
        points = held.astype(bool), alphas.astype(self.model.dtype)
        runs = None if mask is None else cast(self, mask)
        return gradients.displacement_gradient(self, points, cast_spans(self, spans), runs)

    def along(
        self, alphas: ArrayLike, *, spans: ArrayLike | None = None, mask: MaskLike | None = None
    ) -> Float[Array, "*span sender receiver"]:
        """`displacement_gradient` with the embedding held: the path from the corrupt (0) to the clean prompt (1).

        Raises ValueError for another reference than "resample": only that one's embedding is a prompt's.
        """
        check_ends(self)
        embeddings = np.isin(self.graph.senders, self.graph.embeddings)
        return self.displacement_gradient(np.tile(embeddings, (np.size(alphas), 1)), alphas, spans=spans, mask=mask)

    @fitting
    def down_path(
        self, steps: int, *, spans: ArrayLike | None = None, mask: MaskLike | None = None
    ) -> Float[Array, "*span sender receiver"]:
        """`along` another path: `steps` points from the clean embeddings down the distance to the corrupt logits.

        See `gradients.on_gradient_path`; `mask` as there. Raises ValueError as `along` does.
        """
        check_ends(self)
        check_count("steps", steps, 1)
        runs = None if mask is None else cast(self, mask)
        return gradients.path_gradient(self, steps, cast_spans(self, spans), runs)

    def full_mask(self) -> Mask:
        """All edges: the clean run."""
        return place(np.ones(self.graph.shape, np.dtype(self.model.dtype)), self.mesh)

    def describe(self) -> dict[str, Any]:
        """What determines its values, for the record of a result."""
        return description(self)

    def _prompts(self) -> tuple:
        """Everything that has one row a prompt."""
        return self.clean, jnp.moveaxis(self.reference, 1, 0), self.scored, self.weights, self.labels

    def _score(self, residual: Float[Array, "position width"], scored, weights, labels) -> Float[Array, ""]:
        return self._loss(self.model.unembed(residual[scored]), weights, labels)

    def _loss(self, logits: Float[Array, "scored vocab"], weights, labels) -> Float[Array, ""]:
        values = jax.vmap(self.metric)(logits, labels)
        return jnp.sum(jnp.where(weights > 0, values * weights, 0))
