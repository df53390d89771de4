"""Reset networks: permutations of a model's heads and neurons, and of nothing else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, micro_model

import jaxcircuits as jc
from jaxcircuits import models

MOVED = ("query", "key", "value", "query_bias", "key_bias", "value_bias", "w_in", "b_in")


def named(model):
    return {path[-1].name: np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model.blocks)}


def slices(name, layer):
    """What is permuted in a layer, one row a head or neuron."""
    return (layer.T if name == "w_in" else layer).reshape(layer.shape[1 if name == "w_in" else 0], -1)


def test_each_layers_heads_and_neurons_are_the_same_in_another_order():
    model = micro_model("gpt2")
    reset = jc.reset_network(model, jax.random.key(0))
    before, after = named(model), named(reset)
    orders = {}
    for name in MOVED:
        for layer in range(2):
            old, new = slices(name, before[name][layer]), slices(name, after[name][layer])
            order = [int(np.flatnonzero((old == row).all(1))[0]) for row in new]
            assert sorted(order) == list(range(len(old)))
            orders[name, layer] = order
    assert orders["w_in", 0] != orders["b_in", 0] and orders["w_in", 0] != orders["w_in", 1]
    assert len({tuple(orders[name, layer]) for name in MOVED[:6] for layer in range(2)}) == 2


def test_nothing_else_moves():
    model = micro_model("gpt2")
    reset = jc.reset_network(model, jax.random.key(0))
    moved = {
        path
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(model), jax.tree.leaves(reset), strict=True)
        if not np.array_equal(old, new)
    }
    assert {path[-1].name for path in moved} <= set(MOVED) and len(moved) >= 6
    assert reset.graph == model.graph and reset.config == model.config


def test_a_key_is_one_network_whose_output_is_another():
    model, tokens = micro_model("gpt2"), jnp.arange(6)
    one, same, other = (jc.reset_network(model, jax.random.key(seed)) for seed in (1, 1, 2))
    assert eqx.tree_equal(one, same) and not eqx.tree_equal(one, other)
    run = eqx.filter_jit(lambda model: model(tokens))
    assert np.abs(np.asarray(run(one) - run(model))).max() > 1e-3


def test_without_mlps_heads_alone_move():
    model = micro_model("attention-only")
    assert not eqx.tree_equal(jc.reset_network(model, jax.random.key(0)), model)
    single = jc.GPT2.random(jc.GPT2Config(11, 6, 8, 1, 1, attn_only=True), jax.random.key(0))
    with pytest.raises(ValueError, match="has nothing to permute"):
        jc.reset_network(single, jax.random.key(0))


def test_units_move_along_their_layer_weights_and_biases_apart():
    """The hidden columns of these gates are equal, so the biases and the columns of the last layer are what moves."""
    xor, reset = jc.gate("xor"), jc.reset_network(jc.gate("xor"), jax.random.key(0))
    assert reset.biases.tolist() == [-1.5, -0.5, -0.5] and reset.weights.tolist() == xor.weights.tolist()
    adder, reset = jc.gate("adder"), jc.reset_network(jc.gate("adder"), jax.random.key(0))
    assert reset.graph == adder.graph and sorted(reset.biases[:3].tolist()) == [-2.5, -1.5, -0.5]
    assert (reset.biases[:3] != adder.biases[:3]).all()
    np.testing.assert_array_equal(reset.weights[3:6, 3:5], adder.weights[3:6, 3:5][:, ::-1])
    np.testing.assert_array_equal(reset.weights[6:], adder.weights[6:])


@pytest.mark.parametrize("model, said", [(jc.gate("majority"), "1 unit a layer"), (3, "got a int")])
def test_what_has_nothing_to_permute_is_refused(model, said):
    with pytest.raises(ValueError, match=said):
        jc.reset_network(model, jax.random.key(0))


GROUPED = dict(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ALONE = dict(num_key_value_heads=None, partial_rotary_factor=1.0)
FAMILIES = {
    "grouped": (models.Llama, models.Qwen2Config(**GROUPED, intermediate_size=12, max_position_embeddings=12)),
    "post-norm": (models.Olmo2, models.Olmo2Config(**GROUPED, intermediate_size=12, max_position_embeddings=12)),
    "parallel": (models.NeoX, models.NeoXConfig(**GROUPED | ALONE, intermediate_size=12)),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_of_every_family_heads_and_neurons_move_and_nothing_else(name):
    kind, config = FAMILIES[name]
    model = drawn(eqx.filter_eval_shape(kind.random, config, jax.random.key(0)), 0, 1.0)
    reset = jc.reset_network(model, jax.random.key(0))
    before, after = named(model), named(reset)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    into = {"w_in", "b_in"} if name == "parallel" else {"gate", "up"}
    assert into | {"query"} <= moved <= into | {"query", "key", "value", "query_bias", "key_bias", "value_bias"}
    for part in moved:
        for old, new in zip(before[part], after[part], strict=True):
            np.testing.assert_array_equal(np.sort(old, None), np.sort(new, None))
    run = eqx.filter_jit(lambda model: model(jnp.arange(6)))
    assert np.abs(np.asarray(run(reset) - run(model))).max() > 1e-3


def test_other_units_are_reset_as_their_model():
    model = micro_model("gpt2")
    reset = jc.reset_network(jc.with_units(model, "layers"), jax.random.key(3))
    assert eqx.tree_equal(reset.model, jc.reset_network(model, jax.random.key(3))) and reset.units_name == "layers"
