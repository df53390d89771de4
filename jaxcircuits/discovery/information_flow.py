"""Information flow routes (Ferrando and Voita, 2403.00824): how much of what a receiver reads a sender wrote.

With y what receiver r reads at one position and z_s what the senders before it wrote there:

    p_s = max(0, |y|_1 - |z_s - y|_1),    score of s->r = p_s / sum_s p_s   (0 where all p_s are 0),

averaged over positions, then over prompts. Needs neither metric nor reference; scores are between 0 and 1.

Conventions: `input` is the token plus the position embedding, one node as in every graph here (EAP-IG's public code
takes the token embedding alone, and leaves the position in y); positions that nothing scored can read, in a causal
model those after a prompt's last scored one, are left out (the public code leaves out the padding).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import batching
from ..arguments import checked
from ..objective import Objective
from ..scores import Scores
from .measure import can_be_read, scored


@checked
def information_flow_routes(objective: Objective) -> Scores:
    """The share of each sender in what each receiver reads, in two forward passes (writers, readers).

    Raises ValueError for a network of units, whose receivers do not read the whole residual stream.
    """
    graph = objective.graph
    if graph.layout.neighbours_only:
        raise ValueError(
            "information-flow-routes: expected a model whose receivers read the whole residual stream, got a network "
            "of units, which read their neighbours; choose another method (exact, eap)"
        )

    def values() -> np.ndarray:
        return np.asarray(_shares(objective))[graph.reads].T

    return scored(objective, "information-flow-routes", values, passes=(2, 0), signed=False)


@eqx.filter_jit
def _shares(objective: Objective) -> Float[Array, "moment sender"]:
    """Receivers of one moment read the same vector, so there is one row for each moment."""
    times = jnp.arange(objective.graph.reads[-1] + 1, dtype=jnp.int32)
    is_written = jnp.asarray(objective.graph.written, jnp.int32)[None] <= times[:, None]

    def one(objective, prompt):
        tokens, _, positions, weights, _ = prompt
        model = objective.model
        written, streams = model.sender_values(tokens), model.receiver_streams(tokens)

        def at_time(inputs):
            y, is_before = inputs
            proximity = jnp.abs(y).sum(-1)[None] - jnp.abs(written - y[None]).sum(-1)
            proximity = jnp.where(is_before[:, None], jnp.maximum(proximity, 0), 0)
            total = proximity.sum(0, keepdims=True)
            return proximity / jnp.where(total == 0, 1, total)

        counted = can_be_read(model, tokens, positions, weights)
        shares = jnp.where(counted[None, None], jax.lax.map(at_time, (streams, is_written)), 0)
        return shares.sum(-1) / counted.sum().astype(shares.dtype)

    return batching.over_prompts(objective, one, objective._prompts()).mean(0)
