"""`models`, `methods` and `show`: what there is, and what is in a file."""

from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from .. import checkpoints
from ..circuit import Circuit
from ..crossings import CIRCUIT_FORMAT, FORMAT, Peap, PeapCircuit
from ..data import PromptPairs
from ..discovery.methods import METHODS, PEAP
from ..files import read_json
from ..resampling import certificates_of
from ..types import EdgeScores
from .options import out

SURE = 0.95
"""Share of the replicates from which on an edge counts as sure."""
SHOWN = 8
"""Edges outside of the circuit that are printed."""
BEST = 10
"""Edges that are printed of scores."""


def list_models() -> None:
    """Lists the bundled models."""
    for name in checkpoints.bundled():
        model = checkpoints.load(name).model
        width = jax.eval_shape(model.sender_values, jax.ShapeDtypeStruct((1,), np.int32)).shape[-1]
        sizes = {**model.graph.sizes, "edges": model.graph.num_edges, "tokens": model.vocab_size, "wide": width}
        out.print(f"{name:<18}{', '.join(f'{number} {what}' for what, number in sizes.items())}")
    out.print("or a folder with config.json and model.safetensors, a .gguf file (needs the extra gguf), or a GPT-2")
    out.print("on the Hugging Face hub (gpt2)")


def list_methods() -> None:
    """Lists the methods that score edges: formula, source, cost, hyperparameters."""
    for method in (*METHODS.values(), PEAP):
        out.print(f"{method.name:<24}{method.formula}", markup=False)
        out.print(f"{'':<24}{method.source}; {method.cost}", markup=False)
        for name, default in method.defaults.items():
            out.print(f"{'':<24}{name} = {default}: {method.ranges[name]}", markup=False)
        if method.refuses:
            out.print(f"{'':<24}refuses {method.refuses}", markup=False)
    out.print("S: senders, m: steps; a pass is one of the whole model on every prompt. D_s = reference_s - clean_s")
    out.print("backward = relp, attn-lrp, gim: norms' scales held fixed and other slopes of activations, products and")
    out.print("attention, values unchanged (models/backward.py has the rules)")
    out.print("what has backward passes or learns needs gradients, and refuses networks of steps (gate-xor)")


def show(file: Annotated[Path, typer.Argument(help="a circuit's JSON: this library's, MIB's or EAP-IG's")]) -> None:
    """Prints a circuit file, or one of PEAP's."""
    found = peap_of(file)
    if isinstance(found, Peap):
        print_peap(found)
    elif found is not None:
        print_peap_circuit(found)
    else:
        print_circuit(Circuit.load(file))


def peap_of(file: Path) -> Peap | PeapCircuit | None:
    """PEAP's scores or circuit in a file; None for one of another format."""
    value = read_json(file, "circuit file")
    given = value.get("format") if isinstance(value, dict) else None
    return Peap.load(file) if given == FORMAT else PeapCircuit.load(file) if given == CIRCUIT_FORMAT else None


def print_peap(scores: Peap) -> None:
    """The best edges within spans and between them, and what they cost."""
    run, best = scores.run, scores.best(BEST)
    _print_head(run)
    for name, score in best:
        out.print(f"  {name:<28} {score:+.6g}", markup=False)
    counts = f"{scores.graph.num_edges} edges within spans and {len(scores.between)} between"
    cost = f"; {float(run['seconds']):.1f} s" if "seconds" in run else ""
    out.print(f"the best {len(best)} of {counts} {', '.join(scores.spans)}{cost}", markup=False)


def print_peap_circuit(circuit: PeapCircuit) -> None:
    """The edges within spans as those of a circuit, the others below."""
    _print_head(circuit.within.run)
    _print_edges(circuit.within)
    out.print("between spans, the best first:")
    for name, score in circuit.crossing.items():
        out.print(f"  {name:<28} {score:+.3g}", markup=False)
    inside, between = circuit.within.num_edges, len(circuit.crossing)
    out.print(f"{inside} edges within spans, {between} between, {len(circuit.nodes)} nodes (component, span)")


def print_circuit(circuit: Circuit) -> None:
    """A circuit, receiver by receiver from the output on, and what it cost."""
    run, graph = circuit.run, circuit.graph
    _print_head(run)
    _print_edges(circuit)
    groups = f", {run['groups_kept']} head inputs tested as groups stay" if run.get("groups_kept") else ""
    out.print(
        f"{circuit.num_edges} of {graph.num_edges} edges, {len(circuit.nodes)} of {len(graph.nodes)} nodes{groups}"
    )
    if {"metric_full", "metric_final"} <= run.keys():
        before, after = float(run["metric_full"]), float(run["metric_final"])
        out.print(f"{run.get('metric', 'metric')}: {before:.6g} whole model, {after:.6g} circuit", markup=False)
    if (shares := circuit.shares) is not None:
        _print_replicates(circuit, shares)
    if {"evaluations", "evaluations_wasted", "device_calls", "seconds", "seconds_compiling"} <= run.keys():
        seconds, compiling = float(run["seconds"]), float(run["seconds_compiling"])
        out.print(
            f"{run['evaluations']} evaluations (and {run['evaluations_wasted']} behind wrong guesses) in "
            f"{run['device_calls']} device calls, {seconds:.1f} s ({compiling:.1f} s compiling)"
        )


