"""Llama 2 and 3, SmolLM2, Mistral, Qwen2 and Qwen3.

Heads read through RMS norms and turn with their positions; their keys and values may be shared by groups of heads.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from .. import layout
from ..layout import Layout
from .decoder import FULL, SLIDING, Block, Decoder, DecoderConfig, Draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Sizes and choices of a Llama. Raises ValueError for an unsupported value."""

    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether there are some of queries, keys and values; of the heads' output; in the MLP."""
        return self.attention_bias, self.attention_bias, self.mlp_bias

    @property
    def has_query_norm(self) -> bool:
        """Whether queries and keys have norms of their own."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """Sizes and choices of a Mistral: every layer has the window."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    @property
    def windows(self) -> tuple[int, ...] | None:
        return None if self.sliding_window is None else (self.sliding_window,) * self.num_hidden_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """Sizes and choices of a Qwen2: queries, keys and values have biases; late layers may have a window."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    MAY_BE_0: ClassVar[tuple[str, ...]] = ("max_window_layers",)
    layer_types: tuple[str, ...] | None = None

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return True, False, False

    @property
    def windows(self) -> tuple[int, ...] | None:
        window = self.sliding_window if self.use_sliding_window else None
        late = FULL if window is None else SLIDING
        first, layers = min(self.max_window_layers, self.num_hidden_layers), self.num_hidden_layers
        kinds = self.layer_types or (FULL,) * first + (late,) * (layers - first)
        return self.windows_of(kinds, window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Sizes and choices of a Qwen3: queries and keys have norms."""

    head_dim: int | None = 128

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        return self.attention_bias, self.attention_bias, False

    @property
    def has_query_norm(self) -> bool:
        return True


class Llama(Decoder):
    """A Llama on one prompt."""

    config: LlamaConfig = eqx.field(static=True)

    @classmethod
    def random(cls, config: LlamaConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "Llama":
        """Weights drawn as before training."""
        draw, layers, width = Draw(config, key, dtype), config.num_hidden_layers, config.hidden_size
        bias, output_bias, mlp_bias = config.biases
        attention = draw.attention(bias=bias, output_bias=output_bias)
        if config.has_query_norm:
            norms = [draw.rms_norm(layers, config.head_width) for _ in "qk"]
            attention = dataclasses.replace(attention, query_norm=norms[0], key_norm=norms[1])
        return cls(
            token_embedding=draw.embedding(),
            blocks=Block(
                attention,
                draw.gated_mlp(bias=mlp_bias),
                attention_norm=draw.rms_norm(layers, width),
                mlp_norm=draw.rms_norm(layers, width),
            ),
            final_norm=draw.rms_norm(width),
            unembedding=draw.unembedding(),
            config=config,
        )

    @property
    def layout(self) -> Layout:
        config = self.config
        return layout.transformer(config.num_hidden_layers, config.num_attention_heads, config.num_groups)
