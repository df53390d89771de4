"""The live engine against the dense one and against one evaluation at a time, in one run.

    python benchmarks/engine.py [--size small|tiny] [--metric kl] [--threshold T] [--width W] [--rounds N] [--sweep]

First the gate: on a tiny model in float64 the live and the dense evaluator take the same decisions. Then, on one
model with the same prompts: the whole live run cold (with compiling) and warm (again in the same process), the dense
evaluator and single dense evaluations on the first `--rounds` trials, and the share of the measured matmul ceiling.
"""

import argparse
import resource
import warnings

import jax
import numpy as np
from common import SIZES, best_of, emit, machine, matmul_ceiling, random_model, random_pairs

import jaxcircuits as jc


def gate() -> None:
    """Raises if the two evaluators disagree."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype("float64"), random_model(SIZES["tiny"]))
        objective = jc.Objective(model, random_pairs(4, 8, 340), "kl")
        live = jc.acdc(objective, 1e-3)
        dense = jc.acdc(objective, 1e-3, evaluator=jc.DenseEvaluator)
        same = [(d.name, d.removed) for d in live.decisions] == [(d.name, d.removed) for d in dense.decisions]
        if not same:
            raise SystemExit("the live and the dense evaluator disagree: no benchmark")
    emit(what="gate", same_decisions=same, evaluations=live.evaluations, edges_kept=int(live.mask.sum()))


def flops_of_a_forward(objective: jc.Objective) -> float:
    """GEMM operations of one plain forward of all prompts, logits at the scored positions only."""
    config, (batch, positions) = objective.model.config, objective.clean.shape
    block = 4 * config.n_embd**2 + 2 * config.n_embd * config.num_neurons
    return 2.0 * batch * (positions * config.n_layer * block + config.n_embd * config.vocab_size)


def compare_sweep(objective: jc.Objective, least: float, width: int | None) -> None:
    """13 thresholds over two decades, warm, against the least of them alone: it keeps most and costs most."""
    thresholds = [float(threshold) for threshold in least * np.logspace(0, 2, 13)]
    jc.acdc_sweep(objective, thresholds, width=width)  # compiles
    alone = jc.acdc(objective, least, width=width)
    swept = jc.acdc_sweep(objective, thresholds, width=width)
    seconds = max(result.seconds_warm for result in swept)
    emit(
        what="sweep of 13",
        least=least,
        edges_kept=[int(result.mask.sum()) for result in swept],
        seconds_alone=round(alone.seconds_warm, 2),
        seconds_sweep=round(seconds, 2),
        ratio=round(seconds / alone.seconds_warm, 2),
    )


def run_twice(objective: jc.Objective, options: argparse.Namespace) -> float:
    """The whole live run, cold and warm; seconds that an evaluation of the warm one takes."""
    seconds = 0.0
    for name in ("cold", "warm"):
        result = jc.acdc(objective, options.threshold, width=options.width)
        tried = result.evaluations + result.evaluations_wasted
        seconds = result.seconds_warm / result.evaluations
        emit(
            what=f"live {name}",
            metric=options.metric,
            threshold=options.threshold,
            seconds=round(result.seconds, 2),
            seconds_compiling=round(result.seconds_compiling, 2),
            seconds_warm=round(result.seconds_warm, 2),
            edges_kept=int(result.mask.sum()),
            evaluations=result.evaluations,
            useful_share=round(result.evaluations / tried, 3),
            device_calls=result.device_calls,
            ms_per_evaluation=round(1e3 * seconds, 2),
            evaluations_per_second=round(result.evaluations / result.seconds_warm, 1),
            undecided=len(result.undecided),
            noise=result.noise,
            peak_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        )
    return seconds


def compare_dense(objective: jc.Objective, live: float, rounds: int, ceiling: float) -> None:
    """Dense evaluations, in batches and one by one, against `live` seconds of a live one."""
    forward = flops_of_a_forward(objective)
    single = best_of(lambda: objective(objective.graph.valid), 3)[0]
    width = 8
    masks = np.repeat(objective.graph.valid[None], width, 0)
    dense = best_of(lambda: objective.many(masks, width), rounds)[0] / width
    emit(
        what="per evaluation",
        live_ms=round(1e3 * live, 2),
        dense_batched_ms=round(1e3 * dense, 1),
        dense_single_ms=round(1e3 * single, 1),
        live_over_dense=round(dense / live, 1),
        live_over_single=round(single / live, 1),
        gemm_equivalent_gflops=round(forward / live / 1e9, 1),
        share_of_ceiling=round(forward / live / ceiling, 2),
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--metric", default="kl")
    parser.add_argument("--threshold", type=float, default=0.005)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--width", type=int)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the dense evaluator")
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--sweep", action="store_true", help="also 13 thresholds at once, against the dearest alone")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")
    if not options.no_gate:
        gate()
    ceiling = matmul_ceiling()
    emit(what="machine", **machine(), matmul_gflops=round(ceiling / 1e9, 1))
    model = random_model(SIZES[options.size])
    objective = jc.Objective(model, random_pairs(options.prompts, options.length, model.vocab_size), options.metric)
    live = run_twice(objective, options)
    if options.sweep:
        compare_sweep(objective, options.threshold, options.width)
    compare_dense(objective, live, options.rounds, ceiling)


if __name__ == "__main__":
    main()
