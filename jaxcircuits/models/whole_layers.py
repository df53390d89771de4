"""Layers and blocks as units: nodes that are computed where they read, from the model's own `read` and `write`."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..layout import Layout, Moment, Nodes, Port, Stack
from . import runs
from .architecture import Index, Indices, Layer, Positions
from .model import AbstractModel
from .regrouped import Ports, Regrouped


class Layers(Regrouped):
    """All heads of a layer are one node, which is computed where it reads, as an MLP is."""

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        return _one("attention", ATTENTION) if nodes.kind == "head" else (ports, nodes)

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at *features"]:
        """What all heads write; what the model's receiver computes."""
        if port == "attention":
            return _written(self.model, self._nodes_of("head")[1], layer, x)
        return self.model.read(port, layer, index, x, at)

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*node at width"]:
        """What was computed."""
        return ys[0][at] if kind == "attention" else self.model.write(kind, layer, index, ys, at)

    @property
    def has_patterns(self) -> bool:
        return False


ATTENTION = "a{layer}"


class Blocks(Regrouped):
    """A layer is one node, which is computed where it reads. What belongs to no node inside of it belongs to none."""

    @property
    def layout(self) -> Layout:
        own = self.model.layout
        return Layout(own.embeddings, tuple(Stack(stack.layers, (self._block(stack.moments),)) for stack in own.stacks))

    def _block(self, moments: tuple[Moment, ...]) -> Moment:
        ports, nodes = _one("block", BLOCK, f"block{self._forms.index(moments) or ''}")
        return Moment(ports, (nodes,))

    @property
    def _forms(self) -> list[tuple[Moment, ...]]:
        """The different layers."""
        return list(dict.fromkeys(stack.moments for stack in self.model.layout.stacks))

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at width"]:
        """What all nodes of the layer write."""
        total = jnp.zeros_like(x)
        for number, moment in enumerate(self._forms[int(port.removeprefix("block") or 0)]):
            new = _written(self.model, moment, layer, x)
            total, x = total + new, runs.plus_constant(self.model, x + new, layer, number)
        return total

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "at width"]:
        """What was computed."""
        return ys[0][at]

    def constant(self, layer: Layer, moment: int) -> Float[Array, " width"] | None:
        """All of the layer's."""
        numbers = range(max(map(len, self._forms)))
        own = [constant for n in numbers if (constant := self.model.constant(layer, n)) is not None]
        return sum(own[1:], own[0]) if own else None

    @property
    def has_patterns(self) -> bool:
        return False


BLOCK = "b{layer}"


def _one(kind: str, name: str, port: str | None = None) -> tuple[Ports, Nodes]:
    """One node a layer, which is computed where it reads and needs what it reads at every position."""
    port = port or kind
    return (Port(port, 1, False, name),), Nodes(kind, 1, ((port, (0,)),), name)


def _written(model: AbstractModel, moment: Moment, layer: Layer, x: Float[Array, "position width"]) -> Array:
    """What all nodes of a moment that reads `x` write together."""
    return runs.written(model, moment, layer, runs.computed(model, moment, layer, x), runs.positions_of(x))[1]
