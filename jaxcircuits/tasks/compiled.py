"""What the tasks of compiled programs share: their words, corrupt prompts that are other clean ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ..texts import encode_one


def program_ids(tokenizer: Any, words: Sequence[str], model: str) -> list[int]:
    """Token ids of a program's words. Raises ValueError, naming the model, for another model's tokenizer."""
    try:
        return [encode_one(tokenizer, word) for word in words]
    except ValueError as error:
        raise ValueError(f"this task needs the bundled model {model!r}, whose words are {words}: {error}") from None


def derangement(random: np.random.Generator, size: int) -> Int[np.ndarray, " row"]:
    """An order of rows that leaves none in its place: one cycle through all. Raises ValueError for one row."""
    if size < 2:
        raise ValueError(f"size: expected at least 2 prompts, whose rows can be exchanged, got {size}")
    cycle = random.permutation(size)
    order = np.empty(size, int)
    order[cycle] = np.roll(cycle, 1)
    return order


def all_but_first(tokens: Int[np.ndarray, "batch position"]) -> np.ndarray:
    """Bool [batch, position]: the scored positions of prompts whose first token has no output."""
    return np.tile(np.arange(tokens.shape[1]) > 0, (len(tokens), 1))
