"""Tensors of Llama, Mistral, Qwen, OLMo 2, GPT-NeoX and Gemma checkpoints in Hugging Face's format, and their configs.

`torch.nn.Linear` stores its weight as [out, in].
"""

import math
from typing import Any

from ..models import DecoderConfig, Gemma2Config, LlamaConfig, NeoXConfig, Olmo2Config, RopeScaling
from ..models.decoder import FULL, SLIDING
from .table import Entry, fill

LAYER, HEADS = "model.layers.{}.", "blocks.attention."

FIXED: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False,),
    "use_bidirectional_attention": (False, None),
    "per_layer_config": (None, {}),
}
"""Keys that are supported at one value only: of all families but GPT-NeoX, whose rotary factor is a field."""


# --- configs ---------------------------------------------------------------------------------------


def spelled(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with positions as `rope_theta`, `partial_rotary_factor` and `rope_scaling`.

    They may stand in `rope_parameters` together; and `rope_scaling` may say "type" for "rope_type".
    """
    values = dict(values)
    rope = values.pop("rope_parameters", None)
    if rope and values.get("rope_scaling"):
        raise ValueError("expected rope_parameters or rope_scaling, got both")
    rope = rope or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling = {rope!r} is not supported; expected a mapping")
    rope, given = {key: value for key, value in rope.items() if value is not None}, rope
    values |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.pop("type", None)
    kind = rope.setdefault("rope_type", kind or "default")
    if kind == "yarn" and given.get("truncate", True) is None:
        rope["truncate"] = False  # as transformers reads null
    if unknown := rope.keys() - RopeScaling.__dataclass_fields__.keys():
        raise ValueError(f"rope_scaling: unknown key {min(unknown)!r}")
    values["rope_scaling"] = None if kind == "default" else fill(RopeScaling, rope)
    return values


def spelled_neox(values: dict[str, Any]) -> dict[str, Any]:
    """As `spelled`; GPT-NeoX has names of its own."""
    names = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    for own, name in names.items():
        if name in values:
            raise ValueError(f"unknown key {name!r}; a GPT-NeoX has {own}")
    return spelled({names.get(key, key): value for key, value in values.items()})


def spelled_gemma3(values: dict[str, Any]) -> dict[str, Any]:
    """As `spelled`; `rope_parameters` may be those of layers without and with a window.

    Of what scales positions, transformers takes "type" for nothing here and "truncate" for true: both are refused.
    """
    values = dict(values)
    if values.get("rope_parameters"):
        each = values.pop("rope_parameters")
        if not isinstance(each, dict) or not each.keys() <= {FULL, SLIDING}:
            raise ValueError(f"rope_parameters = {each!r} is not supported; expected those of {FULL} and {SLIDING}")
        near = spelled({"rope_parameters": each.get(SLIDING)})
        if near["rope_scaling"] is not None:
            raise ValueError(f"rope_parameters: rope_type of {SLIDING} is not supported; expected 'default'")
        if "rope_theta" in near:
            values["rope_local_base_freq"] = near["rope_theta"]
        values["rope_parameters"] = each.get(FULL)
    given = values.get("rope_parameters") or values.get("rope_scaling")
    if isinstance(given, dict) and (odd := [key for key in ("type", "truncate") if key in given]):
        raise ValueError(
            f"rope_scaling: {odd[0]!r} has no effect in a Gemma 3: expected 'rope_type', and no 'truncate'"
        )
    return spelled(values)


def written(values: dict[str, Any]) -> dict[str, Any]:
    """A config's fields as `spelled` reads them."""
    scaling = values["rope_scaling"]
    kept = None if scaling is None else {key: value for key, value in scaling.items() if value is not None}
    return values | {"rope_scaling": kept}


def written_neox(values: dict[str, Any]) -> dict[str, Any]:
    """A GPT-NeoX's fields as `spelled_neox` reads them."""
    values = written(values) | {"rotary_emb_base": values["rope_theta"], "rotary_pct": values["partial_rotary_factor"]}
    own = "rope_theta", "partial_rotary_factor", "head_dim", "num_key_value_heads"
    return {key: value for key, value in values.items() if key not in own}


# --- tensors ---------------------------------------------------------------------------------------


def _linear(name: str, size: tuple[int, int], field: str, bias: bool = False) -> list[Entry]:
    """A weight [in, out] and its bias."""
    entries = [Entry(f"{name}.weight", size[::-1], (field,), order=(1, 0))]
    return entries + ([Entry(f"{name}.bias", size[1:], (f"{field}_bias",))] if bias else [])


def _heads(config: DecoderConfig, bias: bool = False, output_bias: bool = False) -> list[Entry]:
    """Queries of heads, keys and values of groups, and what heads write."""
    width, key, entries = config.hidden_size, config.head_width, []
    heads, groups = config.num_attention_heads, config.num_groups
    for letter, field, count in (("q", "query", heads), ("k", "key", groups), ("v", "value", groups)):
        name, field, rows = f"{LAYER}self_attn.{letter}_proj", HEADS + field, count * key
        entries.append(Entry(f"{name}.weight", (rows, width), (field,), (count, key, width), (0, 2, 1)))
        if bias:
            entries.append(Entry(f"{name}.bias", (rows,), (f"{field}_bias",), (count, key)))
    name, size = f"{LAYER}self_attn.o_proj", (width, heads * key)
    entries.append(Entry(f"{name}.weight", size, (f"{HEADS}output",), (width, heads, key), (1, 2, 0)))
    return entries + ([Entry(f"{name}.bias", (width,), (f"{HEADS}output_bias",))] if output_bias else [])


def _gated_mlp(config: DecoderConfig, bias: bool = False) -> list[Entry]:
    width, neurons = config.hidden_size, config.intermediate_size
    sizes = {"gate": (width, neurons), "up": (width, neurons), "down": (neurons, width)}
    entries = [_linear(f"{LAYER}mlp.{name}_proj", size, f"blocks.mlp.{name}", bias) for name, size in sizes.items()]
    return sum(entries, [])


def _norms(config: DecoderConfig, names: dict[str, str]) -> list[Entry]:
    """Of every layer, by name, and the last."""
    size = (config.hidden_size,)
    each = [Entry(f"{LAYER}{name}.weight", size, (f"blocks.{field}.weight",)) for name, field in names.items()]
    return [*each, Entry("model.norm.weight", size, ("final_norm.weight",))]


def _embeddings(config: DecoderConfig, name: str = "model.embed_tokens", head: str = "lm_head") -> list[Entry]:
    size = (config.vocab_size, config.hidden_size)
    entries = [Entry(f"{name}.weight", size, ("token_embedding",))]
    return entries if config.tie_word_embeddings else [*entries, Entry(f"{head}.weight", size, ("unembedding",))]


def _query_norms(queries: tuple[int, ...], keys: tuple[int, ...]) -> list[Entry]:
    """Of queries and keys: of one head, or of all of them, whose tensor is flat."""
    sizes = {"q_norm": ("query_norm", queries), "k_norm": ("key_norm", keys)}
    return [
        Entry(f"{LAYER}self_attn.{name}.weight", (math.prod(size),), (f"{HEADS}{field}.weight",), size)
        for name, (field, size) in sizes.items()
    ]


def llama_table(config: LlamaConfig) -> list[Entry]:
    """Llama, Mistral, Qwen2 and Qwen3."""
    bias, output_bias, mlp_bias = config.biases
    key = (config.head_width,)
    return [
        *_embeddings(config),
        *_heads(config, bias, output_bias),
        *(_query_norms(key, key) if config.has_query_norm else []),
        *_gated_mlp(config, mlp_bias),
        *_norms(config, {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}),
    ]


def olmo2_table(config: Olmo2Config) -> list[Entry]:
    """OLMo 2."""
    key = config.head_width
    after = {"post_attention_layernorm": "attention_post_norm", "post_feedforward_layernorm": "mlp_post_norm"}
    return [
        *_embeddings(config),
        *_heads(config),
        *_query_norms((config.num_attention_heads, key), (config.num_groups, key)),
        *_gated_mlp(config),
        *_norms(config, after),
    ]


def gemma_table(config: Gemma2Config) -> list[Entry]:
    """Gemma 2 and 3."""
    key = (config.head_width,)
    norms = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_post_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_post_norm",
    }
    return [
        *_embeddings(config),
        *_heads(config),
        *(_query_norms(key, key) if config.has_query_norm else []),
        *_gated_mlp(config),
        *_norms(config, norms),
    ]


