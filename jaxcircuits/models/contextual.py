"""Contextual decomposition (CD-T, Hsu et al., 2407.00886): what of every activation one sender is the cause of.

Every activation is `rel + irrel`. From where the sender wrote `rel`, both go through the model by these rules:

| where | rel' | irrel' |
|---|---|---|
| linear, `W x + b` | `W rel + b abs(W rel) / (abs(W rel) + abs(W irrel))`, entry by entry | the same of irrel |
| norm | less its own mean (not RMS), over the scale of rel + irrel; its bias shared as above | the same of irrel |
| attention | `softmax(q k) v` of the q, k and v of rel | the rest |
| activation; gate times up; cap of logits | the rest | the function of irrel |

"The rest" is the model's own value less the other, so the parts always add up to the model's own activations. What
belongs to no node, an attention's output bias, is the bias of what all heads of the layer write.

All parts are computed side by side: `jax.vmap` along the axis PARTS of the model's own functions, under rules that take
the place of `backward.BACKWARD`. The first part is the whole run, rel + irrel; the others are each sender's rel.
"""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..types import Tokens
from . import backward, runs

PARTS = "part"

Measure = Callable[[Array, Array], Array]


class Sources(eqx.Module):
    """Senders by their rows, and what each wrote that is followed: its `rel`."""

    rows: Int[Array, " source"]
    rel: Float[Array, "source position width"]


class Targets(eqx.Module):
    """The positions that count where nodes read, and those of logits, with their weights."""

    counted: Float[Array, " position"]
    scored: Int[Array, " scored"]
    weights: Float[Array, " scored"]


def share(y: Float[Array, "at *features"], weights: Float[Array, " at"]) -> Float[Array, ""]:
    """`mean abs(rel) / (mean abs(rel) + mean abs(irrel))` over features and weighted positions; of 0/0 0."""
    weights = weights.reshape(-1, *[1] * (y.ndim - 1))
    rel, irrel = (jnp.sum(jnp.abs(part) * weights) for part in (y, _whole(y) - y))
    return _ratio(rel, rel + irrel)


def run(model: Any, tokens: Tokens, sources: Sources, targets: Targets, measure: Measure) -> list[Any]:
    """What `measure` makes of what every receiver computes and of the logits, first of the whole run, then each part.

    Of each stack, of each moment, of each port [part, layer, receiver, ...]; last of the logits [part, ...].
    """
    layout, embeddings = model.layout, model.embeddings(tokens).sum(0)
    written = jnp.asarray(np.array(model.graph.written, np.int32))[sources.rows]

    def part(written, rel):
        def step(stack, carry, inputs):
            (x, now), layer, found = carry, inputs[0], []
            for number, moment in enumerate(stack.moments):
                ys, now = runs.computed(model, moment, layer, x), now + 1
                found.append([jax.vmap(measure, (0, None))(ys[port.name], targets.counted) for port in moment.ports])
                constant, at = model.constant(layer, number), runs.positions_of(x)
                for nodes in moment.nodes:
                    new = runs.written(model, moment._replace(nodes=(nodes,)), layer, ys, at)[1]
                    if constant is not None and nodes.kind == "head":
                        new = backward.now().bias(new, constant[None])
                    x = x + new
                x = x + jnp.where(written == now, rel, 0)
            return (x, now), found

        start = jnp.where(_is_whole(), embeddings, jnp.where(written == 0, rel, 0))
        (x, _), found = runs.over_layers(layout, step, (start, jnp.int32(0)), runs.nothing(layout))
        return [*found, measure(model.unembed(x[targets.scored]), targets.weights)]

    whole = jnp.full(1, -1, jnp.int32), jnp.zeros_like(embeddings)[None]
    each = jax.tree.map(lambda *parts: jnp.concatenate(parts), whole, (written, sources.rel))
    return jax.vmap(part, axis_name=PARTS)(*each)


def shares(model: Any, tokens: Tokens, sources: Sources, targets: Targets) -> Float[Array, "source receiver"]:
    """The `share` of each source in what every receiver computes; in the logits, of `logits`."""
    *stacks, logits = run(model, tokens, sources, targets, share)
    rows = [jnp.concatenate([jnp.concatenate(ports, -1) for ports in stack], -1) for stack in stacks]
    return jnp.concatenate([*(row.reshape(len(row), -1) for row in rows), logits[:, None]], -1)[1:]


# --- rules ---------------------------------------------------------------------------------------


def _is_whole() -> Array:
    return jax.lax.axis_index(PARTS) == 0


def _whole(x: Array) -> Array:
    """Of the whole run."""
    return jax.lax.psum(jnp.where(_is_whole(), x, 0), PARTS)


def _ratio(x: Array, total: Array) -> Array:
    return jnp.where(total == 0, 0, x / jnp.where(total == 0, 1, total))


def _shared(y: Array, bias: Array) -> Array:
    """`y` and its share of a bias, by the sizes of rel and irrel; of neither irrel has it."""
    size = jnp.abs(y)
    return y + bias * jnp.where(_is_whole(), 1, _ratio(size, size + jnp.abs(_whole(y) - y)))


def _rest(function: Callable[..., Array], *xs: Array) -> Array:
    """What a function gives less what it gives of irrel."""
    wholes = tuple(map(_whole, xs))
    everything = function(*wholes)
    of_irrel = function(*(whole - x for whole, x in zip(wholes, xs, strict=True)))
    return jnp.where(_is_whole(), everything, everything - of_irrel)


RULES = backward.BACKWARD["plain"]._replace(
    activation=_rest,
    product=lambda gate, x: _rest(operator.mul, gate, x),
    cap=_rest,
    whole=_whole,
    bias=_shared,
)
