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

from ..graph import UnitGraph
from ..types import Mask, ReceiverValues, SenderValues, Tokens
from .gpt2_slopes import Held

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "step": lambda x: (x > 0).astype(x.dtype),
    "relu": jax.nn.relu,
}

Numbers = Sequence[float | int]


class Gates(eqx.Module):
    """A network of units on one prompt; its logits are the values of the last layer.

    - `weights`: what a sender of value 1 writes: along each unit's direction, then along each output's.
    """

    weights: Float[Array, "sender width"]
    biases: Float[Array, " unit"]
    graph: UnitGraph = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    precision: str = eqx.field(static=True, default="highest")

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
        graph = UnitGraph(tuple(tuple(layer) for layer in layers))
        sizes = [len(layer) for layer in graph.units]
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
        return cls(jnp.asarray(matrix), jnp.asarray(np.concatenate(biases), jnp.float32), graph, activation)

    @property
    def vocab_size(self) -> int:
        """Different inputs."""
        return 2 ** len(self.graph.embeddings)

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
        return Digits(len(self.graph.embeddings))

    @property
    def dtype(self) -> Any:
        return self.weights.dtype

    def __call__(
        self, tokens: Tokens, mask: Mask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position output"]:
        """The outputs: of the whole network, or of the circuit `mask`, whose absent edges carry `reference`."""
        return self.unembed(self.residual(tokens, mask, reference))

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions output"]:
        """The outputs in what `logits` reads: all, or those in `columns`."""
        outputs = residual[..., -len(self.graph.units[-1]) :]
        return outputs if columns is None else outputs[..., columns]

    def residual(
        self, tokens: Tokens, mask: Mask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position width"]:
        """What `logits` reads."""
        if mask is None:
            return self.masked_run(tokens, *self._whole())[0]
        if reference is None:
            raise ValueError("a mask needs reference values: what absent edges carry, [sender, position, width]")
        return self.masked_run(tokens, mask, reference)[0]

    def sender_values(self, tokens: Tokens) -> SenderValues:
        """What inputs and units of the clean run write."""
        return self.masked_run(tokens, *self._whole())[1]

    def receiver_slopes(
        self,
        tokens: Tokens,
        score: Callable[[Float[Array, "position width"]], Float[Array, ""]],
        held: Held | None = None,
    ) -> tuple[SenderValues, ReceiverValues]:
        """What inputs and units of the clean run write, and `d score(residual) / d(what each receiver reads)`."""
        mask, zeros = self._whole()

        def loss(offsets):
            residual, written = self.masked_run(tokens, mask, zeros, offsets, held)
            return score(residual), written

        offsets = jnp.zeros((mask.shape[1], *zeros.shape[1:]), self.dtype)
        slopes, written = jax.grad(loss, has_aux=True)(offsets)
        return written, slopes

    def masked_run(
        self,
        tokens: Tokens,
        mask: Mask,
        reference: SenderValues,
        offsets: ReceiverValues | None = None,
        held: Held | None = None,
    ) -> tuple[Float[Array, "position width"], SenderValues]:
        """What `logits` reads in the circuit, and what senders wrote minus the reference; as `GPT2.masked_run`.

        `held`: senders that write given constants, whatever they read.
        """
        sizes = [len(layer) for layer in self.graph.units]
        offsets = jnp.zeros((mask.shape[1], *reference.shape[1:]), self.dtype) if offsets is None else offsets
        bits = jnp.right_shift(tokens[0], jnp.arange(sizes[0], dtype=tokens.dtype)) & 1
        values, deltas, first, column = bits.astype(self.dtype), [], 0, 0
        for below, above in zip(sizes, [*sizes[1:], 0], strict=True):
            rows, columns = slice(first, first + below), slice(column, column + above)
            written = values[:, None] * self.weights[rows]
            if held is not None:
                written = jnp.where(held.which[rows, None], held.values[rows, 0], written)
            deltas.append(written - reference[rows, 0])
            if above:
                kept = jnp.einsum("sr,sr->r", mask[rows, columns], deltas[-1][:, columns])
                x = self.biases[columns] + reference[rows, 0, columns].sum(0) + kept
                x = x + jnp.diagonal(offsets[columns, 0, columns])
                values = ACTIVATIONS[self.activation](x)
            first, column = first + below, column + above
        last = slice(first - sizes[-1], first)
        residual = reference[last, 0].sum(0) + mask[last, -1] @ deltas[-1] + offsets[-1, 0]
        return residual[None], jnp.concatenate(deltas)[:, None]

    def _whole(self) -> tuple[Mask, SenderValues]:
        """All edges, zero as their reference."""
        senders, width = self.weights.shape
        return jnp.ones(self.graph.shape, self.dtype), jnp.zeros((senders, 1, width), self.dtype)


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
