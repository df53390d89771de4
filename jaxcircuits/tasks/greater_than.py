"""Greater-Than: "The war lasted from the year 1732 to 17" -> a two-digit year above 32.

The corrupt prompt starts in year "01", after which nearly every year is right. Tokenizers that split years otherwise
are asked for one digit, "0" to "9" in place of "00" to "99":

- into single digits (Qwen, Gemma, Llama 2): start years end in 9; then a year is later exactly if its third digit is;
- into three digits and one (Llama 3, OLMo 2): "1732 to 173" -> 3 or above, within a decade; the corrupt year ends in 0.

Source: Hanna et al. 2023, 2305.00586; data as in ACDC: no BOS, start years 11YY..17YY that split into two tokens,
the first and last of each century dropped.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ..data import PromptPairs
from ..graph import Graph
from ..texts import PADDING, encode, encode_after, pad
from . import circuits
from .task import Task, check_size, draw_rows, known_words
from .words import EVENTS


class Cut(NamedTuple):
    """A way to split years: the digits before what is asked for, the digits of a token of the rest, and which rests.

    `first` is that of the corrupt prompt; of the `starts` of a century or decade the first and last are not `used`.
    """

    prefix: int
    width: int
    first: str
    starts: tuple[str, ...]
    used: slice = slice(None)

    def prefixes(self) -> list[str]:
        """The centuries, or decades."""
        return [f"{number}" for number in range(11 * 10 ** (self.prefix - 2), 18 * 10 ** (self.prefix - 2))]

    def parts(self, rest: str) -> list[int]:
        """The numbers that are one token each in the rest of a year."""
        return [int(rest[place : place + self.width]) for place in range(0, len(rest), self.width)]


CUTS = (
    Cut(2, 2, "01", tuple(f"{year:02d}" for year in range(2, 99)), slice(1, -1)),
    Cut(2, 1, "01", tuple(f"{tens}9" for tens in range(9))),
    Cut(3, 1, "0", tuple("12345678")),
)


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, repeats: bool = False) -> PromptPairs:
    """Greater-Than prompts; answers: the later years of the century (or decade), wrong: the start year and all before.

    Both by their next token, two digits or one; `year` and `digits` count in it.

    `repeats`: a prompt may come again (for training data).
    """
    check_size(size)
    random = np.random.default_rng(seed)
    nouns = list(known_words(tokenizer, EVENTS, at_least=1))
    cut, digits, split = _cut_years(tokenizer)
    years = {prefix: rests[cut.used] for prefix, rests in split.items()}

    def draw() -> tuple[str, str]:
        noun, prefix = random.choice(nouns), str(random.choice(list(years)))
        rest = str(random.choice(years[prefix]))
        return f"The {noun} lasted from the year {prefix}{rest} to {prefix}", rest

    clean, corrupt, start_years = [], [], []
    first = digits[cut.parts(cut.first)].tolist()
    for text, rest in draw_rows(draw, size, repeats=repeats):
        ids, own = encode(tokenizer, text), digits[cut.parts(rest)].tolist()
        place = len(ids) - len(encode_after(tokenizer, text[text.index(" to ") :])) - len(own)
        assert ids[place : place + len(own)] == own
        clean.append(ids)
        corrupt.append([*ids[:place], *first, *ids[place + len(own) :]])
        start_years.append(cut.parts(rest)[0])
    return PromptPairs(
        clean=pad(clean, 0),
        corrupt=pad(corrupt, 0),
        answer=pad([digits[year + 1 :].tolist() for year in start_years], PADDING),
        wrong=pad([digits[: year + 1].tolist() for year in start_years], PADDING),
        year=np.array(start_years, np.int32),
        digits=digits,
    )


def _cut_years(tokenizer: Any) -> tuple[Cut, Int[np.ndarray, " digits"], dict[str, list[str]]]:
    """How the tokenizer splits years, ids of "00" to "99" or "0" to "9", and by prefix the years that split so."""
    for cut in CUTS:
        digits = _digits(tokenizer, cut.width)
        if digits is not None and (years := _split_years(tokenizer, cut, digits)):
            return cut, digits, years
    pieces = [tokenizer.decode([one]) for one in encode_after(tokenizer, " 1732")]
    raise ValueError(
        "greater_than needs a tokenizer that splits years such as 1732 into '17' and '32', '173' and '2', or digits, "
        f"where all such numbers are one token; the model's makes {pieces} of it"
    )


def _digits(tokenizer: Any, width: int) -> Int[np.ndarray, " digits"] | None:
    """Ids of all numbers of so many digits; None where one is several tokens."""
    ids = [encode_after(tokenizer, f"{number:0{width}d}") for number in range(10**width)]
    are_known = all(len(own) == 1 for own in ids) and len({own[0] for own in ids}) == len(ids)
    return np.array([own[0] for own in ids], np.int32) if are_known else None


def _split_years(tokenizer: Any, cut: Cut, digits: np.ndarray) -> dict[str, list[str]]:
    """By prefix the years that end in the tokens of the rest, after those of the prefix; three or more of each."""
    years = {}
    for prefix in cut.prefixes():
        alone = encode_after(tokenizer, f" {prefix}")
        split = [
            rest
            for rest in cut.starts
            if encode_after(tokenizer, f" {prefix}{rest}") == [*alone, *digits[cut.parts(rest)].tolist()]
        ]
        if len(split) > 2:
            years[prefix] = split
    return years


def unsplit_years(tokenizer: Any) -> dict[str, tuple[str, ...]]:
    """Years that are no start years, since the tokenizer does not split them, or hardly any of their century."""
    cut, _, split = _cut_years(tokenizer)
    every = [(prefix, rest) for prefix in cut.prefixes() for rest in cut.starts]
    left_out = tuple(prefix + rest for prefix, rest in every if rest not in split.get(prefix, ()))
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
