import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits import batching
from jaxcircuits.batching import chunked_vmap, compile_clock, largest_that_fits, memory_limit, tokens_and_devices
from jaxcircuits.discovery.width import ExpectedWidth, FixedWidth, largest_width
from jaxcircuits.gradients import value_and_gradient


@pytest.mark.parametrize(
    ("rows", "chunks"), [(1, []), (3, []), (4, []), (6, [2]), (7, [2]), (8, [2]), (9, [3]), (10, [5]), (13, [4])]
)
def test_chunks_are_even_and_the_function_traced_once(rows, chunks):
    """With at most 4 rows at a time: none is computed twice where the rows can be divided."""
    traces = []

    def f(x):
        traces.append(1)
        return {"sum": x["a"].sum() + x["b"], "double": 2 * x["a"]}

    xs = {"a": jnp.arange(rows * 2.0).reshape(rows, 2), "b": jnp.arange(rows * 1.0)}
    program, shape = jax.make_jaxpr(lambda xs: chunked_vmap(f, xs, 4), return_shape=True)(xs)
    assert [equation.params["length"] for equation in program.eqns if equation.primitive.name == "scan"] == chunks
    assert shape["sum"].shape == (rows,) and len(traces) == 1
    ys = chunked_vmap(f, xs, 4)
    np.testing.assert_allclose(ys["sum"], xs["a"].sum(1) + xs["b"])
    np.testing.assert_allclose(ys["double"], 2 * xs["a"])


def test_the_largest_batch_that_fits_is_halved_until_it_does():
    row = memory_limit() // 40  # half of the memory may be used: 20 rows
    assert largest_that_fits(lambda size: 1, 10) == 10
    assert largest_that_fits(lambda size: size * row, 100) in range(10, 20)
    with pytest.raises(MemoryError, match="GiB may be used"):
        largest_that_fits(lambda size: 10 * memory_limit(), 10)


@pytest.mark.parametrize(("text", "gib"), [("max", 16), (str(5 << 30), 4), (str(64 << 30), 16)])
def test_a_container_s_limit_counts_where_it_is_less(text, gib, tmp_path, monkeypatch):
    """Of a machine with 20 GiB, rounded down to a power of two."""
    (tmp_path / "memory.max").write_text(text + "\n")
    monkeypatch.setattr(batching, "Path", lambda _: tmp_path / "memory.max")
    monkeypatch.setattr(batching.os, "sysconf", {"SC_PHYS_PAGES": 5 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory_limit() == gib << 30


@pytest.mark.slow
def test_the_microbatch_follows_the_compiled_program(monkeypatch):
    """With less memory than all prompts take at once, fewer are computed at once; the values stay."""
    model, pairs = micro_model("gpt2"), micro_pairs(batch=6)
    objective = jc.Objective(model, pairs, "kl")
    assert objective.microbatch == 6
    needed = batching.memory_needed(value_and_gradient, objective, objective.full_mask(), None)
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


@pytest.mark.parametrize(
    ("free", "right", "width"), [(4, 0.3, 1), (4, 0.8, 4), (4, 0.9, 4), (4, 0.96, 16), (16, 0.96, 16), (16, 0.995, 64)]
)
def test_the_width_is_the_one_with_most_decisions_for_its_cost(free, right, width):
    """E(w) / (1 + w / K) by hand: at K = 4 and 0.9 it is 0.80, 1.72, 1.63 and 0.59 of the widths."""
    assert ExpectedWidth(free).next(right) == width


def test_on_a_cpu_no_chain_is_wider_than_4():
    assert ExpectedWidth().next(1.0) == (4 if jax.default_backend() == "cpu" else 16)


@pytest.mark.parametrize(
    ("platform", "tokens", "devices", "width"),
    [
        *[("tpu", 100 * 16, 1, 4), ("tpu", 32 * 16, 1, 16), ("tpu", 8 * 16, 1, 16), ("tpu", 10**6, 1, 4)],
        *[("tpu", 10**6, 8, 16), ("tpu", 1024, 8, 64), ("tpu", 1025, 8, 16), ("tpu", 8192, 3, 4)],
        *[("gpu", 10**6, 1, 16), ("gpu", 10**6, 3, 16), ("gpu", 10**6, 4, 64)],
    ],
)
def test_an_accelerator_gets_no_program_that_is_wider_than_keeps_it_busy(platform, tokens, devices, width, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert largest_width(tokens, devices) == width
    assert ExpectedWidth(largest=width).next(1.0) == width


def test_a_search_asks_for_the_widest_chain_of_its_tokens(monkeypatch):
    asked = []
    module = sys.modules["jaxcircuits.discovery.acdc"]  # its function has the same name
    monkeypatch.setattr(module, "largest_width", lambda *given: asked.append(given) or 1)
    objective = jc.Objective(micro_model("one-head"), micro_pairs(batch=4), "kl")
    assert jc.acdc(objective, 0.1).device_calls_by_width.keys() == {1}
    assert asked == [(objective.clean.size, 1)] and objective.clean.size > 16


def test_a_mesh_spreads_tokens_and_circuits():
    shape = {"candidates": 4, "prompts": 2, "model": 1}
    spread = SimpleNamespace(clean=np.zeros((4, 16)), mesh=SimpleNamespace(shape=shape))
    assert tokens_and_devices(spread) == (32, 4)
    spread.clean = np.zeros((5, 16))  # what does not divide evenly is on every device
    assert tokens_and_devices(spread) == (80, 4)


def test_a_width_that_did_not_fit_is_not_tried_again():
    widths = ExpectedWidth(16)
    widths.limit(16)
    assert widths.next(1.0) == 4
    fixed = FixedWidth(16)
    fixed.limit(16)
    assert fixed.next(0.5) == 4


def test_the_live_engine_holds_only_nodes_that_can_change():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    kept = []

    class Watched(jc.LiveEvaluator):
        def commit(self, removed):
            super().commit(removed)
            kept.append(len(self.slots))

    jc.acdc(objective, 10.0, evaluator=Watched, width=4)
    assert max(kept) <= 2  # at a threshold that removes everything, no node stays


RUN = """
import sys, threading
import numpy as np
import jaxcircuits as jc
from conftest import micro_model, micro_pairs

def burn(x):
    while True:
        x = np.tanh(x @ x)

for _ in range(int(sys.argv[1])):
    threading.Thread(target=burn, args=(np.ones((300, 300)),), daemon=True).start()
objective = jc.Objective(micro_model("gpt2"), micro_pairs(batch=3), "kl")
result = jc.acdc(objective, 1e-3)
print(result.run["device_calls_by_width"], [(d.name, d.before.hex(), d.after.hex()) for d in result.decisions])
"""


@pytest.mark.slow
def test_two_runs_agree_to_the_last_bit_however_busy_the_machine_is():
    """In two processes, one of which is slowed down by others' work."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command, environment = [sys.executable, "-W", "ignore", "-c", RUN], {**os.environ, "PYTHONPATH": paths}
    quiet, busy = (
        subprocess.run([*command, threads], env=environment, capture_output=True, text=True, check=True).stdout
        for threads in "02"
    )
    assert "0x1." in quiet and quiet == busy
