"""Indirect object identification: "Then, Mary and John went to the store. John gave a drink to" -> Mary.

The corrupt prompt has three other names (ABC), so nothing in it says who receives.
Source: Wang et al. 2022, 2211.00593; data as in ACDC (Conmy et al. 2023): one template, order ABBA, no BOS.
"""

from typing import Any

import numpy as np

from ..data import PromptPairs, from_text
from .task import Task, check_size, known_words
from .words import NAMES, OBJECTS, PLACES

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {giver} gave a {object} to",
    "While {first} and {second} were at the {place}, {giver} handed a {object} to",
    "Then, {first} and {second} had a long day at the {place}. {giver} offered a {object} to",
    "Yesterday {first} and {second} met at the {place}. Then {giver} gave the {object} to",
)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, templates: int = 1, order: str = "ABBA") -> PromptPairs:
    """IOI prompts; answer: the indirect object, wrong: the subject.

    - `templates`: how many of the sentence templates to draw from. `order`: "ABBA" (the subject is named second,
      as in ACDC), "BABA" or "mixed".
    """
    check_size(size)
    if order not in ("ABBA", "BABA", "mixed"):
        raise ValueError(f"order: expected ABBA, BABA or mixed, got {order!r}")
    if not 1 <= templates <= len(TEMPLATES):
        raise ValueError(f"templates: expected 1 to {len(TEMPLATES)}, got {templates}")
    random = np.random.default_rng(seed)
    names = list(known_words(tokenizer, NAMES, at_least=6))
    places = list(known_words(tokenizer, PLACES, at_least=1))
    objects = list(known_words(tokenizer, OBJECTS, at_least=1))
    rows = []
    for _ in range(size):
        template = TEMPLATES[random.integers(templates)]
        where = {"place": random.choice(places), "object": random.choice(objects)}
        receiver, giver, *others = (str(name) for name in random.choice(names, 5, replace=False))
        is_abba = order == "ABBA" or (order == "mixed" and random.random() < 0.5)
        first, second = (receiver, giver) if is_abba else (giver, receiver)
        rows.append(
            {
                "clean": template.format(first=first, second=second, giver=giver, **where),
                "corrupt": template.format(first=others[0], second=others[1], giver=others[2], **where),
                "answer": f" {receiver}",
                "wrong": f" {giver}",
            }
        )
    return from_text(rows, tokenizer)


TASK = Task(
    name="ioi",
    description="Then, Mary and John went to the store. John gave a drink to -> Mary",
    generate=generate,
    metric="logit_diff",
    source="Wang et al. 2022 (2211.00593)",
)
