"""What decoders with rotary positions have in common; each family's own file has what its units compute."""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from .. import layout
from ..layout import Layout, Nodes, Port, Stack
from ..types import Tokens
from . import backward, parts
from .architecture import Index, Indices, Layer, Positions
from .model import AbstractModel
from .parts import MLP, Attention, GatedMLP, Norm, RMSNorm
from .rotary import RopeScaling, Rotation, rotation

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and choices of a decoder, named as in a Hugging Face `config.json`; defaults as of that family's.

    Raises ValueError for values that are not supported or do not fit together.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    MAY_BE_0: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_0 = field.name in self.MAY_BE_0
            if type(value) is int and value < 1 - may_be_0:
                expected = "0 or more" if may_be_0 else "a positive whole number"
                raise ValueError(f"config: {field.name} must be {expected}, got {value}")
            if field.name.startswith(("rms_norm_eps", "layer_norm_eps", "rope_")) and isinstance(value, int | float):
                if not 0 < value < math.inf:
                    raise ValueError(f"config: {field.name} must be a finite number above 0, got {value}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: hidden_size {self.hidden_size} must be a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_groups:
            raise ValueError(
                f"config: num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_groups}"
            )
        if self.rotary_width % 2 or not self.rotary_width:
            raise ValueError(f"config: entries of a query turn in pairs, got {self.rotary_width} that turn")
        if self.activation not in parts.ACTIVATIONS:
            raise ValueError(
                f"config: activation {self.activation!r} is not supported; "
                f"expected one of {', '.join(sorted(parts.ACTIVATIONS))}"
            )
        _ = self.windows  # which refuses layers and windows that do not fit

    @property
    def activation(self) -> str:
        return self.hidden_act

    @property
    def head_width(self) -> int:
        """Entries of a query."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def num_groups(self) -> int:
        """Keys, and values, of a layer."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def rotary_width(self) -> int:
        """Entries of a query that turn with its position."""
        return self.head_width

    @property
    def rotation(self) -> Rotation:
        return rotation(
            self.num_hidden_layers, self.rotary_width, self.rope_theta, self.rope_scaling, self.max_position_embeddings
        )

    @property
    def windows(self) -> tuple[int, ...] | None:
        """How many positions, the last, a query of each layer sees; None: all."""
        return None

    def windows_of(self, kinds: tuple[str, ...], window: int | None) -> tuple[int, ...] | None:
        """`windows` of layers that are each FULL or SLIDING. Raises ValueError for others, and for no window."""
        if len(kinds) != self.num_hidden_layers or not set(kinds) <= {FULL, SLIDING}:
            raise ValueError(
                f"config: layer_types: expected {self.num_hidden_layers} of {FULL} and {SLIDING}, got {list(kinds)}"
            )
        if SLIDING not in kinds:
            return None
        if window is None:
            raise ValueError(f"config: layer_types has {SLIDING}, which needs a sliding_window, got None")
        return tuple(window if kind == SLIDING else self.max_position_embeddings for kind in kinds)


class Block(eqx.Module):
    """The layers' parameters, stacked: of norms before attention and MLP, after them, or both."""

    attention: Attention
    mlp: GatedMLP | MLP
    attention_norm: Norm | None = None
    mlp_norm: Norm | None = None
    attention_post_norm: RMSNorm | None = None
    mlp_post_norm: RMSNorm | None = None


class Decoder(AbstractModel):
    """A decoder on one prompt, with norms before attention and MLP alone."""

    token_embedding: Float[Array, "vocab width"]
    blocks: Block
    final_norm: Norm
    unembedding: Float[Array, "vocab width"] | None
    config: Any = eqx.field(static=True)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.max_position_embeddings

    @property
    def dtype(self) -> Any:
        return self.token_embedding.dtype

    @property
    def is_causal(self) -> bool:
        return True

    @property
    def has_patterns(self) -> bool:
        return True

    @property
    def has_parts(self) -> bool:
        return True

    def pattern(self, layer: Layer, index: Indices, ys: tuple[Array, ...]) -> Float[Array, "*head position position"]:
        """How much each position reads of each one that it sees."""
        return self.attention(layer, ys, jnp.arange(ys[0].shape[-2], dtype=jnp.int32))

    def embeddings(self, tokens: Tokens) -> Float[Array, "1 position width"]:
        """What `input` writes: the token."""
        return self.token_embedding[tokens][None]

    def constant(self, layer: Layer, moment: int) -> Float[Array, " width"] | None:
        """The bias of the attention's output, if it has one."""
        bias = self.blocks.attention.output_bias
        return None if bias is None or moment else bias[layer]

    def read(
        self, port: str, layer: Layer, index: Index | None, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "*receiver at features"]:
        """A head's queries, a group's keys or values (None: those of all); what an MLP writes."""
        block = parts.of_layer(self.blocks, layer)
        if port == "m":
            return block.mlp(parts.normed(block.mlp_norm, x))
        y = block.attention.project(port, index, parts.normed(block.attention_norm, x))
        return y if port == "v" else self.config.rotation(layer, block.attention.normed(port, y), at)

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*head at width"]:
        """What a head or an MLP writes."""
        if kind == "mlp":
            return ys[0]
        return self._mixed(layer, ys, at) @ self.blocks.attention.output[layer, index]

    def read_all(
        self, port: Port, layer: Layer, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "receiver at *features"]:
        """What all receivers of a port compute: queries, keys or values in one product."""
        if not self.blocks.attention.has_all(port.name, port.count):
            return super().read_all(port, layer, x, at)
        return self.read(port.name, layer, None, x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """What each of the nodes writes, and the sum, which of heads is one product."""
        if not self.blocks.attention.has_all(nodes.kind, nodes.count):
            return super().write_all(nodes, layer, ys, at)
        return parts.rows_and_sum(self._mixed(layer, ys, at), self.blocks.attention.output[layer])

    def _mixed(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "*head at key"]:
        """The values that a head reads, or each of all heads."""
        ys = backward.now().inputs(ys)
        return self.attention(layer, ys, at) @ ys[2]

    def attention(self, layer: Layer, ys: tuple[Array, ...], at: Positions) -> Float[Array, "*head at position"]:
        """How much the positions `at` read of each."""
        return self.scores_to_pattern(layer, ys[0] @ ys[1].mT / self.config.head_width**0.5, at)

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions vocab"]:
        """Logits of the value that the receiver `logits` reads: of all tokens, or of those in `columns` alone."""
        weight = self.token_embedding if self.unembedding is None else self.unembedding
        with self.computing():
            return parts.normed(self.final_norm, residual) @ (weight if columns is None else weight[columns]).T

    def scores_to_pattern(self, layer: Layer, scores: Float[Array, "*head at position"], at: Positions) -> Array:
        """Causal attention, in the layer's window if it has one."""
        windows = self.config.windows
        window = None if windows is None else jnp.asarray(windows, at.dtype)[layer]
        return parts.attention_pattern(scores, at, window=window)


class JointDecoder(Decoder):
    """A decoder with norms after attention and MLP too: heads meet in the first, what one writes is its share of it."""

    @property
    def layout(self) -> Layout:
        heads = layout.heads(self.config.num_attention_heads, self.config.num_groups, is_joint=True)
        return Layout(("input",), (Stack(self.config.num_hidden_layers, (heads, layout.mlp())),))

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*head at width"]:
        """What all heads of a layer write; what an MLP writes."""
        if kind == "mlp":
            return ys[0]
        output = self.blocks.attention.output
        own = output[layer] if len(index) == output.shape[1] else output[layer, index]
        return parts.of_layer(self.blocks.attention_post_norm, layer).shares(self._mixed(layer, ys, at) @ own)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """What each of the nodes writes, and the sum, which of heads is the norm of what they would add without it."""
        rows, total = super().write_all(nodes, layer, ys, at)
        if not self.blocks.attention.has_all(nodes.kind, nodes.count):
            return rows, total
        norm = parts.of_layer(self.blocks.attention_post_norm, layer)
        return norm.shares(rows), parts.normed(norm, total)


class Draw:
    """Weights before training: N(0, 0.02), biases of zeros, norms of ones; `n`: layers that they are stacked over."""

    def __init__(self, config: DecoderConfig, key: PRNGKeyArray, dtype: DTypeLike):
        self.config, self.key, self.dtype = config, key, dtype

    def __call__(self, *shape: int) -> Array:
        self.key, own = jax.random.split(self.key)
        return 0.02 * jax.random.normal(own, shape, self.dtype)

    def zeros(self, *shape: int) -> Array:
        return jnp.zeros(shape, self.dtype)

    def rms_norm(self, *shape: int, offset: float = 0.0) -> RMSNorm:
        return RMSNorm(jnp.full(shape, 1 - offset, self.dtype), self.config.rms_norm_eps, offset)  # type: ignore[attr-defined]

    def attention(self, *, bias: bool = False, output_bias: bool = False) -> Attention:
        """Projections without norms."""
        sizes = self.config
        layers, width, key = sizes.num_hidden_layers, sizes.hidden_size, sizes.head_width
        counts = sizes.num_attention_heads, sizes.num_groups, sizes.num_groups
        query, keys, value = (self(layers, count, width, key) for count in counts)
        of_query, of_key, of_value = (self.zeros(layers, count, key) if bias else None for count in counts)
        last = self.zeros(layers, width) if output_bias else None
        return Attention(query, keys, value, self(layers, counts[0], key, width), of_query, of_key, of_value, last)

    def gated_mlp(self, *, bias: bool = False) -> GatedMLP:
        layers, width, neurons = self.config.num_hidden_layers, self.config.hidden_size, self.config.intermediate_size
        gate, up, down = self(layers, width, neurons), self(layers, width, neurons), self(layers, neurons, width)
        of_gate, of_up, of_down = (self.zeros(layers, size) if bias else None for size in (neurons, neurons, width))
        return GatedMLP(gate, up, down, of_gate, of_up, of_down, self.config.activation)

    def embedding(self) -> Array:
        return self(self.config.vocab_size, self.config.hidden_size)

    def unembedding(self) -> Array | None:
        return None if self.config.tie_word_embeddings else self.embedding()
