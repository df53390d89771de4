"""What a device does in a whole search: one command for whoever has one.

    python benchmarks/accelerator.py [--small] [--out RESULT.json]

First the gate of `engine.py` (the live and the dense evaluator take the same decisions). Then, on GPT-2-small's shape
with seeded random weights, 100 prompts x 16, KL (`--small`: 4 layers x 8 heads x 128, 8 prompts x 8, for a CPU): the
whole exact ACDC run cold and warm, evaluations a second by width, EAP, EAP-IG, exact patching, a learnt step and 1,000
circuits, each cold (compiling) and warm; beside the measured matrix-product ceiling. Prints a JSON line a figure and a
table; `--out` writes all of it with the device's name, versions and commit.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import SIZES, emit, machine, matmul_ceiling, random_model, random_pairs, seconds_of
from engine import flops_of_a_forward, gate

import jaxcircuits as jc
from jaxcircuits.discovery.width import WIDTHS


def cold_and_warm(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the first run, with compiling, and the least of two more."""
    first = seconds_of(run)
    return {"cold_s": round(first, 3), "warm_s": round(min(seconds_of(run) for _ in range(2)), 4)}


def search(objective: jc.Objective, threshold: float, ceiling: float, width: int | None = None) -> dict[str, Any]:
    """The whole exact run, cold and warm, and what it is of the ceiling if each evaluation were one forward pass."""
    cold, warm = (jc.acdc(objective, threshold, width=width) for _ in range(2))
    rate = warm.evaluations / warm.seconds
    return {
        "cold_s": round(cold.seconds, 3),
        "compiling_s": round(cold.seconds_compiling, 3),
        "warm_s": round(warm.seconds, 3),
        "evaluations": warm.evaluations,
        "edges_kept": int(warm.mask.sum()),
        "calls": warm.run["device_calls_by_width"],
        "evaluations_per_second": round(rate, 1),
        "share_of_ceiling": round(rate * flops_of_a_forward(objective) / ceiling, 3),
    }


def circuits(objective: jc.Objective, count: int, edges: int) -> np.ndarray:
    """Seeded random circuits of so many edges."""
    random, valid = np.random.default_rng(0), np.flatnonzero(objective.graph.valid)
    masks = np.zeros((count, objective.graph.valid.size), bool)
    for mask in masks:
        mask[random.choice(valid, edges, replace=False)] = True
    return masks.reshape(count, *objective.graph.shape)


def methods(objective: jc.Objective) -> dict[str, Callable[[], Any]]:
    """Each other measured piece of work."""
    masks, full = circuits(objective, 1000, 100), objective.full_mask()
    sparse = jc.SparseEvaluator(objective)
    return {
        "EAP": lambda: objective.clean_gradient(),
        "EAP-IG, 5 points": lambda: objective.along(np.arange(1, 6) / 5),
        "learnt step (value and gradient)": lambda: objective.value_and_gradient(full),
        "exact patching, all edges": lambda: jc.exact(objective).values,
        "1,000 circuits of 100 edges": lambda: sparse.per_example_many(masks),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| what | cold, s | warm, s | evaluations a second | share of ceiling |", "|---|---|---|---|---|"]
    names = "cold_s", "warm_s", "evaluations_per_second", "share_of_ceiling"
    lines += [f"| {what} | {' | '.join(str(row.get(name, '-')) for name in names)} |" for what, row in rows.items()]
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and few prompts, for a CPU")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--threshold", type=float, default=0.002)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")
    gate()
    size, prompts, length = ("tiny", 8, 8) if options.small else ("small", 100, 16)
    ceiling = matmul_ceiling()
    about = {**machine(), "size": size, "prompts": options.prompts or prompts, "matmul_gflops": round(ceiling / 1e9, 1)}
    emit(**about)
    model = random_model(SIZES[size])
    objective = jc.Objective(model, random_pairs(about["prompts"], length, model.vocab_size), "kl")
    rows: dict[str, dict[str, Any]] = {}

    def tell(what: str, row: dict[str, Any]) -> None:
        rows[what] = row
        emit(what=what, **row)

    tell("exact ACDC", search(objective, options.threshold, ceiling))
    for width in WIDTHS[1:3] if options.small else WIDTHS:
        tell(f"exact ACDC, width {width}", search(objective, options.threshold, ceiling, width))
    for what, run in methods(objective).items():
        tell(what, cold_and_warm(run))
    print(f"\n{about['device']}, jax {jax.__version__}, commit {about['commit']}, {about['date']}\n\n{table(rows)}")
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
