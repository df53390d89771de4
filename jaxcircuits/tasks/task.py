"""The `Task` record, and the choice of words that a tokenizer knows."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..data import PromptPairs
from ..graph import Graph


@dataclasses.dataclass(frozen=True)
class Task:
    """A behaviour: how to make prompts of it, how its paper scores it, and the circuit that is known for it.

    - `metric`, `reference`: the paper's, by the names that `Objective` takes.
    - `circuit(graph)`: the edges of the known circuit, in edge order; ValueError for another model's graph.
    """

    name: str
    description: str
    generate: Callable[..., PromptPairs]
    metric: str
    source: str
    reference: str = "resample"
    circuit: Callable[[Graph], tuple[str, ...]] | None = None


def known_words(tokenizer: Any, words: Sequence[str], at_least: int) -> dict[str, int]:
    """The words that are one token after a space, with its id. Raises ValueError if too few are."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    known = {}
    for word in words:
        ids = tokenizer.encode(f" {word}", add_special_tokens=False)
        if len(ids) == 1 and ids[0] != unknown:
            known[word] = ids[0]
    if len(known) < at_least:
        raise ValueError(
            f"this task needs {at_least} of its words as single tokens, but the model's tokenizer has "
            f"{len(known)} of {words[0]!r}, {words[1]!r}, ...; use a task file made for this model"
        )
    return known


def check_size(size: int) -> None:
    """Raises ValueError for a number of prompts below 1."""
    if size < 1:
        raise ValueError(f"size: expected at least 1 prompt, got {size}")
