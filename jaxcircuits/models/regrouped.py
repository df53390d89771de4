"""A model as other units: a layout, and what follows from the model's own `read` and `write`; heads otherwise."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..layout import Layout, Moment, Names, Nodes, Port, Stack
from ..types import Tokens
from .architecture import Index, Indices, Layer, Positions
from .model import AbstractModel

Ports = tuple[Port, ...]


class Regrouped(AbstractModel):
    """A model as other units than its architecture's.

    What a subclass does not say is the model's own, but `read_all` and `write_all`, which are by `read` and `write`.
    """

    model: AbstractModel
    chosen: str = eqx.field(static=True)

    @property
    def units_name(self) -> str:
        return self.chosen

    def computed(self, **how: str) -> AbstractModel:
        """Of the model within, too."""
        return dataclasses.replace(self, model=self.model.computed(**how), **how)

    @property
    def layout(self) -> Layout:
        return changed(self.model.layout, self._group)

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        """Of a group of nodes and the ports that they read through: what they are as these units."""
        return ports, nodes

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def max_positions(self) -> int:
        return self.model.max_positions

    @property
    def dtype(self) -> Any:
        return self.model.dtype

    @property
    def has_slopes(self) -> bool:
        return self.model.has_slopes

    @property
    def is_causal(self) -> bool:
        return self.model.is_causal

    def embeddings(self, tokens: Tokens) -> Float[Array, "embedding position width"]:
        """The model's own."""
        return self.model.embeddings(tokens)

    def constant(self, layer: Layer, moment: int) -> Float[Array, " width"] | None:
        """The model's own."""
        return self.model.constant(layer, moment)

    def unembed(
        self, residual: Float[Array, "*positions width"], columns: Int[Array, " vocab"] | None = None
    ) -> Float[Array, "*positions output"]:
        """The model's own."""
        return self.model.unembed(residual, columns)

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at *features"]:
        """The model's own."""
        return self.model.read(port, layer, index, x, at)

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*node at width"]:
        """The model's own."""
        return self.model.write(kind, layer, index, ys, at)

    @property
    def has_patterns(self) -> bool:
        return self.model.has_patterns

    @property
    def has_parts(self) -> bool:
        return self.model.has_parts

    def pattern(self, layer: Layer, index: Indices, ys: tuple[Array, ...]) -> Float[Array, "*node position position"]:
        """The model's own."""
        return self.model.pattern(layer, index, ys)

    def _nodes_of(self, kind: str) -> tuple[Nodes, Moment]:
        """The model's nodes of a kind, which are alike in all layers."""
        return next(pair for pair in forms(self.model.layout) if pair[0].kind == kind)


class Ungrouped(Regrouped):
    """Every head has a copy of the key and the value input that it shares."""

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        def own(port: Port) -> Port:
            names = port.names if port.count == nodes.count else _suffixed(nodes.names, f"<{port.name}>")
            return dataclasses.replace(port, count=nodes.count, names=names)

        each = tuple(range(nodes.count))
        inputs = tuple((port, each) for port, _ in nodes.inputs)
        return tuple(map(own, ports)), dataclasses.replace(nodes, inputs=inputs)

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at *features"]:
        """What the model's receiver computes that the node reads through."""
        every = (pair for nodes, _ in forms(self.model.layout) for pair in nodes.inputs)
        inputs = next(inputs for name, inputs in every if name == port)
        return self.model.read(port, layer, _entry(inputs, index), x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """The model's own."""
        return self.model.write_all(nodes, layer, ys, at)


class Unsplit(Regrouped):
    """A node reads once: its receiver computes what all of the model's do, side by side."""

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        if len(ports) == 1:
            return ports, nodes
        inputs = ((nodes.kind, tuple(range(nodes.count))),)
        return (Port(nodes.kind, nodes.count, False, nodes.names),), dataclasses.replace(nodes, inputs=inputs)

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at features"]:
        """What all receivers of a node compute."""
        every = (nodes for nodes, _ in forms(self.model.layout))
        nodes = next((nodes for nodes in every if nodes.kind == port and len(nodes.inputs) > 1), None)
        if nodes is None:
            return self.model.read(port, layer, index, x, at)
        each = [self.model.read(name, layer, _entry(inputs, index), x, at) for name, inputs in nodes.inputs]
        return jnp.concatenate(each, -1)

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*node at width"]:
        """The model's own."""
        return self.model.write(kind, layer, index, self._apart(kind, ys, at), at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """The model's own."""
        return self.model.write_all(nodes, layer, self._apart(nodes.kind, ys, at), at)

    def pattern(self, layer: Layer, index: Indices, ys: tuple[Array, ...]) -> Float[Array, "*node position position"]:
        """The model's own."""
        return self.model.pattern(layer, index, self._apart("head", ys, None))

    def _apart(self, kind: str, ys: tuple[Array, ...], at: Positions | None) -> tuple[Array, ...]:
        """What each of the model's receivers computed; of local ones at the positions `at` (None: all)."""
        nodes, own = self._nodes_of(kind)
        if len(nodes.inputs) == 1:
            return ys
        zero = jnp.int32(0)
        x = jax.eval_shape(lambda tokens: self.model.embeddings(tokens)[0], zero[None])
        sizes = [jax.eval_shape(partial(self.model.read, port.name), zero, zero, x, zero[None]) for port in own.ports]
        each = jnp.split(ys[0], np.cumsum([y.shape[-1] for y in sizes])[:-1].tolist(), axis=-1)
        here = [port.is_local and at is not None for port in own.ports]
        return tuple(y[..., at, :] if is_here else y for y, is_here in zip(each, here, strict=True))


def changed(layout: Layout, group: Callable[[Nodes, Ports], tuple[Ports, Nodes]]) -> Layout:
    """A layout whose groups of nodes are others."""
    stacks = (Stack(stack.layers, tuple(changed_moment(m, group) for m in stack.moments)) for stack in layout.stacks)
    return Layout(layout.embeddings, tuple(stacks))


def changed_moment(moment: Moment, group: Callable[[Nodes, Ports], tuple[Ports, Nodes]]) -> Moment:
    """A moment whose groups of nodes are others."""
    ports, nodes = zip(*(group(nodes, own.ports) for nodes, own in _alone(moment)), strict=True)
    return Moment(sum(ports, ()), nodes)


def forms(layout: Layout) -> list[tuple[Nodes, Moment]]:
    """The groups of nodes of all layers, each alone in a moment; equal ones once."""
    moments = (moment for stack in layout.stacks for moment in stack.moments)
    return list(dict.fromkeys(pair for moment in moments for pair in _alone(moment)))


def _alone(moment: Moment) -> Iterator[tuple[Nodes, Moment]]:
    """Each group of nodes of a moment, and the moment that it alone would be."""
    ports = {port.name: port for port in moment.ports}
    for nodes in moment.nodes:
        yield nodes, Moment(tuple(ports[name] for name, _ in nodes.inputs), (nodes,))


def _entry(numbers: tuple[int, ...], index: Index) -> Index:
    return jnp.asarray(np.array(numbers, np.int32))[index]


def _suffixed(names: Names, suffix: str) -> Names:
    return names + suffix if isinstance(names, str) else tuple(name + suffix for name in names)
