"""What error bars cost: N replicates of an exact search beside one plain search, warm, in one run.

    python benchmarks/replicates.py [--size bundled|small] [--prompts N] [--threshold T] [--counts N ...] [--turns N]
                                    [--together N]

`bundled` is the trained model of the package on IOI, `small` the 12 x 12 x 768 random one on random prompts. First a
gate: replicates that weigh all prompts alike keep the plain run's edges. Prints JSON lines: seconds and device calls of
both, their ratios, and the edges that at least 95 % of the replicates keep.
"""

import argparse

import numpy as np
from common import SIZES, emit, machine, random_model, random_pairs, seconds_of

import jaxcircuits as jc
from jaxcircuits.discovery.acdc import searched
from jaxcircuits.discovery.judges import Judges


def problem(size: str, prompts: int) -> jc.Objective:
    if size == "bundled":
        loaded = jc.load("tiny-gpt2")
        return jc.Objective(loaded.model, jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=prompts))
    config = SIZES[size]
    return jc.Objective(random_model(config), random_pairs(prompts, 16, config.vocab_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("bundled", "small"), default="bundled")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 60, 200])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--together", type=int, help="searches in one call; default: the platform's")
    options = parser.parse_args()
    objective = problem(options.size, options.prompts)
    plain = jc.acdc(objective, options.threshold)
    alike = Judges.of(objective, options.threshold, np.ones((2, options.prompts)))
    for found in searched(objective, alike):
        if (found.mask != plain.mask).any():
            raise SystemExit("gate: equal weights are not the plain run")
    emit(size=options.size, prompts=options.prompts, threshold=options.threshold, **machine())
    jc.replicates(objective, options.threshold, count=2)
    for count in options.counts:
        emit(**measured(objective, options.threshold, count, options.turns, options.together))


def measured(
    objective: jc.Objective, threshold: float, count: int, turns: int, together: int | None
) -> dict[str, float]:
    """Medians of turns of both, and the device calls of a run of each."""
    one, many, results = [], [], []
    for _ in range(turns):
        one.append(seconds_of(lambda: results.append(jc.acdc(objective, threshold))))
        many.append(
            seconds_of(lambda: results.append(jc.replicates(objective, threshold, count=count, together=together)))
        )
    plain, sampled = results[-2:]
    calls = calls_of(objective, threshold, count, together)
    return {
        "replicates": count,
        "plain_seconds": round(float(np.median(one)), 3),
        "seconds": round(float(np.median(many)), 3),
        "ratio": round(float(np.median(many) / np.median(one)), 1),
        "plain_calls": plain.device_calls,
        "calls": calls,
        "calls_ratio": round(calls / plain.device_calls, 1),
        "core": int(sampled.core().sum()),
        "fringe": int(sampled.fringe().sum()),
    }


def calls_of(objective: jc.Objective, threshold: float, count: int, together: int | None) -> int:
    """Chains evaluated, the full run's among them."""
    seen = []

    class Counting(jc.LiveEvaluator):
        def chain(self, *given):
            seen.append(1)
            return super().chain(*given)

        @staticmethod
        def together(*given):
            seen.append(1)
            return jc.LiveEvaluator.together(*given)

    jc.replicates(objective, threshold, count=count, together=together, evaluator=Counting)
    return len(seen)


if __name__ == "__main__":
    main()
