"""Norms, MLPs, rotations and attention patterns that architectures share; parameters may be stacked over layers."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}


class LayerNorm(eqx.Module):
    """`(x - mean) / sqrt(var + epsilon) * weight + bias`, of one vector."""

    weight: Float[Array, "*layer width"]
    bias: Float[Array, "*layer width"]
    epsilon: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        centred = x - x.mean()
        return centred * jax.lax.rsqrt((centred**2).mean() + self.epsilon) * self.weight + self.bias


def normed(norm: LayerNorm | None, x: Float[Array, "*inputs width"]) -> Float[Array, "*inputs width"]:
    """Every vector of `x` after a norm; without one, as it is."""
    return x if norm is None else jnp.vectorize(norm, signature="(d)->(d)")(x)


class MLP(eqx.Module):
    """`activation(x W_in + b_in) W_out + b_out`."""

    w_in: Float[Array, "*layer width neuron"]
    b_in: Float[Array, "*layer neuron"]
    w_out: Float[Array, "*layer neuron width"]
    b_out: Float[Array, "*layer width"]
    activation: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        return ACTIVATIONS[self.activation](x @ self.w_in + self.b_in[None]) @ self.w_out + self.b_out[None]


def attention_pattern(
    scores: Float[Array, "query position"], at: Int[Array, " query"], *, causal: bool = True
) -> Float[Array, "query position"]:
    """How much the queries at the positions `at` read of each position; in causal attention none that comes later."""
    if causal:
        seen = at[:, None] >= jnp.arange(scores.shape[-1], dtype=at.dtype)[None]
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)
