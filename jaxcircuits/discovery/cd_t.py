"""CD-T (Hsu et al., 2407.00886): how much of what a receiver computes is due to a sender, by contextual decomposition.

    score of s->r = mean |rel| / (mean |rel| + mean |irrel|)    of the queries, keys, values, MLP output or logits of r,

where `rel + irrel` are these activations of the clean run, decomposed from where s wrote `rel = z_s - base`, `irrel =
base` on by the rules of `models/contextual.py`; 0 where both are 0. The mean is over features and positions, for each
prompt, then over prompts. Needs neither metric nor gradient; scores are from 0 to 1.

1. It is what s does to r by all paths, not by the edge alone: the column of `logits` is the paper's ranking of heads by
   what they do to the logits, the others that by what they do to a later head.
2. The paper's sources and targets are heads. The rules are the same for every sender and receiver, so all edges are
   scored: with heads alone no circuit would be connected.
3. A head is a target through what its receivers compute, which tells q, k and v apart; the paper takes its output.
4. The paper's public code keeps the pattern of the whole run for `rel`, and shares a norm's bias by what it reads.
5. Positions that nothing scored can read are left out; of logits the scored ones count, with all their outputs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import batching
from ..arguments import check_count, checked
from ..objective import Objective
from ..references import divided, mean_reference, sender_values
from ..scores import Scores
from .measure import can_be_read, scored

BASES = ("mean", "reference")


@checked
def cd_t(objective: Objective, *, base: str = "mean", width: int = 16) -> Scores:
    """Contextual decomposition of the clean runs, from every sender on.

    - `base`: what of a sender's value is nobody's doing: "mean": over the clean prompts, at each position (the
      paper's); "reference": what absent edges carry, so that `rel` is what patching takes away.
    - `width`: senders that are followed at once.

    Raises ValueError for another base, a mean over a single prompt, and a model whose nodes are no attention heads.
    """
    _check(objective, base)
    rows = np.arange(objective.graph.shape[0], dtype=np.int32)
    check_count("width", width, 1)
    at_once = min(width, len(rows))
    padded = np.append(rows, np.repeat(rows[-1:], -len(rows) % at_once)).reshape(-1, at_once)

    def values() -> np.ndarray:
        return np.asarray(_shares(objective, _bases(objective, base), jnp.asarray(padded)))

    return scored(objective, "cd-t", values, passes=(len(rows) + 2, 0), signed=False, base=base, width=width)


def _check(objective: Objective, base: str) -> None:
    model = objective.model
    if not (getattr(model, "has_parts", False) and any(x.kind == "head" for x in model.graph.sender_table)):
        raise ValueError(
            f"cd-t: expected a model with attention heads as nodes, whose operations have rules, got "
            f"{type(model).__name__} with units {model.units_name!r}; choose another one, or another method"
        )
    if base not in BASES:
        raise ValueError(f"cd-t: base: expected one of {', '.join(BASES)}, got {base!r}")
    if base == "mean" and objective.num_prompts < 2:
        raise ValueError("cd-t: expected 2 prompts or more, as one is its own mean; give more, or base='reference'")


def _bases(objective: Objective, base: str) -> Float[Array, "sender batch position width"]:
    if base == "reference":
        return objective.reference
    values = sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at)
    return divided(objective.model, mean_reference(values, objective.inside, objective.mesh), objective.span_at)


@eqx.filter_jit
def _shares(
    objective: Objective, bases: Float[Array, "sender batch position width"], rows: Int[Array, "chunk source"]
) -> Float[Array, "sender receiver"]:
    """Mean over prompts; senders `rows`, a chunk at a time."""

    def one(objective, prompt):
        base, (tokens, _, positions, weights, _) = prompt
        model = objective.model
        counted = can_be_read(model, tokens, positions, weights).astype(base.dtype)
        of_logits = positions, (weights > 0).astype(base.dtype)
        rel = model.sender_values(tokens) - base
        each = jax.lax.map(lambda rows: model.shares(tokens, (rows, rel[rows]), counted, of_logits), rows)
        return each.reshape(-1, each.shape[-1])[: len(base)]

    each = batching.over_prompts(objective, one, (jnp.moveaxis(bases, 1, 0), objective._prompts()))
    return jnp.where(jnp.asarray(objective.graph.valid), each.mean(0), 0)
