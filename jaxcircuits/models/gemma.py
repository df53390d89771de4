"""Gemma 2 and 3: norms before and after attention and MLP, soft caps, and windows in some layers.

Heads meet in the norm after attention, so they are joint: what a head writes is its share of the normed sum, under the
run's own scale. In a Gemma 3 queries and keys have norms, and layers with a window turn them by other frequencies.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from ..types import Tokens
from . import backward, parts
from .architecture import Index, Layer, Positions
from .decoder import FULL, SLIDING, Block, DecoderConfig, Draw, JointDecoder
from .rotary import Rotation, rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    """Sizes and choices of a Gemma 2: every other layer, the first included, has a window."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: int = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @property
    def activation(self) -> str:
        return self.hidden_activation

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each layer: FULL or SLIDING."""
        return self.layer_types or tuple(FULL if layer % 2 else SLIDING for layer in range(self.num_hidden_layers))

    @property
    def windows(self) -> tuple[int, ...] | None:
        return self.windows_of(self.kinds, self.sliding_window)

    @property
    def has_query_norm(self) -> bool:
        """Whether queries and keys have norms of their own."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """Sizes and choices of a Gemma 3 for text: all layers but every sixth have a window."""

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4
    sliding_window_pattern: int = 6
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        every, layers = self.sliding_window_pattern, self.num_hidden_layers
        return self.layer_types or tuple(FULL if (layer + 1) % every == 0 else SLIDING for layer in range(layers))

    @property
    def rotation(self) -> Rotation:
        near = rotation(self.num_hidden_layers, self.rotary_width, self.rope_local_base_freq)
        is_near = np.array([kind == SLIDING for kind in self.kinds])
        (slow, sharp), far = near, super().rotation
        return Rotation(np.where(is_near[:, None], slow, far.frequencies), np.where(is_near, sharp, far.scales))

    @property
    def has_query_norm(self) -> bool:
        return True


class Gemma(JointDecoder):
    """A Gemma on one prompt."""

    config: Gemma2Config = eqx.field(static=True)

    @classmethod
    def random(cls, config: Gemma2Config, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "Gemma":
        """Weights drawn as before training."""
        draw, layers, width = Draw(config, key, dtype), config.num_hidden_layers, config.hidden_size
        attention = draw.attention()
        if config.has_query_norm:
            norms = [draw.rms_norm(layers, config.head_width, offset=1.0) for _ in "qk"]
            attention = dataclasses.replace(attention, query_norm=norms[0], key_norm=norms[1])
        return cls(
            token_embedding=draw.embedding(),
            blocks=Block(attention, draw.gated_mlp(), *(draw.rms_norm(layers, width, offset=1.0) for _ in range(4))),
            final_norm=draw.rms_norm(width, offset=1.0),
            unembedding=draw.unembedding(),
            config=config,
        )

    def embeddings(self, tokens: Tokens) -> Float[Array, "1 position width"]:
        """What `input` writes: the token, at the scale of the stream."""
        return super().embeddings(tokens) * self.config.hidden_size**0.5

    def read(
        self, port: str, layer: Layer, index: Index | None, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "*receiver at features"]:
        """A head's queries, a group's keys or values (None: those of all); what an MLP writes."""
        y = super().read(port, layer, index, x, at)
        return parts.normed(parts.of_layer(self.blocks.mlp_post_norm, layer), y) if port == "m" else y

    def attention(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "head at position"]:
        """How much the positions `at` read of each, in all heads."""
        scale, cap = self.config.query_pre_attn_scalar**-0.5, self.config.attn_logit_softcapping
        return self.scores_to_pattern(layer, parts.capped(ys[0] @ ys[1].mT * scale, cap), at)

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions vocab"]:
        """Logits of the value that the receiver `logits` reads: of all tokens, or of those in `columns` alone."""
        logits, cap = super().unembed(residual, columns), self.config.final_logit_softcapping
        with self.computing():
            return backward.now().cap(lambda x: parts.capped(x, cap), logits)
