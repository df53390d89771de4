"""GPT-2, and attention-only models and shortformers of its family.

Attention output biases belong to no head: they are constants, always on. In a shortformer positions are added to what
queries and keys project, after the layer norm; they are never written to the residual stream, so the sender `input` is
the token alone and values know no position.
"""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from .. import layout
from ..layout import Layout, Nodes, Port
from ..types import Tokens
from . import backward, parts
from .architecture import Index, Layer, Positions
from .gpt2_config import GPT2Config
from .model import AbstractModel
from .parts import MLP, LayerNorm, normed


class Attention(eqx.Module):
    """Projections of all heads of all layers.

    `positions` (a shortformer's; None elsewhere) are added to what queries and keys project.
    """

    query: Float[Array, "layer head width key"]
    key: Float[Array, "layer head width key"]
    value: Float[Array, "layer head width key"]
    query_bias: Float[Array, "layer head key"]
    key_bias: Float[Array, "layer head key"]
    value_bias: Float[Array, "layer head key"]
    output: Float[Array, "layer head key width"]
    output_bias: Float[Array, "layer width"]
    positions: Float[Array, "layer max_position width"] | None = None

    def projection(self, port: str) -> tuple[Float[Array, "layer head width key"], Float[Array, "layer head key"]]:
        """Weights and biases of queries, keys or values."""
        named = {"q": (self.query, self.query_bias), "k": (self.key, self.key_bias), "v": (self.value, self.value_bias)}
        return named[port]


class Block(eqx.Module):
    """The layers' parameters, stacked."""

    attention: Attention
    attention_norm: LayerNorm | None
    mlp: MLP | None
    mlp_norm: LayerNorm | None


