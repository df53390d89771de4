"""Greater-Than: "The war lasted from the year 1732 to 17" -> a two-digit year above 32.

The corrupt prompt starts in year "01", after which nearly every year is right.
Source: Hanna et al. 2023, 2305.00586; data as in ACDC: no BOS, start years 11YY..17YY that split into two tokens,
the first and last of each century dropped.
"""

from typing import Any

import numpy as np

from ..data import PADDING, PromptPairs, encode, encode_one, pad
from .task import Task, check_size, known_words
from .words import EVENTS

CENTURIES = range(11, 18)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32) -> PromptPairs:
    """Greater-Than prompts; answers: the later years of the century, wrong: the start year and all before."""
    check_size(size)
    random = np.random.default_rng(seed)
    nouns = list(known_words(tokenizer, EVENTS, at_least=1))
    digits = np.array([encode_one(tokenizer, f"{year:02d}") for year in range(100)], np.int32)
    years = _start_years(tokenizer, digits)
    clean, corrupt, start_years = [], [], []
    for _ in range(size):
        noun, century = random.choice(nouns), random.choice(list(years))
        year = int(random.choice(years[century]))
        ids = encode(tokenizer, f"The {noun} lasted from the year {century}{year:02d} to {century}")
        place = len(ids) - 3
        assert ids[place] == digits[year]
        clean.append(ids)
        corrupt.append([*ids[:place], int(digits[1]), *ids[place + 1 :]])
        start_years.append(year)
    return PromptPairs(
        clean=pad(clean, 0),
        corrupt=pad(corrupt, 0),
        answer=pad([digits[year + 1 :].tolist() for year in start_years], PADDING),
        wrong=pad([digits[: year + 1].tolist() for year in start_years], PADDING),
        year=np.array(start_years, np.int32),
        digits=digits,
    )


def _start_years(tokenizer: Any, digits: np.ndarray) -> dict[int, list[int]]:
    """Of each century the years YY for which XXYY is two tokens, the second "YY", without the first and last."""
    years = {}
    for century in CENTURIES:
        split = []
        for year in range(2, 99):
            ids = tokenizer.encode(f" {century}{year:02d}", add_special_tokens=False)
            if len(ids) == 2 and ids[1] == digits[year]:
                split.append(year)
        if len(split) > 2:
            years[century] = split[1:-1]
    if not years:
        raise ValueError("greater_than needs a tokenizer that splits years such as 1732 into '17' and '32'")
    return years


TASK = Task(
    name="greater_than",
    description="The war lasted from the year 1732 to 17 -> 33 or later",
    generate=generate,
    metric="greater_than",
    source="Hanna et al. 2023 (2305.00586)",
)
