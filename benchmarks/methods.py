"""Scoring methods against the plain passes that their cost is measured in, in one run.

    python benchmarks/methods.py [--size small|tiny] [--prompts N] [--length N] [--edges N]
    python benchmarks/methods.py --eap-ig CHECKOUT --python PYTHON

Each part runs in a process of its own, so that its peak of memory is its own; `--part NAME` runs that one alone.

- gate: a tiny model in float64. EAP is minus the masked gradient at ones, exact patching is what single masks give, and
  the plain loss is the objective at ones; else nothing is timed.
- eap: scores of all edges, beside one forward and one backward pass with the gradients of all weights, without masks
  (logits at all positions, as `model(tokens)` gives them, or at the last alone).
- eap-ig: EAP-IG over inputs, 5 points.
- edge-pruning: steps on all prompts under KL, beside one masked gradient.
- exact: a seeded sample of the chunks of edges that exact patching evaluates, beside one plain forward pass an edge.
- package: the public EAP-IG, only with `--eap-ig`. A gate of its own first: the same scores of all edges on the tiny
  model in float64. Then seconds of its `attribute` and of this library's functions, and the peak of its process (this
  library's are those of eap and eap-ig). CHECKOUT is a clone of github.com/hannamw/EAP-IG, PYTHON that of an
  environment with torch, transformer-lens, einops and safetensors (that of peers.py will do).

What is compared is timed in turns, warm; a `ratio` is that of the first to this one. Memory, in GiB: `peak` of the
process, compiling included; `peak_before`, with the model and its references but before the part; `bound`, what the
objective holds and what a masked gradient of one microbatch takes as compiled, by which the microbatch is chosen.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import compared, emit, in_turns, machine, matmul_ceiling, peak, seconds_of
from jaxtyping import Array, Float, Int
from peer_gates import ask, tiny
from peers import commit_of, problem

import jaxcircuits as jc
from jaxcircuits.batching import memory_needed
from jaxcircuits.discovery.edge_pruning import EdgePruning
from jaxcircuits.discovery.exact import _chunks, _clean_run, _without_edges
from jaxcircuits.discovery.learning import learn
from jaxcircuits.objective import _value_and_gradient

TURNS, POINTS, WIDTH = 5, 5, 8
TOLERANCE = 1e-9
PACKAGE: dict[str, Callable[[jc.Objective], jc.Scores]] = {
    "EAP": jc.eap,
    "EAP-IG-inputs": lambda objective: jc.eap_ig_inputs(objective, steps=POINTS),
}
"""The package's names of the methods that are compared."""


# --- plain passes ------------------------------------------------------------------------------


def plain_logits(model: jc.GPT2, tokens: Array, everywhere: bool) -> Float[Array, "batch position vocab"]:
    """The whole model's logits at all positions, or at the last alone."""
    if everywhere:
        return jax.vmap(model)(tokens)
    return model.unembed(jax.vmap(model.residual)(tokens)[:, -1:])


forward = eqx.filter_jit(plain_logits)


@eqx.filter_jit
def weight_gradient(
    model: jc.GPT2, tokens: Int[Array, "batch position"], answers: Int[Array, "batch 2"], everywhere: bool
) -> tuple[Float[Array, ""], jc.GPT2]:
    """Mean logit difference (wrong minus right) at the last position, and its gradient in every weight."""

    @eqx.filter_value_and_grad
    def loss(model):
        right, wrong = jnp.take_along_axis(plain_logits(model, tokens, everywhere)[:, -1], answers, 1).T
        return jnp.mean(wrong - right)

    return loss(model)


def shape_and_memory(objective: jc.Objective, before: float, after: float | None = None) -> dict[str, Any]:
    """The prompts, and the memory as the header says."""
    after = peak() if after is None else after
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(objective) if eqx.is_array(leaf))
    taken = memory_needed(_value_and_gradient, objective, objective.full_mask(), None)
    return {
        "metric": objective.metric_name,
        "prompts": list(objective.clean.shape),
        "microbatch": objective.microbatch,
        "gib": {"peak": after, "peak_before": before, "bound": round((held + taken) / 2**30, 2)},
    }


# --- parts -------------------------------------------------------------------------------------


def start_problem(options: argparse.Namespace, metric: str = "logit_diff") -> tuple[jc.Objective, jc.PromptPairs]:
    return problem(options.size, metric, options.prompts, options.length)


