"""What an `Objective` refuses: options, padding that a model reads, ends of paths, numbers that are not finite."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int

from . import batching
from .arguments import check_count
from .batching import CANDIDATES, MODEL, PROMPTS
from .data import PromptPairs
from .finite import are_finite, check_finite, check_weights
from .references import REFERENCES, sender_values
from .types import Model


def check_options(
    reference: str | ArrayLike | Model, average: str, microbatch: int | None, mesh: Mesh | None, prompts: int
) -> None:
    """Raises ValueError for values that these options of an `Objective` have not."""
    if average not in ("together", "per_prompt"):
        raise ValueError(f"average: expected 'together' or 'per_prompt', got {average!r}")
    if isinstance(reference, str) and reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}: expected {', '.join(REFERENCES)}, or an array")
    if microbatch is not None:
        check_count("microbatch", microbatch, 1)
    if mesh is not None and getattr(mesh, "axis_names", None) != (CANDIDATES, PROMPTS, MODEL):
        names = f"{CANDIDATES}, {PROMPTS} and {MODEL}"
        raise ValueError(f"mesh: expected the axes {names}, as `device_mesh` has, got {mesh!r:.60}")
    if mesh is not None and prompts % mesh.shape[PROMPTS]:
        raise ValueError(f"mesh: expected prompts in multiples of {mesh.shape[PROMPTS]} devices, got {prompts}")


def check_reference(reference: Any, model: Model, pairs: PromptPairs) -> None:
    """Raises ValueError for a model as reference that the objective's one or the corrupt prompts do not fit."""
    if not isinstance(reference, eqx.Module):
        return
    other: Any = reference
    if getattr(other, "graph", None) != model.graph:
        raise ValueError("reference: expected a model with the same graph as the objective's")
    needed, got = (pairs.corrupt.max() + 1, pairs.corrupt.shape[1]), (other.vocab_size, other.max_positions)
    if needed[0] > got[0] or needed[1] > got[1]:
        said = "reference: expected a model of {} tokens and {} positions, for the corrupt prompts, got {} and {}"
        raise ValueError(said.format(*needed, *got))
    widths = [residual_shape(each, pairs).shape[-1] for each in (model, other)]
    if widths[0] != widths[1]:
        raise ValueError(f"reference: expected a model as wide as the objective's, {widths[0]}, got {widths[1]}")


def residual_shape(model: Model, pairs: PromptPairs) -> jax.ShapeDtypeStruct:
    """What `logits` reads of a prompt, [position, width]: its shape, traced once for models of one kind."""
    prompt = jax.ShapeDtypeStruct(pairs.clean.shape[1:], np.int32)
    return _residual.eval_shape(*batching.flattened(model), prompt)


@functools.partial(jax.jit, static_argnums=0)
def _residual(rest: batching.Rest, arrays: list[Array], tokens: Int[Array, " position"]) -> Array:
    model = rest.with_arrays(arrays)
    return model.of_prompt(tokens).residual(tokens)


def check_padding(model: Any, pairs: PromptPairs) -> None:
    """Raises ValueError for padding that a model would read: one whose positions read later ones."""
    padded = np.flatnonzero(~pairs.inside().all(1))
    if isinstance(model, eqx.Module) and len(padded) and not getattr(model, "is_causal", False):
        width, row = pairs.clean.shape[1], padded[0]
        raise ValueError(
            f"length: expected {width} tokens in every prompt, got {pairs.inside()[row].sum()} in prompt {row}: "
            f"positions of this {type(model).__name__} read later ones, and so the padding; make one objective of the "
            "prompts of each length (a model whose positions do not says so by `is_causal`)"
        )


def check_parts_finite(objective: Any, losses: Float[Array, " batch"]) -> None:
    """Raises ValueError for NaN or infinity, naming the weight, else where in the runs it arises first.

    - `losses`: of the whole model. Of traced values (`eqx.filter_eval_shape` of the constructor) nothing is known.
    """
    if isinstance(losses, Tracer):
        return
    senders, full = objective.graph.senders, objective.labels.full
    check_weights(objective.model)
    if not all(are_finite([full])):
        written = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
        check_finite("clean run", written, sender=senders, prompt=None)
    check_finite("logits of the clean run", full, prompt=None)
    check_finite(f"reference {objective.reference_name!r}", objective.reference, sender=senders, prompt=None)
    check_finite(f"metric {objective.metric_name} of the whole model", losses, prompt=None)


def check_ends(objective: Any) -> None:
    """Raises ValueError where the path of inputs has no prompt at its other end."""
    if objective.reference_name != "resample":
        raise ValueError(
            "a path of inputs goes from the corrupt to the clean prompt: expected reference 'resample', "
            f"got {objective.reference_name!r}"
        )


def prompts_to_restore(objective: Any, pairs: PromptPairs | None) -> PromptPairs:
    """The prompts that an objective was made of. Raises ValueError for others, and for a reference that is no run."""
    if objective.reference_name != "resample":
        raise ValueError(
            f"restoring starts from a corrupt run: expected reference 'resample', got {objective.reference_name!r}"
        )
    own = jax.tree.map(np.asarray, (objective.clean, objective.corrupt, objective.span_at))
    names = objective.model.span_names
    if pairs is None or not eqx.tree_equal((pairs.clean, pairs.corrupt, pairs.span_at(names)), own):
        raise ValueError("restoring needs the prompts that the objective was made of, as `pairs`")
    return pairs


def rows_of(rows: ArrayLike, count: int) -> Array:
    """The numbers of some of `count` prompts, negative ones from the end, or which of them as a truth value each.

    Raises ValueError for others; of traced ones nothing is known.
    """
    if isinstance(rows, Tracer):
        return rows
    numbers = np.asarray(rows)
    numbers = np.flatnonzero(numbers) if numbers.dtype == bool and numbers.shape == (count,) else numbers
    is_fit = numbers.dtype.kind in "iu" and numbers.ndim == 1 and numbers.size
    if not is_fit or not -count <= numbers.min() <= numbers.max() < count:
        raise ValueError(f"take: expected rows of 0 to {count - 1}, at least one, got {rows!r:.60}")
    return jnp.asarray(numbers, np.int32)