class GPT2(AbstractModel):
    """GPT-2 on one prompt."""

    token_embedding: Float[Array, "vocab width"]
    position_embedding: Float[Array, "max_position width"] | None
    blocks: Block
    final_norm: LayerNorm | None
    unembedding: Float[Array, "output width"] | None
    unembedding_bias: Float[Array, " output"] | None
    config: GPT2Config = eqx.field(static=True)

    @classmethod
    def random(cls, config: GPT2Config, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "GPT2":
        """Weights drawn as GPT-2's before training: N(0, 0.02), residual outputs divided by sqrt(2 layers)."""
        keys = iter(jax.random.split(key, 9))
        layers, heads, width, head_width = config.n_layer, config.n_head, config.n_embd, config.head_width

        def normal(*shape: int, std: float = 0.02) -> Array:
            return std * jax.random.normal(next(keys), shape, dtype)

        def norm(*shape: int) -> LayerNorm | None:
            if not config.layer_norm:
                return None
            return LayerNorm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype), config.layer_norm_epsilon)

        zeros = partial(jnp.zeros, dtype=dtype)
        small = 0.02 / math.sqrt(2 * layers)
        attention = Attention(
            *(normal(layers, heads, width, head_width) for _ in "qkv"),
            *(zeros((layers, heads, head_width)) for _ in "qkv"),
            output=normal(layers, heads, head_width, width, std=small),
            output_bias=zeros((layers, width)),
            positions=normal(layers, config.n_positions, width) if config.positional == "shortformer" else None,
        )
        mlp = None
        if not config.attn_only:
            mlp = MLP(
                normal(layers, width, config.num_neurons),
                zeros((layers, config.num_neurons)),
                normal(layers, config.num_neurons, width, std=small),
                zeros((layers, width)),
                config.activation_function,
            )
        return cls(
            token_embedding=normal(config.vocab_size, width),
            position_embedding=normal(config.n_positions, width) if config.positional == "standard" else None,
            blocks=Block(attention, norm(layers, width), mlp, None if mlp is None else norm(layers, width)),
            final_norm=norm(width),
            unembedding=None if config.tie_word_embeddings else normal(config.num_outputs, width),
            unembedding_bias=zeros((config.num_outputs,)) if config.unembedding_bias else None,
            config=config,
        )

    @property
    def layout(self) -> Layout:
        config = self.config
        return layout.transformer(
            config.n_layer, config.n_head, mlps=not config.attn_only, embeddings=config.embeddings
        )

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.n_positions

    @property
    def dtype(self) -> Any:
        return self.token_embedding.dtype

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """What `input` writes, the token and its position (except in a shortformer); or two senders, one for each."""
        token = self.token_embedding[tokens]
        if self.position_embedding is None:
            return token[None]
        position = self.position_embedding[: tokens.shape[0]]
        return jnp.stack([token, position]) if len(self.config.embeddings) == 2 else (token + position)[None]

    def read(
        self, port: str, layer: Layer, index: Index | None, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "*receiver at features"]:
        """A head's queries, keys or values (None: those of all); what an MLP writes."""
        if port == "m":
            assert self.blocks.mlp is not None
            return parts.of_layer(self.blocks.mlp, layer)(normed(parts.of_layer(self.blocks.mlp_norm, layer), x))
        attention = self.blocks.attention
        x = normed(parts.of_layer(self.blocks.attention_norm, layer), x)
        if attention.positions is not None and port != "v":
            x = backward.now().bias(x, jnp.broadcast_to(attention.positions[layer, at], x.shape))
        weight, bias = attention.projection(port)
        of = layer if index is None else (layer, index)
        return parts.affine(x, weight[of], bias[of])

    def write(
        self, kind: str, layer: Layer, index: Index, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*head at width"]:
        """What a head or an MLP writes."""
        if kind == "mlp":
            return ys[0]
        return self._mixed(layer, ys, at) @ self.blocks.attention.output[layer, index]

    def read_all(
        self, port: Port, layer: Layer, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "receiver at features"]:
        """What all receivers of a port compute: queries, keys or values in one product."""
        if port.name == "m" or port.count != self.blocks.attention.query.shape[1]:
            return super().read_all(port, layer, x, at)
        return self.read(port.name, layer, None, x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """What each of the nodes writes, and the sum, which of heads is one product."""
        output = self.blocks.attention.output
        if nodes.kind == "mlp" or nodes.count != output.shape[1]:
            return super().write_all(nodes, layer, ys, at)
        return parts.rows_and_sum(self._mixed(layer, ys, at), output[layer])

    def constant(self, layer: Layer, moment: int) -> Float[Array, " width"] | None:
        """The bias of the attention's output."""
        return self.blocks.attention.output_bias[layer] if moment == 0 else None

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions vocab"]:
        """Logits of the value that the receiver `logits` reads: of all tokens, or of those in `columns` alone."""
        weight = self.token_embedding if self.unembedding is None else self.unembedding
        bias = self.unembedding_bias
        if columns is not None:
            weight, bias = weight[columns], None if bias is None else bias[columns]
        with self.computing():
            logits = normed(self.final_norm, residual) @ weight.T
            return logits if bias is None else backward.now().bias(logits, jnp.broadcast_to(bias, logits.shape))

    @property
    def is_causal(self) -> bool:
        return self.config.causal

    @property
    def has_patterns(self) -> bool:
        return True

    @property
    def has_parts(self) -> bool:
        return True

    def pattern(self, layer: Layer, index: Index, ys: tuple[Array, ...]) -> Float[Array, "position position"]:
        """How much each position reads of each one that it sees."""
        return self._pattern(layer, ys, jnp.arange(ys[0].shape[-2], dtype=jnp.int32))

    def _mixed(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "*head at key"]:
        ys = backward.now().inputs(ys)
        return self._pattern(layer, ys, at) @ ys[2]

    def _pattern(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "*head at position"]:
        scale = jnp.asarray(self.config.attention_scales, self.dtype)[layer]
        return parts.attention_pattern(ys[0] @ ys[1].mT * scale, at, causal=self.config.causal)
