"""What a model is: what its architecture says (`architecture.py`), and what is derived from it for all of them.

The derived runs are in `runs.py`, `node_runs.py`, `slopes.py` and `displaced.py`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import equinox as eqx
from jaxtyping import Array, Float, Int

from ..graph import Graph
from ..layout import Layout
from ..precision import HIGHEST, check_precision, products
from ..types import NodeMask, PositionedMask, ReceiverValues, SenderValues, Tokens
from . import contextual, displaced, node_runs, runs, slopes
from .architecture import AbstractArchitecture
from .backward import BACKWARD, under

CONTEXTUAL = "contextual"
RULES = BACKWARD | {CONTEXTUAL: contextual.RULES}


class AbstractModel(AbstractArchitecture):
    """Any architecture. `precision`: of every product of matrices, see `precision.py`: "highest" is full float32 on any
    device, where JAX's own default would be bfloat16 (TPU) or TF32 (recent GPUs). `backward`: the rules of its
    backward pass, see `backward.py`.
    """

    precision: str = eqx.field(static=True, default=HIGHEST, kw_only=True)
    backward: str = eqx.field(static=True, default="plain", kw_only=True)

    def with_backward(self, name: str) -> "AbstractModel":
        """The same model with other rules of the backward pass. Raises ValueError for an unknown name."""
        if name not in BACKWARD:
            raise ValueError(f"backward: expected one of {', '.join(BACKWARD)}, got {name!r}")
        return self.by_rules(name)

    def by_rules(self, name: str) -> "AbstractModel":
        """The same model by rules of this name, those of `contextual.py` included."""
        return self.computed(backward=name)

    def with_precision(self, name: str) -> "AbstractModel":
        """The same model with other products, see `precision.py`. Raises ValueError for what the device has not."""
        check_precision(name, self.dtype)
        return self.computed(precision=name)

    def computed(self, **how: str) -> "AbstractModel":
        """The same model, computed in another way: by other rules, at another precision."""
        return dataclasses.replace(self, **how)

    def of_prompt(self, span_at: Int[Array, " position"] | None) -> "AbstractModel":
        """The model of one prompt, `span_at`: which of the spans `span_names` each position is in (None: no names)."""
        return self

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """How its functions compute: at its precision, by its rules."""
        with products(self.precision), under(RULES[self.backward]):
            yield

    @property
    def graph(self) -> Graph:
        return _graph_of(self.layout)

    def __call__(
        self, tokens: Tokens, mask: PositionedMask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position output"]:
        """Logits at every position.

        - `mask`: the circuit, [sender, receiver] or [sender, receiver, position]; None runs the whole model.
        - `reference`: what absent edges carry; needed with a mask.
        """
        return self.unembed(self.residual(tokens, mask, reference))

    def residual(
        self, tokens: Tokens, mask: PositionedMask | None = None, reference: SenderValues | None = None
    ) -> Float[Array, "position width"]:
        """The value that the receiver `logits` reads: of the whole model, or of the circuit `mask`."""
        if mask is None:
            with self.computing():
                return runs.residual(self, self.embeddings(tokens).sum(0))
        if reference is None:
            raise ValueError("a mask needs reference values: what absent edges carry, [sender, position, width]")
        return self.masked_run(tokens, mask, reference)[0]

    def residual_of(self, x: Float[Array, "position width"]) -> Float[Array, "position width"]:
        """The value that `logits` reads in the plain run whose embeddings sum to `x`."""
        with self.computing():
            return runs.residual(self, x)

    def masked_run(
        self,
        tokens: Tokens,
        mask: PositionedMask,
        reference: SenderValues,
        offsets: ReceiverValues | None = None,
        held: runs.Held | None = None,
    ) -> tuple[Float[Array, "position width"], SenderValues]:
        """The circuit's `residual`, and what its nodes wrote minus the reference (`delta`).

        `offsets` are added to what each receiver reads: their gradients give those of every edge,
        `df/dmask_sr = <delta_s, df/doffset_r>`. `held`: senders that write given constants.
        """
        with self.computing():
            return runs.masked(self, tokens, mask, reference, offsets, held)

    def recorded(self, tokens: Tokens) -> tuple[Float[Array, "moment position width"], SenderValues]:
        """`receiver_streams` and `sender_values` of one run."""
        with self.computing():
            return runs.recorded(self, tokens)

    def sender_values(self, tokens: Tokens) -> SenderValues:
        """What every node of the clean run writes to the residual stream, in the order of `graph.senders`."""
        return self.recorded(tokens)[1]

    def receiver_streams(self, tokens: Tokens) -> Float[Array, "moment position width"]:
        """What the receivers of every moment of the clean run read; last what `logits` reads."""
        return self.recorded(tokens)[0]

    def attention_patterns(self, tokens: Tokens) -> Float[Array, "layer head position position"]:
        """How much each position of the clean run reads of each earlier one, in every head."""
        with self.computing():
            return runs.patterns(self, tokens)

    def node_run(
        self, tokens: Tokens, node_mask: NodeMask, reference: node_runs.NodeValues | None = None
    ) -> Float[Array, "position width"]:
        """The value that `logits` reads when what every receiver computes is `z y + (1 - z) y_ref`.

        - `node_mask`: z of every query, key, value and MLP output, in the order of `graph.receivers` without `logits`.
        - `reference`: y_ref, as `node_values` gives it; None: zero, so that the mask multiplies.
        """
        with self.computing():
            return node_runs.node_run(self, tokens, node_mask, reference)

    def node_values(self, reference: SenderValues) -> node_runs.NodeValues:
        """What receivers compute when all that they read are `reference` values of the senders.

        From the senders' values of a run these are that run's.
        """
        with self.computing():
            return node_runs.node_values(self, reference)

    def receiver_slopes(
        self,
        tokens: Tokens,
        score: Callable[[Float[Array, "position width"]], Float[Array, ""]],
        held: runs.Held | None = None,
    ) -> tuple[SenderValues, ReceiverValues]:
        """What every node of the clean run writes, and the gradient of `score(residual)` at every receiver's input.

        `held`: senders that write given constants instead, which no gradient passes.
        """
        with self.computing():
            return slopes.receiver_slopes(self, tokens, score, held)

    def shares(
        self,
        tokens: Tokens,
        sources: tuple[Int[Array, " source"], Float[Array, "source position width"]],
        counted: Float[Array, " position"],
        scored: tuple[Int[Array, " scored"], Float[Array, " scored"]],
    ) -> Float[Array, "source receiver"]:
        """How much of what every receiver of the clean run computes is due to each source, see `contextual.py`.

        `sources`: senders, and what each wrote that is followed. `counted`, `scored`: weights of the positions where
        nodes read; those of logits, with their weights.
        """
        model = self.by_rules(CONTEXTUAL)
        with model.computing():
            targets = contextual.Targets(counted, *scored)
            return contextual.shares(model, tokens, contextual.Sources(*sources), targets)

    def place(self, receiver: int) -> displaced.Place:
        """Where a mask's column reads."""
        return displaced.place_of(self.graph, receiver)

    def displaced_residual(
        self,
        place: displaced.Place,
        streams: Float[Array, "moment position width"],
        written: SenderValues,
        offset: Float[Array, "position width"],
    ) -> Float[Array, "position width"]:
        """What `logits` reads in the clean run whose receiver at `place` reads `offset` more.

        - `streams`, `written`: of the clean run, as `receiver_streams` and `sender_values` give them.
        """
        with self.computing():
            return displaced.displaced_residual(self, place, streams, written, offset)

    def residual_from(
        self, x: Float[Array, "position width"], moment: Int[Array, ""]
    ) -> Float[Array, "position width"]:
        """What `logits` reads in the plain run that reads `x` at a (traced) moment."""
        with self.computing():
            return displaced.residual_from(self, x, moment)

    def change_effects(
        self,
        place: displaced.Place,
        x: Float[Array, "position width"],
        changes: Float[Array, "change position width"],
        slopes: Float[Array, "run position width"],
    ) -> Float[Array, "run change"]:
        """To first order in what is written, what each change of what the receiver at `place` reads does.

        - `x`: what it reads. `slopes`: gradients of several runs at what its node writes. The node is recomputed, not
          linearised.
        """
        with self.computing():
            return displaced.change_effects(self, place, x, changes, slopes)


@functools.lru_cache(maxsize=64)
def _graph_of(layout: Layout) -> Graph:
    return Graph(layout)
