"""MAttr over several seeds beside rankings that are not learnt: CPR and CMD on held-out IOI prompts, bundled model.

    python benchmarks/rankings.py [--methods a,b] [--seeds N] [--steps N] [--batch N] [--prompts N] [--held-out N]
        [--drawn SEED]

Prints a JSON line for each ranking, and one with mean, standard deviation and ends over seeds. Prompts are drawn once
(seed `--drawn`), the first are scored, the last judge; a seed is that of MAttr's sizes and batches, or of `random`.
By 2504.13151: CPR is the area under faithfulness over the share of edges, CMD that between it and 1.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import emit, machine

import jaxcircuits as jc


def methods(options: argparse.Namespace) -> dict[str, Callable[[jc.Objective, int], Any]]:
    """`method(objective, seed)` of every name."""
    settings = {"steps": options.steps, "batch": options.batch}
    return {
        "random": lambda objective, seed: jc.random_scores(objective, seed=seed),
        "eap": lambda objective, _: jc.eap(objective),
        "eap relp": lambda objective, _: jc.eap(objective, backward="relp"),
        "eap-ig-inputs": lambda objective, _: jc.eap_ig_inputs(objective),
        "eap-gp": lambda objective, _: jc.eap_gp(objective),
        "mask-ig": lambda objective, _: jc.mask_ig(objective),
        "mattr without learning": lambda objective, seed: jc.mattr(
            objective, optimiser="none", seed=seed, **settings
        ).as_scores(),
        "mattr": lambda objective, seed: jc.mattr(objective, seed=seed, **settings).as_scores(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="names joined by commas; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--drawn", type=int, default=0, help="seed of the prompts")
    options = parser.parse_args()
    known = methods(options)
    chosen = list(known) if options.methods is None else options.methods.split(",")
    loaded, size = jc.load("tiny-gpt2"), options.prompts + options.held_out
    pairs = jc.tasks.by_name("ioi").generate(loaded.tokenizer, seed=options.drawn, size=size)
    fit, judge = pairs[: options.prompts], pairs[options.prompts :]
    objective, judged = (jc.Objective(loaded.model, part, "logit_diff") for part in (fit, judge))
    emit(prompts=len(fit), held_out=len(judge), edges=objective.graph.num_edges, **machine())
    for name in chosen:
        rows = []
        for seed in range(options.seeds if name in ("mattr", "random") else 1):
            start = time.perf_counter()
            scores = known[name](objective, seed)
            seconds = time.perf_counter() - start
            curve = jc.faithfulness_curve(judged, scores)
            rows.append((curve.cpr, curve.cmd))
            emit(method=name, seed=seed, cpr=curve.cpr, cmd=curve.cmd, acc_auc=curve.acc_auc, seconds=round(seconds, 1))
        if len(rows) > 1:
            columns = {"cpr": [row[0] for row in rows], "cmd": [row[1] for row in rows]}
            emit(method=name, seeds=len(rows), **{key: spread(values) for key, values in columns.items()})


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), least and most."""
    found = {"mean": np.mean(values), "std": np.std(values, ddof=1), "least": min(values), "most": max(values)}
    return {name: round(float(value), 4) for name, value in found.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
