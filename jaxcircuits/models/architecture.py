"""What an architecture says: what each receiver makes of what it reads, and what each node writes.

An architecture is one class with a `layout` and five functions of ONE prompt (`jax.vmap` goes outside):

- `embeddings(tokens)`: what the senders before the first layer write.
- `read(port, layer, index, x, at)`: what a receiver computes of what it reads, `x`, at the positions `at`.
- `write(kind, layer, index, ys, at)`: what a node writes at the positions `at`, from what its receivers computed.
- `constant(layer, moment)`: what is added to the stream after a moment and belongs to no node (output biases).
- `unembed(x, columns)`: what `logits` reads to logits.

Layers and indices are traced: weights are stacked over layers, and one compiled body serves all of them. Runs of all
units call `read_all` and `write_all`, which are `read` and `write` under `jax.vmap` unless an architecture has them in
fewer and larger products, as GPT2 and Decoder have. Both must give what `read` and `write` give: a subclass of these
that changes what `write` gives changes `write_all` too, and its `read` is also called with index None, for all
receivers. `model.py` has what is derived: a model is a subclass of its `AbstractModel`.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..layout import Layout, Nodes, Port
from ..types import Tokens

Layer = Int[Array, ""]
Index = Int[Array, ""]
Indices = Int[Array, "*node"]
Positions = Int[Array, " at"]


class AbstractArchitecture(eqx.Module):
    """What every model says of itself; `AbstractModel` adds what is derived, and is what architectures subclass."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Its units."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Different tokens."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Tokens in the longest prompt."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """Of weights and activations."""

    @abstractmethod
    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """What the senders `layout.embeddings` write."""

    @abstractmethod
    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at *features"]:
        """What one receiver computes of what it reads at the positions `at`."""

    @abstractmethod
    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Float[Array, "..."], ...], at: Positions
    ) -> Float[Array, "*node at width"]:
        """What one node writes at the positions `at`; of joint nodes, what all of them write.

        - `ys`: what its receivers computed, in the order of the layout: [at, ...] of local ports, [position, ...] of
          others. Of joint nodes they have a leading axis, the node, and `index` is that of every node.
        """

    def read_all(
        self, port: Port, layer: Layer, x: Float[Array, "*receiver at width"], at: Positions
    ) -> Float[Array, "receiver at *features"]:
        """What all receivers of a port compute, of the same `x` or of one each."""
        run = partial(self._read, port.name, layer, at)
        return jax.vmap(run, (0, None if x.ndim == 2 else 0))(jnp.arange(port.count, dtype=jnp.int32), x)

    def _read(self, port: str, layer: Layer, at: Positions, index: Index, x: Array) -> Array:
        return self.read(port, layer, index, x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Float[Array, "node ..."], ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """What each of the nodes writes, before it is divided over spans, and the sum.

        Compiled, the one that is not used is not computed.
        """
        numbers = jnp.arange(nodes.count, dtype=jnp.int32)
        run = partial(self._write, nodes.kind, layer, at)
        rows = run(numbers, ys) if nodes.is_joint else jax.vmap(run)(numbers, ys)
        return rows, rows.sum(0)

    def _write(self, kind: str, layer: Layer, at: Positions, index: Indices, ys: tuple[Array, ...]) -> Array:
        return self.write(kind, layer, index, ys, at)

    @abstractmethod
    def constant(self, layer: Layer, moment: int) -> Float[Array, " width"] | None:
        """What belongs to no node and is added after a moment; None: nothing."""

    @abstractmethod
    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions output"]:
        """Logits of the value that the receiver `logits` reads: all of them, or those in `columns` alone."""

    @property
    def units_name(self) -> str:
        """What its nodes are, in the words of `with_units`: "split", as the architecture says."""
        return "split"

    @property
    def spans_text(self) -> str | None:
        """The spans of positions that its nodes are divided over, as "0:4,4:8"; None: they are not."""
        return None

    @property
    def span_names(self) -> tuple[str, ...]:
        """The spans among them that lie elsewhere in each prompt."""
        return ()

    @property
    def has_slopes(self) -> bool:
        """Whether outputs have gradients: steps have none."""
        return True

    @property
    def is_causal(self) -> bool:
        """Whether no position reads later ones, so that neither padding nor what follows a scored one changes it."""
        return False

    @property
    def has_patterns(self) -> bool:
        """Whether its heads are attention whose pattern `pattern` tells."""
        return False

    @property
    def has_parts(self) -> bool:
        """Whether what it computes can be followed part by part: its operations have the rules of `contextual.py`."""
        return False

    def pattern(
        self, layer: Layer, index: Indices, ys: tuple[Float[Array, "..."], ...]
    ) -> Float[Array, "*node position position"]:
        """How much each position reads of each earlier one, in one head whose receivers computed `ys`.

        Of joint heads `ys` and patterns have a leading axis, as in `write`.
        """
        raise ValueError(f"{type(self).__name__} has no attention patterns")
