"""A GPT-2's layer and its parts, on the positions of one prompt; the same for all layers at once, stacked."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .gpt2_config import ACTIVATIONS


class LayerNorm(eqx.Module):
    """`(x - mean) / sqrt(var + epsilon) * weight + bias`, of one vector."""

    weight: Float[Array, "*layer width"]
    bias: Float[Array, "*layer width"]
    epsilon: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        centred = x - x.mean()
        return centred * jax.lax.rsqrt((centred**2).mean() + self.epsilon) * self.weight + self.bias

    def pull_back(
        self, x: Float[Array, "position width"], slopes: Float[Array, "input position width"]
    ) -> Float[Array, "input position width"]:
        """`J(x)^T slope`: gradients at what is normed to those at `x`; written out, since autodiff reads more often."""
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + self.epsilon)[None]
        direction, slopes = centred[None] * scale, slopes * self.weight[None, None]
        along = (slopes * direction).mean(-1, keepdims=True)
        return scale * (slopes - slopes.mean(-1, keepdims=True) - direction * along)


class Attention(eqx.Module):
    """Attention; what it returns excludes `output_bias`, which belongs to no head.

    `positions` (a shortformer's; None elsewhere) are added to what queries and keys project.
    """

    query: Float[Array, "*layer head width key"]
    key: Float[Array, "*layer head width key"]
    value: Float[Array, "*layer head width key"]
    query_bias: Float[Array, "*layer head key"]
    key_bias: Float[Array, "*layer head key"]
    value_bias: Float[Array, "*layer head key"]
    output: Float[Array, "*layer head key width"]
    output_bias: Float[Array, "*layer width"]
    positions: Float[Array, "*layer max_position width"] | None = None
    causal: bool = eqx.field(static=True, default=True)

    def mix(
        self,
        x_query: Float[Array, "*head position width"],
        x_key: Float[Array, "*head position width"],
        x_value: Float[Array, "*head position width"],
        scale: Float[Array, ""],
    ) -> Float[Array, "heads position key"]:
        """Values averaged by the attention pattern. Inputs: one for all heads, or one a head."""
        query, key, value = self.project(x_query, x_key, x_value)
        return self.attend(query, key, value, scale)

    def project(
        self,
        x_query: Float[Array, "*head position width"],
        x_key: Float[Array, "*head position width"],
        x_value: Float[Array, "*head position width"],
    ) -> Float[Array, "kv heads position key"]:
        """Queries, keys and values of all heads, biases included. Inputs: one for all heads, or one a head."""
        equation = "td,hdk->htk" if x_query.ndim == 2 else "htd,hdk->htk"
        query = jnp.einsum(equation, self._placed(x_query), self.query) + self.query_bias[:, None]
        key = jnp.einsum(equation, self._placed(x_key), self.key) + self.key_bias[:, None]
        value = jnp.einsum(equation, x_value, self.value) + self.value_bias[:, None]
        return jnp.stack([query, key, value])

    def _placed(self, x: Float[Array, "*head position width"]) -> Float[Array, "*head position width"]:
        return x if self.positions is None else x + jnp.broadcast_to(self.positions[: x.shape[-2]], x.shape)

    def attend(
        self,
        query: Float[Array, "head position key"],
        key: Float[Array, "head position key"],
        value: Float[Array, "head position key"],
        scale: Float[Array, ""],
    ) -> Float[Array, "head position key"]:
        """Values averaged by the attention pattern."""
        return jnp.einsum("htu,huk->htk", self.pattern(query, key, scale), value)

    def pattern(
        self, query: Float[Array, "head position key"], key: Float[Array, "head position key"], scale: Float[Array, ""]
    ) -> Float[Array, "head position position"]:
        """How much each position reads of each one that it sees."""
        scores = jnp.einsum("htk,huk->htu", query, key) * scale
        return self.softmax(scores, jnp.arange(scores.shape[-1], dtype=jnp.int32))

    def softmax(
        self, scores: Float[Array, "*head query position"], query_positions: Int[Array, " query"]
    ) -> Float[Array, "*head query position"]:
        """The pattern of queries at some positions: in causal attention none reads what comes after it."""
        if self.causal:
            seen = query_positions[:, None] >= jnp.arange(scores.shape[-1], dtype=query_positions.dtype)[None]
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        return jax.nn.softmax(scores, axis=-1)

    def heads(self, mixed: Float[Array, "head position key"]) -> Float[Array, "head position width"]:
        """What each head writes to the residual stream."""
        return jnp.einsum("htk,hkd->htd", mixed, self.output)

    def sum_of_heads(self, mixed: Float[Array, "head position key"]) -> Float[Array, "position width"]:
        """What all heads write together."""
        return jnp.einsum("htk,hkd->td", mixed, self.output)


class MLP(eqx.Module):
    """`activation(x W_in + b_in) W_out + b_out`."""

    w_in: Float[Array, "*layer width neuron"]
    b_in: Float[Array, "*layer neuron"]
    w_out: Float[Array, "*layer neuron width"]
    b_out: Float[Array, "*layer width"]
    activation: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        return ACTIVATIONS[self.activation](x @ self.w_in + self.b_in[None]) @ self.w_out + self.b_out[None]


class NodeValues(eqx.Module):
    """What node masks act on: every head's queries, keys and values, and every MLP's output."""

    heads: Float[Array, "*batch kv head position key"]
    mlp: Float[Array, "*batch position width"] | None


class Block(eqx.Module):
    """One layer; in a model every array has a leading layer axis and `lax.scan` takes the slices."""

    attention: Attention
    attention_norm: LayerNorm | None
    mlp: MLP | None
    mlp_norm: LayerNorm | None

    def attention_input(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        """What all heads project when they read the same `x`."""
        return normed(self.attention_norm, x)

    def mix(self, x: Float[Array, "position width"], scale: Float[Array, ""]) -> Float[Array, "head position key"]:
        """The attention of a run in which all heads read the same `x`."""
        x = self.attention_input(x)
        return self.attention.mix(x, x, x, scale)

    def masked_heads(
        self, x: Float[Array, "kv head position width"], scale: Float[Array, ""]
    ) -> Float[Array, "head position width"]:
        """Head outputs when each head's query, key and value read their own input."""
        x = normed(self.attention_norm, x)
        return self.attention.heads(self.attention.mix(x[0], x[1], x[2], scale))

    def node_values(self, x: Float[Array, "time position width"]) -> NodeValues:
        """Queries, keys and values of the heads, which read `x[0]`, and the output of the MLP, which reads `x[1]`."""
        heads = normed(self.attention_norm, x[0])
        return NodeValues(
            self.attention.project(heads, heads, heads), None if self.mlp is None else self.mlp_output(x[1])
        )

    def mlp_output(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        assert self.mlp is not None
        return self.mlp(normed(self.mlp_norm, x))


def normed(norm: LayerNorm | None, x: Float[Array, "*inputs width"]) -> Float[Array, "*inputs width"]:
    """Every vector of `x` after a layer norm; without one, as it is."""
    return x if norm is None else jnp.vectorize(norm, signature="(d)->(d)")(x)
