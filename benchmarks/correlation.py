"""How well each score agrees with exact patching of ALL edges: Pearson's correlation, by the kind of sender.

    python benchmarks/correlation.py [--model NAME] [--task TASK] [--prompts N] [--seed S] [--metric NAME]
        [--out FILE] [--exact FILE]

Exact patching removes every edge alone (Conmy et al. 2023's first step, of the whole model); the others estimate that
with one or a few backward passes. Prints JSON lines: a method's correlation over all edges, over those out of each
kind of node, and its seconds, compiling included. Scores without a sign are compared with sizes.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from common import emit, machine

import jaxcircuits as jc

BACKWARDS = ("plain", "relp", "attn-lrp", "gim")
METHODS = {
    **{f"eap {backward}": (jc.eap, {"backward": backward}) for backward in BACKWARDS},
    **{f"eap-ig-inputs {backward}": (jc.eap_ig_inputs, {"backward": backward}) for backward in BACKWARDS},
    "eap-ig-activations": (jc.eap_ig_activations, {}),
    "clean-corrupted": (jc.clean_corrupted, {}),
    "mask-ig": (jc.mask_ig, {}),
    "atp-star": (jc.atp_star, {}),
}


def correlations(scores: np.ndarray, exact: np.ndarray, graph: jc.Graph) -> dict[str, float]:
    """Pearson's of all edges, and of those out of each kind of sender."""
    kinds = np.array([sender.kind for sender in graph.sender_table])
    found = {}
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        where = graph.valid & ((kinds == kind) | (kind == "all"))[:, None]
        found[kind] = round(float(np.corrcoef(scores[where], exact[where])[0, 1]), 4)
    return found


def _check_same(run: dict, objective: jc.Objective, model: str) -> None:
    """Raises SystemExit for scores of another model, of other prompts, or measured otherwise."""
    own = objective.describe()
    own |= {"model": model, "digest_of_pairs": own["source"]["digest_of_pairs"]}
    said = {**run, **run.get("source", {})}
    for name in ("model", "digest_of_pairs", "metric", "reference", "dtype", "precision"):
        if said.get(name) != own[name]:
            raise SystemExit(f"--exact: expected scores of {name} {own[name]}, got {said.get(name)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", default="logit_diff")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--exact", type=Path, help="scores that an earlier run wrote with --out")
    options = parser.parse_args()
    loaded = jc.load(options.model)
    pairs = jc.tasks.by_name(options.task).generate(loaded.tokenizer, seed=options.seed, size=options.prompts)
    objective = jc.Objective(loaded.model, pairs, options.metric)
    emit(model=options.model, task=options.task, prompts=len(pairs), metric=options.metric, **machine())
    start = time.perf_counter()
    if options.exact is None:
        exact = jc.Circuit.of(jc.exact(objective), task=options.task, model=loaded.source, seed=options.seed)
        emit(method="exact", edges=objective.graph.num_edges, seconds=round(time.perf_counter() - start, 2))
    else:
        exact = jc.Circuit.load(options.exact)
        _check_same(exact.run, objective, loaded.source)
    if options.out is not None:
        exact.save(options.out)
    for name, (method, given) in METHODS.items():
        start = time.perf_counter()
        scores = method(objective, **given)
        seconds = round(time.perf_counter() - start, 2)
        truth = exact.scores if scores.signed else np.abs(exact.scores)
        emit(method=name, **correlations(scores.scores, truth, objective.graph), seconds=seconds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
