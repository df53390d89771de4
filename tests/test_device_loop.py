"""The loop that decides on the device decides what the host's does, of the same values."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import expected, micro_model, micro_pairs, reference_pairs
from test_units import make, make_pairs

import jaxcircuits as jc
from jaxcircuits import batching, device_loop

MODELS = ["gpt2", "grouped", "parallel", "post-norm"]
UNITS = ["layers", "ungrouped", "split 0:2,3:5", "unsplit", "blocks", "neurons:2"]
RUNS = ["ioi-kl-0.1", "greater_than-kl-0.02", "greater_than-kl-zero-0.05", "induction-kl-0.05", "ioi-logit_diff-0.3"]


def both(objective, threshold, *, has_ties=False, **options):
    """The host's search and the device's; they agree, the device's in fewer calls where the host decides no ties."""
    host, device = (
        jc.acdc(objective, threshold, evaluator=evaluator, **options)
        for evaluator in (jc.LiveEvaluator, jc.DeviceEvaluator)
    )
    assert [(d.name, d.removed) for d in host.decisions] == [(d.name, d.removed) for d in device.decisions]
    for name in ("before", "after"):
        values = [[getattr(d, name) for d in result.decisions] for result in (host, device)]
        np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(host.mask, device.mask)
    assert device.run["evaluator"] == "DeviceEvaluator"
    assert device.device_calls <= host.device_calls or has_ties
    return host, device


def objective_of(name):
    if name == "gpt2":
        return jc.Objective(micro_model(name, dtype=jnp.float64), micro_pairs(kind="positions", batch=5), "kl")
    return jc.Objective(make(name), make_pairs(), "logit_diff")


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "width"), [("gpt2", 4), ("gpt2", 1), *((name, 4) for name in MODELS[1:])])
def test_the_device_decides_what_the_host_does(name, width, x64):
    """Where the next call begins from, too: a wrong commit would show in what follows."""
    host, device = both(objective_of(name), 0.02, width=width)
    assert {d.removed for d in host.decisions} == {True, False} and device.device_calls < 0.8 * host.device_calls


@pytest.mark.mission
@pytest.mark.parametrize("units", [*UNITS[:3], *(pytest.param(units, marks=pytest.mark.slow) for units in UNITS[3:])])
def test_of_every_unit(units, x64):
    model = make("grouped" if units == "ungrouped" else "gpt2")
    both(jc.Objective(jc.with_units(model, *units.split()), make_pairs(), "logit_diff"), 0.05, width=4)


