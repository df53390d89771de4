"""Runs with masks of nodes: what every receiver computes is mixed with what it computed in the reference run."""

from typing import Any

from jaxtyping import Array, Float

from ..types import NodeMask, SenderValues, Tokens
from . import runs
from .runs import Computed

NodeValues = tuple[tuple[Computed, ...], ...]
"""`Computed` of all layers [layer, receiver, position, ...]: of each stack, of each moment."""


def node_run(
    model: Any, tokens: Tokens, node_mask: NodeMask, reference: NodeValues | None
) -> Float[Array, "position width"]:
    """What `logits` reads when what every receiver computes is `z y + (1 - z) y_ref`; without reference `z y`."""
    layout = model.layout
    masks = runs.split(layout, node_mask, "num_receivers")

    def step(stack, x, inputs):
        layer, (masks, values) = inputs
        for number, moment in enumerate(stack.moments):
            ys, first = runs.computed(model, moment, layer, x), 0
            for port in moment.ports:
                z = masks[number][first : first + port.count].reshape(-1, *[1] * (ys[port.name].ndim - 1))
                ys[port.name] = z * ys[port.name]
                if values is not None:
                    ys[port.name] += (1 - z) * values[number][port.name]
                first += port.count
            x = runs.with_written(model, stack, number, layer, x, ys)
        return x, None

    values = runs.nothing(layout) if reference is None else list(reference)
    return runs.over_layers(layout, step, model.embeddings(tokens).sum(0), list(zip(masks, values, strict=True)))[0]


def node_values(model: Any, reference: SenderValues) -> NodeValues:
    """What receivers compute when all that they read are `reference` values of the senders."""
    layout, first = model.layout, len(model.layout.embeddings)

    def step(stack, x, inputs):
        layer, rows = inputs
        values = []
        for number, moment in enumerate(stack.moments):
            values.append(runs.computed(model, moment, layer, x))
            x = runs.plus_constant(model, x + rows[number].sum(0), layer, number)
        return x, tuple(values)

    rows = runs.split(layout, reference[first:], "num_senders")
    return tuple(runs.over_layers(layout, step, reference[:first].sum(0), rows)[1])
