"""Docstring: a def and a docstring that lists the arguments in order; the answer is the next argument's name.

The corrupt prompt has other names in place of the arguments that the docstring lists, in the def and in the docstring,
so that neither says what comes next.
Source: Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer"; data as
in ACDC (Conmy et al. 2023): BOS, a line break, two arguments before and one after the three that are to be listed. With
the tokenizer of attn-only-4l, for which a line break and the indentation but its last space are one token, 41 tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import PromptPairs, from_text
from ..graph import Graph
from . import circuits
from .task import Task, check_size, draw_rows, known_words
from .words import ARGUMENTS, NOUNS

UNUSED = 3
"""Names that count as wrong answers though neither prompt has them, as in ACDC."""


def generate(tokenizer: Any, *, seed: int = 0, size: int = 32, before: int = 2, after: int = 1) -> PromptPairs:
    """Docstring prompts; answer: the third listed argument, wrong: every other name of both prompts and some more.

    - `before`, `after`: arguments of the def before and after the three that are listed, at least 1 in all.

    Raises ValueError for a tokenizer that has too few of the words.
    """
    check_size(size)
    if min(before, after) < 0 or before + after < 1:
        raise ValueError(f"before, after: expected whole numbers, one of them above 0, got {before} and {after}")
    random = np.random.default_rng(seed)
    names = list(known_words(tokenizer, ARGUMENTS, at_least=1 + before + after + 8 + UNUSED))
    nouns = list(known_words(tokenizer, NOUNS, at_least=7))
    first_nouns = list(known_words(tokenizer, nouns, at_least=1, before=""))

    def draw() -> tuple[str, str, str, list[str]]:
        method, *drawn = (str(name) for name in random.choice(names, 1 + before + after + 8 + UNUSED, replace=False))
        around, (*listed, answer), other, wrong_listed = _cut(drawn, before + after, 3, 3, 2)
        first = str(random.choice(first_nouns))
        words = [first, *(str(word) for word in random.choice([w for w in nouns if w != first], 6, replace=False))]
        ahead, behind = around[:before], around[before:]
        clean = _prompt(method, [*ahead, *listed, answer, *behind], listed, words)
        corrupt = _prompt(method, [*ahead, *other, *behind], wrong_listed, words)
        return clean, corrupt, f" {answer}", [f" {name}" for name in drawn if name != answer]

    fields = ("clean", "corrupt", "answer", "wrong")
    return from_text([dict(zip(fields, row, strict=True)) for row in draw_rows(draw, size)], tokenizer)


def _cut(names: Sequence[str], *sizes: int) -> list[list[str]]:
    """Consecutive pieces of a list."""
    ends = np.cumsum(sizes)
    return [list(names[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _prompt(method: str, arguments: Sequence[str], listed: Sequence[str], words: Sequence[str]) -> str:
    """Seven `words`: three describe the method, two each listed argument."""
    lines = [f"    :param {name}: {words[3 + 2 * i]} {words[4 + 2 * i]}" for i, name in enumerate(listed)]
    summary = f'    """{" ".join(words[:3])}'
    return "\n".join(["", f"def {method}(self, {', '.join(arguments)}):", summary, "", *lines, "    :param"])


ATTN_ONLY_4L = Graph.transformer(4, 8, mlps=False)


def circuit(graph: Graph) -> tuple[str, ...]:
    """The 24 edges of the published circuit in attn-only-4l: 6 heads. The original counts 13 internal edges besides."""
    circuits.check_graph(graph, ATTN_ONLY_4L, "attn-only-4l")
    tokens = (*graph.embeddings, "a0.h5")
    movers = circuits.heads("3.0 3.6")
    rules = [
        (graph.embeddings, ["a0.h5"], "v"),
        (tokens, ["a1.h4"], "v"),
        (tokens, ["a1.h2", "a2.h0"], "qk"),
        (["a1.h4"], ["a2.h0"], "v"),
        (["a1.h4"], movers, "q"),
        (["a2.h0", "a1.h2"], movers, "k"),
        (tokens, movers, "v"),
        (movers, ["logits"], "qkv"),
    ]
    return circuits.in_order(graph, set().union(*(circuits.edges(graph, *rule) for rule in rules)))


TASK = Task(
    name="docstring",
    description="def f(self, a, b, c, d): a docstring with :param b: ... :param -> c",
    make=generate,
    metric="logit_diff_max",
    source="Heimersheim and Janiak 2023",
    circuit=circuit,
    bos=True,
    words={"arguments": ARGUMENTS, "nouns": NOUNS},
)