def check(what: str, **pairs: tuple[Any, Any]) -> None:
    """Stops unless both of every pair are the same, up to a share of the largest."""
    differences = {}
    for name, (one, other) in pairs.items():
        one, other = np.asarray(one), np.asarray(other)
        differences[name] = float(np.abs(one - other).max() / np.abs(other).max())
    emit(what=what, largest_relative_difference=differences)
    if not max(differences.values()) < TOLERANCE:
        raise SystemExit(f"{what}: they differ, no benchmark")


def gate(_: argparse.Namespace) -> None:
    """What is timed is what it should be."""
    with jax.enable_x64(True):
        objective, pairs = tiny("logit_diff")
        valid, edges = objective.graph.valid, sampled_edges(objective.graph, 100)
        masks = np.repeat(valid[None], len(edges), 0)
        masks[np.arange(len(edges)), *edges.T] = False
        answers = jnp.concatenate([pairs.answer, pairs.wrong], 1)
        losses = [weight_gradient(objective.model, objective.clean, answers, x)[0] for x in (True, False)]
        full = float(objective(valid))
        check(
            "gate",
            eap=(jc.eap(objective).values, -objective.gradient(valid)),
            exact=(jc.exact(objective).values[*edges.T], np.asarray(objective.many(masks)) - full),
            plain_loss=(losses, full),
        )


def sampled_edges(graph: jc.Graph, count: int) -> Int[np.ndarray, "edge 2"]:
    """The edges of `sampled_chunks`, (sender, receiver), each once."""
    chunks = sampled_chunks(graph, count)
    return np.array([(sender, receiver) for receiver, senders in chunks for sender in np.unique(senders)])


def sampled_chunks(graph: jc.Graph, count: int) -> list[tuple[int, Int[np.ndarray, " circuit"]]]:
    """A receiver and senders into it, as exact patching evaluates them, drawn until they hold `count` edges."""
    every = [
        (receiver, senders)
        for receiver, column in enumerate(graph.valid.T)
        for senders in _chunks(np.flatnonzero(column), WIDTH)
    ]
    drawn = [every[index] for index in np.random.default_rng(3).permutation(len(every))]
    held = np.cumsum([np.unique(senders).size for _, senders in drawn])
    return drawn[: int(np.searchsorted(held, count)) + 1]


def describe_machine(_: argparse.Namespace) -> None:
    emit(what="machine", **machine(), matmul_gflops=round(matmul_ceiling() / 1e9, 1))


def time_eap(options: argparse.Namespace) -> None:
    objective, pairs = start_problem(options)
    before = peak()
    jc.eap(objective)
    after = peak()  # the plain gradient would raise it
    model, tokens = objective.model, objective.clean
    answers = jnp.concatenate([pairs.answer, pairs.wrong], 1)
    seconds = in_turns(
        TURNS,
        eap=lambda: jc.eap(objective).values,
        weight_gradient=lambda: weight_gradient(model, tokens, answers, True),
        weight_gradient_last_logits=lambda: weight_gradient(model, tokens, answers, False),
    )
    emit(what="eap", **shape_and_memory(objective, before, after), seconds=compared(seconds))


def time_eap_ig(options: argparse.Namespace) -> None:
    objective, _ = start_problem(options)
    before = peak()
    seconds = in_turns(TURNS, eap_ig_inputs=lambda: jc.eap_ig_inputs(objective, steps=POINTS).values)
    emit(what="eap-ig", points=POINTS, **shape_and_memory(objective, before), seconds=compared(seconds))


def time_edge_pruning(options: argparse.Namespace) -> None:
    """Steps one by one, a masked gradient after each; the first of both compiles."""
    objective, _ = start_problem(options, "kl")
    before, mask, start = peak(), objective.full_mask(), time.perf_counter()
    seconds: dict[str, list[float]] = {"step": [], "masked_gradient": []}

    def between(state: jc.State) -> None:
        nonlocal start
        jax.block_until_ready(state.parameters)
        seconds["step"].append(time.perf_counter() - start)
        seconds["masked_gradient"].append(seconds_of(lambda: objective.value_and_gradient(mask)))
        start = time.perf_counter()

    learner = EdgePruning(
        sparsity=0.95, node_sparsity=None, steps=TURNS + 1, ramp=TURNS, warm_up=1, rate=0.8, decay=0.01
    )
    learn(learner, objective, steps=TURNS + 1, batch=options.prompts, progress=between, chunk=1)
    warm = {name: values[1:] for name, values in seconds.items()}
    emit(what="edge-pruning", **shape_and_memory(objective, before), seconds=compared(warm))


