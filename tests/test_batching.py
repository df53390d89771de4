import collections
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits import batching
from jaxcircuits.batching import chunked_vmap, compile_clock, largest_that_fits, memory_limit
from jaxcircuits.discovery.width import FixedWidth, MeasuredWidth
from jaxcircuits.objective import _value_and_gradient


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8])
def test_chunks_are_padded_and_the_function_traced_once(rows):
    traces = []

    def f(x):
        traces.append(1)
        return {"sum": x["a"].sum() + x["b"], "double": 2 * x["a"]}

    xs = {"a": jnp.arange(rows * 2.0).reshape(rows, 2), "b": jnp.arange(rows * 1.0)}
    ys = chunked_vmap(f, xs, 4)
    np.testing.assert_allclose(ys["sum"], xs["a"].sum(1) + xs["b"])
    np.testing.assert_allclose(ys["double"], 2 * xs["a"])
    assert len(traces) == 1


def test_the_largest_batch_that_fits_is_halved_until_it_does():
    row = memory_limit() // 40  # half of the memory may be used: 20 rows
    assert largest_that_fits(lambda size: 1, 10) == 10
    assert largest_that_fits(lambda size: size * row, 100) in range(10, 20)
    with pytest.raises(MemoryError, match="GiB may be used"):
        largest_that_fits(lambda size: 10 * memory_limit(), 10)


@pytest.mark.slow
def test_the_microbatch_follows_the_compiled_program(monkeypatch):
    """With less memory than all prompts take at once, fewer are computed at once; the values stay."""
    model, pairs = micro_model("gpt2"), micro_pairs(batch=6)
    objective = jc.Objective(model, pairs, "kl")
    assert objective.microbatch == 6
    needed = batching.memory_needed(_value_and_gradient, objective, objective.full_mask(), None)
    monkeypatch.setattr(batching, "memory_limit", lambda: needed)
    smaller = jc.Objective(model, pairs, "kl")
    assert 1 <= smaller.microbatch < 6 and smaller.describe()["microbatch"] == smaller.microbatch
    mask = random_mask(model.graph, 0)
    np.testing.assert_allclose(smaller.per_example(mask), objective.per_example(mask), atol=1e-6)
    np.testing.assert_allclose(smaller.gradient(mask), objective.gradient(mask), atol=1e-6)


def test_the_clock_counts_compilations_inside_its_block_only():
    f = jax.jit(lambda x: jnp.sin(x) + 41)
    with compile_clock() as clock:
        f(jnp.ones(3)).block_until_ready()
    assert clock.compilations >= 1 and clock.seconds > 0
    before = clock.compilations
    f(jnp.ones(5)).block_until_ready()
    assert clock.compilations == before


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import jax.monitoring
import jaxcircuits as jc
from conftest import micro_model, micro_pairs, random_mask
misses = []
jax.monitoring.register_event_listener(lambda event, **_: misses.append(event) if "cache_misses" in event else None)
jc.use_compilation_cache(sys.argv[1])
jc.acdc(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), 0.05, width=4)
print(len(misses))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_with_the_cache(tmp_path, request):
    def misses():
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), str(request.path.parent)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert misses() > 5
    assert misses() == 0


def policy(seconds, right):
    """A measured width after many rounds at given costs, with a share of right guesses."""
    random = np.random.default_rng(0)
    widths = MeasuredWidth()
    chosen = []
    for _ in range(400):
        chosen.append(width := widths.next())
        outcomes = random.random(width) < right
        accepted = width if outcomes.all() else int(outcomes.argmin()) + 1
        widths.record(width, accepted - (not outcomes.all()), accepted, seconds(width))
    return collections.Counter(chosen[100:]).most_common(1)[0][0], len(set(chosen[100:]))


def test_the_width_follows_the_measured_cost():
    assert policy(float, right=0.9)[0] in (1, 4)
    assert policy(lambda width: 1.0, right=0.99)[0] == 64
    assert policy(lambda width: 1 + 0.1 * width, right=0.8)[0] in (4, 16)
    assert policy(lambda width: width**1.5, right=0.95)[0] == 1


def test_the_width_follows_a_cost_that_changes():
    random, widths, chosen = np.random.default_rng(0), MeasuredWidth(), []
    for round in range(2000):
        chosen.append(width := widths.next())
        widths.record(width, width, width, float(1 if round < 100 else width**2) * random.uniform(0.9, 1.1))
    assert collections.Counter(chosen[50:100]).most_common(1)[0][0] == 64
    assert collections.Counter(chosen[-500:]).most_common(1)[0][0] <= 4


def test_a_width_that_did_not_fit_is_not_tried_again():
    widths = MeasuredWidth()
    widths.limit(16)
    assert widths.next() <= 4
    fixed = FixedWidth(16)
    fixed.limit(16)
    assert fixed.next() == 4


def test_the_live_engine_holds_only_nodes_that_can_change():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    kept = []

    class Watched(jc.LiveEvaluator):
        def commit(self, removed):
            super().commit(removed)
            kept.append(len(self.slots))

    jc.acdc(objective, 10.0, evaluator=Watched, width=4)
    assert max(kept) <= 2  # at a threshold that removes everything, no node stays
