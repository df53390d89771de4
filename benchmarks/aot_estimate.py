"""A whole exact search on a chip that is not there: how often a real run, on this CPU, does what, times its cost there.

    python benchmarks/aot_estimate.py [--chip v5e|v5p|v6e|h100] [--size small] [--prompts 100]
        [--precision NAME] [--threshold 0.002] [--counts FILE] [--command-buffers]

The run counts calls, chains, instructions, sources and removals of every compiled loop and fill (GPT-2-small, KL,
10 prompts x 16, in chains as wide as the chip's would be; what happens depends little on how many prompts there are).
Each program is compiled for the chip as `aot.py` does. On a TPU its time is the compiler's own cycles; on a GPU what
the products, the moved bytes, the launches and the waits of the host for loops and branches take by the assumed rates
below. The host's time is that of a run whose nodes are as many and whose device work is next to none (heads of width
2), a call. Nothing is measured on a chip.
"""

import argparse
import dataclasses
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import aot
import jax
from aot_cost import Cost, Counts, Text, flops
from aot_programs import abstract_objective, programs
from common import SIZES, emit, random_model, random_pairs

import jaxcircuits as jc
from jaxcircuits import programs as instructions
from jaxcircuits.device_loop import DeviceEvaluator
from jaxcircuits.discovery import width as widths
from jaxcircuits.kinds import Units
from jaxcircuits.precision import PRECISIONS

GHZ = {"v5e": 1.5, "v5p": 1.75, "v6e": 1.75}
"""Clocks that the matrix units' published rates imply."""

H100 = {"flops": 0.7 * 67e12, "bytes": 0.8 * 3.35e12, "launch": 2.5e-6, "wait": 12e-6}
"""Assumed: shares of the published float32 and memory rates, seconds a kernel, seconds a wait of the host."""


PROMPTS, POSITIONS = 10, 16
"""Of the run that is counted."""

ONCE = {"first_run": 1, "per_example": 2}
"""Programs besides: the run that a search starts from, and its float noise at the start and at the end."""


class Counting(DeviceEvaluator):
    """Adds up what every call does, by (slots, width)."""

    seen: dict[tuple[int, int], Counter[str]] = {}

    def decide(self, steps: Any, guesses: Any, width: int, *judged: Any, at_one: bool) -> Any:
        before = set(self.slots)
        found = super().decide(steps, guesses, width, *judged, at_one=at_one)
        shape = self._num_slots, width
        program = instructions.unpacked(self.numbers, self.units, *shape)
        done, (chains, commits) = self._done(program), replayed(found.removed, guesses, width)
        counted = Counting.seen.setdefault(shape, Counter())
        counted.update({name: chains * n for name, n in done.items()})
        counted.update({f"commit {name}": commits * n for name, n in done.items() if "logits" not in name})
        edges = found.tried if at_one else int(program.removal_counts.sum())
        counted.update({"calls": 1, "chains": chains, "commits": commits})
        counted.update({"removals": chains * width, "removals/sources": edges})
        counted["fills"] += len(set(self.slots) - before)
        return found

    def _program(self, *given: Any) -> Any:
        self.numbers, order = super()._program(*given)
        return self.numbers, order

    def _done(self, program: Any) -> Counter[str]:
        """One pass over a program's instructions."""
        done = Counter({"logits/sources": int(program.logits_count), "logits/removed": int(program.logits_touched > 0)})
        for n in range(int(program.count)):
            phase = "everywhere" if n < program.count_everywhere else "scored"
            kind = self.units.kinds[program.kind[n]]
            unit = f"{phase}/{kind.nodes.kind}"
            done.update({phase: 1, unit: 1})
            of_scored = self.units.num_local if phase == "scored" else 0
            last = max((c + 1 for c, is_changed in enumerate(program.changed[n]) if is_changed), default=0)
            for part, own in (("local", slice(min(last, of_scored))), ("inputs", slice(of_scored, last))):
                sources, touched = program.counts[n][own], program.touched[n][own]
                done[f"{phase}/{part}"] += len(sources)
                done[f"{phase}/{part}/sources"] += int(sources.sum())
                done[f"{phase}/{part}/removed"] += int((touched > 0).sum())
            for port, places in kind.ports:
                for c in places:
                    own = {"changed": int(program.changed[n, c]), "sources": int(program.counts[n, c])}
                    own["removed"] = int(program.touched[n, c] > 0)
                    done.update({f"{unit}/{port.name}/{name}": count for name, count in own.items()})
        return done


