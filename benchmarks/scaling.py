"""What a search costs as the circuit, the prompts, their length or the model grow; GPT-2 XL's first rounds.

    python benchmarks/scaling.py [--axis edges|prompts|length|layers] [--metric kl]
    python benchmarks/scaling.py --xl [--rounds 20]

Each axis varies alone from one base: 6 layers x 12 heads x 768, 10 prompts x 16 tokens. A row is a warm run: the same
search again in the same process. `--xl` makes a 48 x 25 x 1600 model (1.5B random weights, 4 prompts x 16 tokens) and
runs its first rounds; the figure to read is the peak memory.
"""

import argparse
import dataclasses
import resource
import time
import warnings

from common import SIZES, emit, machine, matmul_ceiling, random_model, random_pairs

import jaxcircuits as jc

BASE = {"layers": 6, "prompts": 10, "length": 16, "threshold": 0.003}
AXES = {
    "edges": ("threshold", (0.1, 0.01, 0.003, 0.001)),
    "prompts": ("prompts", (5, 10, 20, 40)),
    "length": ("length", (8, 16, 32, 64)),
    "layers": ("layers", (3, 6, 12)),
}


def peak_gib() -> float:
    """The most memory that this process ever held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def measure(axis: str, metric: str, layers: int, prompts: int, length: int, threshold: float) -> None:
    config = dataclasses.replace(SIZES["small"], n_layer=layers)
    model = random_model(config)
    objective = jc.Objective(model, random_pairs(prompts, length, model.vocab_size), metric)
    cold = jc.acdc(objective, threshold)
    warm = jc.acdc(objective, threshold)
    emit(
        what=f"along {axis}",
        **{"layers": layers, "prompts": prompts, "length": length, "threshold": threshold, "metric": metric},
        edges=objective.graph.num_edges,
        edges_kept=int(warm.mask.sum()),
        evaluations=warm.evaluations,
        useful_share=round(warm.evaluations / (warm.evaluations + warm.evaluations_wasted), 3),
        seconds_compiling=round(cold.seconds_compiling, 2),
        seconds_warm=round(warm.seconds_warm, 2),
        ms_per_evaluation=round(1e3 * warm.seconds_warm / warm.evaluations, 2),
        memory_planned_gib=round(warm.memory_planned / 2**30, 3),
        peak_gib=peak_gib(),
    )


class Enough(Exception):
    """The rounds that were asked for are done."""


def first_rounds(rounds: int, metric: str) -> None:
    """The largest GPT-2: planned, begun, and stopped after some rounds."""
    start = time.perf_counter()
    model = random_model(SIZES["xl"])
    made = time.perf_counter()
    objective = jc.Objective(model, random_pairs(4, 16, model.vocab_size), metric)
    ready = time.perf_counter()
    seen: list[jc.Progress] = []

    def count(progress: jc.Progress) -> None:
        seen.append(progress)
        if len(seen) == rounds:
            raise Enough

    try:
        jc.acdc(objective, 1e-3, width=4, on_progress=count)
    except Enough:
        pass
    emit(
        what="GPT-2 XL, first rounds",
        edges=objective.graph.num_edges,
        rounds=len(seen),
        evaluations=seen[-1].evaluations,
        seconds_model=round(made - start, 1),
        seconds_objective=round(ready - made, 1),
        seconds_first_round=round(seen[0].seconds, 1),
        seconds_a_round=round((seen[-1].seconds - seen[0].seconds) / max(1, len(seen) - 1), 2),
        peak_gib=peak_gib(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=AXES, action="append")
    parser.add_argument("--metric", default="kl")
    parser.add_argument("--xl", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    emit(what="machine", **machine(), matmul_gflops=round(matmul_ceiling() / 1e9, 1))
    if options.xl:
        first_rounds(options.rounds, options.metric)
        return
    for axis in options.axis or AXES:
        name, values = AXES[axis]
        for value in values:
            measure(axis, options.metric, **{**BASE, name: value})


if __name__ == "__main__":
    main()
