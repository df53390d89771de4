"""TransformerLens' configs and tensors (attn-only-1l to attn-only-4l, redwood_attn_2l)."""

import dataclasses
import typing
from typing import Any

from ..models import GPT2Config
from .gpt2 import positions_field
from .table import Entry, check_fixed, check_size, is_like

KINDS = typing.get_type_hints(GPT2Config)
LENS_KEYS = {
    "d_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_mlp": "n_inner",
    "act_fn": "activation_function",
    "eps": "layer_norm_epsilon",
    "use_attn_scale": "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    "attn_only": "attn_only",
    "positional_embedding_type": "positional",
}
LENS_NEEDED = ("d_vocab", "n_ctx", "d_model", "n_layers", "n_heads")
# Keys that change the model and are supported at one value only; all others are of the training.
LENS_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("LN", None),
    "final_rms": (False,),
    "attention_dir": ("causal",),
    "use_local_attn": (False,),
    "parallel_attn_mlp": (False,),
    "gated_mlp": (False,),
    "n_key_value_heads": (None,),
    "attn_scores_soft_cap": (-1.0,),
    "output_logits_soft_cap": (-1.0,),
    "use_normalization_before_and_after": (False,),
}


def transformer_lens_config(values: dict[str, Any]) -> GPT2Config:
    """A config in TransformerLens' names, as its attention-only models have. Raises ValueError, naming the key.

    The unembedding is a matrix of its own with a bias; layer norms are those of the training, not folded.
    """
    may_be_none = ("normalization_type", "normalization")
    values = {key: value for key, value in values.items() if value is not None or key in may_be_none}
    if missing := [key for key in LENS_NEEDED if key not in values]:
        raise ValueError(f"misses {missing}; a TransformerLens config needs {', '.join(LENS_NEEDED)}")
    if "normalization" in values:
        values.setdefault("normalization_type", values["normalization"])
    if values.get("shortformer_pos"):
        values["positional_embedding_type"] = "shortformer"
    if values.get("attn_only"):
        values = {key: value for key, value in values.items() if key not in ("d_mlp", "act_fn")}
    check_fixed(values, LENS_FIXED_KEYS)
    defaults = {field.name: field.default for field in dataclasses.fields(GPT2Config)}
    fields = {ours: values[theirs] for theirs, ours in LENS_KEYS.items() if theirs in values}
    for theirs, ours in LENS_KEYS.items():
        if ours in fields and not is_like(fields[ours], KINDS[ours]):
            raise ValueError(f"{theirs} = {fields[ours]!r} is not supported; expected a value like {defaults[ours]!r}")
        if type(fields.get(ours)) is int:
            check_size(theirs, fields[ours])
            fields[ours] = float(fields[ours]) if KINDS[ours] is float else fields[ours]
    layer_norm = values.get("normalization_type", "LN") is not None
    config = GPT2Config(**fields, layer_norm=layer_norm, tie_word_embeddings=False, unembedding_bias=True)
    check_fixed(values, {"d_head": (config.head_width,), "attn_scale": (-1.0, config.head_width**0.5)})
    return config


def transformer_lens_table(config: GPT2Config) -> list[Entry]:
    """The tensors of a TransformerLens checkpoint."""
    width, neurons, heads, key = config.n_embd, config.num_neurons, config.n_head, config.head_width

    def norm(name: str, field: str) -> list[Entry]:
        if not config.layer_norm:
            return []
        return [Entry(f"{name}.{ours[0]}", (width,), (f"{field}.{ours}",)) for ours in ("weight", "bias")]

    entries = [
        Entry("embed.W_E", (config.vocab_size, width), ("token_embedding",)),
        Entry("pos_embed.W_pos", (config.n_positions, width), (positions_field(config),)),
        *norm("blocks.{}.ln1", "blocks.attention_norm"),
        Entry("blocks.{}.attn.W_O", (heads, key, width), ("blocks.attention.output",)),
        Entry("blocks.{}.attn.b_O", (width,), ("blocks.attention.output_bias",)),
        *norm("ln_final", "final_norm"),
        Entry("unembed.W_U", (width, config.vocab_size), ("unembedding",), order=(1, 0)),
        Entry("unembed.b_U", (config.vocab_size,), ("unembedding_bias",)),
    ]
    for letter, field in (("Q", "query"), ("K", "key"), ("V", "value")):
        entries.append(Entry(f"blocks.{{}}.attn.W_{letter}", (heads, width, key), (f"blocks.attention.{field}",)))
        entries.append(Entry(f"blocks.{{}}.attn.b_{letter}", (heads, key), (f"blocks.attention.{field}_bias",)))
    if not config.attn_only:
        entries += [
            *norm("blocks.{}.ln2", "blocks.mlp_norm"),
            Entry("blocks.{}.mlp.W_in", (width, neurons), ("blocks.mlp.w_in",)),
            Entry("blocks.{}.mlp.b_in", (neurons,), ("blocks.mlp.b_in",)),
            Entry("blocks.{}.mlp.W_out", (neurons, width), ("blocks.mlp.w_out",)),
            Entry("blocks.{}.mlp.b_out", (width,), ("blocks.mlp.b_out",)),
        ]
    return entries
