"""Reset networks: the same numbers as a trained model's, arranged so that they compute nothing that was learnt."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..arguments import check_count, key_of
from .decoder import Decoder
from .gates import Gates
from .gpt2 import GPT2
from .parts import MLP
from .regrouped import Regrouped

HEADS = ("query", "key", "value", "query_bias", "key_bias", "value_bias")
"""Weights and biases whose first axis, after the layer's, is the head."""

GATED = ("gate", "up"), ("gate_bias", "up_bias")
"""Of a gated MLP, the weights [width, neuron] and the biases [neuron]."""


def reset_network(model: Any, key: PRNGKeyArray | int) -> Any:
    """The model with its weights permuted over heads and neurons, as a control: its circuits mean nothing.

    In every layer each of the q, k and v weights and biases gets its own permutation over heads (shared keys and values
    over their groups), the columns of W_in and the entries of b_in (of a gated MLP: of both W_in and both b_in) each
    their own over neurons; all else stays (Conmy et al. 2023, 2304.14997, section 4; Cao
    et al. 2021, 2104.03514). In every layer of a network of units the columns of the weights and the biases move along
    by a number of units each, as a permutation of so few might leave them in place.

    - `key`: of the permutations, or a seed of it.

    Raises ValueError for a model that has nothing to permute: one head and no MLPs, or one unit a layer.
    """
    if not isinstance(key, jax.Array):
        check_count("key", key)
        key = key_of(int(key))
    return _reset(model, key)


@singledispatch
def _reset(model: Any, key: PRNGKeyArray) -> Any:
    raise ValueError(f"reset network: expected a model of jaxcircuits, got a {type(model).__name__}")


@_reset.register(GPT2)
@_reset.register(Decoder)
def _reset_blocks(model: Any, key: PRNGKeyArray) -> Any:
    attention, mlp = model.blocks.attention, model.blocks.mlp
    if mlp is None and attention.query.shape[1] == 1:
        raise ValueError("reset network: a model with 1 head a layer and without MLPs has nothing to permute")
    weights, biases = (("w_in",), ("b_in",)) if mlp is None or isinstance(mlp, MLP) else GATED
    keys = jax.random.split(key, len(HEADS) + len(weights) + len(biases))
    of_heads, of_neurons = keys[: len(HEADS)], keys[len(HEADS) :]
    model = _with_permuted(model, lambda m: m.blocks.attention, of_heads, dict.fromkeys(HEADS, 0))
    if mlp is None:
        return model
    return _with_permuted(
        model, lambda m: m.blocks.mlp, of_neurons, {**dict.fromkeys(weights, 1), **dict.fromkeys(biases, 0)}
    )


@_reset.register(Regrouped)
def _reset_regrouped(model: Regrouped, key: PRNGKeyArray) -> Regrouped:
    return cast(Regrouped, eqx.tree_at(lambda m: m.model, model, _reset(model.model, key)))


def _with_permuted(model: Any, part: Callable[[Any], Any], keys: Array, axes: dict[str, int]) -> Any:
    """The model with some arrays of one part of it permuted, those that it has."""
    own = {name: key for name, key in zip(axes, keys, strict=True) if getattr(part(model), name) is not None}
    new = [_permuted(key, getattr(part(model), name), axes[name]) for name, key in own.items()]
    return eqx.tree_at(lambda m: [getattr(part(m), name) for name in own], model, new)


@_reset.register(Gates)
def _reset_gates(model: Gates, key: PRNGKeyArray) -> Gates:
    weights, biases = model.weights, model.biases
    first = below = 0
    for inputs, units in zip(model.units[:-1], model.units[1:], strict=True):
        rows, columns = slice(below, below + len(inputs)), slice(first, first + len(units))
        if len(units) > 1:
            key, own = jax.random.split(key)
            along = jax.random.randint(own, (2,), 1, len(units))
            weights = weights.at[rows, columns].set(jnp.roll(weights[rows, columns], along[0], axis=1))
            biases = biases.at[columns].set(jnp.roll(biases[columns], along[1]))
        first, below = first + len(units), below + len(inputs)
    if max(map(len, model.units[1:])) == 1:
        raise ValueError("reset network: a network with 1 unit a layer has nothing to permute")
    return eqx.tree_at(lambda m: (m.weights, m.biases), model, (weights, biases))


def _permuted(key: PRNGKeyArray, weight: Array, axis: int) -> Array:
    """Every layer's array with its slices along `axis` in another order."""
    keys = jax.random.split(key, weight.shape[0])
    return jax.vmap(lambda key, layer: jax.random.permutation(key, layer, axis))(keys, weight)
