"""Random circuits evaluated by their live nodes, against one plain forward pass each, in one run.

    python benchmarks/evaluation.py [--size small|tiny] [--circuits N] [--edges N] [--width W]

First the gate: on a tiny model in float64 the losses are the dense objective's. Then, on one model with the same
prompts: walk-built circuits evaluated by `SparseEvaluator`, one plain forward of all prompts with logits at every
position (what a circuit costs where patching is done by hooks), and dense masked evaluations, batched.
"""

import argparse
import time
import warnings

import equinox as eqx
import jax
import numpy as np
from common import SIZES, best_of, emit, machine, random_model, random_pairs

import jaxcircuits as jc


def gate() -> None:
    """Raises if the two ways to evaluate disagree."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype("float64"), random_model(SIZES["tiny"]))
        objective = jc.Objective(model, random_pairs(4, 8, 340), "kl")
        masks = jc.random_circuits(objective.graph, 60, 12)
        dense = np.asarray(objective.per_example_many(masks, 4))
        largest = float(np.abs(jc.SparseEvaluator(objective).per_example_many(masks) - dense).max())
    if largest > 1e-9:
        raise SystemExit(f"live nodes and dense masks differ by {largest}: no benchmark")
    emit(what="gate", largest_difference=largest)


@eqx.filter_jit
def plain_forward(model: jc.GPT2, tokens: jax.Array) -> jax.Array:
    """Logits of every prompt at every position."""
    return jax.vmap(model)(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--metric", default="kl")
    parser.add_argument("--circuits", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not options.no_gate:
        gate()
    emit(what="machine", **machine())

    model = random_model(SIZES[options.size])
    objective = jc.Objective(model, random_pairs(options.prompts, options.length, model.vocab_size), options.metric)
    start = time.perf_counter()
    masks = jc.random_circuits(objective.graph, options.edges, options.circuits)
    seconds_drawing = time.perf_counter() - start

    sparse = jc.SparseEvaluator(objective)
    plain_before = best_of(lambda: plain_forward(model, objective.clean))
    start = time.perf_counter()
    losses = sparse.per_example_many(masks, options.width)
    cold = time.perf_counter() - start
    start = time.perf_counter()
    again = sparse.per_example_many(masks, options.width)
    warm = time.perf_counter() - start
    plain = min(plain_before, best_of(lambda: plain_forward(model, objective.clean)))
    dense = best_of(lambda: objective.per_example_many(masks[:4], 4), 2)[0] / 4
    emit(
        what="evaluation",
        circuits=options.circuits,
        edges=options.edges,
        live_nodes=round(float(np.mean([objective.graph.edges_to_nodes(mask).sum() for mask in masks])), 1),
        width=options.width,
        seconds_drawing=round(seconds_drawing, 2),
        seconds_cold=round(cold, 2),
        seconds_warm=round(warm, 2),
        ms_per_circuit=round(1e3 * warm / options.circuits, 2),
        ms_plain_forward=round(1e3 * plain[0], 1),
        ms_plain_forward_median=round(1e3 * plain[1], 1),
        ms_dense=round(1e3 * dense, 1),
        plain_over_sparse=round(plain[0] * options.circuits / warm, 2),
        dense_over_sparse=round(dense * options.circuits / warm, 2),
        repeats_agree=bool(np.allclose(losses, again, rtol=1e-4, atol=1e-5)),
        dense_difference=float(np.abs(np.asarray(objective.per_example_many(masks[:4], 4)) - losses[:4]).max()),
    )


if __name__ == "__main__":
    main()
