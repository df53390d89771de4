"""Every compiled program, for platforms that are not there: lowered for three, and compiled for a TPU."""

import importlib.util
import os
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = "sender_values", "per_example", "many", "gradient", "clean_gradient", "eap_ig_inputs_5", "first_run", "fill"
NAMES += "run_chain", "run_chains", "run_loop", "commit", "score", "sparse_base", "sparse_alone"


@pytest.fixture(scope="module")
def aot():
    """The modules of the benchmark."""
    before, environment = list(sys.path), dict(os.environ)
    sys.path.insert(0, str(BENCHMARKS))
    import aot
    import aot_programs

    yield aot, aot_programs
    sys.path[:] = before
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def objective(aot):
    sizes = aot[1].SHAPES
    return aot[1].abstract_objective(sizes["tiny"], 4, 8, "kl", 2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", NAMES)
def test_a_program_lowers_for_every_platform_at_once(name, aot, objective):
    """In float32 throughout, and without a call back to the host."""
    programs = aot[1].programs(objective, 16, 4)
    assert set(programs) == set(NAMES)
    text = aot[1].exported(programs[name])
    assert "stablehlo" in text
    for word in ("xf64", "tensor<f64>", "callback"):
        assert word not in text


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize(
    "name", ["per_example", "clean_gradient", "fill", "run_chain", "run_chains", "run_loop", "commit", "score"]
)
def test_a_program_compiles_for_a_tpu_that_is_not_there(name, devices, aot, objective):
    """It fits; devices exchange nothing inside loops but the metrics of a chain or a chunk."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[aot]'")
    topology = aot[0].topology_of("v5e")
    mesh = aot[0].mesh_of(topology, devices, 4)
    row = aot[0].row_of(name, aot[1].programs(objective, 16, 4, mesh)[name], topology, mesh, 16)
    assert row["compiles"] and row["fits"] and not row["flags"], row
    if name in ("fill", "commit", "run_chain", "run_chains"):
        assert not row["collectives_in_loops"], row
    if name == "run_loop":
        assert sum(row["collectives_in_loops"].values()) <= 2 and row["largest_gather_mib"] <= 0.001, row
    assert devices > 1 or not row["collectives"], row


CYCLES = {"fill": 16_921, "run_chain": 287_836, "commit": 100_031, "score": 24_512, "run_loop": 436_280}
"""Of the tiny model on a v5e by libtpu 0.0.42.1, each loop of unknown length once, branches half each."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CYCLES)
def test_a_program_costs_no_more_than_it_did(name, aot, objective):
    if importlib.util.find_spec("libtpu") is None or metadata.version("libtpu") != "0.0.42.1":
        pytest.skip("another compiler, other cycles: expected libtpu 0.0.42.1")
    from aot_cost import Counts, Text

    program = aot[1].programs(objective, 16, 4)[name]
    compiled, _ = aot[0].compiled(program, aot[0].topology_of("v5e"), None)
    text = Text(compiled.as_text())
    once = Counts(defaultdict(lambda: 1.0), defaultdict(lambda: [0.5, 0.5]))
    assert text.cost(once).cycles <= 1.02 * CYCLES[name]


def test_collectives_are_found_where_a_loop_runs_them(aot):
    """Also where its body calls another computation, and not where no loop leads."""
    text = """HloModule m
%called (x: f32[2]) -> f32[2] {
  %r = f32[2] all-reduce(%x), to_apply=%add
}
%body (x: f32[2]) -> f32[2] {
  ROOT %y = f32[2] call(%x), to_apply=%called
}
ENTRY %main (x: f32[2]) -> f32[2] {
  %g = f32[4] all-gather(%x)
  %s = (f32[2]{0}, f32[4,1024]{1,0}) all-gather-start(%x)
  %w = f32[2] while(%x), condition=%cond, body=%body
  %c = f64[2] custom-call(%w), custom_call_target="xla_python_cpu_callback"
}
"""
    row = aot[0].read(text)
    assert row["collectives"] == {"all-reduce": 1, "all-gather": 2} and row["collectives_in_loops"] == {"all-reduce": 1}
    assert row["flags"] == ["f64", "xla_python_cpu_callback"] and row["loops"] == 1
    assert row["largest_gather_mib"] == round(4 * 4096 / 2**20, 3)


def test_what_the_host_runs_is_what_lies_in_no_command_buffer(aot):
    thunks = """\
000: kCommandBuffer [source | next=002 (1)]
    001: kWhile [source | sink]
condition:
        002: kCustomKernel compare
      body:
        003: kConditional select
004: kWhile [prev=000 (1) | sink]
condition:
    005: kCustomKernel compare
  body:
    006: kConditional [source | sink]
    000: kCommandBuffer [source | sink]
        007: kWhile [source | sink]
    008: kCustomKernel add
"""
    assert aot[0].host_turns(thunks) == 2
