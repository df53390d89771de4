"""MAttr against a transcription in NumPy, on two families; what its options mean; restarts and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_llama, micro_model, micro_pairs, stop_after

import jaxcircuits as jc
from jaxcircuits.discovery.mattr import mask_of_size
from jaxcircuits.references import sender_values

MODELS = {"gpt2": lambda: micro_model("gpt2", dtype=jnp.float64), "llama": lambda: micro_llama(dtype=jnp.float64)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def transcribed(objective, sizes, optimiser, rate, loss, temperature=0.5):
    """The published algorithm, edge by edge in a vector; its f and gradients are the objective's own."""
    valid = objective.graph.valid
    zeros, ones = np.zeros(valid.shape), np.ones(valid.shape)
    empty, full = float(objective(zeros)), float(objective(ones))
    a = np.zeros(valid.sum())
    first, second, total = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    for count, size in enumerate(sizes, start=1):
        low, high = a.min() - 10 * temperature, a.max() + 10 * temperature
        for _ in range(50):
            tau = (low + high) / 2
            low, high = (tau, high) if sigmoid((a - tau) / temperature).sum() > size else (low, tau)
        m = sigmoid((a - (low + high) / 2) / temperature)
        mask = np.zeros(valid.shape)
        mask[valid] = m
        g = np.asarray(objective.gradient(mask))[valid]
        if loss == "cmd":
            g = g * np.sign(float(objective(mask)) - full) / abs(full - empty)
        p = m * (1 - m)
        slope = p / temperature * (g - (g * p).sum() / p.sum())
        if optimiser == "adam":
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            a = a - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        elif optimiser == "sgd":
            a = a - rate * slope
        total -= slope
    return total / len(sizes) if optimiser == "none" else a


@pytest.mark.quick(1)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "optimiser, rate, sizes, loss",
    [("adam", 0.05, "uniform", "objective"), ("sgd", 3.0, "log", "cmd"), ("none", None, "uniform", "cmd")],
)
def test_it_is_the_published_algorithm(model, optimiser, rate, sizes, loss, x64):
    objective = jc.Objective(MODELS[model](), micro_pairs(), "logit_diff")
    options = {"optimiser": optimiser, "sizes": sizes, "loss": loss, "steps": 12, "batch": 5}
    result = jc.mattr(objective, **options)
    a = transcribed(objective, result.history["size"], optimiser, rate, loss)
    found = result.scores[objective.graph.valid]
    expected = a if optimiser == "none" else a - a.min()
    assert np.abs(found - expected).max() < 1e-9 * found.max() and np.ptp(a) > 0
    assert result.run["rate"] == rate and result.as_scores().signed is (optimiser == "none")


def test_a_mask_sums_to_its_size_and_has_the_slope_of_that(x64):
    valid = np.random.default_rng(0).random((7, 9)) < 0.6
    a = jnp.asarray(np.random.default_rng(1).normal(size=valid.shape))
    for size in (1.5, 10.0, valid.sum() - 1.5):
        mask = np.asarray(mask_of_size(a, jnp.asarray(size), 0.5, valid))
        np.testing.assert_allclose(mask.sum(), size, rtol=1e-9)
        assert not mask[~valid].any()
    weights, direction = np.random.default_rng(2).normal(size=(2, *valid.shape))

    def value(a):
        return (mask_of_size(a, jnp.asarray(9.0), 0.5, valid) * weights).sum()

    finite = (value(a + 1e-5 * direction) - value(a - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose((jax.grad(value)(a) * direction).sum(), finite, rtol=1e-6)


@pytest.mark.mission
def test_sizes_are_uniform_or_their_logarithms_are():
    objective = jc.Objective(chain_model(), micro_pairs(batch=2, width=5), "logit_diff")
    edges = objective.graph.num_edges
    for sizes, scaled in (("uniform", lambda k: (k - 1) / (edges - 1)), ("log", lambda k: np.log(k) / np.log(edges))):
        u = scaled(jc.mattr(objective, sizes=sizes, optimiser="none", steps=400).history["size"])
        assert (u >= 0).all() and (u <= 1).all()
        np.testing.assert_allclose([u.mean(), (u**2).mean()], [1 / 2, 1 / 3], atol=0.05)


@pytest.mark.mission
@pytest.mark.parametrize("optimiser", ["adam", "none"])
def test_it_finds_the_chain_and_goes_on(optimiser, tmp_path):
    objective = jc.Objective(chain_model(), micro_pairs(batch=8, width=5), "kl")
    graph, circuit = objective.graph, objective.graph.mask_of(CHAIN)
    settings = {"optimiser": optimiser, "steps": 150, "batch": 4}
    result = jc.mattr(objective, **settings)
    assert result.scores[circuit].min() > result.scores[graph.valid & ~circuit].max()
    assert result.history.keys() == {"metric", "loss", "size"} and (result.mask == graph.valid).all()
    stop_after(60, jc.mattr, objective, **settings, checkpoint=tmp_path)
    resumed = jc.mattr(objective, **settings, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.scores, result.scores)
    assert not np.array_equal(jc.mattr(objective, **settings, seed=1).scores, result.scores)


@pytest.mark.mission
def test_the_command_writes_what_prune_reads(run, tmp_path):
    file, best = tmp_path / "scores.json", tmp_path / "best.json"
    options = ["--option", "steps=3", "--option", "loss=cmd", "--option", "rate=none", "--out", file]
    code, printed, errors = run("score", "ioi", "--size", "4", "--method", "mattr", *options)
    assert (code, errors) == (0, "") and "the best 10 of 1519 edges" in printed
    record = json.loads(file.read_text())["run"]
    assert (record["method"], record["loss"], record["optimiser"], record["rate"]) == ("mattr", "cmd", "adam", 0.05)
    assert run("prune", file, "--edges", "40", "--out", best)[0] == 0
    assert jc.Circuit.load(best).run["selection"] == {"rank": "signed", "greedy": False, "edges": 40}


def test_what_it_refuses():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    wrong = {"optimiser": "lion", "sizes": "even", "loss": "cpr", "temperature": 0.0, "rate": -1.0, "steps": 0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            jc.mattr(objective, **{"steps": 2, name: value})
    with pytest.raises(ValueError, match="rate: without learning there is none"):
        jc.mattr(objective, optimiser="none", rate=0.1)
    with pytest.raises(ValueError, match="which is 0"):
        jc.mattr(jc.Objective(objective.model, micro_pairs(), flat), loss="cmd")


def test_cmd_refuses_a_gap_that_is_rounding():
    """Absent edges carry what is running but for a last bit: f without edges differs by 6e-8."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    same = np.asarray(sender_values(objective.model, objective.clean, objective.microbatch, objective.span_at))
    near = jc.Objective(objective.model, micro_pairs(), "logit_diff", reference=same * np.float32(1 + 1e-7))
    with pytest.raises(ValueError, match=r"cmd divides by .*which is \S+ with a float error of \S+; choose"):
        jc.mattr(near, loss="cmd", steps=1)


def flat(logits, labels):
    return 0 * logits[0]
