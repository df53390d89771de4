"""Scoring methods against the plain passes that their cost is measured in, in one run.

    python benchmarks/methods.py [--size small|tiny] [--prompts N] [--length N] [--edges N]
    python benchmarks/methods.py [--eap-ig CHECKOUT] [--edge-pruning CHECKOUT] --python PYTHON

Each part runs in a process of its own, so that its peak of memory is its own; `--part NAME` runs that one alone.

- gate: a tiny model in float64. EAP is minus the masked gradient at ones, exact patching is what single masks give, and
  the plain loss is the objective at ones; else nothing is timed.
- eap: scores of all edges, beside one forward and one backward pass with the gradients of all weights, without masks
  (logits at all positions, as `model(tokens)` gives them, or at the last alone).
- eap-ig: EAP-IG over inputs, 5 points.
- edge-pruning: steps on all prompts under KL, beside one masked gradient.
- mattr: steps of MAttr on the bundled model, one prompt a step and all, beside as many masked gradients.
- backward: EAP on the bundled model by each rule of the backward pass, beside plain EAP.
- exact: a seeded sample of the chunks of edges that exact patching evaluates, beside one plain forward pass an edge.
- package: the public EAP-IG, only with `--eap-ig`. A gate of its own first: the same scores of all edges on the tiny
  model in float64. Then seconds of its `attribute` and of this library's functions, and the peak of its process (this
  library's are those of eap and eap-ig). CHECKOUT is a clone of github.com/hannamw/EAP-IG.
- edge-pruning-authors: only with `--edge-pruning`, a clone of github.com/princeton-nlp/Edge-Pruning. A gate first: the
  same logits and KL of circuits on the tiny model in float64. Then seconds and peak of their step and of this
  library's, both with node masks; `authors_reference` are the whole model's runs in theirs, which here are made once.

PYTHON is that of an environment with torch, transformers 4, datasets, transformer-lens, einops and safetensors (that of
peers.py will do).

What is compared is timed in turns, warm; a `ratio` is that of the first to this one. Memory, in GiB: `peak` of the
process, compiling included; `peak_before`, with the model and its references but before the part; `bound`, what the
objective holds and what a masked gradient of one microbatch takes as compiled, by which the microbatch is chosen.
"""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import compared, emit, in_turns, machine, matmul_ceiling, peak, seconds_of
from jaxtyping import Array, Float, Int
from methods_common import POINTS, TURNS, pruning_steps, require_same, shape_and_memory, start_problem
from methods_learnt import time_backward, time_mattr
from methods_peers import time_authors, time_package
from peer_gates import tiny

import jaxcircuits as jc
from jaxcircuits.discovery.exact import _chunks, _clean_run, _without_edges

WIDTH = 8


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


# --- parts -------------------------------------------------------------------------------------


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
        require_same(
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
    before, mask, gradients = peak(), objective.full_mask(), []

    def gradient() -> None:
        gradients.append(seconds_of(lambda: objective.value_and_gradient(mask)))

    seconds = {"step": pruning_steps(objective, between=gradient), "masked_gradient": gradients[1:]}
    emit(what="edge-pruning", **shape_and_memory(objective, before), seconds=compared(seconds))


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


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "gate": gate,
    "machine": describe_machine,
    "eap": time_eap,
    "eap-ig": time_eap_ig,
    "edge-pruning": time_edge_pruning,
    "mattr": time_mattr,
    "backward": time_backward,
    "exact": time_exact,
    "package": time_package,
    "edge-pruning-authors": time_authors,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("small", "tiny"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--edges", type=int, default=500, help="of exact patching, at least so many")
    parser.add_argument("--eap-ig", metavar="CHECKOUT", help="of the public EAP-IG")
    parser.add_argument("--edge-pruning", metavar="CHECKOUT", help="of the code of Edge Pruning's authors")
    parser.add_argument("--python", help="of an environment in which these two run")
    parser.add_argument("--part", choices=tuple(PARTS), help="that part alone")
    options = parser.parse_args()
    checkouts = {"package": options.eap_ig, "edge-pruning-authors": options.edge_pruning}
    if any(checkouts.values()) != (options.python is not None) or not checkouts.get(options.part, True):
        parser.error("expected --python PYTHON with --eap-ig CHECKOUT or --edge-pruning CHECKOUT")
    warnings.simplefilter("ignore")
    if options.part:
        PARTS[options.part](options)
        return
    for part in PARTS:
        if not checkouts.get(part, True):
            continue
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part])
        if done.returncode:
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
