"""Induction: "lamp Mary war store pen lamp Mary war" -> store, by finding the last word's first occurrence.

The corrupt prompt has another word in place of that first occurrence, so there is nothing to find.
Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); Olsson et al. 2022, 2209.11895.
"""

from typing import Any

import numpy as np

from ..data import PromptPairs
from .task import Task, check_size, draw_rows, known_words
from .words import EVENTS, NAMES, OBJECTS, PLACES


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, sequence: int = 8, repeated: int = 4) -> PromptPairs:
    """Random words, the first of which are repeated; answer: what followed, wrong: the word after that.

    - `sequence`: words before the repetition. `repeated`: how many are repeated, at most `sequence - 2`.
    """
    check_size(size)
    if not 1 <= repeated <= sequence - 2:
        raise ValueError(f"repeated: expected 1 to sequence - 2 = {sequence - 2}, got {repeated}")
    random = np.random.default_rng(seed)
    known = known_words(tokenizer, [*NAMES, *PLACES, *OBJECTS, *EVENTS], at_least=sequence + 1)
    ids = np.array(sorted(known.values()), np.int32)

    def draw() -> tuple[tuple[int, ...], int]:
        *first, other = random.choice(ids, sequence + 1, replace=False).tolist()
        return tuple(first), other

    rows = draw_rows(draw, size)
    first, other = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    clean = np.concatenate([first, first[:, :repeated]], axis=1)
    corrupt = clean.copy()
    corrupt[:, repeated - 1] = other
    return PromptPairs(clean=clean, corrupt=corrupt, answer=first[:, repeated], wrong=first[:, repeated + 1])


TASK = Task(
    name="induction",
    description="lamp Mary war store pen lamp Mary war -> store",
    make=generate,
    metric="logit_diff",
    source="Olsson et al. 2022 (2209.11895)",
    words={"words": (*NAMES, *PLACES, *OBJECTS, *EVENTS)},
)
