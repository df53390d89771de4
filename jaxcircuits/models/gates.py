"""Networks of perceptron units in layers, as logic gates: a graph whose edges are single connections.

A unit is a node with one input. In the words of a residual stream: every unit has its own direction, and a sender of
value z writes `z w_r` along that of each unit r of the next layer, so what r reads is

    x_r = b_r + sum_s [ mask_sr z_s + (1 - mask_sr) ref_s ] w_sr,        z_r = step(x_r) or relu(x_r),

and removing the edge s->r cuts one connection. The units of the last layer also write to a direction of their own,
which `logits` reads. A prompt is one token, whose binary digits are the network's inputs, the first the lowest.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import layout
from ..arguments import checked
from ..layout import Layout
from ..types import Tokens
from .architecture import Index, Layer, Positions
from .model import AbstractModel

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "step": lambda x: (x > 0).astype(x.dtype),
    "relu": jax.nn.relu,
}

Numbers = Sequence[float | int]


class Gates(AbstractModel):
    """A network of units on one prompt; its logits are the values of the last layer.

    - `weights`: what a sender of value 1 writes: along each unit's direction, then along each output's.
    """

    weights: Float[Array, "sender width"]
    biases: Float[Array, " unit"]
    units: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        layers: Sequence[Sequence[str]],
        weights: Sequence[Sequence[Numbers]],
        biases: Sequence[Numbers],
        *,
        activation: str = "step",
    ) -> "Gates":
        """A network from its layers.

        - `layers`: names of the inputs and of each layer's units. `weights[l]`: [below, unit]. `biases[l]`: [unit].
        - `activation`: "step" (1 above 0) or "relu".

        Raises ValueError for sizes that do not fit together, and another activation.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected {' or '.join(ACTIVATIONS)}, got {activation!r}")
        units = tuple(tuple(layer) for layer in layers)
        layout.of_units(units)
        sizes = [len(layer) for layer in units]
        wanted = list(zip(sizes[:-1], sizes[1:], strict=True))
        if [np.shape(weight) for weight in weights] != wanted or [np.shape(bias) for bias in biases] != [
            (size,) for size in sizes[1:]
        ]:
            raise ValueError(f"weights: expected shapes {wanted} and as many biases as units, of layers {sizes}")
        matrix = np.zeros((sum(sizes), sum(sizes[1:]) + sizes[-1]), np.float32)
        row = column = 0
        for weight in (*weights, np.eye(sizes[-1])):
            below, above = np.shape(weight)
            matrix[row : row + below, column : column + above] = weight
            row, column = row + below, column + above
        return cls(jnp.asarray(matrix), jnp.asarray(np.concatenate(biases), jnp.float32), units, activation)

    @property
    def layout(self) -> Layout:
        return layout.of_units(self.units)

    @property
    def vocab_size(self) -> int:
        """Different inputs."""
        return 2 ** len(self.units[0])

    @property
    def max_positions(self) -> int:
        return 1

    @property
    def has_slopes(self) -> bool:
        """Whether outputs have gradients: steps have none."""
        return self.activation != "step"

    @property
    def tokenizer(self) -> "Digits":
        """What writes a prompt as its inputs."""
        return Digits(len(self.units[0]))

    @property
    def dtype(self) -> Any:
        return self.weights.dtype

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """What the inputs write: the binary digits of the token."""
        count = len(self.units[0])
        bits = jnp.right_shift(tokens[None], jnp.arange(count, dtype=tokens.dtype)[:, None]) & 1
        return bits.astype(self.dtype)[..., None] * self._written[:count, None]

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at"]:
        """A unit's value, from what is written along its direction."""
        unit = self._first(layer) + index
        return ACTIVATIONS[self.activation](x[:, unit] + self.biases[unit][None])

    def write(
        self, kind: str, layer: Layer, index: Index, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "at width"]:
        """The unit's value, along the directions of those that read it."""
        return ys[0][:, None] * self._written[len(self.units[0]) + self._first(layer) + index][None]

    def constant(self, layer: Int[Array, ""], moment: int) -> None:
        """Nothing."""

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions output"]:
        """The outputs in what `logits` reads: all, or those in `columns`."""
        outputs = residual[..., -len(self.units[-1]) :]
        return outputs if columns is None else outputs[..., columns]

    @property
    def _written(self) -> Float[Array, "sender width"]:
        """The weights of connections alone: a unit is read by those of the next layer, the last ones as outputs."""
        graph, last = self.graph, len(self.units[-1])
        ends = np.eye(len(graph.senders), dtype=bool)[:, -last:]
        return jnp.where(jnp.asarray(np.hstack([graph.valid[:, :-1], ends])), self.weights, 0)

    def _first(self, layer: Int[Array, ""]) -> Int[Array, ""]:
        """The number of a layer's first unit."""
        sizes = [len(units) for units in self.units[1:]]
        return jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32)[layer]


@dataclasses.dataclass(frozen=True)
class Digits:
    """The tokenizer of a network of units: a word is the binary digits of one token, those of the inputs in order.

    - `inputs`: how many digits a word has.
    """

    inputs: int
    unk_token: str = "?"

    def __len__(self) -> int:
        return 2**self.inputs

    @property
    def unk_token_id(self) -> int:
        """Of every other word; outside the model's vocabulary."""
        return len(self)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The token of each word: `"01"` is [2]."""
        return [
            int(word[::-1], 2) if len(word) == self.inputs and set(word) <= {"0", "1"} else self.unk_token_id
            for word in text.split()
        ]

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " word"]) -> str:
        """The words of tokens: [2] is `"01"`."""
        words = (f"{token:0{self.inputs}b}"[::-1] if 0 <= token < len(self) else self.unk_token for token in ids)
        return " ".join(words)


@checked
def gate(name: str) -> Gates:
    """A built-in network: "and", "or", "xor", "xor_relu", "majority" (of three), "adder" (of three digits: sum, carry).

    Raises ValueError for another name.
    """
    if name not in GATES:
        raise ValueError(f"unknown gate {name!r}: expected one of {', '.join(GATES)}")
    return GATES[name]()


TWO, THREE = ("x0", "x1"), ("x0", "x1", "x2")
COUNT = ("at_least_1", "at_least_2", "at_least_3")

GATES: dict[str, Callable[[], Gates]] = {
    "and": lambda: Gates.build([TWO, ["and"]], [[[1], [1]]], [[-1.5]]),
    "or": lambda: Gates.build([TWO, ["or"]], [[[1], [1]]], [[-0.5]]),
    "xor": lambda: Gates.build([TWO, ["or", "and"], ["xor"]], [[[1, 1], [1, 1]], [[1], [-1]]], [[-0.5, -1.5], [-0.5]]),
    "xor_relu": lambda: Gates.build(
        [TWO, ["sum", "both"], ["xor"]], [[[1, 1], [1, 1]], [[1], [-2]]], [[0, -1], [0]], activation="relu"
    ),
    "majority": lambda: Gates.build([THREE, ["majority"]], [[[1], [1], [1]]], [[-1.5]]),
    "adder": lambda: Gates.build(
        [THREE, COUNT, ["sum", "carry"]],
        [np.ones((3, 3)).tolist(), [[1, 0], [-1, 1], [1, 0]]],
        [[-0.5, -1.5, -2.5], [-0.5, -0.5]],
    ),
}