def replayed(removed: list[bool], guesses: list[bool], width: int) -> tuple[int, int]:
    """Chains that a call took for its decisions, and those of them that had something to commit."""
    chains = commits = at = 0
    while at < len(removed):
        own = list(zip(removed, guesses, strict=False))[at : at + width]
        wrong = next((n for n, (was, guess) in enumerate(own) if was != guess), len(own) - 1)
        chains, commits = chains + 1, commits + any(was for was, _ in own[: wrong + 1])
        at += wrong + 1
    return chains, commits


def of_loop(done: Counter[str], units: Units) -> Counts:
    """Means of the loops and branches of `run_loop`."""
    chain, commit = of_chain(done, units.kinds), of_commit(done)
    turns = {"chains": _mean(done["chains"], done["calls"])}
    turns |= {f"chains/{name}": mean for name, mean in chain.turns.items()}
    turns |= {f"chains/commit/{name}": mean for name, mean in commit.turns.items()}
    return Counts(turns, {f"chains/{name}": shares for name, shares in chain.shares.items()})


def of_chain(done: Counter[str], kinds: Any) -> Counts:
    """Means of the loops and branches of a chain."""
    calls = done["chains"]
    turns = {name: done[name] / calls for name in ("everywhere", "scored", "logits/sources", "logits/removed")}
    turns["removals"] = done["removals"] / calls
    turns["removals/sources"] = _mean(done["removals/sources"], done["removals"])
    shares = {}
    for phase in ("everywhere", "scored"):
        shares[phase] = [_mean(done[f"{phase}/{kind.nodes.kind}"], done[phase]) for kind in kinds]
        for kind in kinds:
            unit = f"{phase}/{kind.nodes.kind}"
            for port, places in kind.ports:
                own = f"{unit}/{port.name}"
                changed, all_ = done[f"{own}/changed"], done[unit] * len(places)
                shares[own] = [1 - _mean(changed, all_), _mean(changed, all_)]
                within = changed if len(kind.ports) > 1 else all_
                turns |= {f"{own}/{name}": _mean(done[f"{own}/{name}"], within) for name in ("sources", "removed")}
    return Counts(turns, shares)


def of_commit(done: Counter[str]) -> Counts:
    """Means of the loops of what commits a chain, if anything goes."""
    turns = {}
    for phase in ("everywhere", "scored"):
        count = done[f"commit {phase}"]
        turns[phase] = _mean(count, done["chains"])
        for part in ("local", "inputs"):
            moved = done[f"commit {phase}/{part}"]
            turns[f"{phase}/{part}"] = _mean(moved, count)
            turns |= {
                f"{phase}/{part}/{name}": _mean(done[f"commit {phase}/{part}/{name}"], moved)
                for name in ("sources", "removed")
            }
    return Counts(turns, {})


def _mean(count: float, of: float) -> float:
    return count / of if of else 0.0


def take_widths_of(chip: str, prompts: int) -> int:
    """Makes this CPU choose a chip's widths, of a search over so many prompts; gives the largest."""
    widths.FREE.clear()
    widths.LARGEST.clear()
    if chip in GHZ:
        widths.TOKENS["cpu"] = widths.TOKENS["tpu"]
    widths.LARGEST["cpu"] = widths.largest_width(prompts * POSITIONS)
    widths.TOKENS.pop("cpu", None)
    return widths.LARGEST["cpu"]


def counted(size: str, threshold: float) -> dict[str, Any]:
    """What a real run did, by "slots x width"."""
    model = random_model(SIZES[size])
    objective = jc.Objective(model, random_pairs(PROMPTS, POSITIONS, model.vocab_size), "kl")
    Counting.seen.clear()
    run = jc.acdc(objective, threshold, evaluator=Counting)
    about = {
        "size": size,
        "threshold": threshold,
        "largest_width": widths.largest_width(),
        "decisions": run.evaluations,
        "edges": int(run.mask.sum()),
        "calls": run.device_calls,
    }
    done = {f"{slots}x{width}": counts for (slots, width), counts in sorted(Counting.seen.items())}
    return {"about": {**about, "calls_by_width": run.device_calls_by_width}, "done": done}


