"""Gendered pronouns: "So Mary is a really great friend, isn't" -> she.

The corrupt prompt has a name of the other gender.
Source: Mathwin et al. 2023, "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small" (their
corrupt prompts say "That person"; a name leaves everything but the gender alone).
"""

from typing import Any

import numpy as np

from ..data import PromptPairs, from_text
from .task import Task, check_size, draw_rows, known_words
from .words import MEN, WOMEN

TEMPLATES = (
    "So {name} is a really great friend, isn't",
    "So {name} is a very good teacher, isn't",
    "Well, {name} is such a nice person, isn't",
    "I think {name} is a really good singer, isn't",
)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, templates: int = 1) -> PromptPairs:
    """Prompts about men and women; answer: their pronoun, wrong: the other.

    - `templates`: how many of the sentences to draw from; the first is the published one. Each gives one prompt a name.
    """
    check_size(size)
    if not 1 <= templates <= len(TEMPLATES):
        raise ValueError(f"templates: expected 1 to {len(TEMPLATES)}, got {templates}")
    random = np.random.default_rng(seed)
    names = [list(known_words(tokenizer, words, at_least=1)) for words in (WOMEN, MEN)]
    pronouns = (" she", " he")

    def draw() -> tuple[str, str, str, str]:
        template, gender = TEMPLATES[random.integers(templates)], int(random.integers(2))
        clean, corrupt = (template.format(name=random.choice(names[which])) for which in (gender, 1 - gender))
        return clean, corrupt, pronouns[gender], pronouns[1 - gender]

    fields = ("clean", "corrupt", "answer", "wrong")
    return from_text([dict(zip(fields, row, strict=True)) for row in draw_rows(draw, size)], tokenizer)


TASK = Task(
    name="gendered_pronoun",
    description="So Mary is a really great friend, isn't -> she",
    make=generate,
    metric="logit_diff",
    source="Mathwin et al. 2023",
    words={"women": WOMEN, "men": MEN},
)
