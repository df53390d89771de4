"""The parts of methods.py that run other code beside this library: the EAP-IG package, Edge Pruning's authors' code."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import compared, emit, in_turns, peak
from jaxtyping import Array, Bool, Float
from methods_common import POINTS, TURNS, pruning_steps, require_same, shape_and_memory, start_problem
from peer_gates import ask, tiny
from peers import commit_of

import jaxcircuits as jc

PACKAGE: dict[str, Callable[[jc.Objective], jc.Scores]] = {
    "EAP": jc.eap,
    "EAP-IG-inputs": lambda objective: jc.eap_ig_inputs(objective, steps=POINTS),
}
"""The package's names of the methods that are compared."""


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
        require_same("gate of the package", **scores)


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


@eqx.filter_jit
def circuit_logits(
    objective: jc.Objective, masks: Bool[Array, "circuit sender receiver"]
) -> Float[Array, "circuit batch position vocab"]:
    def one(mask):
        run = jax.vmap(lambda tokens, reference: objective.model(tokens, mask, reference), (0, 1))
        return run(objective.clean, objective.reference)

    return jax.lax.map(one, masks.astype(objective.model.dtype))


def gate_authors(python: str, job: dict[str, Any]) -> None:
    """The authors' model has the logits and the loss of this library's circuits: all edges, none, and between."""
    with jax.enable_x64(True):
        objective, pairs = tiny("kl")
        graph = objective.graph
        share = np.array([1, 0.99, 0.9, 0.5, 0.1, 0])[:, None, None]
        masks = graph.valid & (np.random.default_rng(2).random((6, *graph.shape)) < share)
        removed = [graph.names_of(graph.valid & ~mask) for mask in masks]
        theirs = ask(python, "peer_edge_pruning.py", objective, pairs, what="gate", circuits=removed, **job)
        logits = circuit_logits(objective, jnp.asarray(masks))
        clean = jax.vmap(objective.model)(objective.clean)
        require_same(
            "gate of the authors' code",
            all_open=(theirs["logits"][0], clean),
            **{f"logits_of_{mask.sum()}": pair for mask, *pair in zip(masks, theirs["logits"], logits, strict=True)},
            kl=(theirs["kl"], objective.many(masks)),
        )


def time_authors(options: argparse.Namespace) -> None:
    """Steps of the authors' code, in a process of its own, and this library's, twice in turns; with node masks."""
    job = {"threads": os.cpu_count(), "checkout": options.edge_pruning}
    gate_authors(options.python, job)
    objective, pairs = start_problem(options, "kl")
    before, theirs, seconds = peak(), [], []
    for _ in range(2):
        theirs.append(ask(options.python, "peer_edge_pruning.py", objective, pairs, what="time", turns=TURNS, **job))
        seconds += pruning_steps(objective, node_sparsity=0.72)
    authors, reference = (sum((answer[name] for answer in theirs), []) for name in ("seconds", "reference"))
    emit(
        what="edge-pruning-authors",
        versions={**theirs[0]["versions"], "commit": commit_of(options.edge_pruning)},
        **shape_and_memory(objective, before),
        authors_gib=theirs[0]["gib"],
        seconds=compared({"authors": authors, "ours": seconds, "authors_reference": reference}),
        load=round(os.getloadavg()[0], 1),
    )
