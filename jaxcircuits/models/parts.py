"""Norms, MLPs, rotations and attention patterns that architectures share; parameters may be stacked over layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import backward

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
        return backward.now().bias(centred * _scale(centred, self.epsilon) * self.weight, self.bias)


class RMSNorm(eqx.Module):
    """`x / sqrt(mean of x^2 + epsilon) * (offset + weight)`, of one vector."""

    weight: Float[Array, "*layer width"]
    epsilon: float = eqx.field(static=True)
    offset: float = eqx.field(static=True, default=0.0)

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        return x * _scale(x, self.epsilon) * (self.offset + self.weight)

    def shares(self, rows: Float[Array, "head at width"]) -> Float[Array, "head at width"]:
        """What each row is of the norm of their sum: they add up to it, under the sum's own scale."""
        total = backward.now().whole(rows.sum(0))
        scale = backward.now().scale(inverse_rms(total, self.epsilon))
        return rows * (scale * (self.offset + self.weight)[None])[None]


Norm = LayerNorm | RMSNorm


def _scale(x: Float[Array, " width"], epsilon: float) -> Float[Array, ""]:
    return backward.now().scale(inverse_rms(backward.now().whole(x), epsilon)[0])


def inverse_rms(x: Float[Array, "*_ width"], epsilon: float, axes: int | tuple[int, ...] = -1) -> Float[Array, "*_ 1"]:
    """`1 / sqrt(mean of x^2 + epsilon)`, in float32 at least: the square of 256 is none in float16.

    NaN where that mean is beyond the type: 0 would be an answer, of a model whose every value is finite.

    A barrier is behind it: XLA would spend a quarter of a GPU's compile time on whether to compute it again for each
    entry that it scales.
    """
    mean = (wide(x) ** 2).mean(axes, keepdims=True)
    scale = jnp.where(mean < jnp.inf, jax.lax.rsqrt(mean + epsilon), jnp.nan).astype(x.dtype)
    return jax.lax.optimization_barrier(scale)


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """As it is, or in float32 what is coarser."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def normed(norm: Norm | None, x: Float[Array, "*inputs width"]) -> Float[Array, "*inputs width"]:
    """Every vector of `x` after a norm; without one, as it is."""
    return x if norm is None else jnp.vectorize(norm, signature="(d)->(d)")(x)


def of_layer(part: Any, layer: Int[Array, ""]) -> Any:
    """One layer of stacked parameters."""
    return jax.tree.map(lambda leaf: leaf[layer], part)


def affine(
    x: Float[Array, "*_ position width"],
    weight: Float[Array, "*unit width features"],
    bias: Float[Array, "*unit features"] | None,
) -> Float[Array, "*unit position features"]:
    """`x W + b`; without a bias `x W`. Of one unit, or of several, of the same `x` or of one each."""
    return x @ weight if bias is None else backward.now().bias(x @ weight, bias[..., None, :])


def rows_and_sum(
    mixed: Float[Array, "head at key"], output: Float[Array, "head key width"]
) -> tuple[Float[Array, "head at width"], Float[Array, "at width"]]:
    """What each head writes; and all of them, in one product over heads and the entries of their values."""
    return mixed @ output, jnp.einsum("htk,hkd->td", mixed, output)


class Attention(eqx.Module):
    """Projections of the heads of all layers; keys and values may be those of groups of heads.

    Norms, where there are some, are of what queries and keys project.
    """

    query: Float[Array, "*layer head width key"]
    key: Float[Array, "*layer group width key"]
    value: Float[Array, "*layer group width key"]
    output: Float[Array, "*layer head key width"]
    query_bias: Float[Array, "*layer head key"] | None = None
    key_bias: Float[Array, "*layer group key"] | None = None
    value_bias: Float[Array, "*layer group key"] | None = None
    output_bias: Float[Array, "*layer width"] | None = None
    query_norm: RMSNorm | None = None
    key_norm: RMSNorm | None = None

    def has_all(self, name: str, count: int) -> bool:
        """Whether `count` are all queries (`q`), keys (`k`), values (`v`) or heads (`head`) of a layer."""
        of = {"q": self.query, "k": self.key, "v": self.value, "head": self.output}
        return name in of and of[name].shape[-3] == count

    def normed(self, port: str, y: Float[Array, "*head at key"]) -> Float[Array, "*head at key"]:
        """Queries or keys after their norm, if there is one."""
        return normed({"q": self.query_norm, "k": self.key_norm}[port], y)

    def project(
        self, port: str, index: Int[Array, ""] | None, x: Float[Array, "*_ at width"]
    ) -> Float[Array, "*receiver at key"]:
        """The queries, keys or values of one head or group, or (None) of all, of one layer's projections."""
        name = {"q": "query", "k": "key", "v": "value"}[port]
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
        if index is not None:
            weight, bias = weight[index], None if bias is None else bias[index]
        return affine(x, weight, bias)


