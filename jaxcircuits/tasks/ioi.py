"""Indirect object identification: "Then, Mary and John went to the store. John gave a drink to" -> Mary.

The corrupt prompt has three other names (ABC), so nothing in it says who receives.
Source: Wang et al. 2022, 2211.00593; data as in ACDC (Conmy et al. 2023): one template, order ABBA, no BOS.
"""

from typing import Any

import numpy as np

from ..data import PromptPairs, from_text
from ..graph import Graph
from . import circuits
from .task import Task, check_size, draw_rows, known_words
from .words import NAMES, OBJECTS, PLACES

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {giver} gave a {object} to",
    "While {first} and {second} were at the {place}, {giver} handed a {object} to",
    "Then, {first} and {second} had a long day at the {place}. {giver} offered a {object} to",
    "Yesterday {first} and {second} met at the {place}. Then {giver} gave the {object} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {giver} gave a {object} to",
    "Then, {first} and {second} were working at the {place}. {giver} decided to give a {object} to",
    "Then, {first} and {second} were thinking about going to the {place}. {giver} wanted to give a {object} to",
    "Then, {first} and {second} had a long argument, and afterwards {giver} said to",
    "After {first} and {second} went to the {place}, {giver} gave a {object} to",
    "When {first} and {second} got a {object} at the {place}, {giver} decided to give it to",
    "When {first} and {second} got a {object} at the {place}, {giver} decided to give the {object} to",
    "While {first} and {second} were working at the {place}, {giver} gave a {object} to",
    "The {place} that {first} and {second} visited had a {object}. {giver} gave it to",
)
"""The first is the paper's in ACDC (15 tokens); the words of the first six are all known to the bundled model."""


def generate(
    tokenizer: Any,
    *,
    seed: int = 0,
    size: int = 32,
    templates: int = 1,
    order: str = "ABBA",
    repeats: bool = False,
) -> PromptPairs:
    """IOI prompts; answer: the indirect object, wrong: the subject; group: the template, where there are several.

    - `templates`: how many of the sentence templates to draw from. `order`: "ABBA" (the subject is named second,
      as in ACDC), "BABA" or "mixed". `repeats`: a prompt may come again (for training data).
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

    def draw() -> tuple[str, ...]:
        number = random.integers(templates)
        template = TEMPLATES[number]
        where = {"place": random.choice(places), "object": random.choice(objects)}
        receiver, giver, *others = (str(name) for name in random.choice(names, 5, replace=False))
        is_abba = order == "ABBA" or (order == "mixed" and random.random() < 0.5)
        first, second = (receiver, giver) if is_abba else (giver, receiver)
        clean = template.format(first=first, second=second, giver=giver, **where)
        corrupt = template.format(first=others[0], second=others[1], giver=others[2], **where)
        return clean, corrupt, f" {receiver}", f" {giver}", f"{number:02}"

    fields = ("clean", "corrupt", "answer", "wrong", "group")[: 5 if templates > 1 else 4]
    rows = draw_rows(draw, size, repeats=repeats)
    return from_text([dict(zip(fields, row, strict=False)) for row in rows], tokenizer)


NAME_MOVERS = circuits.heads("9.9 10.0 9.6")
BACKUP_NAME_MOVERS = circuits.heads("10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9")
NEGATIVE_NAME_MOVERS = circuits.heads("10.7 11.10")
S_INHIBITION = circuits.heads("7.3 7.9 8.6 8.10")
INDUCTION = circuits.heads("5.5 5.8 5.9 6.9")
DUPLICATE_TOKEN = circuits.heads("0.1 0.10 3.0")
PREVIOUS_TOKEN = circuits.heads("2.2 4.11")


def circuit(graph: Graph) -> tuple[str, ...]:
    """The 963 edges of Wang et al.'s circuit in GPT-2 small, as ACDC writes it: its 26 heads, and every MLP.

    MLPs read and write everything that a circuit node before or after them writes or reads; heads are joined class by
    class through the inputs at which the paper found the effect. The original counts 78 internal edges besides.
    """
    circuits.check_graph(graph, circuits.GPT2_SMALL, "GPT-2 small")
    movers = NAME_MOVERS + BACKUP_NAME_MOVERS + NEGATIVE_NAME_MOVERS
    finders = INDUCTION + DUPLICATE_TOKEN
    heads = movers + S_INHIBITION + finders + PREVIOUS_TOKEN
    mlps = circuits.mlps(range(graph.num_layers))
    embedding, logits = graph.embeddings, ("logits",)
    rules = [
        (embedding, mlps + logits, "qkv"),
        (mlps, mlps + heads + logits, "qkv"),
        (heads, mlps, "qkv"),
        (embedding, PREVIOUS_TOKEN + DUPLICATE_TOKEN, "qkv"),
        (embedding, S_INHIBITION, "q"),
        (embedding, movers, "kv"),
        (PREVIOUS_TOKEN, INDUCTION, "kv"),
        (finders, S_INHIBITION, "kv"),
        (S_INHIBITION, movers, "q"),
        (movers, logits, "qkv"),
    ]
    return circuits.in_order(graph, set().union(*(circuits.edges(graph, *rule) for rule in rules)))


TASK = Task(
    name="ioi",
    description="Then, Mary and John went to the store. John gave a drink to -> Mary",
    make=generate,
    metric="logit_diff",
    source="Wang et al. 2022 (2211.00593)",
    circuit=circuit,
    words={"names": NAMES, "places": PLACES, "objects": OBJECTS},
)
