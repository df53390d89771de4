"""Reverse, compiled: "BOS 1 2 3" -> BOS 3 2 1, by a program whose circuit is known.

Source: Lindner et al. 2023, 2301.05062 (`make_reverse`); prompts and metric as in ACDC (Conmy et al. 2023): all orders
of the three tokens, the corrupt prompts are the same rows exchanged, L2 to the model's own output, BOS not scored.
Exchanged rows have the same length and the same positions, so as references they test the tokens' way alone; ACDC's
reference exchanges positions too: `Objective(model, pairs, "l2", jaxcircuits.permute_positions(model, [3, 2, 1, 0]))`.
"""

import itertools
from typing import Any

import numpy as np

from ..data import PromptPairs
from ..graph import Graph
from .compiled import all_but_first, derangement, program_ids
from .task import Task, check_size

BOS, LETTERS = "BOS", ("1", "2", "3")
MODEL = "tracr-reverse"


def generate(tokenizer: Any, *, seed: int = 0, size: int = 6) -> PromptPairs:
    """The orders of three tokens, each with another as its corrupt prompt.

    Raises ValueError for more than the 6 that there are.
    """
    check_size(size)
    orders = list(itertools.permutations(program_ids(tokenizer, LETTERS, MODEL)))
    if size > len(orders):
        raise ValueError(f"size: three tokens have {len(orders)} orders, got {size}")
    bos = program_ids(tokenizer, (BOS,), MODEL)
    clean = np.array([[*bos, *order] for order in orders[:size]], np.int32)
    corrupt = clean[derangement(np.random.default_rng(seed), size)]
    return PromptPairs(clean=clean, corrupt=corrupt, positions=all_but_first(clean))


def circuit(graph: Graph) -> tuple[str, ...]:
    """The edges needed under zero ablation by inputs shorter than the longest: 11.

    a0, m0: the length (its selector width); m1, m2: length - 1 - position, the place to read; a3 reads the token there.
    For inputs of the greatest length `a0.h0` is not needed: 9.
    """
    edges = ["tok->a0.h0<v>", "a0.h0->m0", "tok->m0"]
    edges += ["m0->m1", "tok->m1", "pos->m1", "m1->m2"]
    edges += ["m2->a3.h0<q>", "pos->a3.h0<k>", "tok->a3.h0<v>", "a3.h0->logits"]
    return graph.names_of(graph.mask_of(edges))


TASK = Task(
    name="tracr_reverse",
    description="BOS 1 2 3 -> BOS 3 2 1 (model tracr-reverse)",
    make=generate,
    metric="l2",
    source="Lindner et al. 2023 (2301.05062); Conmy et al. 2023 (2304.14997)",
    reference="zero",
    circuit=circuit,
)