def neox_table(config: NeoXConfig) -> list[Entry]:
    """GPT-NeoX and Pythia: the rows of a head's query, key and value stand together."""
    width, neurons, heads, key = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.head_width,
    )
    layer, qkv = "gpt_neox.layers.{}.", tuple(HEADS + field for field in ("query", "key", "value"))
    split, name = (heads, 3, key), f"{layer}attention.query_key_value"
    entries = [
        *_embeddings(config, "gpt_neox.embed_in", "embed_out"),
        Entry(f"{name}.weight", (3 * width, width), qkv, (*split, width), (1, 0, 3, 2)),
        Entry(f"{layer}attention.dense.weight", (width, width), (f"{HEADS}output",), (width, heads, key), (1, 2, 0)),
        Entry(f"{layer}mlp.dense_h_to_4h.weight", (neurons, width), ("blocks.mlp.w_in",), order=(1, 0)),
        Entry(f"{layer}mlp.dense_h_to_4h.bias", (neurons,), ("blocks.mlp.b_in",)),
        Entry(f"{layer}mlp.dense_4h_to_h.weight", (width, neurons), ("blocks.mlp.w_out",), order=(1, 0)),
        Entry(f"{layer}mlp.dense_4h_to_h.bias", (width,), ("blocks.mlp.b_out",)),
    ]
    if config.attention_bias:
        biases = tuple(f"{field}_bias" for field in qkv)
        entries += [
            Entry(f"{name}.bias", (3 * width,), biases, split, (1, 0, 2)),
            Entry(f"{layer}attention.dense.bias", (width,), (f"{HEADS}output_bias",)),
        ]
    norms = {
        f"{layer}input_layernorm": "blocks.attention_norm",
        f"{layer}post_attention_layernorm": "blocks.mlp_norm",
        "gpt_neox.final_layer_norm": "final_norm",
    }
    parts = [(name, field, part) for name, field in norms.items() for part in ("weight", "bias")]
    return entries + [Entry(f"{name}.{part}", (width,), (f"{field}.{part}",)) for name, field, part in parts]