def _cut(index: Int[Array, ""], groups: int, arrays: Any, axis: int) -> Any:
    """The `index`-th of equal groups along an axis."""

    def cut(x: Array) -> Array:
        size = x.shape[axis] // groups
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)

    return jax.tree.map(cut, arrays)


class MLP(eqx.Module):
    """`activation(x W_in + b_in) W_out + b_out`."""

    w_in: Float[Array, "*layer width neuron"]
    b_in: Float[Array, "*layer neuron"]
    w_out: Float[Array, "*layer neuron width"]
    b_out: Float[Array, "*layer width"]
    activation: str = eqx.field(static=True)

    @property
    def num_neurons(self) -> int:
        return self.w_in.shape[-1]

    def part(self, index: Int[Array, ""], groups: int) -> "MLP":
        """Of one layer's, the `index`-th of equal groups of neurons, with its share of the output's bias."""
        (w_in, b_in), w_out = _cut(index, groups, (self.w_in, self.b_in), -1), _cut(index, groups, self.w_out, 0)
        return MLP(w_in, b_in, w_out, self.b_out / groups, self.activation)

    def __call__(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        return affine(_activated(self.activation, affine(x, self.w_in, self.b_in)), self.w_out, self.b_out)


class GatedMLP(eqx.Module):
    """`(activation(x W_gate) * x W_up) W_down`, each with a bias or without."""

    gate: Float[Array, "*layer width neuron"]
    up: Float[Array, "*layer width neuron"]
    down: Float[Array, "*layer neuron width"]
    gate_bias: Float[Array, "*layer neuron"] | None
    up_bias: Float[Array, "*layer neuron"] | None
    down_bias: Float[Array, "*layer width"] | None
    activation: str = eqx.field(static=True)

    @property
    def num_neurons(self) -> int:
        return self.gate.shape[-1]

    def part(self, index: Int[Array, ""], groups: int) -> "GatedMLP":
        """Of one layer's, the `index`-th of equal groups of neurons, with its share of the output's bias."""
        into = self.gate, self.up, self.gate_bias, self.up_bias
        gate, up, gate_bias, up_bias = _cut(index, groups, into, -1)
        down_bias = None if self.down_bias is None else self.down_bias / groups
        return GatedMLP(gate, up, _cut(index, groups, self.down, 0), gate_bias, up_bias, down_bias, self.activation)

    def __call__(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        gate = _activated(self.activation, affine(x, self.gate, self.gate_bias))
        product = backward.now().product(gate, affine(x, self.up, self.up_bias))
        return affine(product, self.down, self.down_bias)


def _activated(name: str, x: Float[Array, "position neuron"]) -> Float[Array, "position neuron"]:
    return backward.now().activation(ACTIVATIONS[name], x)


def attention_pattern(
    scores: Float[Array, "*head query position"],
    at: Int[Array, " query"],
    *,
    causal: bool = True,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "*head query position"]:
    """How much the queries at the positions `at` read of each position.

    In causal attention none that comes later; in a window the last so many alone, their own included.
    """
    back = at[:, None] - jnp.arange(scores.shape[-1], dtype=at.dtype)[None]
    seen = jnp.ones_like(back, bool) if window is None else back < window
    if causal:
        seen &= back >= 0
    finer = wide(scores)
    masked = jnp.where(seen, finer, jnp.finfo(finer.dtype).min)
    return backward.now().softmax(masked).astype(scores.dtype)


def capped(scores: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap tanh(scores / cap)`: none beyond the cap; None leaves them as they are."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)
