import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_model, micro_pairs, stop_after

import jaxcircuits as jc
from jaxcircuits.discovery.ugs import UGS, masks_at, sample


@pytest.fixture(scope="module")
def objective():
    return jc.Objective(chain_model(), micro_pairs(batch=8, width=5), "kl")


@pytest.mark.mission
def test_it_finds_the_chain(objective, tmp_path):
    graph, circuit = objective.graph, objective.graph.mask_of(CHAIN)
    settings = {"strength": 0.01, "steps": 300, "rate": 0.1, "samples": 6}
    result = jc.ugs(objective, **settings)
    np.testing.assert_array_equal(result.mask, circuit)
    assert result.scores[circuit].min() > result.scores[graph.valid & ~circuit].max()  # ROC area 1
    assert result.run["metric_final"] < 1e-5 and result.history["sparsity"][-1] > 0.85
    stop_after(100, jc.ugs, objective, **settings, checkpoint=tmp_path)
    resumed = jc.ugs(objective, **settings, checkpoint=tmp_path)
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


@pytest.mark.parametrize(
    "samples, kept, cells", [(1, (0.5, 0.8), (8, 25)), (2, (0.2, 0.5), (25, 8)), (1, (0.95, 0.5), (800, 8))]
)
def test_the_gradient_has_no_bias(samples, kept, cells, x64):
    """Its mean over all draws is the gradient of the mean of f over all masks, enumerated; f is linear in each edge.

    u runs through midpoints of cells whose borders are those of the uniform windows, so the mean over draws is exact.
    """
    table = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)))
    theta = jnp.asarray([[math.log(p / (1 - p)) for p in kept]])

    def f(z):
        return jnp.stack([1 - z[0, 0], z[0, 0]]) @ table @ jnp.stack([1 - z[0, 1], z[0, 1]])

    def mean_over_masks(theta):
        p = jax.nn.sigmoid(theta[0])
        chance = {
            mask: jnp.where(jnp.asarray(mask) == 1, p, 1 - p).prod() for mask in itertools.product((0, 1), (0, 1))
        }
        return sum(chance[mask] * table[mask] for mask in chance)

    def estimate(u):
        return jax.grad(lambda theta: jax.vmap(f)(masks_at(u, theta)).mean())(theta)

    u = np.array(list(itertools.product(*((np.arange(count) + 0.5) / count for count in cells))))[:, None]
    rows = np.array(list(itertools.product(range(len(u)), repeat=samples)))
    found = jax.jit(jax.vmap(estimate))(jnp.asarray(u[rows]))
    np.testing.assert_allclose(found.mean(0), jax.jit(jax.grad(mean_over_masks))(theta), rtol=1e-9)


@pytest.mark.mission
def test_the_gradient_of_the_loss_is_the_mean_slope_where_edges_are_uniform(x64):
    """Of a real f, plus the penalty's, draw by draw."""
    objective = jc.Objective(micro_model("one-head", dtype=jnp.float64), micro_pairs(), "kl")
    valid = objective.graph.valid
    theta, key = jnp.asarray(np.random.default_rng(0).normal(size=valid.shape)), jax.random.key(2)
    learner = UGS(0.3, 0.05, 1.0, 5)

    @eqx.filter_jit
    def slope(theta):
        return jax.grad(lambda theta: learner.loss(theta, objective, key, jnp.asarray(0))[0])(theta)

    p = 1 / (1 + np.exp(-np.asarray(theta)))
    expected = 0.3 * p * (1 - p) * valid
    for z in np.asarray(sample(key, theta, 5)):
        expected = expected + np.where((z > 0) & (z < 1), objective.gradient(z), 0) / 5
    np.testing.assert_allclose(slope(theta), expected, rtol=1e-9, atol=1e-15)


def test_saturated_probabilities_are_exact_masks():
    theta = jnp.asarray([[-60.0, 60.0]])
    for seed in range(10):
        np.testing.assert_array_equal(sample(jax.random.key(seed), theta, 3), np.broadcast_to([0, 1], (3, 1, 2)))
    assert jnp.isfinite(jax.grad(lambda theta: sample(jax.random.key(0), theta, 3).sum())(theta)).all()


def test_what_it_refuses(objective):
    for settings in ({"strength": -1.0}, {"rate": 0.0}, {"samples": 0}, {"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            jc.ugs(objective, **settings)
