"""Rules of the backward pass: what takes the place of a derivative in a decoder's few nonlinear places.

| rules | norms | activations but ReLU | gated products | softmax p of x | q, k, v |
|---|---|---|---|---|---|
| `plain` | their derivatives | | | | |
| `relp` (2508.21258) | scale held fixed | slope act(x)/x | half to each factor | its own | 1, 1, 1 |
| `attn-lrp` (2402.05602) | scale held fixed | slope act(x)/x | half to each factor | its own | 1/4, 1/4, 1/2 |
| `gim` (2505.17630) | scale held fixed | their own | half to each factor | warm | 1/4, 1/4, 1/2 |

warm: `dx = s (g - sum(g s))` with `s = softmax(x / 2)`. AttnLRP's rule of the softmax (its proposition 3.1), relevance
`x (R - p sum(R))` of `R = g p`, is x times the derivative: as a rule of gradients it is none.

Values of the forward pass are the same. 1/4, 1/4, 1/2 of the gradients at queries, keys and values are halves at the
scores and at the mixed values: each is a product of two. An activation's divisor x is kept 1e-6 from 0.

A model has one name of rules, `model.backward`; while one of its functions is traced, `now()` are these rules.
`contextual.py` has rules of another kind, which follow a part of every activation through the same places.
"""

import contextlib
import contextvars
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SMALL = 1e-6


def _same(x: Any) -> Any:
    return x


def _applied(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x)


class Rules(NamedTuple):
    """What is computed where: all are the same function of their values, with other slopes.

    - `scale`: a norm's; `whole`: what it is the scale of. `product`: of a gate and what it gates. `cap`: of logits.
    """

    scale: Callable[[Array], Array]
    activation: Callable[[Callable[[Array], Array], Array], Array]
    product: Callable[[Array, Array], Array]
    softmax: Callable[[Array], Array]
    inputs: Callable[[tuple[Array, ...]], tuple[Array, ...]]
    whole: Callable[[Array], Array] = _same
    bias: Callable[[Array, Array], Array] = operator.add
    cap: Callable[[Callable[[Array], Array], Array], Array] = _applied


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled(x: Array, factor: float) -> Array:
    """`x`; its gradient times a factor."""
    return x


scaled.defvjp(lambda x, factor: (x, None), lambda factor, _, g: (g * factor,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _along(function: Callable[[Array], Array], x: Array) -> Array:
    """`function(x)`, its slope that of the line through 0."""
    return function(x)


def _along_forward(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    y = function(x)
    return y, y / jnp.where(jnp.abs(x) < SMALL, jnp.where(x < 0, -SMALL, SMALL), x)


_along.defvjp(_along_forward, lambda function, slope, g: (g * slope,))


@jax.custom_vjp
def _warm_softmax(x: Float[Array, "*_ key"]) -> Float[Array, "*_ key"]:
    return jax.nn.softmax(x, axis=-1)


def _warm_backward(x: Array, g: Array) -> tuple[Array]:
    s = jax.nn.softmax(x / 2, axis=-1)
    return (s * (g - (g * s).sum(-1, keepdims=True)),)


_warm_softmax.defvjp(lambda x: (jax.nn.softmax(x, axis=-1), x), _warm_backward)


def _halved(gate: Array, x: Array) -> Array:
    return scaled(gate * x, 0.5)


def _slope_of_line(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x) if function is jax.nn.relu else _along(function, x)


def _parted(ys: tuple[Array, ...]) -> tuple[Array, ...]:
    """Queries, keys and values: a product of two halves, whose product with the values is halved."""
    return tuple(scaled(y, factor) for y, factor in zip(ys, (0.25, 0.25, 0.5), strict=True))


_softmax = partial(jax.nn.softmax, axis=-1)
_fixed = jax.lax.stop_gradient

BACKWARD = {
    "plain": Rules(_same, _applied, operator.mul, _softmax, _same),
    "relp": Rules(_fixed, _slope_of_line, _halved, _softmax, _same),
    "attn-lrp": Rules(_fixed, _slope_of_line, _halved, _softmax, _parted),
    "gim": Rules(_fixed, _applied, _halved, _warm_softmax, _parted),
}

_now: contextvars.ContextVar[Rules] = contextvars.ContextVar("backward", default=BACKWARD["plain"])


def now() -> Rules:
    """The rules of the model that is traced."""
    return _now.get()


@contextlib.contextmanager
def under(rules: Rules) -> Iterator[None]:
    """Inside, `now()` are these rules."""
    token = _now.set(rules)
    try:
        yield
    finally:
        _now.reset(token)
