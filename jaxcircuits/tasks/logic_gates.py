"""Logic gates: all inputs of a network of units, whose circuit is known connection by connection.

The model is `jaxcircuits.gate(name)`; a prompt is one token whose binary digits are the inputs. Under zero ablation and
L2 to its own output every connection of weight other than 0 is needed on all inputs together. On the input (1, 1) alone
either input of an OR suffices: a method that removes edges one by one keeps one of the two, never both.
"""

from typing import Any

import numpy as np

from ..data import PromptPairs
from ..graph import Graph
from .compiled import derangement
from .task import Task

INPUTS = {"and": 2, "or": 2, "xor": 2, "xor_relu": 2, "majority": 3, "adder": 3}
"""How many inputs each gate has."""

UNUSED = {"adder": ("at_least_1->carry", "at_least_3->carry")}
"""Connections of weight 0."""


def generate(tokenizer: Any = None, *, seed: int = 0, size: int | None = None, gate: str = "xor") -> PromptPairs:
    """Every input of a gate once, each with another as its corrupt prompt.

    - `tokenizer`: None, since inputs are no text. `size`: the first so many inputs; default all.

    Raises ValueError for an unknown gate, more inputs than there are, and a tokenizer.
    """
    if tokenizer is not None:
        raise ValueError("logic_gates has no text: its model is jaxcircuits.gate(name), without a tokenizer")
    if gate not in INPUTS:
        raise ValueError(f"gate: expected one of {', '.join(INPUTS)}, got {gate!r}")
    every = 2 ** INPUTS[gate]
    count = every if size is None else size
    if not 2 <= count <= every:
        raise ValueError(f"size: {gate} has {every} inputs, expected 2 to {every} of them, got {size}")
    clean = np.arange(count, dtype=np.int32)[:, None]
    return PromptPairs(clean=clean, corrupt=clean[derangement(np.random.default_rng(seed), count)])


def circuit(graph: Graph) -> tuple[str, ...]:
    """Every connection of a built-in gate but those of weight 0."""
    names = graph.names_of(graph.valid)
    unused = UNUSED["adder"] if "carry" in graph.senders else ()
    return tuple(name for name in names if name not in unused)


TASK = Task(
    name="logic_gates",
    description="all inputs of a gate (model jaxcircuits.gate)",
    generate=generate,
    metric="l2",
    source="known by construction",
    reference="zero",
    circuit=circuit,
)
