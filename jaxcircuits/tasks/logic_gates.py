"""Logic gates: all inputs of a network of units, whose circuit is known connection by connection.

The model is `gate-xor` or another of them; a prompt is one token whose binary digits are the inputs. Under zero
ablation and L2 to its own output every connection of weight other than 0 is needed on all inputs together. On the
input (1, 1) alone either input of an OR suffices: a method that removes edges one by one keeps one of the two, never
both.
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

    - `tokenizer`: a network's, whose words are its inputs' digits; without one `gate` says how many inputs there are.
    - `size`: the first so many inputs; default all.

    Raises ValueError for another model's tokenizer, an unknown gate, and more inputs than there are.
    """
    if gate not in INPUTS:
        raise ValueError(f"gate: expected one of {', '.join(INPUTS)}, got {gate!r}")
    every = 2 ** INPUTS[gate] if tokenizer is None else _words(tokenizer)
    count = every if size is None else size
    if not 2 <= count <= every:
        raise ValueError(f"size: the gate has {every} inputs, expected 2 to {every} of them, got {size}")
    clean = np.arange(count, dtype=np.int32)[:, None]
    return PromptPairs(clean=clean, corrupt=clean[derangement(np.random.default_rng(seed), count)])


def _words(tokenizer: Any) -> int:
    """How many tokens there are. Raises ValueError if they are not the rows of so many binary digits."""
    first = tokenizer.decode([0])
    if set(first) != {"0"} or len(tokenizer) != 2 ** len(first):
        raise ValueError(
            f"logic_gates: expected the tokens of a network of units, '0' and '1' for each of its inputs, got "
            f"{len(tokenizer)} tokens, the first {first!r}; choose a model such as gate-xor"
        )
    return len(tokenizer)


def circuit(graph: Graph) -> tuple[str, ...]:
    """Every connection of a built-in gate but those of weight 0. Raises ValueError for another model's graph."""
    if not set(graph.embeddings) <= {"x0", "x1", "x2"}:
        raise ValueError(f"this circuit is known for built-in gates (gate-xor, ...), got a graph of {graph.embeddings}")
    names = graph.names_of(graph.valid)
    unused = UNUSED["adder"] if "carry" in graph.senders else ()
    return tuple(name for name in names if name not in unused)


TASK = Task(
    name="logic_gates",
    description="all inputs of a gate (models gate-xor, gate-adder, ...)",
    make=generate,
    metric="l2",
    source="known by construction",
    reference="zero",
    circuit=circuit,
)
