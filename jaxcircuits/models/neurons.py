"""Groups of neurons as units: an MLP's weights, cut along its neurons."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ..layout import Layout, Nodes, Port, Stack
from . import parts
from .architecture import Index, Indices, Layer, Positions
from .decoder import Decoder
from .gpt2 import GPT2
from .model import AbstractModel
from .regrouped import Ports, Regrouped, changed_moment


class Neurons(Regrouped):
    """MLPs are `groups` equal groups of neurons: of all layers, or of the layer `only`.

    Each has its share of the output's bias, so that they add up to the MLP; those that meet in a norm are joint.
    """

    groups: int = eqx.field(static=True)
    only: int | None = eqx.field(static=True)

    @property
    def layout(self) -> Layout:
        own, stacks, first = self.model.layout, [], 0
        for stack in own.stacks:
            parts_of = [(stack.layers, True)]
            if self.only is not None:
                before = min(max(self.only - first, 0), stack.layers)
                here = 1 if first <= self.only < first + stack.layers else 0
                parts_of = [(before, False), (here, True), (stack.layers - before - here, False)]
            for layers, is_grouped in parts_of:
                moments = tuple(changed_moment(m, self._group) for m in stack.moments) if is_grouped else stack.moments
                stacks += [Stack(layers, moments)] if layers else []
            first += stack.layers
        return Layout(own.embeddings, tuple(stacks))

    def _group(self, nodes: Nodes, ports: Ports) -> tuple[Ports, Nodes]:
        if nodes.kind != "mlp":
            return ports, nodes
        inputs = (("neurons", tuple(range(self.groups))),)
        own = Nodes("neurons", self.groups, inputs, NEURONS, is_joint=self._norm is not None)
        return (Port("neurons", self.groups, True, NEURONS),), own

    def read_all(
        self, port: Port, layer: Layer, x: Float[Array, "*_ at width"], at: Positions
    ) -> Float[Array, "receiver at *features"]:
        """The model's own; of groups of neurons, by `read`."""
        of = super() if port.name == "neurons" else self.model
        return of.read_all(port, layer, x, at)

    def write_all(
        self, nodes: Nodes, layer: Layer, ys: tuple[Array, ...], at: Positions
    ) -> tuple[Float[Array, "node at width"], Float[Array, "at width"]]:
        """The model's own; of groups of neurons, by `write`."""
        of = super() if nodes.kind == "neurons" else self.model
        return of.write_all(nodes, layer, ys, at)

    @property
    def _norm(self) -> Any:
        """What the groups meet in, if they do."""
        return getattr(_blocks(self.model), "mlp_post_norm", None)

    def read(
        self, port: str, layer: Layer, index: Index, x: Float[Array, "at width"], at: Positions
    ) -> Float[Array, "at *features"]:
        """What a group's neurons write, before a norm that they meet in."""
        if port != "neurons":
            return self.model.read(port, layer, index, x, at)
        block = parts.of_layer(_blocks(self.model), layer)
        return block.mlp.part(index, self.groups)(parts.normed(block.mlp_norm, x))

    def write(
        self, kind: str, layer: Layer, index: Indices, ys: tuple[Array, ...], at: Positions
    ) -> Float[Array, "*node at width"]:
        """What was computed, or its share of the norm's output."""
        if kind != "neurons":
            return self.model.write(kind, layer, index, ys, at)
        return ys[0] if self._norm is None else parts.of_layer(self._norm, layer).shares(ys[0])


NEURONS = "m{layer}.n{index}"


def num_groups(model: AbstractModel, groups: int | None, layer: int | None) -> int:
    """Raises ValueError for a model without MLPs or without that layer, and for groups that would not be equal."""
    if not isinstance(model, (GPT2, Decoder)):
        raise ValueError(f"units: neurons: expected a model of jaxcircuits with MLPs, got a {type(model).__name__}")
    if (mlp := model.blocks.mlp) is None:
        raise ValueError("units: neurons: this model has no MLPs")
    if layer is not None and layer >= model.layout.num_layers:
        raise ValueError(f"units: neurons: expected a layer below {model.layout.num_layers}, got {layer}")
    groups = mlp.num_neurons if groups is None else groups
    if mlp.num_neurons % groups:
        raise ValueError(f"units: neurons: expected equal groups of {mlp.num_neurons} neurons, got {groups} groups")
    return groups


def _blocks(model: Any) -> Any:
    """The parameters of the layers, stacked."""
    return model.blocks