@pytest.mark.mission
@pytest.mark.parametrize(
    "options",
    [
        {"absolute": True, "width": 4},
        {"groups": False, "width": 16, "order": "first_last"},
        {"predictor": "all_removed", "width": 9},
        {"prompt_weights": [0, 1, 2, 0.5, 3], "width": 4},
        {"width": 4, "within": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_every_option(options, x64):
    objective = objective_of("gpt2")
    if "within" in options:
        options = options | {"within": np.random.default_rng(0).random(objective.graph.shape) < 0.7}
    both(objective, 0.02, **options)


@pytest.mark.mission
@pytest.mark.parametrize("name", [RUNS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS[1:])])
@pytest.mark.parametrize("evaluator", [jc.LiveEvaluator, jc.DeviceEvaluator])
def test_both_agree_with_the_original_in_wide_chains(name, evaluator, x64_reference):
    """`test_acdc.py` has the default width, and all runs in CI."""
    run = expected(name)
    metric = {"kl_div": "kl"}.get(run["metric"], run["metric"])
    objective = jc.Objective(x64_reference.model, reference_pairs(run["task"]), metric, run["reference"])
    result = jc.acdc(objective, run["threshold"], evaluator=evaluator, width=16)
    assert [(d.name, d.removed) for d in result.decisions] == [(name, gone) for name, _, _, gone in run["trace"]]
    np.testing.assert_allclose([d.after for d in result.decisions], [t[2] for t in run["trace"]], atol=1e-9)
    assert abs(result.metric_final - run["metric_final"]) <= 1e-9


def test_numbers_as_large_as_there_are():
    """Only the ratios of weights matter, also where their sum is infinite; a threshold beyond float32 is as good."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    every = [jc.acdc(objective, 0.02, prompt_weights=[by, 0, by, by, by], width=4) for by in (1.0, 1e308, 5e-324)]
    for found in every:
        np.testing.assert_array_equal(found.mask, every[0].mask)
        assert [d.after for d in found.decisions] == [d.after for d in every[0].decisions]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "threshold -1e.39 is not above 0")
        assert not jc.acdc(objective, 1e39, width=4).mask.any()
        assert (jc.acdc(objective, -1e39, width=4).mask == objective.graph.valid).all()


@pytest.mark.parametrize("width", [4, 1])
def test_one_call_decides_a_receivers_edges(width, x64):
    """Also behind wrong guesses; each of the sizes is the host's, one trial at a time, and what is tried a replay's."""
    objective = objective_of("gpt2")
    graph, evaluator = objective.graph, jc.DeviceEvaluator(objective)
    steps = [np.array([[row, len(graph.receivers) - 1]]) for row in reversed(range(len(graph.senders)))]
    judge = device_loop.Judge(0.02, np.full(5, 1 / 5), False)
    current, mask, expected_values, expected_removed = evaluator.values(), graph.valid.copy(), [], []
    found = evaluator.decide(steps, [True] * len(steps), width, judge, current, at_one=True)
    np.testing.assert_array_equal(evaluator.mask, graph.valid)
    evaluator.accept(steps, found)
    for [edge] in steps:
        without = mask.copy()
        without[tuple(edge)] = False
        expected_values.append(np.asarray(objective.per_example(without)))
        expected_removed.append(bool((expected_values[-1] - current).mean() < 0.02))
        if expected_removed[-1]:
            mask, current = without, expected_values[-1]
    assert found.removed == expected_removed and {*expected_removed} == {True, False}
    np.testing.assert_allclose(found.values, expected_values, atol=1e-12)
    np.testing.assert_array_equal(evaluator.mask, mask)
    tried = at = 0
    while at < len(steps):
        chain = expected_removed[at : at + width]
        tried, at = tried + len(chain), at + (chain.index(False) + 1 if False in chain else len(chain))
    assert found.tried == tried


@pytest.mark.mission
@pytest.mark.parametrize("seed", range(3))
def test_wrong_guesses_cost_time_only(seed, x64):
    """Groups of one edge, guessed to stay, and that edge after them are no edges of one receiver."""
    objective = jc.Objective(micro_model("one-head", seed, jnp.float64), micro_pairs(seed), "logit_diff")
    within = objective.graph.valid.copy()
    for port in "qk":
        within[:, objective.graph.receivers.index(f"a0.h0<{port}>")] = False
    for scores in (np.full(within.shape, 1e9), np.random.default_rng(seed).normal(size=within.shape)):
        both(objective, 0.03, width=4, predictor=scores, within=within)


@pytest.mark.filterwarnings("ignore:.*decisions lie within float noise")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("prompts", "threshold"), [(5, 0.2), *(pytest.param(n, 1 / n, marks=pytest.mark.mission) for n in (7, 10))]
)
def test_ties_are_decided_by_the_hosts_rule(prompts, threshold, dtype, x64):
    """Accuracy rises by whole prompts: by the threshold, up to rounding. What is recorded is what decided."""
    model, pairs = micro_model("gpt2", dtype=dtype), micro_pairs(batch=prompts)
    own = np.argmax(jax.vmap(model)(pairs.clean)[:, -1], -1)
    pairs = jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt, answer=own)
    objective = jc.Objective(model, pairs, "accuracy")
    with pytest.warns(UserWarning, match="use float64" if dtype == jnp.float32 else "choose another threshold"):
        _, device = both(objective, threshold, has_ties=True)
    rises = np.array([d.after - d.before for d in device.decisions])
    assert (np.abs(rises - threshold) < 1e-6).any()
    assert (rises < threshold).tolist() == [d.removed for d in device.decisions]
    [swept] = jc.acdc_sweep(objective, [threshold])
    np.testing.assert_array_equal(swept.mask, device.mask)


@pytest.mark.parametrize("threshold", [1e-50, 1e-39, 1e-38])
def test_a_threshold_below_what_float32_holds_is_above_nothing(threshold):
    """What has no effect at all goes."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), lambda logits, labels: 0 * logits[0])
    assert not jc.acdc(objective, threshold).mask.any()


@pytest.mark.mission
def test_single_precision_decides_the_same():
    """At thresholds that no increment is near to."""
    for name in ("gpt2", "one-head"):
        objective = jc.Objective(micro_model(name), micro_pairs(), "logit_diff")
        for threshold in (0.01, 0.1):
            host, device = (
                jc.acdc(objective, threshold, evaluator=each) for each in (jc.LiveEvaluator, jc.DeviceEvaluator)
            )
            assert not host.undecided and [d.removed for d in host.decisions] == [d.removed for d in device.decisions]


def test_a_sweep_is_decided_by_the_host_until_one_threshold_is_alone(x64, monkeypatch):
    objective, thresholds = objective_of("gpt2"), [0.005, 0.05, 0.3]
    alone = [jc.acdc(objective, threshold, width=4) for threshold in thresholds]
    calls = []
    decide = jc.DeviceEvaluator.decide
    monkeypatch.setattr(jc.DeviceEvaluator, "decide", lambda *a, **k: calls.append(a) or decide(*a, **k))
    found = jc.acdc_sweep(objective, thresholds, width=4, evaluator=jc.DeviceEvaluator, together=1)
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert calls


@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no"), MemoryError("planned")])
def test_memory_that_does_not_do_shortens_the_chain(error, is_late, x64, monkeypatch):
    """Also where it shows only while it runs: the circuit so far is still there."""
    real = device_loop.run_loop

    class Small:
        """Has room for 4 candidates."""

        lower = real.lower

        def __call__(self, *inputs):
            if inputs[-1].scored.shape[1] > 4:
                if is_late:
                    real(*inputs)
                raise error
            return real(*inputs)

    objective = objective_of("gpt2")
    expected_mask = jc.acdc(objective, 0.02).mask
    monkeypatch.setattr(device_loop, "run_loop", Small())
    result = jc.acdc(objective, 0.02, width=64)
    np.testing.assert_array_equal(result.mask, expected_mask)
    assert list(result.run["device_calls_by_width"]) == [4] and result.memory_planned > 0


def test_a_program_that_cannot_fit_is_refused_before_any_compute(monkeypatch):
    class Never:
        lower = device_loop.run_loop.lower

        def __call__(self, *inputs):
            raise AssertionError("it ran")

    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "kl")
    monkeypatch.setattr(device_loop, "run_loop", Never())
    monkeypatch.setattr(batching, "memory_limit", lambda: 100)
    with pytest.raises(MemoryError, match="a chain of 1 needs .* GiB .* take fewer or shorter prompts"):
        jc.acdc(objective, 0.02)
