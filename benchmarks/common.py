"""What the benchmarks share: the seeded model, the prompts, clocks, peak memory, the matmul ceiling, JSON lines."""

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxcircuits as jc

SIZES = {
    "small": jc.GPT2Config(vocab_size=50257, n_positions=64, n_embd=768, n_layer=12, n_head=12),
    "xl": jc.GPT2Config(vocab_size=50257, n_positions=64, n_embd=1600, n_layer=48, n_head=25),
    "tiny": jc.GPT2Config(vocab_size=340, n_positions=64, n_embd=128, n_layer=4, n_head=8),
}


def random_model(config: jc.GPT2Config, seed: int = 0) -> jc.GPT2:
    """Seeded random weights, three times as large as before training, so that edges matter."""
    random = np.random.default_rng(seed)
    skeleton = eqx.filter_eval_shape(jc.GPT2.random, config, jax.random.key(0))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = random.standard_normal(leaf.shape, np.float32)
        values *= 0.06 if values.ndim > 1 and "bias" not in name else 0.02
        return jnp.asarray(values + ("norm" in name and "weight" in name), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, skeleton)


def random_pairs(prompts: int, length: int, vocab: int, seed: int = 1) -> jc.PromptPairs:
    """Random prompts; three tokens of each are corrupted."""
    random = np.random.default_rng(seed)
    clean = random.integers(0, vocab, (prompts, length), np.int32)
    corrupt = clean.copy()
    for row in corrupt:
        where = random.choice(length, 3, replace=False)
        row[where] = (row[where] + random.integers(1, vocab, 3)) % vocab
    answers = np.stack([random.choice(vocab, 2, replace=False) for _ in range(prompts)]).astype(np.int32)
    return jc.PromptPairs(clean=clean, corrupt=corrupt, answer=answers[:, 0], wrong=answers[:, 1])


def best_of(run, times: int = 5) -> tuple[float, float]:
    """(least, median) seconds of several runs, after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds), float(np.median(seconds))


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def in_turns(times: int, **runs: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each run, one after the other and again, after one turn that compiles."""
    turns = [[seconds_of(run) for run in runs.values()] for _ in range(times + 1)]
    return dict(zip(runs, map(list, zip(*turns[1:], strict=True)), strict=True))


def compared(seconds: dict[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Least and median of each, and the ratio of the first's to every other's."""
    first = next(iter(seconds.values()))
    row = {}
    for name, values in seconds.items():
        row[name] = {"min": round(min(values), 4), "median": round(float(np.median(values)), 4)}
        if values is not first:
            ratios = min(first) / min(values), np.median(first) / np.median(values)
            row[name] |= {"ratio_min": round(ratios[0], 3), "ratio_median": round(float(ratios[1]), 3)}
    return row


def peak() -> float:
    """GiB that the process held at most so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def matmul_ceiling() -> float:
    """Float32 FLOP/s of a large matrix product at full precision on this device."""
    n = 4096 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), jnp.float32) * 0.5
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return 2 * n**3 / best_of(lambda: product(x))[0]


def machine() -> dict:
    """Device, versions and commit of a measurement."""
    asked, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(asked, cwd=here, capture_output=True, text=True).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.platform} {device.device_kind}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def emit(**row) -> None:
    """One JSON line."""
    print(json.dumps(row), flush=True)
