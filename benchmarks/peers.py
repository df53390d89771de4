"""Whole ACDC runs of this library against public implementations: same model, same prompts, same decisions.

    python benchmarks/peers.py --autocircuit PYTHON
    python benchmarks/peers.py --acdc CHECKOUT --acdc-python PYTHON [--metric logit_diff]

The peers need an environment of their own, whose python is the argument; one does for both:

    python -m venv peers
    peers/bin/pip install torch==2.13.0 auto-circuit==1.0.1 transformer-lens==2.18.0 "pyarrow<22"

CHECKOUT is a clone of github.com/ArthurConmy/Automatic-Circuit-Discovery (its folder `acdc` is what is used).

First the gate, on a tiny model in float64. AutoCircuit evaluates some random circuits and runs its own ACDC, in this
library's order of edges; the original runs as it is. Every metric and every decision must be the same.

Then the clock, in float32 on all cores: trials spread evenly over the peer's run, the fastest of three each, and this
library's whole run, warm. The peers' whole runs are extrapolated, the mean of these trials x the passes of a whole run.
AutoCircuit has no group tests and tries every edge. The original makes the trials that this library makes, and more
forward passes between them.
"""

import argparse
import os
import subprocess
import warnings

import numpy as np
from common import SIZES, emit, machine, random_model, random_pairs
from peer_gates import ask, forwards_of, gate_autocircuit, gate_original
from rich.console import Console
from rich.table import Table

import jaxcircuits as jc

ROUNDS = 3
STATISTICS = ("min", "median", "mean", "max")


def problem(size: str, metric: str, prompts: int, length: int) -> tuple[jc.Objective, jc.PromptPairs]:
    model = random_model(SIZES[size])
    pairs = random_pairs(prompts, length, model.vocab_size)
    return jc.Objective(model, pairs, metric), pairs


def warm_run(objective: jc.Objective, threshold: float, **options) -> jc.ACDCResult:
    """The second of two runs: the first compiles."""
    jc.acdc(objective, threshold, **options)
    return jc.acdc(objective, threshold, **options)


def time_autocircuit(python: str, options: argparse.Namespace) -> dict:
    """Its trials over edges spread evenly over its order; a whole run tries every edge."""
    objective, pairs = problem(options.size, "kl", options.prompts or 8, options.length)
    result = warm_run(objective, options.threshold, groups=False)
    job = {"what": "time", "threads": os.cpu_count(), "rounds": ROUNDS, "evaluations": options.evaluations}
    answer = ask(python, "peer_autocircuit.py", objective, pairs, threshold=options.threshold, **job)
    return report("AutoCircuit", objective, result, np.min(answer["seconds"], 0), answer["edges"], answer["versions"])


def time_original(python: str, checkout: str, options: argparse.Namespace) -> dict:
    """Its trials spread evenly over its run, each in the state of that run; a whole run makes `forwards_of` passes."""
    objective, pairs = problem(options.size, options.metric, options.prompts or 10, options.length)
    result = warm_run(objective, options.threshold)
    known = [d.after for d in result.decisions]
    sample = np.linspace(0, len(known), 2 * options.evaluations + 1)[1::2].astype(int).tolist()
    job = {"what": "time", "threads": os.cpu_count(), "rounds": ROUNDS, "checkout": checkout, "sample": sample}
    job |= {"threshold": options.threshold, "known": known, "full": result.metric_full}
    answer = ask(python, "peer_acdc.py", objective, pairs, **job)
    forwards = forwards_of(result)
    if answer["names"] != [d.name for d in result.decisions] or answer["forwards"] != forwards:
        raise SystemExit("the original makes other trials: no figures")
    versions = {**answer["versions"], "commit": commit_of(checkout)}
    difference = float(np.abs(np.array(answer["after"]) - np.array(known)[sample]).max())
    seconds = np.min(answer["seconds"], 1)
    return report("original", objective, result, seconds, forwards, versions, largest_difference=difference)


def commit_of(checkout: str) -> str:
    """Empty where the folder is no git clone."""
    command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def report(
    peer: str, objective: jc.Objective, result: jc.ACDCResult, seconds: np.ndarray, passes: int, versions: dict, **more
) -> dict:
    """One line: what was measured, and the peer's whole run of so many forward passes, extrapolated."""
    ours = result.seconds_warm / result.evaluations
    peer_run = float(seconds.mean()) * passes
    row = {
        "what": "time",
        "peer": peer,
        "versions": versions,
        "metric": objective.metric_name,
        "threshold": result.options["threshold"],
        "prompts": list(objective.clean.shape),
        "load": round(os.getloadavg()[0], 1),
        "measured": {
            "peer_trials": len(seconds),
            **{f"peer_seconds_a_trial_{x}": round(float(getattr(np, x)(seconds)), 4) for x in STATISTICS},
            "seconds": round(result.seconds_warm, 2),
            "evaluations": result.evaluations,
            "seconds_an_evaluation": round(ours, 5),
            "edges_kept": int(result.mask.sum()),
            "undecided": len(result.undecided),
            "ratio_an_evaluation": round(float(seconds.mean()) / ours, 1),
            **more,
        },
        "extrapolated": {
            "peer_forward_passes": passes,
            "peer_seconds": round(peer_run),
            "ratio_whole_run": round(peer_run / result.seconds_warm),
        },
    }
    emit(**row)
    return row


def table(rows: list[dict]) -> Table:
    table = Table("peer", "prompts", "s a trial", "s ours", "ratio", "whole run, s", "ours, s", "ratio", title="ACDC")
    for row in rows:
        measured, extrapolated = row["measured"], row["extrapolated"]
        cells = [row["prompts"], measured["peer_seconds_a_trial_mean"], measured["seconds_an_evaluation"]]
        cells += [measured["ratio_an_evaluation"], f"~{extrapolated['peer_seconds']}", measured["seconds"]]
        table.add_row(row["peer"], *map(str, cells), f"~{extrapolated['ratio_whole_run']}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autocircuit", metavar="PYTHON", help="of an environment with AutoCircuit")
    parser.add_argument("--acdc", metavar="CHECKOUT", help="of the original ACDC")
    parser.add_argument("--acdc-python", metavar="PYTHON", help="default: AutoCircuit's")
    parser.add_argument("--size", default="small", choices=("small", "tiny"))
    parser.add_argument("--metric", default="kl", choices=("kl", "logit_diff"), help="AutoCircuit knows kl only")
    parser.add_argument("--threshold", type=float, default=0.002)
    parser.add_argument("--prompts", type=int, help="default: 8 for AutoCircuit, 10 for the original")
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--evaluations", type=int, default=10, help="trials of the peer that are timed")
    options = parser.parse_args()
    python = options.acdc_python or options.autocircuit
    if not (options.autocircuit or options.acdc) or python is None:
        parser.error("expected --autocircuit PYTHON, or --acdc CHECKOUT --acdc-python PYTHON, or both")
    if options.autocircuit and options.metric != "kl":
        parser.error("AutoCircuit's ACDC measures kl only: leave --autocircuit out")
    warnings.simplefilter("ignore")
    emit(what="machine", **machine())
    rows = []
    if options.autocircuit:
        gate_autocircuit(options.autocircuit, options.threshold)
        rows.append(time_autocircuit(options.autocircuit, options))
    if options.acdc:
        gate_original(python, options.acdc, options.metric, options.threshold)
        rows.append(time_original(python, options.acdc, options))
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    main()