def host_seconds(size: str, decisions: int) -> float:
    """Of the thread that leads a warm search over as many nodes, whose device work is next to none: seconds a call.

    - `decisions`: how many it should take at least: the lower the threshold, the more.
    """
    config = dataclasses.replace(SIZES[size], n_embd=2 * SIZES[size].n_head, vocab_size=64)
    objective = jc.Objective(random_model(config), random_pairs(2, 4, 64), "kl")
    threshold = 1.0
    while jc.acdc(objective, threshold).evaluations < decisions:
        threshold /= 2
    start = time.thread_time()
    warm = jc.acdc(objective, threshold)
    return (time.thread_time() - start) / warm.device_calls


def seconds_of(chip: str, cost: Cost, products: float) -> float:
    """Of one run of a program."""
    if chip in GHZ:
        return cost.cycles / (GHZ[chip] * 1e9)
    moving = products / H100["flops"] + cost.bytes / H100["bytes"]
    return moving + cost.operations * H100["launch"] + cost.waits * H100["wait"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=aot.CHIPS, default="v5e")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--precision", choices=PRECISIONS, default="highest")
    parser.add_argument("--threshold", type=float, default=0.002)
    parser.add_argument("--command-buffers", action="store_true", help="a GPU's loops and branches need no host")
    parser.add_argument("--counts", type=Path, help="keep what the run did here, or take it from here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command_buffers:  # as `aot.py --command-buffers` shows
        H100["wait"] = 0
    largest = take_widths_of(options.chip, options.prompts)
    known = options.counts is not None and options.counts.exists()
    run = json.loads(options.counts.read_text()) if known else counted(options.size, options.threshold)
    asked = {"size": options.size, "threshold": options.threshold, "largest_width": largest}
    if known and any(run["about"].get(name) != value for name, value in asked.items()):
        raise SystemExit(f"--counts: expected a run of {asked}, got {run['about']}")
    if options.counts is not None:
        options.counts.write_text(json.dumps(run))
    emit(**{name: str(value) for name, value in vars(options).items()} | run["about"], jax=jax.__version__)
    topology = aot.topology_of(options.chip)
    of = options.prompts, POSITIONS, "kl", 10, options.precision
    objective = abstract_objective(SIZES[options.size], *of)
    rows = []
    for name, done in run["done"].items():
        slots, width = map(int, name.split("x"))
        rows += _rows((options.chip, topology, objective), (slots, width), Counter(done), not rows)
    host = run["about"]["calls"] * host_seconds(options.size, run["about"]["decisions"])
    device = sum(row["seconds"] for row in rows)
    totals = {name: round(sum(row[name] for row in rows), 1) for name in ("teraflop_of_all", "processor_s")}
    emit(device_s=round(device, 2), host_s=round(host, 2), together_s=round(device + host, 2), **totals)


def _rows(
    target: tuple[str, Any, jc.Objective], shape: tuple[int, int], done: Counter[str], is_first: bool
) -> list[dict[str, Any]]:
    """Of one shape (slots, width): what its calls take; of the first also what a run does once.

    - `target`: a chip, its topology, and the objective there.
    """
    chip, topology, objective = target
    units, made, rows = Units(objective.graph), programs(objective, *shape), []
    counts = {"run_loop": of_loop(done, units)}
    counts |= dict.fromkeys((*ONCE, "fill"), Counts({}, {}))
    times_of = {"run_loop": done["calls"], "fill": done["fills"]}
    for name, times in (times_of | (ONCE if is_first else {})).items():
        if not times:
            continue
        binary, processor = aot.compiled(made[name], topology, None)
        arrays, function = made[name].arrays()
        products = flops(jax.make_jaxpr(function)(arrays, {}).jaxpr, counts[name])
        cost = Text(binary.as_text()).cost(counts[name])
        seconds = seconds_of(chip, cost, products)
        row = {"times": times, "each_ms": round(1e3 * seconds, 3), "seconds": round(times * seconds, 3)}
        row |= {"teraflop_of_all": round(times * products / 1e12, 3), "processor_s": round(processor, 1)}
        row |= {"gigabytes": round(cost.bytes / 1e9, 2), "operations": round(cost.operations)}
        rows.append({"program": name, "slots": shape[0], "width": shape[1], **row})
        emit(**rows[-1], waits=round(cost.waits))
    return rows


if __name__ == "__main__":
    main()
