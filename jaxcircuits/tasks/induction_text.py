"""Induction in running text: "... Anna Carter left the old museum. ... met Anna" -> Carter, wherever a bigram repeats.

Scored at every position whose next token followed the same token before, unless many prompts have the same two tokens:
those ("went to") are known without looking back. The corrupt prompt is another prompt of the set.
Source: ACDC (Conmy et al. 2023), which takes 300 tokens of OpenWebText; here stories of people, places and objects that
come up again, made from word lists. `from_tokens` makes the same task of any text.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from ..data import PromptPairs
from ..texts import encode
from .task import Task, check_size, draw_rows, known_words
from .words import ADJECTIVES, NAMES, OBJECTS, PLACES, SURNAMES

COMMON = 0.1
"""Two tokens in more than this share of the prompts are no induction."""

SENTENCES = (
    "{a} met {b} at the {p}.",
    "{a} gave the {o} to {b}.",
    "Nobody at the {p} had seen {a} since the summer.",
    "In the {p} there was a {o}, and {a} knew it.",
    "The {o} belonged to {a}.",
    "On the way to the {p}, {a} told {b} about the {o}.",
    "{b} wrote a long letter to {a}.",
    "Later {a} and {b} walked back to the {p}.",
    "It was {a} who found the {o} near the {p}.",
    "Why did {b} never speak of the {o}?",
)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, tokens: int = 300) -> PromptPairs:
    """Stories of `tokens` tokens; answer, at each scored position: the next token.

    Raises ValueError for fewer than 2 stories, since each is the corrupt version of another.
    """
    check_size(size)
    if tokens < 100:
        raise ValueError(f"tokens: expected at least 100, in which something comes up again, got {tokens}")
    random = np.random.default_rng(seed)
    lists = {
        "first": known_words(tokenizer, NAMES, at_least=3),
        "last": known_words(tokenizer, SURNAMES, at_least=3),
        "kind": known_words(tokenizer, ADJECTIVES, at_least=6),
        "place": known_words(tokenizer, PLACES, at_least=3),
        "object": known_words(tokenizer, OBJECTS, at_least=3),
    }
    words = {name: list(known) for name, known in lists.items()}
    rows = draw_rows(lambda: (_story(tokenizer, random, words, tokens + 1),), size)
    return from_tokens(np.array([story for (story,) in rows], np.int32))


def from_tokens(tokens: Int[np.ndarray, "batch positions"]) -> PromptPairs:
    """The task on any text: rows of token ids, each one longer than the prompts, for the last answer.

    A row's corrupt version is its neighbour's prompt (0 and 1, 2 and 3, ...; the last three in turn if their number is
    odd), so that `split` at an even number keeps each half to itself. Raises ValueError for fewer than 2 rows and for a
    row in which nothing comes up again.
    """
    if len(tokens) < 2:
        raise ValueError("size: expected at least 2 prompts, since each is the corrupt version of another")
    neighbour = np.arange(len(tokens)) ^ 1
    if len(tokens) % 2:
        neighbour[-3:] = len(tokens) - np.array([2, 1, 3])
    return PromptPairs(
        clean=tokens[:, :-1],
        corrupt=tokens[neighbour, :-1],
        answer=tokens[:, 1:, None],
        positions=repeated_bigrams(tokens),
    )


def repeated_bigrams(tokens: Int[np.ndarray, "batch positions"]) -> Bool[np.ndarray, "batch scored"]:
    """True at t where tokens t and t + 1 came in this order before in the row, and in few other rows."""
    bigrams = [list(zip(row[:-1], row[1:], strict=True)) for row in tokens.tolist()]
    counts: dict[tuple[int, int], int] = {}
    for row in bigrams:
        for bigram in set(row):
            counts[bigram] = counts.get(bigram, 0) + 1
    most = max(1, int(COMMON * len(tokens)))
    repeated = np.zeros((len(tokens), tokens.shape[1] - 1), bool)
    for scored, row in zip(repeated, bigrams, strict=True):
        seen: set[tuple[int, int]] = set()
        for position, bigram in enumerate(row):
            scored[position] = bigram in seen and counts[bigram] <= most
            seen.add(bigram)
    return repeated


def _story(tokenizer: Any, random: np.random.Generator, words: dict[str, list[str]], tokens: int) -> tuple[int, ...]:
    """Sentences about three people, places and objects, cut off at a number of tokens."""

    def pick(name: str, count: int = 3) -> list[str]:
        return [str(word) for word in random.choice(words[name], count, replace=False)]

    kinds = pick("kind", 6)
    people = [f"{first} {last}" for first, last in zip(pick("first"), pick("last"), strict=True)]
    places = [f"{kind} {place}" for kind, place in zip(kinds[:3], pick("place"), strict=True)]
    objects = [f"{kind} {item}" for kind, item in zip(kinds[3:], pick("object"), strict=True)]
    ids: list[int] = []
    while len(ids) < tokens:
        a, b = (people[i] for i in random.choice(3, 2, replace=False))
        place, item = places[random.integers(3)], objects[random.integers(3)]
        sentence = SENTENCES[random.integers(len(SENTENCES))].format(a=a, b=b, p=place, o=item)
        ids += encode(tokenizer, f" {sentence}")
    return tuple(ids[:tokens])


TASK = Task(
    name="induction_text",
    description="... Anna Carter left the old museum. ... met Anna -> Carter, at every repetition of 300 tokens",
    make=generate,
    metric="kl",
    source="Conmy et al. 2023 (2304.14997), on text made here",
    words={"names": NAMES, "surnames": SURNAMES, "adjectives": ADJECTIVES, "places": PLACES, "objects": OBJECTS},
)
