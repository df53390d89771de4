"""Searches that share a call decide as each does alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from test_units import make, make_pairs

import jaxcircuits as jc
from jaxcircuits import current_run
from jaxcircuits.discovery.width import searches_at_once

THRESHOLDS = [0.005, 0.02, 0.05, 0.1, 0.3]


def objective_of(name):
    if name == "gpt2":
        return jc.Objective(micro_model(name, dtype=jnp.float64), micro_pairs(kind="positions", batch=5), "kl")
    return jc.Objective(make(name), make_pairs(), "logit_diff")


class Counting(jc.LiveEvaluator):
    """Counts the searches of each call."""

    searches: list[int] = []

    @staticmethod
    def together(searches, *given):
        Counting.searches.append(len(searches))
        return jc.LiveEvaluator.together(searches, *given)


def compared(ones, manys):
    for one, many in zip(ones, manys, strict=True):
        assert [(d.name, d.removed) for d in one.decisions] == [(d.name, d.removed) for d in many.decisions]
        np.testing.assert_allclose([d.after for d in one.decisions], [d.after for d in many.decisions], atol=1e-10)
        np.testing.assert_array_equal(one.mask, many.mask)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gpt2", "grouped", "parallel", "post-norm"])
def test_thresholds_that_have_parted_go_on_together(name, x64):
    objective = objective_of(name)
    Counting.searches = []
    ones = jc.acdc_sweep(objective, THRESHOLDS, width=4, together=1)
    manys = jc.acdc_sweep(objective, THRESHOLDS, width=4, together=16, evaluator=Counting)
    compared(ones, manys)
    assert max(Counting.searches) > 2 and len({one.mask.tobytes() for one in ones}) > 2


@pytest.mark.mission
@pytest.mark.parametrize("units", ["unsplit", "layers", "split 0:2,3:5"])
def test_units_and_spans_go_on_together(units, x64):
    objective = jc.Objective(jc.with_units(make("gpt2"), *units.split()), make_pairs(), "logit_diff")
    Counting.searches = []
    ones, manys = (
        jc.acdc_sweep(objective, THRESHOLDS, width=4, together=together, evaluator=Counting) for together in (1, 4)
    )
    compared(ones, manys)
    assert max(Counting.searches) > 1  # one alone takes no such call


@pytest.mark.mission
def test_replicates_together_are_those_alone(x64):
    objective = objective_of("gpt2")
    alone, few, many = (jc.replicates(objective, 0.05, count=9, seed=1, width=4, together=n) for n in (1, 2, 16))
    for found in (few, many):
        np.testing.assert_array_equal(found.masks, alone.masks)
        np.testing.assert_allclose(found.metrics, alone.metrics, atol=1e-12)
    dense = jc.replicates(objective, 0.05, count=9, seed=1, width=4, together=4, evaluator=jc.DenseEvaluator)
    np.testing.assert_array_equal(dense.masks, alone.masks)


def test_memory_that_does_not_do_takes_fewer_searches(x64):
    class Small(jc.LiveEvaluator):
        """Has room for three searches."""

        refused = 0

        @staticmethod
        def together(searches, *given):
            if len(searches) > 3:
                Small.refused += 1
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no")
            Counting.searches.append(len(searches))
            return jc.LiveEvaluator.together(searches, *given)

    objective = objective_of("gpt2")
    Counting.searches = []
    ones, manys = (
        jc.acdc_sweep(objective, np.geomspace(0.001, 1, 16).tolist(), width=4, together=together, evaluator=evaluator)
        for together, evaluator in ((1, jc.LiveEvaluator), (16, Small))
    )
    compared(ones, manys)
    assert set(Counting.searches) <= {2, 3} and Counting.searches and Small.refused == 1


def test_by_default_an_accelerator_takes_several_searches_at_once_and_a_cpu_one(monkeypatch):
    for platform, searches in (("cpu", 1), ("gpu", 16), ("tpu", 16)):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert searches_at_once() == searches


def test_a_number_of_searches_that_none_can_mean_is_refused():
    with pytest.raises(ValueError, match="together: expected 1 to 64, got 0"):
        jc.acdc(jc.Objective(micro_model("one-head"), micro_pairs(), "kl"), 0.1, together=0)
    with pytest.raises(ValueError, match="together: expected 1 to 64, got 65"):
        jc.acdc(jc.Objective(micro_model("one-head"), micro_pairs(), "kl"), 0.1, together=65)
    assert jc.acdc(jc.Objective(micro_model("one-head"), micro_pairs(), "kl"), 0.1, together=64).decisions


def test_searches_of_other_numbers_of_slots_share_a_call(x64):
    """One restored from where more slots were compiled for than this graph has units."""
    search = jc.LiveEvaluator(objective_of("gpt2"))
    other = search.fork()
    other.current = current_run.grow(other.current, 2 * len(search.units.all))
    restored = search.fork()
    restored.restore(other.state())
    column = len(search.graph.receivers) - 1
    steps = [np.array([[row, column]]) for row in np.flatnonzero(search.graph.valid[:, column])[:3]]
    guesses = [True, False, True]
    alone = search.fork().chain(steps, guesses, 4)
    for one in jc.LiveEvaluator.together([restored, search], [steps] * 2, [guesses] * 2, 4):
        np.testing.assert_allclose(one, alone, rtol=1e-12)
