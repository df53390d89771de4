"""Compiled transformers: RASP programs as weights, whose circuits are known (tracr, Lindner et al. 2023, 2301.05062).

They are GPT-2s without norms whose attention is bidirectional and whose MLPs are ReLU, so they share its masked
forward. What differs: tokens and positions are embedded by two senders, `tok` and `pos`, and there is no vocabulary at
the output: every basis direction of the residual stream has a name, and `unembedding` picks those of the output.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, cast

import equinox as eqx
import numpy as np

from .gpt2 import GPT2
from .gpt2_config import GPT2Config


@dataclasses.dataclass(frozen=True)
class TracrConfig(GPT2Config):
    """Sizes of a compiled transformer, and what its residual stream means.

    - `directions`: the name of each of the `n_embd` basis directions, e.g. "tokens:w".
    - `outputs`: those that hold the output. Several: the output is categorical, its value the largest of them.

    Raises ValueError for names that do not fit together.
    """

    activation_function: str = "relu"
    tie_word_embeddings: bool = False
    layer_norm: bool = False
    causal: bool = False
    directions: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    embeddings: ClassVar[tuple[str, ...]] = ("tok", "pos")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.directions) != self.n_embd:
            raise ValueError(f"config: directions: expected {self.n_embd} names (n_embd), got {len(self.directions)}")
        if not self.outputs or not set(self.outputs) <= set(self.directions):
            raise ValueError(f"config: outputs: expected some of the directions, got {list(self.outputs)}")

    @property
    def num_outputs(self) -> int:
        """Directions that hold the output."""
        return len(self.outputs)


class Tracr(GPT2):
    """A compiled transformer on one prompt; its logits are the residual stream along `config.outputs`."""


def permute_positions(model: GPT2, order: Sequence[int]) -> GPT2:
    """The model that takes position i for position `order[i]`; positions beyond `order` stay.

    As another model whose run is the reference (`Objective(model, pairs, reference=permuted)`) it destroys what a
    circuit knows of positions, which the corrupt prompts alone leave intact, as they have the same.

    Raises ValueError for what is no order of the first positions, and for a model without a position embedding.
    """
    if not isinstance(order, Sequence | np.ndarray):
        raise ValueError(f"order: expected a list of positions, got {order!r:.60}")
    if not 0 < len(order) <= model.max_positions or sorted(order) != list(range(len(order))):
        raise ValueError(f"order: expected 0..n-1 in another order, n up to {model.max_positions}, got {list(order)}")
    if (positions := model.position_embedding) is None:
        raise ValueError("permute_positions: this model has no position embedding that it could take elsewhere")
    table = positions.at[: len(order)].set(positions[np.array(order)])
    return cast(GPT2, eqx.tree_at(lambda model: model.position_embedding, model, table))
