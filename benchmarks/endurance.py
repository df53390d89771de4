"""Repeated discovery: whether memory grows and whether anything is compiled again, for as long as one waits.

    python benchmarks/endurance.py [--minutes M] [--prompts N]

A round draws other IOI prompts for the bundled model (which of 3 thresholds and 2 metrics changes too), and runs exact
ACDC, EAP and an evaluation of what was kept. Prints a JSON line a minute: rounds, resident MiB, programs compiled since
the line before; at last the growth since the first tenth of the time and the programs compiled after it. Fails where
memory grew by 2 % or more, or anything was compiled.
"""

import argparse
import gc
import resource
import time
from typing import Any

import jax
from common import emit, machine

import jaxcircuits as jc

COMPILED = "/jax/core/compile/backend_compile_duration"
MOST_GROWTH = 2.0
THRESHOLDS, METRICS = (1.0, 0.3, 0.1), ("kl", "logit_diff")


def resident() -> float:
    """MiB of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def discover(loaded: Any, number: int, prompts: int) -> None:
    pairs = jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=prompts, seed=number)
    objective = jc.Objective(loaded.model, pairs, METRICS[number % 2])
    found = jc.acdc(objective, THRESHOLDS[number % 3])
    jc.evaluate(objective, jc.Circuit.of(found), random=2)
    jc.eap(jc.Objective(loaded.model, pairs, "logit_diff"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--prompts", type=int, default=8)
    options = parser.parse_args()
    compiled = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        compiled.extend([event] * (event == COMPILED))

    jax.monitoring.register_event_duration_secs_listener(listen)
    loaded = jc.load("tiny-gpt2")
    emit(prompts=options.prompts, minutes=options.minutes, **machine())
    lines, start, number = [], time.monotonic(), 0
    while len(lines) < options.minutes:
        discover(loaded, number, options.prompts)
        number += 1
        if time.monotonic() - start > 60 * (len(lines) + 1):
            gc.collect()
            lines.append((resident(), len(compiled)))
            before = lines[-2][1] if len(lines) > 1 else 0
            emit(minute=len(lines), rounds=number, resident_mib=round(lines[-1][0], 1), compiled=lines[-1][1] - before)
    (first, programs), (last, all_programs) = lines[len(lines) // 10], lines[-1]
    growth = 100 * (last / first - 1)
    emit(rounds=number, growth_percent=round(growth, 2), compiled_after_the_first_tenth=all_programs - programs)
    if growth >= MOST_GROWTH or all_programs > programs:
        raise SystemExit(f"expected growth below {MOST_GROWTH} % and nothing compiled after the first tenth")


if __name__ == "__main__":
    main()
