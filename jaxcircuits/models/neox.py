"""GPT-NeoX and Pythia: heads and MLP read the same stream; a part of each query and key turns with its position."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from .. import layout
from ..layout import Layout, Stack
from .decoder import Block, Decoder, DecoderConfig, Draw
from .parts import MLP, LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeoXConfig(DecoderConfig):
    """Sizes and choices of a GPT-NeoX. Raises ValueError for an unsupported value.

    `rope_theta` and `partial_rotary_factor` are the `rotary_emb_base` and `rotary_pct` of a `config.json`.
    """

    vocab_size: int = 50432
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.25
    use_parallel_residual: bool = True
    attention_bias: bool = True

    @property
    def rotary_width(self) -> int:
        return int(self.head_width * self.partial_rotary_factor)


class NeoX(Decoder):
    """A GPT-NeoX on one prompt."""

    config: NeoXConfig = eqx.field(static=True)

    @classmethod
    def random(cls, config: NeoXConfig, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "NeoX":
        """Weights drawn as before training."""
        draw, layers, width = Draw(config, key, dtype), config.num_hidden_layers, config.hidden_size

        def norm(*shape: int) -> LayerNorm:
            return LayerNorm(jnp.ones(shape, dtype), draw.zeros(*shape), config.layer_norm_eps)

        neurons = config.intermediate_size
        w_in, w_out = draw(layers, width, neurons), draw(layers, neurons, width)
        return cls(
            token_embedding=draw.embedding(),
            blocks=Block(
                draw.attention(bias=config.attention_bias, output_bias=config.attention_bias),
                MLP(w_in, draw.zeros(layers, neurons), w_out, draw.zeros(layers, width), config.activation),
                attention_norm=norm(layers, width),
                mlp_norm=norm(layers, width),
            ),
            final_norm=norm(width),
            unembedding=draw.unembedding(),
            config=config,
        )

    @property
    def layout(self) -> Layout:
        moments = layout.heads(self.config.num_attention_heads), layout.mlp()
        if self.config.use_parallel_residual:
            moments = (layout.parallel(*moments),)
        return Layout(("input",), (Stack(self.config.num_hidden_layers, moments),))
