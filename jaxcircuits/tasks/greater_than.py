"""Greater-Than: "The war lasted from the year 1732 to 17" -> a two-digit year above 32.

The corrupt prompt starts in year "01", after which nearly every year is right.
Where years split into single digits, start years end in 9: then a year is later exactly if its third digit is, and the
digits "0" to "9" are scored in place of "00" to "99".
Source: Hanna et al. 2023, 2305.00586; data as in ACDC: no BOS, start years 11YY..17YY that split into two tokens,
the first and last of each century dropped.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from ..data import PromptPairs
from ..graph import Graph
from ..texts import PADDING, encode, encode_after, pad
from . import circuits
from .task import Task, check_size, draw_rows, known_words
from .words import EVENTS

CENTURIES = range(11, 18)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, repeats: bool = False) -> PromptPairs:
    """Greater-Than prompts; answers: the later years of the century, wrong: the start year and all before.

    Both by their next token, two digits or one; `year` and `digits` count in it.

    `repeats`: a prompt may come again (for training data).
    """
    check_size(size)
    random = np.random.default_rng(seed)
    nouns = list(known_words(tokenizer, EVENTS, at_least=1))
    digits = _digits(tokenizer)
    split = _split_years(tokenizer, digits)
    years = {century: own[1:-1] if len(digits) == 100 else own for century, own in split.items()}

    def draw() -> tuple[str, int]:
        noun, century = random.choice(nouns), random.choice(list(years))
        year = int(random.choice(years[century]))
        return f"The {noun} lasted from the year {century}{year:02d} to {century}", year

    clean, corrupt, start_years = [], [], []
    for text, year in draw_rows(draw, size, repeats=repeats):
        ids = encode(tokenizer, text)
        own, first = _year_ids(digits, year), _year_ids(digits, 1)
        place = len(ids) - len(encode_after(tokenizer, text[text.index(" to ") :])) - len(own)
        assert ids[place : place + len(own)] == own
        clean.append(ids)
        corrupt.append([*ids[:place], *first, *ids[place + len(own) :]])
        start_years.append(year if len(digits) == 100 else year // 10)
    return PromptPairs(
        clean=pad(clean, 0),
        corrupt=pad(corrupt, 0),
        answer=pad([digits[year + 1 :].tolist() for year in start_years], PADDING),
        wrong=pad([digits[: year + 1].tolist() for year in start_years], PADDING),
        year=np.array(start_years, np.int32),
        digits=digits,
    )


def _digits(tokenizer: Any) -> Int[np.ndarray, " digits"]:
    """Ids of "00" to "99" where each is one token, else of "0" to "9"."""
    for texts in ([f"{year:02d}" for year in range(100)], [str(digit) for digit in range(10)]):
        ids = [encode_after(tokenizer, text) for text in texts]
        if all(len(own) == 1 for own in ids) and len({own[0] for own in ids}) == len(texts):
            return np.array([own[0] for own in ids], np.int32)
    raise ValueError("greater_than needs a tokenizer in which numbers of two digits, or single digits, are one token")


def _year_ids(digits: np.ndarray, year: int) -> list[int]:
    """The tokens of a year's last two digits."""
    return digits[[year] if len(digits) == 100 else [year // 10, year % 10]].tolist()


def _candidates(digits: np.ndarray) -> range:
    """The years YY of a century that may be start years; where years split into digits those that end in 9."""
    return range(2, 99) if len(digits) == 100 else range(9, 90, 10)


def _split_years(tokenizer: Any, digits: np.ndarray) -> dict[int, list[int]]:
    """Of each century the years YY for which XXYY ends in the tokens of YY, after those of XX alone; at least three."""
    years = {}
    for century in CENTURIES:
        alone = encode_after(tokenizer, f" {century}")
        split = [
            year
            for year in _candidates(digits)
            if encode_after(tokenizer, f" {century}{year:02d}") == [*alone, *_year_ids(digits, year)]
        ]
        if len(split) > 2:
            years[century] = split
    if not years:
        raise ValueError("greater_than needs a tokenizer that splits years such as 1732 into '17' and '32', or digits")
    return years


def unsplit_years(tokenizer: Any) -> dict[str, tuple[str, ...]]:
    """Years that are no start years, since the tokenizer does not split them, or hardly any of their century."""
    digits = _digits(tokenizer)
    split = _split_years(tokenizer, digits)
    every = [(century, year) for century in CENTURIES for year in _candidates(digits)]
    left_out = tuple(f"{century}{year:02d}" for century, year in every if year not in split.get(century, ()))
    return {"years": left_out} if left_out else {}


EARLY_HEADS = circuits.heads("0.3 0.5")
DUPLICATE_HEAD = circuits.heads("0.1")
EARLY_MLPS = circuits.mlps(range(4))
YEAR_HEADS = circuits.heads("5.5 6.1 6.9 7.10 8.11 9.1")
LATE_MLPS = circuits.mlps(range(8, 12))


def circuit(graph: Graph) -> tuple[str, ...]:
    """The 235 edges of Hanna et al.'s circuit in GPT-2 small, as ACDC writes it: 9 heads, 12 MLPs.

    Early heads and MLPs feed the heads that attend to the start year, which feed the late MLPs and the logits; MLPs up
    to layer 8 pass on to each other and to these heads' queries. The original counts 27 internal edges besides.
    """
    circuits.check_graph(graph, circuits.GPT2_SMALL, "GPT-2 small")
    mlps, logits = circuits.mlps(range(graph.num_layers)), ("logits",)
    rules = [
        (graph.embeddings, EARLY_HEADS + DUPLICATE_HEAD + EARLY_MLPS, "qkv"),
        (DUPLICATE_HEAD, EARLY_MLPS + YEAR_HEADS, "qkv"),
        (EARLY_HEADS, YEAR_HEADS, "qkv"),
        (EARLY_MLPS, EARLY_MLPS + YEAR_HEADS, "qkv"),
        (YEAR_HEADS, LATE_MLPS + logits, "qkv"),
        (LATE_MLPS, LATE_MLPS + logits, "qkv"),
        (mlps, mlps[:9], "qkv"),
        (mlps, YEAR_HEADS, "q"),
    ]
    return circuits.in_order(graph, set().union(*(circuits.edges(graph, *rule) for rule in rules)))


TASK = Task(
    name="greater_than",
    description="The war lasted from the year 1732 to 17 -> 33 or later",
    make=generate,
    metric="greater_than",
    source="Hanna et al. 2023 (2305.00586)",
    circuit=circuit,
    words={"events": EVENTS},
    unsplit=unsplit_years,
)
