"""The cost of a compiled program by its text: what the benchmark's estimate of a whole search rests on."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import aot_cost

    yield aot_cost
    sys.modules.pop("aot_cost")


TEXT = """HloModule m
%sliced (p0: f32[8,4], p1: s32[]) -> f32[1,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,4]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,4}
}
%body (x: (s32[], f32[1,4])) -> (s32[], f32[1,4]) {
  %x = (s32[], f32[1,4]) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %y = f32[1,4]{1,0} negate(%x), backend_config={"estimated_cycles":"7"}
  ROOT %t = (s32[], f32[1,4]) tuple(%i, %y)
}
%known (x: (s32[], f32[1,4])) -> pred[] {
  %x = (s32[], f32[1,4]) parameter(0)
  %c = s32[] constant(5)
  %i = s32[] get-tuple-element(%x), index=0
  ROOT %l = pred[] compare(%i, %c), direction=LT
}
%unknown (x: (s32[], f32[1,4])) -> pred[] {
  %x = (s32[], f32[1,4]) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  ROOT %l = pred[] compare(%i, %i), direction=LT
}
%cheap (x: f32[1,4]) -> f32[1,4] {
  ROOT %x = f32[1,4]{1,0} parameter(0)
}
%dear (x: f32[1,4]) -> f32[1,4] {
  %x = f32[1,4]{1,0} parameter(0)
  ROOT %n = f32[1,4]{1,0} negate(%x), backend_config={"estimated_cycles":"100"}
}
ENTRY %main (a: f32[8,4], i: s32[]) -> f32[1,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %f = f32[1,4]{1,0} fusion(%a, %i), kind=kLoop, calls=%sliced, backend_config={"estimated_cycles":"1000"}
  %t = (s32[], f32[1,4]) tuple(%i, %f)
  %w = (s32[], f32[1,4]) while(%t), condition=%known, body=%body, op_name="jit(f)/few/while"
  %v = (s32[], f32[1,4]) while(%w), condition=%unknown, body=%body, op_name="jit(f)/many/while/body/each/while"
  %g = f32[1,4]{1,0} get-tuple-element(%v), index=1
  ROOT %r = f32[1,4]{1,0} conditional(%i, %g, %g), branch_computations={%cheap, %dear}, op_name="side/cond"
}
"""


def test_loops_count_as_often_as_they_turn_and_branches_by_their_shares(cost):
    counts = cost.Counts({"many/each": 2.5}, {"side": [0.75, 0.25]})
    found = cost.Text(TEXT).cost(counts)
    assert found.cycles == 1000 + 5 * 7 + 2.5 * 7 + 0.25 * 100
    assert found.operations == 1 + 5 + 2.5 + 0.25
    assert found.waits == 3.5 + 1  # the loop of unknown length, and the branch
    # a slice is read and written, not the whole; `negate` reads a pair and writes a row
    assert found.bytes == (16 + 4 + 16) + 7.5 * (20 + 16) + 0.25 * 32
    with pytest.raises(KeyError, match="many/each"):
        cost.Text(TEXT).cost(cost.Counts({}, counts.shares))


def test_products_are_counted_in_loops_and_branches(cost):
    @jax.named_scope("turns")
    def turned(n, x):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    def function(n, x):
        x = turned(n, x) + jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)
        with jax.named_scope("sides"):
            return jax.lax.cond(n > 1, lambda: x @ x, lambda: x)

    traced = jax.make_jaxpr(function)(jnp.int32(2), jnp.ones((4, 4)))
    counts = cost.Counts({"turns": 10}, {"sides": [0.5, 0.5]})
    assert cost.flops(traced.jaxpr, counts) == (10 + 3 + 0.5) * 2 * 4**3
