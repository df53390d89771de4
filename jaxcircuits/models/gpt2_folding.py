"""Weights moved between a GPT-2's parameters so that the model stays the same function, but what is zero does not.

Under resample ablation folding changes nothing. Under zero ablation an absent head leaves out its value bias unless
that has been moved to the attention output bias, which belongs to no head. ACDC's zero-ablation numbers are on weights
whose layer norms were folded first, so that the norm's bias counts as part of the value bias, then the value biases.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fold_layer_norms(model: Any) -> Any:
    """The norms' gains and biases moved into what reads them: `W <- w W`, `b <- b + bias W`; the last norm stays.

    Every receiver reads before its norm, so this changes no value that is patched; only what counts as a bias.
    Raises ValueError for a shortformer, whose positions are added between the norm and the weights.
    """
    if model.config.positional == "shortformer":
        raise ValueError("the layer norms of a shortformer cannot be folded: its positions are added after them")
    blocks = model.blocks
    if blocks.attention_norm is not None:
        attention, gain, bias = blocks.attention, blocks.attention_norm.weight, blocks.attention_norm.bias
        folded: dict[str, Array] = {}
        for name in ("query", "key", "value"):
            weight = getattr(attention, name)
            folded[name] = gain[:, None, :, None] * weight
            folded[f"{name}_bias"] = getattr(attention, f"{name}_bias") + _contract("ld,lhdk->lhk", bias, weight)
        attention = dataclasses.replace(attention, **folded)
        blocks = dataclasses.replace(blocks, attention=attention, attention_norm=_plain(blocks.attention_norm))
    if blocks.mlp is not None and blocks.mlp_norm is not None:
        gain, bias, mlp = blocks.mlp_norm.weight, blocks.mlp_norm.bias, blocks.mlp
        b_in = mlp.b_in + _contract("ld,ldn->ln", bias, mlp.w_in)
        mlp = dataclasses.replace(mlp, w_in=gain[:, :, None] * mlp.w_in, b_in=b_in)
        blocks = dataclasses.replace(blocks, mlp=mlp, mlp_norm=_plain(blocks.mlp_norm))
    return dataclasses.replace(model, blocks=blocks)


def fold_value_biases(model: Any) -> Any:
    """`b_O <- b_O + sum_h b_V W_O`, `b_V <- 0`: exact, since each row of an attention pattern sums to 1."""
    attention = model.blocks.attention
    moved = _contract("lhk,lhkd->ld", attention.value_bias, attention.output)
    attention = dataclasses.replace(
        attention, output_bias=attention.output_bias + moved, value_bias=jnp.zeros_like(attention.value_bias)
    )
    return dataclasses.replace(model, blocks=dataclasses.replace(model.blocks, attention=attention))


def _plain(norm: Any) -> Any:
    return dataclasses.replace(norm, weight=jnp.ones_like(norm.weight), bias=jnp.zeros_like(norm.bias))


def _contract(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Array:
    return jnp.einsum(equation, x, weight, precision=jax.lax.Precision.HIGHEST)
