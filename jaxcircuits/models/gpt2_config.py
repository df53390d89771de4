"""The sizes and choices of a GPT-2."""

import dataclasses
import math
from typing import ClassVar

from .parts import ACTIVATIONS

POSITIONAL = ("standard", "shortformer")


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes and choices of a GPT-2, named as in a Hugging Face `config.json`.

    Six fields are this library's: `attn_only` (blocks without MLPs), `layer_norm` (False: no norms at all), `causal`
    (False: every position reads all others), `n_key` (width of a head's queries; default `n_embd / n_head`),
    `positional` ("standard", or "shortformer": positions are added to queries' and keys' inputs) and
    `unembedding_bias`. Raises ValueError for an unsupported value.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    attn_only: bool = False
    layer_norm: bool = True
    causal: bool = True
    n_key: int | None = None
    positional: str = "standard"
    unembedding_bias: bool = False
    embeddings: ClassVar[tuple[str, ...]] = ("input",)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_key", "n_inner"):
            value = getattr(self, name)
            if (value is not None or name not in ("n_key", "n_inner")) and (not isinstance(value, int) or value < 1):
                raise ValueError(f"config: {name} must be a positive whole number, got {value!r}")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
            raise ValueError(f"config: layer_norm_epsilon must be a finite number above 0, got {epsilon!r}")
        if self.n_key is None and self.n_embd % self.n_head:
            raise ValueError(f"config: n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")
        if self.positional not in POSITIONAL:
            raise ValueError(f"config: positional must be one of {', '.join(POSITIONAL)}, got {self.positional!r}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"config: activation_function {self.activation_function!r} is not supported; "
                f"expected one of {', '.join(sorted(ACTIVATIONS))}"
            )

    @property
    def head_width(self) -> int:
        return self.n_key or self.n_embd // self.n_head

    @property
    def num_neurons(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def num_outputs(self) -> int:
        """Logits at a position."""
        return self.vocab_size

    @property
    def attention_scales(self) -> tuple[float, ...]:
        """What each layer multiplies its query-key products with."""
        scale = 1 / math.sqrt(self.head_width) if self.scale_attn_weights else 1.0
        return tuple(
            scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale for layer in range(self.n_layer)
        )