def time_exact(options: argparse.Namespace) -> None:
    """Chunks of edges, each after a turn of plain passes; once before, to compile. Means, as receivers differ."""
    objective, _ = start_problem(options)
    before, model, tokens = peak(), objective.model, objective.clean
    chunks, clean = sampled_chunks(objective.graph, options.edges), _clean_run(objective)
    every = jnp.ones(tokens.shape[1], model.dtype)

    def evaluate(receiver: int, senders: np.ndarray) -> Array:
        return _without_edges(objective, clean, model.place(receiver), jnp.asarray(senders, jnp.int32), every)

    for chunk in chunks:
        evaluate(*chunk).block_until_ready()
    after = peak()  # the logits at all positions would raise it
    edges, seconds = len(sampled_edges(objective.graph, options.edges)), []
    for chunk in [chunks[0], *chunks]:
        passes = [seconds_of(lambda x=x: forward(model, tokens, x)) for x in (True, False)]
        seconds.append([seconds_of(lambda chunk=chunk: evaluate(*chunk)), *passes])
    total = np.sum(seconds[1:], 0)
    mean = dict(zip(("exact", "forward", "forward_last_logits"), total / [edges, *[len(chunks)] * 2], strict=True))
    emit(
        what="exact",
        **shape_and_memory(objective, before, after),
        edges=edges,
        edges_of_the_graph=objective.graph.num_edges,
        seconds_an_edge={name: round(float(value), 5) for name, value in mean.items()},
        forwards_an_edge={name: round(float(mean["exact"] / mean[name]), 3) for name in list(mean)[1:]},
    )


def gate_package(python: str, job: dict[str, Any]) -> None:
    """The public package's score of every edge is this library's."""
    with jax.enable_x64(True):
        objective, pairs = tiny("logit_diff")
        valid, scores = objective.graph.valid, {}
        names = objective.graph.names_of(valid)
        for method, ours in PACKAGE.items():
            theirs = ask(python, "peer_eap_ig.py", objective, pairs, what="gate", method=method, **job)["scores"]
            if set(theirs) != set(names):
                raise SystemExit(f"the package has other edges: {sorted(set(theirs) ^ set(names))[:5]}")
            scores[method] = [theirs[name] for name in names], ours(objective).values[valid]
        check("gate of the package", **scores)


def time_package(options: argparse.Namespace) -> None:
    """The public package in its own process, this library before and after it."""
    job = {"threads": os.cpu_count(), "checkout": options.eap_ig, "points": POINTS}
    gate_package(options.python, job)
    objective, pairs = start_problem(options)
    for method, ours in PACKAGE.items():
        seconds = in_turns(TURNS, ours=lambda ours=ours: ours(objective).values)["ours"]
        theirs = ask(options.python, "peer_eap_ig.py", objective, pairs, what="time", method=method, turns=TURNS, **job)
        seconds += in_turns(TURNS, ours=lambda ours=ours: ours(objective).values)["ours"]
        emit(
            what=f"package {method}",
            versions={**theirs["versions"], "commit": commit_of(options.eap_ig)},
            prompts=list(objective.clean.shape),
            package_gib=theirs["gib"],
            seconds=compared({"package": theirs["seconds"], "ours": seconds}),
        )


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "gate": gate,
    "machine": describe_machine,
    "eap": time_eap,
    "eap-ig": time_eap_ig,
    "edge-pruning": time_edge_pruning,
    "exact": time_exact,
    "package": time_package,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("small", "tiny"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--edges", type=int, default=500, help="of exact patching, at least so many")
    parser.add_argument("--eap-ig", metavar="CHECKOUT", help="of the public EAP-IG")
    parser.add_argument("--python", help="of an environment in which the public EAP-IG runs")
    parser.add_argument("--part", choices=tuple(PARTS), help="that part alone")
    options = parser.parse_args()
    if (options.eap_ig is None) != (options.python is None) or (options.part == "package" and options.python is None):
        parser.error("expected --eap-ig CHECKOUT --python PYTHON, both")
    warnings.simplefilter("ignore")
    if options.part:
        PARTS[options.part](options)
        return
    for part in list(PARTS)[: None if options.eap_ig else -1]:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part])
        if done.returncode:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
