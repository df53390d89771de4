"""Reset networks: the same numbers as a trained model's, arranged so that they compute nothing that was learnt."""

from typing import cast

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from .gpt2 import GPT2

HEADS = ("query", "key", "value", "query_bias", "key_bias", "value_bias")
"""Weights and biases whose first axis, after the layer's, is the head."""


def reset_network(model: GPT2, key: PRNGKeyArray) -> GPT2:
    """The model with its weights permuted over heads and neurons, as a control: its circuits mean nothing.

    In every layer each of the q, k and v weights and biases gets its own permutation over heads, the columns of W_in
    and the entries of b_in each their own over neurons; all else stays (Conmy et al. 2023, 2304.14997, section 4; Cao
    et al. 2021, 2104.03514). A model of one head and without MLPs has nothing to permute.

    Raises ValueError for such a model.
    """
    attention, mlp = model.blocks.attention, model.blocks.mlp
    if mlp is None and attention.query.shape[1] == 1:
        raise ValueError("reset network: a model with 1 head a layer and without MLPs has nothing to permute")
    keys = jax.random.split(key, len(HEADS) + 2)
    heads = [_permuted(k, getattr(attention, name), 0) for k, name in zip(keys, HEADS, strict=False)]
    model = eqx.tree_at(lambda m: [getattr(m.blocks.attention, name) for name in HEADS], model, heads)
    if mlp is not None:
        neurons = [_permuted(keys[-2], mlp.w_in, 1), _permuted(keys[-1], mlp.b_in, 0)]
        model = eqx.tree_at(lambda m: [m.blocks.mlp.w_in, m.blocks.mlp.b_in], model, neurons)
    return cast(GPT2, model)


def _permuted(key: PRNGKeyArray, weight: Array, axis: int) -> Array:
    """Every layer's array with its slices along `axis` in another order."""
    keys = jax.random.split(key, weight.shape[0])
    return jax.vmap(lambda key, layer: jax.random.permutation(key, layer, axis))(keys, weight)
