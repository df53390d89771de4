"""Proportion, compiled: "BOS x w x y" -> 1, 1/2, 2/3, 1/2: the share of x so far, by a program whose circuit is known.

Source: Lindner et al. 2023, 2301.05062 (`make_frac_prevs`); prompts and metric as in ACDC (Conmy et al. 2023): strings
of length 4, the corrupt prompts are the same rows exchanged, L2 to the model's own output (one direction of the
residual stream), the first position not scored. ACDC feeds the token ids 0..3, which the model's vocabulary reads as
BOS, padding, w and x: the convention "original". For its scrambled positions see `tracr_reverse`.
"""

import itertools
from typing import Any

import numpy as np

from ..data import PromptPairs
from ..graph import Graph
from .compiled import all_but_first, derangement, program_ids
from .task import Task, check_size

BOS, LETTERS = "BOS", ("w", "x", "y", "z")
MODEL = "tracr-proportion"
CONVENTIONS = ("letters", "original")


def generate(tokenizer: Any, *, seed: int = 0, size: int = 50, convention: str = "letters") -> PromptPairs:
    """Different strings of 4 tokens, each with another as its corrupt prompt.

    - `convention`: "letters": BOS and w, x, y or z. "original": the ids 0..3 without BOS; a prompt may be its own
      corrupt one, as rows are exchanged by any permutation.

    Raises ValueError for another convention, or more than the 256 strings that there are.
    """
    check_size(size)
    _check(convention)
    ids = program_ids(tokenizer, LETTERS, MODEL)
    first = program_ids(tokenizer, (BOS,), MODEL)
    if convention == "original":
        ids, first = [0, 1, 2, 3], []
    strings = list(itertools.product(ids, repeat=4))
    if size > len(strings):
        raise ValueError(f"size: there are {len(strings)} strings of 4 tokens, got {size}")
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(strings))[:size]
    clean = np.array([[*first, *strings[row]] for row in chosen], np.int32)
    order = random.permutation(size) if convention == "original" else derangement(random, size)
    return PromptPairs(clean=clean, corrupt=clean[order], positions=all_but_first(clean))


def circuit(graph: Graph, *, convention: str = "letters") -> tuple[str, ...]:
    """The edges needed under zero ablation: 5 for letters, 7 in the original's convention.

    m0: is the token x; a1 reads its mean over the positions up to its own. The query and key also tell BOS apart,
    which matters where it is not only at the first position, which is not scored.
    """
    _check(convention)
    edges = ["tok->m0", "m0->a1.h0<v>", "pos->a1.h0<q>", "pos->a1.h0<k>", "a1.h0->logits"]
    if convention == "original":
        edges += ["tok->a1.h0<q>", "tok->a1.h0<k>"]
    return graph.names_of(graph.mask_of(edges))


def _check(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected {' or '.join(map(repr, CONVENTIONS))}, got {convention!r}")


TASK = Task(
    name="tracr_proportion",
    description="BOS x w x y -> 1, 1/2, 2/3, 1/2: the share of x so far (model tracr-proportion)",
    make=generate,
    metric="l2",
    source="Lindner et al. 2023 (2301.05062); Conmy et al. 2023 (2304.14997)",
    reference="zero",
    circuit=circuit,
)
