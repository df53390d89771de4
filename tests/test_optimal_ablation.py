import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask, stop_after

import jaxcircuits as jc
from jaxcircuits.discovery.optimal_ablation import OptimalAblation


@pytest.mark.slow
def test_its_losses_are_below_those_of_mean_ablation(x64):
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs()
    objective = jc.Objective(model, pairs, "kl")
    result = jc.optimal_ablation(objective, own_positions=True, steps=150, rate=0.02, samples=9)
    senders = len(model.graph.senders)
    masks = np.repeat(model.graph.valid[None], senders, 0)
    masks[np.arange(senders), np.arange(senders)] = False
    mean = np.asarray(jc.Objective(model, pairs, "kl", "mean").many(masks))
    np.testing.assert_allclose(result.losses_start, mean, rtol=1e-9)
    assert (result.losses <= mean).all() and result.losses.mean() < 0.9 * mean.mean()
    learnt = jc.Objective(model, pairs, "kl", result.array(len(pairs), 6))
    np.testing.assert_allclose(learnt.many(masks), result.losses, rtol=1e-9)
    assert len(result.history["loss"]) == 150 and result.run["ablation"]["value"] == "optimal"


@pytest.mark.mission
@pytest.mark.parametrize("own_positions", [False, True])
def test_it_begins_with_means_of_what_is_no_padding(own_positions, x64):
    """Of the corrupt prompts' values, token by token; at a position that no prompt has, nothing."""
    pairs = micro_pairs(kind="lengths", width=5)
    padded = [np.pad(tokens, ((0, 0), (0, 1)), constant_values=3) for tokens in (pairs.clean, pairs.corrupt)]
    pairs = dataclasses.replace(pairs, clean=padded[0], corrupt=padded[1])
    model = micro_model("one-head", dtype=jnp.float64)
    objective = jc.Objective(model, pairs, "nll")
    values = [np.asarray(eqx.filter_jit(model.sender_values)(jnp.asarray(tokens))) for tokens in pairs.corrupt]
    tokens = [[value[:, t] for value, n in zip(values, pairs.length, strict=True) if t < n] for t in range(6)]
    means = [np.mean(here, 0) if here else np.zeros((3, 8)) for here in tokens]
    start = np.stack(means, 1) if own_positions else np.mean(sum(tokens, []), 0)[:, None]
    masks = np.stack([random_mask(objective.graph, seed) for seed in range(2)])
    result = jc.optimal_ablation(objective, masks, own_positions=own_positions, steps=1, rate=1e-12)
    np.testing.assert_allclose(result.values, start, atol=1e-9)
    reference = np.broadcast_to(start[:, None], (3, 5, 6, 8))
    ablated = jc.Objective(model, pairs, "nll", reference)
    np.testing.assert_allclose(result.losses_start, ablated.many(masks), rtol=1e-9)
    one_a_sender = jc.optimal_ablation(objective, own_positions=own_positions, steps=1, rate=1e-12)
    without = [objective.graph.valid & (np.arange(3) != sender)[:, None] for sender in range(3)]
    np.testing.assert_allclose(one_a_sender.losses_start, ablated.many(without), rtol=1e-9)


def test_it_reaches_an_optimum_that_is_known(x64):
    """Without norms, under squared error, of one edge into logits: the mean of what the sender writes there."""
    pairs = micro_pairs()
    pairs = jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt)
    model = micro_model("no-norm", dtype=jnp.float64)
    mask = model.graph.valid & ~model.graph.mask_of(["a1.h1->logits"])
    objective = jc.Objective(model, pairs, "l2", "zero")
    result = jc.optimal_ablation(objective, mask, steps=600, rate=0.02)
    values = np.stack([eqx.filter_jit(model.sender_values)(jnp.asarray(row)) for row in pairs.clean], 1)
    best = np.broadcast_to(values[:, :, -1:].mean(1, keepdims=True), values.shape)  # the answer is read at the end
    optimum = float(jc.Objective(model, pairs, "l2", best)(mask))
    assert result.losses.shape == (1,) and optimum < 0.9 * result.losses_start[0]
    np.testing.assert_allclose(result.losses[0], optimum, rtol=1e-3)
    assert result.losses[0] >= optimum * (1 - 1e-9)


@pytest.mark.mission
def test_the_gradient_of_the_loss(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "nll")
    masks = jnp.asarray(np.stack([random_mask(objective.graph, seed) for seed in range(2)]))
    random = np.random.default_rng(0)
    constants, direction = (jnp.asarray(random.normal(size=(len(objective.graph.senders), 1, 8))) for _ in range(2))
    learner = OptimalAblation(masks, constants, 0.1, 2)

    @eqx.filter_jit
    def loss(constants):
        return learner.loss(constants, objective, jax.random.key(0), jnp.asarray(0))[0]

    finite = (loss(constants + 1e-6 * direction) - loss(constants - 1e-6 * direction)) / 2e-6
    slope = jnp.sum(eqx.filter_jit(jax.grad(loss))(constants) * direction)
    np.testing.assert_allclose(slope, finite, rtol=1e-6)


@pytest.mark.mission
def test_it_resumes_and_depends_on_the_seed_alone(tmp_path):
    objective = jc.Objective(micro_model("attention-only"), micro_pairs(), "kl")
    settings = {"steps": 80, "samples": 2, "batch": 3}
    through = jc.optimal_ablation(objective, **settings)
    stop_after(20, jc.optimal_ablation, objective, **settings, checkpoint=tmp_path)
    resumed = jc.optimal_ablation(objective, **settings, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.values, through.values)
    assert not np.array_equal(jc.optimal_ablation(objective, **settings, seed=1).values, through.values)
    assert through.values.shape == (5, 1, 8) and through.array(2, 6).shape == (5, 2, 6, 8)


def test_what_it_refuses():
    objective = jc.Objective(micro_model("attention-only"), micro_pairs())
    with pytest.raises(ValueError, match="masks"):
        jc.optimal_ablation(objective, np.ones((2, 2)))
    for settings in ({"rate": 0.0}, {"samples": 0}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            jc.optimal_ablation(objective, **settings)
    result = jc.optimal_ablation(objective, steps=1, own_positions=True)
    with pytest.raises(ValueError, match="6 positions"):
        result.array(2, 5)
