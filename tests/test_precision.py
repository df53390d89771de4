"""Products of matrices by name: all of them are as a model's `precision` says, and a search counts what that costs."""

import dataclasses
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from test_units import make, make_pairs

import jaxcircuits as jc
from jaxcircuits import current_run
from jaxcircuits.cli.judge import JudgedOptions
from jaxcircuits.cli.options import recorded
from jaxcircuits.discovery.noise import SAMPLE
from jaxcircuits.precision import PRECISIONS

OF_JAX = {
    "highest": (jax.lax.Precision.HIGHEST,) * 2,
    "high": (jax.lax.Precision.HIGH,) * 2,
    "tf32x3": jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "bf16x6": jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
}


def products(jaxpr):
    """How exactly each product of real numbers in a program is computed, those in its loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
            yield equation.params["precision"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.fixture
def programs(monkeypatch):
    """Every compiled program, as the benchmark that compiles them for other devices lists them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import aot_programs

    yield aot_programs.programs
    sys.modules.pop("aot_programs")


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name, family, units",
    [
        ("tf32x3", "gpt2", "split"),
        ("high", "grouped", "neurons:2"),
        ("bf16x6", "post-norm", "split"),
        ("highest", "parallel", "split"),
    ],
)
def test_every_product_of_every_program_is_of_the_models_precision(name, family, units, programs):
    """Nothing is computed: this device has not all of them."""
    with jax.enable_x64(True):
        double = make(family)
    made = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), double)
    model = jc.with_units(made.computed(precision=name), units)
    again = jc.with_units(made, units).computed(precision=name)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    objective = eqx.filter_eval_shape(lambda model: jc.Objective(model, make_pairs(), "kl", microbatch=2), model)
    for of, program in programs(objective, 16, 4).items():
        arrays, function = program.arrays()
        found = set(products(jax.make_jaxpr(function)(arrays, {}).jaxpr))
        assert found == (set() if of in ("fill", "commit") else {OF_JAX[name]}), (of, found)


def test_a_search_that_begins_at_a_circuit_computes_its_first_run_as_the_model():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    jaxpr = jax.make_jaxpr(lambda mask: jax.tree.leaves(current_run.first_run(objective, mask)))(objective.full_mask())
    assert set(products(jaxpr.jaxpr)) == {OF_JAX["highest"]}


class Coarse(jc.GPT2):
    """Reads eight bits of everything, unless it computes at full precision."""

    def read(self, port, layer, index, x, at):
        coarse = x.astype(jnp.bfloat16).astype(x.dtype)
        return super().read(port, layer, index, x if self.precision == "highest" else coarse, at)


@pytest.fixture
def coarse():
    model = micro_model("gpt2")
    return Coarse(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def objective_of(model, reference="resample"):
    return jc.Objective(model, micro_pairs(), "logit_diff", reference)


@pytest.mark.quick(1)
@pytest.mark.parametrize("reference", ["resample", "zero"])
def test_an_objective_at_another_precision_is_one_made_so(coarse, reference):
    mask = np.random.default_rng(0).random(coarse.graph.shape) < 0.5
    full = objective_of(coarse, reference)
    high = objective_of(coarse.with_precision("high"), reference)
    assert high.describe()["precision"] == "high"
    for one, other in ((full, high.with_precision("highest")), (high, full.with_precision("high"))):
        for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(one.per_example(mask), other.per_example(mask))
    assert abs(float(full(mask)) - float(high(mask))) > 1e-5


def test_some_of_the_prompts_and_the_run_turned_round_keep_what_they_are_measured_against(coarse):
    """Taking prompts, or turning the run round, and then changing the precision is doing it the other way."""
    mask = np.random.default_rng(0).random(coarse.graph.shape) < 0.5
    pairs = micro_pairs()
    full, high = (jc.Objective(coarse.with_precision(name), pairs, "kl") for name in ("highest", "high"))
    for change in (lambda o: o.take(np.array([3, 0])), lambda o: o.restoring(pairs)):
        ours, theirs = change(full).with_precision("high"), change(high)
        np.testing.assert_allclose(ours.labels.full, theirs.labels.full, atol=1e-6)
        np.testing.assert_allclose(ours.per_example(mask), theirs.per_example(mask), atol=1e-6)
        assert abs(float(ours(mask)) - float(change(full)(mask))) > 1e-6
    means = jc.Objective(coarse, pairs, "logit_diff", "mean").take(np.array([0]))
    np.testing.assert_array_equal(means.with_precision("high").reference, means.reference)


@pytest.mark.mission
def test_decisions_are_held_against_the_error_of_a_sample_of_them(coarse):
    """By hand: each trial's circuits again at full precision."""
    high, full = objective_of(coarse.with_precision("high")), objective_of(coarse)
    exact = jc.acdc(full, 0.01)
    assert exact.noise < 1e-5
    with pytest.warns(UserWarning, match="lie within float noise"):
        found = jc.acdc(high, 0.01)
    mask, errors = high.graph.valid.copy(), []
    for decision in found.decisions:
        without = mask.copy()
        if "->" in decision.name:
            without[high.graph.edge_index(decision.name)] = False
        else:
            without[:, high.graph.receivers.index(decision.name)] = False
        true = float(full(without)) - float(full(mask))
        errors.append(abs(decision.after - decision.before - true))
        mask = without if decision.removed else mask
    assert len(errors) > SAMPLE
    sample = np.random.default_rng(0).choice(len(errors), SAMPLE, replace=False)
    np.testing.assert_allclose(found.noise, np.array(errors)[sample].max(), atol=1e-5)
    assert found.noise > 1e-4
    margins = {d.name: abs(d.after - d.before - 0.01) for d in found.decisions}
    assert set(found.undecided) == {name for name, margin in margins.items() if margin < 2 * found.noise}
    assert jc.Circuit.of(found).run["precision"] == "high"


def test_a_run_of_several_thresholds_measures_each(coarse):
    high = objective_of(coarse.with_precision("high"))
    with pytest.warns(UserWarning):
        one, other = jc.acdc_sweep(high, [0.01, 0.2])
    assert one.noise > 1e-4 and other.noise > 1e-4 and one.noise != other.noise


def test_what_cannot_be_is_refused_before_a_model_is_read():
    with pytest.raises(ValueError, match="precision: expected one of highest, high, tf32x3, bf16x6, got 'float'"):
        jc.load("nowhere", precision="float")
    with pytest.raises(ValueError, match="tf32x3 is not to be had on this cpu, expected highest"):
        jc.load("nowhere", precision="tf32x3")
    with pytest.raises(ValueError, match="high is of float32, got a model in float16: expected highest"):
        jc.load("nowhere", precision="high", dtype=jnp.float16)
    with pytest.raises(ValueError, match="bf16x6 is not to be had on this cpu"):
        micro_model("gpt2").with_precision("bf16x6")
    assert list(PRECISIONS) == list(OF_JAX)


@pytest.mark.mission
def test_the_command_line_takes_and_keeps_it(run, tmp_path):
    file = tmp_path / "c.json"
    assert run("score", "ioi", "--method", "random", "--size", "2", "--precision", "high", "--out", file)[0] == 0
    record = jc.Circuit.load(file).run
    assert record["precision"] == "high" and recorded(record).options.precision == "high"
    assert recorded(record, JudgedOptions(precision="highest")).options.precision == "highest"
    code, _, said = run("discover", "ioi", "--precision", "low")
    assert code == 1 and "precision: expected one of" in said
