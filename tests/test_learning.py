from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcircuits.discovery.learning import State, _Kept, first_order, learn
from jaxcircuits.savepoint import Savepoint


class Prompts(eqx.Module):
    """Stands for an objective: numbers instead of prompts."""

    numbers: jax.Array

    @property
    def num_prompts(self):
        return len(self.numbers)

    def full_mask(self):
        return jnp.ones(())

    def take(self, rows):
        return Prompts(self.numbers[rows])


class Mean(eqx.Module):
    """Learns the mean of the numbers; reports the batch it got."""

    rate: float
    columns: ClassVar = ("total", "size")

    def start(self, objective, key):
        return jnp.zeros(())

    def optimiser(self):
        return optax.sgd(self.rate)

    def loss(self, guess, objective, key, step):
        loss = jnp.mean((guess - objective.numbers) ** 2)
        return loss, {"total": objective.numbers.sum(), "size": jnp.asarray(float(objective.num_prompts))}


def test_first_order_has_the_value_and_the_gradient():
    def g(x):
        return jnp.sum(jnp.sin(x["a"])) * x["b"]

    def inner(scale):
        return {"a": scale * jnp.arange(3.0), "b": scale**2}

    def through(scale):
        return first_order(jax.value_and_grad(g), inner(scale))

    scale = jnp.asarray(0.7)
    np.testing.assert_allclose(through(scale), g(inner(scale)), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(through)(scale), jax.grad(lambda s: g(inner(s)))(scale), rtol=1e-6)


def test_first_order_does_not_differentiate_what_it_is_given():
    @jax.custom_jvp
    def opaque(x):
        return jnp.sum(x**2), 2 * x

    @opaque.defjvp
    def refuse(primals, tangents):
        raise AssertionError("differentiated")

    np.testing.assert_allclose(jax.grad(lambda x: first_order(opaque, x))(jnp.ones(3)), 2 * np.ones(3))


@pytest.mark.parametrize("batch, expected", [(3, 3), (8, 8), (50, 8)])
def test_batches_are_drawn_without_replacement(batch, expected):
    """Powers of two: the sum of a batch says which numbers were in it."""
    state = learn(Mean(0.1), Prompts(jnp.asarray(2.0 ** np.arange(8), jnp.float32)), steps=40, batch=batch)
    totals = np.asarray(state.history["total"]).astype(int)
    assert (np.asarray(state.history["size"]) == expected).all()
    assert {int(total).bit_count() for total in totals} == {expected}
    assert len(set(totals)) > 10 if batch == 3 else len(set(totals)) == 1


def test_all_prompts_and_enough_steps_give_the_mean():
    state = learn(Mean(0.1), Prompts(jnp.asarray([1.0, 2.0, 6.0])), steps=120, batch=3, chunk=7)
    np.testing.assert_allclose(state.parameters, 3, rtol=1e-6)
    assert int(state.step) == 120 and not np.isnan(state.history["total"]).any()


def test_progress_comes_every_chunk():
    steps = []
    learn(Mean(0.1), Prompts(jnp.ones(2)), steps=25, batch=2, chunk=10, progress=lambda s: steps.append(int(s.step)))
    assert steps == [10, 20, 25]


def test_what_it_refuses(tmp_path):
    for settings in ({"steps": 0}, {"batch": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            learn(Mean(0.1), Prompts(jnp.ones(2)), **{"steps": 1, "batch": 1, **settings})


def test_a_checkpoint_of_another_run_is_refused_by_the_name_of_what_differs(tmp_path):
    settings = {"steps": 2, "batch": 1, "checkpoint": tmp_path}
    state = learn(Mean(0.1), Prompts(jnp.ones(2)), **settings)
    again = learn(Mean(0.1), Prompts(jnp.ones(2)), **settings, progress=pytest.fail)
    np.testing.assert_array_equal(again.history["total"], state.history["total"])
    for learner, prompts, changed, name in (
        (Mean(0.2), jnp.ones(2), {}, "rate was 0.1, now 0.2"),
        (Mean(0.1), jnp.zeros(2), {}, "objective was"),
        (Mean(0.1), jnp.ones(2), {"steps": 3}, "steps was 2, now 3"),
        (Mean(0.1), jnp.ones(2), {"batch": 2}, "batch was 1, now 2"),
        (Mean(0.1), jnp.ones(2), {"seed": 1}, "seed was 0, now 1"),
    ):
        with pytest.raises(ValueError, match=name):
            learn(learner, Prompts(prompts), **{**settings, **changed})


@pytest.mark.mission
def test_with_a_checkpoint_steps_between_saves_are_few_where_they_are_slow(tmp_path, monkeypatch):
    now, steps = [0.0], []

    def progress(state):
        now[0] += int(state.step) - (steps[-1] if steps else 0)  # a second each
        steps.append(int(state.step))

    monkeypatch.setattr("jaxcircuits.discovery.learning.time.monotonic", lambda: now[0])
    learn(Mean(0.1), Prompts(jnp.ones(2)), steps=5, batch=2, progress=progress, checkpoint=tmp_path)
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("other", [np.ones(3, np.float32), np.ones(2, np.int32), None])
def test_a_kept_state_of_another_kind_is_refused(other, tmp_path):
    def state(parameters):
        return State(None, parameters, None, jax.random.key_data(jax.random.key(0)), jnp.int32(1), {})

    kept = state(np.full(2, 5, np.float32))
    with Savepoint(tmp_path, {"run": 1}) as point:
        _Kept(point).write(kept, is_last=True)
        fresh = _Kept(point).read(state(np.ones(2, np.float32)))
        np.testing.assert_array_equal(fresh.parameters, kept.parameters)
        wanted = state({"more": np.ones(2, np.float32)} if other is None else other)
        with pytest.raises(ValueError, match="keeps a state of another kind: choose another folder"):
            _Kept(point).read(wanted)
