"""What must hold before peers.py times: the same metrics and the same decisions, on a tiny model in float64."""

import json
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np
from common import SIZES, emit, random_model, random_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.schedule import all_steps

HERE = Path(__file__).parent


def ask(python: str, script: str, objective: jc.Objective, pairs: jc.PromptPairs, **job) -> dict:
    """What a script in the peer's environment answers about a model and prompts."""
    model = objective.model
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jc.save(model, folder / "model")
        np.savez(folder / "prompts.npz", **{x: getattr(pairs, x) for x in ("clean", "corrupt", "answer", "wrong")})
        job = {"dtype": str(model.dtype), "metric": objective.metric_name, **job}
        (folder / "job.json").write_text(json.dumps(job))
        done = subprocess.run([python, HERE / script, folder], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
        return json.loads((folder / "answer.json").read_text())


def tiny(metric: str) -> tuple[jc.Objective, jc.PromptPairs]:
    """The gate's model, in float64."""
    pairs = random_pairs(4, 8, 340)
    return jc.Objective(jax.tree.map(lambda x: x.astype("float64"), random_model(SIZES["tiny"])), pairs, metric), pairs


def check(peer: str, metrics: np.ndarray, decisions: np.ndarray, **row) -> None:
    """Stops unless ours and the peer's [2, trial] agree."""
    difference = float(np.abs(metrics[0] - metrics[1]).max())
    others = int((decisions[0] != decisions[1]).sum())
    emit(what="gate", peer=peer, metrics=metrics.shape[1], largest_difference=difference, other_decisions=others, **row)
    if others or not np.allclose(*metrics, rtol=1e-6, atol=1e-12):
        raise SystemExit(f"{peer} and jaxcircuits disagree: no benchmark")


def gate_autocircuit(python: str, threshold: float) -> None:
    """AutoCircuit evaluates random circuits, and runs its own ACDC over this library's order of edges."""
    with jax.enable_x64(True):
        objective, pairs = tiny("kl")
        graph = objective.graph
        share = np.array([1, 0.99, 0.9, 0.5, 0.1, 0])[:, None, None]
        masks = graph.valid & (np.random.default_rng(2).random((6, *graph.shape)) < share)
        circuits = np.asarray(objective.many(masks))
        result = jc.acdc(objective, threshold, groups=False)
    order = [step.name for step in all_steps(graph, groups=False)]
    removed = [graph.names_of(graph.valid & ~mask) for mask in masks]
    job = {"what": "gate", "threads": 1, "order": order, "circuits": removed, "threshold": threshold}
    answer = ask(python, "peer_autocircuit.py", objective, pairs, **job)
    after = dict(zip(order, answer["after"], strict=True))
    ours = [*circuits, *(d.after for d in result.decisions)]
    theirs = [*answer["circuits"], *(after[d.name] for d in result.decisions)]
    kept = [bool(result.mask[graph.edge_index(name)]) for name in order]
    check("AutoCircuit", np.array([ours, theirs]), np.array([kept, np.logical_not(answer["removed"])]))


def gate_original(python: str, checkout: str, metric: str, threshold: float) -> None:
    """The original makes the same trials in the same order, in as many forward passes as `forwards_of` says."""
    with jax.enable_x64(True):
        objective, pairs = tiny(metric)
        result = jc.acdc(objective, threshold)
    job = {"what": "gate", "threads": 1, "checkout": checkout, "threshold": threshold}
    answer = ask(python, "peer_acdc.py", objective, pairs, **job)
    names, _, after, removed = zip(*answer["trials"], strict=True)
    ours = [[getattr(d, field) for d in result.decisions] for field in ("name", "after", "removed")]
    if list(names) != ours[0] or answer["forwards"] != forwards_of(result):
        raise SystemExit("the original makes other trials: no benchmark")
    check("original", np.array([ours[1], after]), np.array([ours[2], removed]), forwards=answer["forwards"])


def forwards_of(result: jc.ACDCResult) -> int:
    """Forward passes of the original's run with these decisions.

    Two for each of its nodes (an MLP's input and output, a head's output and its q, k and v and their inputs,
    embedding, logits), one for each name of senders of every node that it visits, one a trial, one at the start.
    Nodes that lost all edges to others are not visited, but for the embedding, which then costs four.
    """
    graph = result.graph
    layers, heads = graph.num_layers, len(graph.rows[0])
    alive = {name for name, row in zip(graph.senders, result.mask, strict=True) if row.any()}
    names = 2 * layers + 1 + 2 * ("input" not in alive)
    for layer in range(layers):
        names += (1 + 2 * layer + 2) * (f"m{layer}" in alive)
        names += sum(3 + 3 for head in range(heads) if f"a{layer}.h{head}" in alive)
        names += sum(2 * layer + 1 for group in result.kept_groups if group.startswith(f"a{layer}."))
    return 1 + 2 * (2 + layers * (2 + 7 * heads)) + names + result.evaluations
