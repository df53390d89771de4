import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.ugs import sample


@pytest.fixture(scope="module")
def objective():
    return jc.Objective(chain_model(), micro_pairs(batch=8, width=5), "kl")


def test_it_finds_the_chain(objective, tmp_path):
    graph, circuit = objective.graph, objective.graph.mask_of(CHAIN)
    settings = {"strength": 0.01, "steps": 300, "rate": 0.1, "samples": 6}
    states = []
    result = jc.ugs(objective, **settings, progress=states.append)
    np.testing.assert_array_equal(result.mask, circuit)
    assert result.scores[circuit].min() > result.scores[graph.valid & ~circuit].max()  # ROC area 1
    assert result.run["metric_final"] < 1e-5 and result.history["sparsity"][-1] > 0.85
    states[2].save(tmp_path / "state.npz")
    resumed = jc.ugs(objective, **settings, resume=tmp_path / "state.npz")
    np.testing.assert_array_equal(resumed.scores, result.scores)
    assert not np.array_equal(jc.ugs(objective, **settings, seed=1).scores, result.scores)


@pytest.mark.parametrize("theta", [-3.0, 0.0, 1.0])
def test_draws_have_the_stated_shares(theta, x64):
    p = 1 / (1 + np.exp(-theta))
    z = np.asarray(sample(jax.random.key(0), jnp.full((200, 100), theta), 20))
    uniform = z[(z > 0) & (z < 1)]
    assert abs(uniform.size / z.size - p * (1 - p)) < 3e-3
    assert abs((z == 1).mean() - (p - p * (1 - p) / 2)) < 3e-3
    assert abs(uniform.mean() - 0.5) < 0.02 and abs(uniform.std() - 12**-0.5) < 0.02


def test_the_gradient_is_the_mean_over_draws_in_which_the_edge_is_uniform(x64):
    """Against a transcription, with an f whose gradient is known: f(z) = sum z^3."""
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    key = jax.random.key(2)
    slope = jax.grad(lambda theta: jnp.sum(sample(key, theta, 7) ** 3) / 7)(theta)
    z, p = np.asarray(sample(key, theta, 7)), 1 / (1 + np.exp(-np.asarray(theta)))
    expected = np.zeros(theta.shape)
    for where in np.ndindex(theta.shape):
        draws = z[(slice(None), *where)]
        draws = draws[(draws > 0) & (draws < 1)]
        if draws.size:
            expected[where] = (3 * draws**2).mean() * p[where] * (1 - p[where])
    np.testing.assert_allclose(slope, expected, rtol=1e-12)
    assert (expected == 0).any() and (expected > 0).any()


def test_saturated_probabilities_are_exact_masks():
    theta = jnp.asarray([[-60.0, 60.0]])
    for seed in range(10):
        np.testing.assert_array_equal(sample(jax.random.key(seed), theta, 3), np.broadcast_to([0, 1], (3, 1, 2)))
    assert jnp.isfinite(jax.grad(lambda theta: sample(jax.random.key(0), theta, 3).sum())(theta)).all()


def test_what_it_refuses(objective):
    for settings in ({"strength": -1.0}, {"rate": 0.0}, {"samples": 0}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            jc.ugs(objective, **settings)
