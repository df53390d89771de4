"""The `Task` record, and what the tasks' generators share: known words, prompts that do not repeat."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..arguments import MOST_DRAWN, checked
from ..data import PromptPairs
from ..framing import bos_of, framed
from ..graph import Graph
from ..texts import encode_after

PATIENCE = 1000
"""Draws in a row that may repeat earlier ones before a generator gives up."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A behaviour: how to make prompts of it, how its paper scores it, and the circuit that is known for it.

    - `make(tokenizer, *, seed, size, ...)`: `PromptPairs` of the words alone, no clean prompt twice.
    - `metric`, `reference`: the paper's, by the names that `Objective` takes.
    - `circuit(graph)`: the edges of the known circuit, in edge order; ValueError for another model's graph.
    - `bos`: whether the task's prompts begin with BOS where nobody says; None: as the tokenizer begins a text.
    - `words`: the lists from which those are drawn that are one token. `unsplit(tokenizer)`: what else is not drawn, by
      name, since the tokenizer does not split it as the task needs.
    """

    name: str
    description: str
    make: Callable[..., PromptPairs]
    metric: str
    source: str
    reference: str = "resample"
    circuit: Callable[[Graph], tuple[str, ...]] | None = None
    bos: bool | None = None
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    unsplit: Callable[[Any], Mapping[str, tuple[str, ...]]] | None = None

    @checked
    def generate(
        self, tokenizer: Any = None, *, bos: bool | None = None, template: str | None = None, **options: Any
    ) -> PromptPairs:
        """Prompts of the task for a tokenizer; `options` are those of `make`, among them `seed` and `size`.

        - `bos`, `template`: what stands around each prompt, as `framed` says; None: the task's own `bos`, or else the
          tokenizer's.

        Raises ValueError for a tokenizer that lacks the words, BOS or the chat template, and for bad options.
        """
        bos = self.bos if bos is None and template is None else bos
        if bos and (tokenizer is None or bos_of(tokenizer) is None):
            raise ValueError("these prompts begin with a BOS token, which the tokenizer does not have; pass bos=False")
        pairs = checked(self.make)(tokenizer, **options)
        return pairs if tokenizer is None else framed(pairs, tokenizer, bos=bos, template=template)

    def left_out(self, tokenizer: Any) -> dict[str, tuple[str, ...]]:
        """Of each list of the task's words those that are not used, since they are not one token; what is `unsplit`.

        Raises ValueError for a tokenizer that splits nothing as the task needs.
        """
        missing = {name: known_words(tokenizer, words, 0) for name, words in self.words.items()}
        lists = {name: tuple(word for word in self.words[name] if word not in known) for name, known in missing.items()}
        unsplit = {} if self.unsplit is None else self.unsplit(tokenizer)
        return {name: words for name, words in lists.items() if words} | {**unsplit}

    def train_and_test(
        self, tokenizer: Any, *, seed: int = 0, size: int = 32, **options: Any
    ) -> tuple[PromptPairs, PromptPairs]:
        """Two sets of `size` prompts: to find a circuit, and to test it; none is in both.

        Raises ValueError as `generate` does, also where there are not `2 size` different prompts.
        """
        check_size(size)
        return self.generate(tokenizer, seed=seed, size=2 * size, **options).split(size)


def known_words(tokenizer: Any, words: Sequence[str], at_least: int, *, before: str = " ") -> dict[str, int]:
    """The words that are one token after a space (or other text), with its id. Raises ValueError if too few are."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    known = {}
    for word in words:
        ids = encode_after(tokenizer, f"{before}{word}")
        if len(ids) == 1 and ids[0] != unknown:
            known[word] = ids[0]
    if len(known) < at_least:
        raise ValueError(
            f"this task needs {at_least} of its words as single tokens, but the model's tokenizer has "
            f"{len(known)} of {words[0]!r}, {words[1]!r}, ...; use a task file made for this model"
        )
    return known


def check_size(size: int) -> None:
    """Raises ValueError for a number of prompts below 1 or beyond `MOST_DRAWN`."""
    if size < 1:
        raise ValueError(f"size: expected at least 1 prompt, got {size}")
    if size > MOST_DRAWN:
        raise ValueError(f"size: expected at most {MOST_DRAWN} prompts, got {size}")


def draw_rows(draw: Callable[[], tuple], size: int, *, repeats: bool = False) -> list[tuple]:
    """`size` results of `draw`, no two with the same first entry (the prompt) unless `repeats`.

    Raises ValueError if no new one comes after many draws.
    """
    rows: list[tuple] = []
    seen: set = set()
    misses = 0
    while len(rows) < size:
        row = draw()
        if row[0] in seen and not repeats:
            misses += 1
            if misses == PATIENCE:
                raise ValueError(
                    f"size: only {len(rows)} different prompts were found, {size} asked for; ask for fewer"
                )
            continue
        misses = 0
        seen.add(row[0])
        rows.append(row)
    return rows
