import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.discovery import hard_concrete

ALPHAS = [-4.0, -1.0, 0.0, 0.3, 2.0, 5.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_expected_l0_is_the_share_of_draws_above_zero(alpha):
    draws = np.asarray(hard_concrete.sample(jax.random.key(0), jnp.full(200_000, alpha)))
    expected = float(hard_concrete.expected_l0(jnp.asarray(alpha)))
    assert abs((draws > 0).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 200_000) + 2e-4
    assert 0 <= draws.min() and draws.max() <= 1 and ((draws > 0) & (draws < 1)).any()


def test_a_draw_is_the_formula(x64):
    key, log_alpha = jax.random.key(3), jnp.asarray(np.random.default_rng(0).normal(size=50) * 3)
    u = np.asarray(jax.random.uniform(key, (50,), float, 1e-4, 1 - 1e-4))
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + np.asarray(log_alpha)) / (2 / 3)))
    np.testing.assert_allclose(hard_concrete.sample(key, log_alpha), np.clip(1.2 * s - 0.1, 0, 1), rtol=1e-12)


def test_saturated_parameters_are_exact_masks():
    ends = jnp.asarray([-30.0, 30.0])
    np.testing.assert_array_equal(hard_concrete.deterministic(ends), [0, 1])
    for seed in range(20):
        np.testing.assert_array_equal(hard_concrete.sample(jax.random.key(seed), ends), [0, 1])


def test_the_start_of_subnetwork_probing():
    assert abs(hard_concrete.log_alpha_of(0.9) - 1.609) < 1e-3
    for value in (0.1, 0.5, 0.9):
        start = jnp.asarray(hard_concrete.log_alpha_of(value))
        np.testing.assert_allclose(hard_concrete.deterministic(start), value, rtol=1e-6)