def _print_head(run: dict[str, Any]) -> None:
    """What a record says first."""
    head = [f"{run['task']} on {run['model']}"] if {"task", "model"} <= run.keys() else []
    if "prompts" in run:
        weighed = sum(weight > 0 for weight in run["prompt_weights"]) if "prompt_weights" in run else run["prompts"]
        head += [f"{run['prompts']} prompts" if weighed == run["prompts"] else f"{weighed} of {run['prompts']} prompts"]
    head += [str(run[key]) for key in ("method", "metric", "reference") if key in run]
    head += [run["units"]] if "units" in run else []
    head += [f"threshold {float(run['threshold']):g}"] if "threshold" in run else []
    head += [f"{key} {value}" for key, value in run.get("selection", {}).items()]
    if head:
        out.print(" ".join(", ".join(head).split()), markup=False)


def _print_edges(circuit: Circuit) -> None:
    """Receiver by receiver from the output on."""
    graph, shares = circuit.graph, circuit.shares

    def effect(s: Any, r: int) -> str:
        sure = "" if shares is None else f" ({shares[s, r]:.0%})"
        return f"{graph.senders[s]} {circuit.scores[s, r]:+.3g}{sure}"

    for column in reversed(range(len(graph.receivers))):
        senders = np.flatnonzero(circuit.mask[:, column])[::-1]
        if len(senders):
            effects = "  ".join(effect(s, column) for s in senders)
            out.print(f"  {graph.receivers[column]:>9} <- {effects}", markup=False)


def _print_replicates(circuit: Circuit, shares: EdgeScores) -> None:
    """How sure the circuit is."""
    record, graph = circuit.run["replicates"], circuit.graph
    core, fringe = shares >= SURE, (shares > 0) & (shares < SURE)
    what = "bootstrap replicates" if record.get("resample") == "bootstrap" else "replicates of some of the prompts"
    out.print(f"{record['count']} {what}: {core.sum()} edges in at least {SURE:.0%} of them, {fringe.sum()} in fewer")
    others = fringe & ~circuit.mask
    order = np.argsort(-shares[others], kind="stable")[:SHOWN]
    names = [f"{graph.edge_name(*np.argwhere(others)[at])} ({shares[others][at]:.0%})" for at in order]
    more = f" and {others.sum() - SHOWN} more" if others.sum() > SHOWN else ""
    if names:
        out.print(f"  not in this circuit, but in some: {', '.join(names)}{more}", markup=False)
    metric = str(circuit.run.get("metric", "metric"))
    for name, what in (("edges", "edges"), ("metrics", metric), ("jaccards", "Jaccard to that of all prompts")):
        low, middle, high = np.quantile(record[name], [0.025, 0.5, 0.975])
        out.print(f"  {what}: {middle:.4g} ({low:.4g} to {high:.4g} in 95% of them)", markup=False)
    if "left_out" in record and "prompts" in circuit.run:
        kept = np.rint(shares * record["count"]).astype(int)
        _print_certificates(kept, record["count"], record["left_out"], circuit.run["prompts"])


def _print_certificates(kept: np.ndarray, count: int, left_out: float, prompts: int) -> None:
    """How many of the edges that most replicates keep stay whatever some prompts are changed to."""
    most = 2 * kept > count
    for change, table in certificates_of(kept[most], count, left_out, prompts).items():
        numbers = [(least, int((table >= least).sum())) for least in (1, 2, 4, 8)]
        stay = ", ".join(f"{number} if any {least}" for least, number in numbers if number) or "none if any"
        out.print(f"  of {most.sum()} edges that most of them keep, surely stay: {stay} of the prompts are {change}")


def print_cluster(circuit: Circuit, pairs: PromptPairs, checkpoint: checkpoints.Checkpoint) -> None:
    """Which prompts a circuit is of."""
    prompts = circuit.run["cluster"]["prompts"]
    out.print(f"cluster {circuit.run['cluster']['number']}: {len(prompts)} of {len(pairs)} prompts")
    lengths = pairs.inside().sum(1)
    for number in prompts[:SHOWN]:
        ids = pairs.clean[number, : lengths[number]].tolist()
        text = checkpoint.tokenizer.decode(ids) if checkpoint.has_tokenizer else " ".join(map(str, ids))
        out.print(f"  {number + 1} {text!r}", markup=False)
    if len(prompts) > SHOWN:
        out.print(f"  and {len(prompts) - SHOWN} more")
