"""OLMo 2: norms after attention and MLP, and of all queries and all keys of a layer together.

Heads meet in these norms, so they are joint: a query or key is what one head or group projects, its norm and its turn
belong to what the heads write. What a head writes is its share of the normed sum, under the run's own scale.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from . import backward, parts
from .architecture import Index, Layer, Positions
from .decoder import Block, DecoderConfig, Draw, JointDecoder
from .parts import RMSNorm, inverse_rms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    """Sizes and choices of an OLMo 2. Raises ValueError for an unsupported value."""

    vocab_size: int = 50304
    rms_norm_eps: float = 1e-5


class Olmo2(JointDecoder):
    """An OLMo 2 on one prompt."""

    config: Olmo2Config = eqx.field(static=True)

    @classmethod
    def random(cls, config: Olmo2Config, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32) -> "Olmo2":
        """Weights drawn as before training."""
        draw, layers, width = Draw(config, key, dtype), config.num_hidden_layers, config.hidden_size
        norms = (draw.rms_norm(layers, n, config.head_width) for n in (config.num_attention_heads, config.num_groups))
        query_norm, key_norm = norms
        return cls(
            token_embedding=draw.embedding(),
            blocks=Block(
                dataclasses.replace(draw.attention(), query_norm=query_norm, key_norm=key_norm),
                draw.gated_mlp(),
                attention_post_norm=draw.rms_norm(layers, width),
                mlp_post_norm=draw.rms_norm(layers, width),
            ),
            final_norm=draw.rms_norm(width),
            unembedding=draw.unembedding(),
            config=config,
        )

    def read(
        self, port: str, layer: Layer, index: Index | None, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "*receiver at features"]:
        """A head's queries, a group's keys or values (None: those of all), before norms; what an MLP writes."""
        block = parts.of_layer(self.blocks, layer)
        if port == "m":
            return parts.normed(block.mlp_post_norm, block.mlp(x))
        return block.attention.project(port, index, x)

    def attention(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "head at position"]:
        """How much the positions `at` read of each, in all heads."""
        norms, everywhere = self.blocks.attention, jnp.arange(ys[1].shape[1], dtype=jnp.int32)
        turned = tuple(
            self.config.rotation(layer, _normed(parts.of_layer(norm, layer), y), at)
            for norm, y, at in ((norms.query_norm, ys[0], at), (norms.key_norm, ys[1], everywhere))
        )
        return super().attention(layer, turned, at)


def _normed(norm: RMSNorm, ys: Float[Array, "head position key"]) -> Float[Array, "head position key"]:
    """Queries or keys of all heads after one norm of all; heads of a group have equal keys, so these count alike."""
    total = backward.now().whole(ys)
    scale = backward.now().scale(inverse_rms(total, norm.epsilon, (0, 2)))
    return ys * scale * jnp.repeat(norm.weight, len(ys) // len(norm.weight), axis=0)[:, None]
