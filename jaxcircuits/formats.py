"""How checkpoints are written: config keys and tensor names -> fields of a model, by table.

Two formats: Hugging Face's GPT-2, and TransformerLens' (attn-only-1l to attn-only-4l, redwood_attn_2l).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from .models import GPT2, GPT2Config, Tracr, TracrConfig

# `model_type` of a config.json -> what its keys and tensors become.
MODEL_TYPES: dict[str, tuple[type[GPT2Config], type[GPT2]]] = {
    "gpt2": (GPT2Config, GPT2),
    "tracr": (TracrConfig, Tracr),
}

# Keys of a Hugging Face config.json that do not change the logits of an evaluation.
IGNORED_KEYS = frozenset(
    """architectures model_type transformers_version torch_dtype dtype n_ctx use_cache initializer_range
    attn_pdrop embd_pdrop resid_pdrop summary_type summary_use_proj summary_activation summary_first_dropout
    summary_proj_to_labels task_specific_params bos_token_id eos_token_id pad_token_id sep_token_id
    decoder_start_token_id reorder_and_upcast_attn _name_or_path name_or_path gradient_checkpointing id2label
    label2id num_labels problem_type finetuning_task output_attentions output_hidden_states output_past
    return_dict predict_special_tokens _num_labels chunk_size_feed_forward tokenizer_class prefix
    """.split()
)
# Keys that this library supports at one value only.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
    "quantization_config": (None,),
}

CONVERSION_OF_MODEL = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
)
CONVERSION_OF_STATE = (
    "python -c \"import torch, safetensors.torch as s; state = torch.load('{folder}/{file}', map_location='cpu', "
    "weights_only=True); s.save_file({{k: v.contiguous() for k, v in state.items()}}, '{folder}/model.safetensors')\""
)
"""The commands that convert a pickle: of a Hugging Face folder, and of a TransformerLens state."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint: `tensor.reshape(split).transpose(order)` holds the model's fields.

    `fields`: where in the model; with three, the leading axis is q, k, v. `{}` in the name: one tensor a layer.
    """

    name: str
    shape: tuple[int, ...]
    fields: tuple[str, ...]
    split: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    def to_fields(self, tensor: np.ndarray) -> list[np.ndarray]:
        tensor = tensor.reshape(self.split or self.shape)
        tensor = tensor if self.order is None else tensor.transpose(self.order)
        return [tensor] if len(self.fields) == 1 else list(tensor)

    def from_fields(self, fields: list[np.ndarray]) -> np.ndarray:
        tensor = fields[0] if len(fields) == 1 else np.stack(fields)
        tensor = tensor if self.order is None else tensor.transpose(np.argsort(self.order))
        return np.ascontiguousarray(tensor.reshape(self.shape))


@dataclasses.dataclass(frozen=True)
class Format:
    """What a folder's `config.json` says: the model, the names of its tensors, and how to convert a pickle of it."""

    config: GPT2Config
    entries: list[Entry]
    conversion: str
    tokenizer_name: str | None = None

    @property
    def model_type(self) -> type[GPT2]:
        """What is filled with the tensors."""
        return next(model for config, model in MODEL_TYPES.values() if type(self.config) is config)


def read_format(path: Path) -> Format:
    """The format of a `config.json`. Raises ValueError, naming the key, for what is unknown or unsupported."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no config.json: expected the folder of a Hugging Face model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is malformed: {error}") from None
    return format_of(values, str(path))


def format_of(values: Any, source: str) -> Format:
    """The format that a config's values ask for. Raises ValueError, naming the source and the key."""
    try:
        if isinstance(values, dict) and "d_model" in values and "model_type" not in values:
            config = transformer_lens_config(values)
            return Format(config, transformer_lens_table(config), CONVERSION_OF_STATE, values.get("tokenizer_name"))
        config = gpt2_config(values)
        return Format(config, gpt2_table(config), CONVERSION_OF_MODEL)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


# --- Hugging Face ----------------------------------------------------------------------------------


def gpt2_config(values: Any) -> GPT2Config:
    """A Hugging Face config. Raises ValueError, naming the key, for what is unknown or unsupported."""
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in MODEL_TYPES:
        expected = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"model_type {kind!r} is not supported; expected {expected}, or a TransformerLens config")
    config = MODEL_TYPES[kind][0]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    for key, value in values.items():
        if key in fields and not _is_like(value, fields[key]):
            raise ValueError(f"{key} = {value!r} is not supported; expected a value like {fields[key]!r}")
        if key not in fields and key not in IGNORED_KEYS and key not in FIXED_KEYS:
            raise ValueError(f"unknown key {key!r}; its effect on the model is not known, so it is refused")
    _check_fixed(values, FIXED_KEYS)
    return config(**{key: value for key, value in values.items() if key in fields})


def _check_fixed(values: dict[str, Any], fixed: dict[str, tuple[Any, ...]]) -> None:
    for key, allowed in fixed.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} = {values[key]!r} is not supported; expected {allowed[0]!r}")


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value of a config has its field's type; sizes may be null, a float may be whole."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def config_json(config: GPT2Config, tokenizer: Any) -> dict[str, Any]:
    """The `config.json` of a model to be saved."""
    kind, model_type = next((kind, model) for kind, (own, model) in MODEL_TYPES.items() if type(config) is own)
    values = {"architectures": [f"{model_type.__name__}LMHeadModel"], "model_type": kind, **dataclasses.asdict(config)}
    for own in ("attn_only", "layer_norm", "causal", "n_key", "positional", "unembedding_bias"):
        if values[own] == type(config).__dataclass_fields__[own].default:
            del values[own]
    for token in ("bos_token_id", "eos_token_id"):
        values[token] = getattr(tokenizer, token, None)
    return values


def gpt2_table(config: GPT2Config) -> list[Entry]:
    """The tensors of a GPT-2 checkpoint, named as in Hugging Face's, without their prefix `transformer.`."""
    width, neurons, heads, key = config.n_embd, config.num_neurons, config.n_head, config.head_width
    qkv = tuple(f"blocks.attention.{field}" for field in ("query", "key", "value"))

    positions = "wpe.weight" if config.positional == "standard" else "h.{}.attn.wpe.weight"

    def norm(name: str, field: str) -> list[Entry]:
        if not config.layer_norm:
            return []
        return [Entry(f"{name}.{part}", (width,), (f"{field}.{part}",)) for part in ("weight", "bias")]

    entries = [
        Entry("wte.weight", (config.vocab_size, width), ("token_embedding",)),
        Entry(positions, (config.n_positions, width), (_positions_field(config),)),
        *norm("h.{}.ln_1", "blocks.attention_norm"),
        Entry("h.{}.attn.c_attn.weight", (width, 3 * heads * key), qkv, (width, 3, heads, key), (1, 2, 0, 3)),
        Entry("h.{}.attn.c_attn.bias", (3 * heads * key,), tuple(f"{field}_bias" for field in qkv), (3, heads, key)),
        Entry("h.{}.attn.c_proj.weight", (heads * key, width), ("blocks.attention.output",), (heads, key, width)),
        Entry("h.{}.attn.c_proj.bias", (width,), ("blocks.attention.output_bias",)),
        *norm("ln_f", "final_norm"),
    ]
    if not config.attn_only:
        entries += [
            *norm("h.{}.ln_2", "blocks.mlp_norm"),
            Entry("h.{}.mlp.c_fc.weight", (width, neurons), ("blocks.mlp.w_in",)),
            Entry("h.{}.mlp.c_fc.bias", (neurons,), ("blocks.mlp.b_in",)),
            Entry("h.{}.mlp.c_proj.weight", (neurons, width), ("blocks.mlp.w_out",)),
            Entry("h.{}.mlp.c_proj.bias", (width,), ("blocks.mlp.b_out",)),
        ]
    if not config.tie_word_embeddings:
        entries.append(Entry("lm_head.weight", (config.num_outputs, width), ("unembedding",)))
    if config.unembedding_bias:
        entries.append(Entry("lm_head.bias", (config.vocab_size,), ("unembedding_bias",)))
    return entries


def _positions_field(config: GPT2Config) -> str:
    return "position_embedding" if config.positional == "standard" else "blocks.attention.positions"


# --- TransformerLens -------------------------------------------------------------------------------


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
    _check_fixed(values, LENS_FIXED_KEYS)
    defaults = {field.name: field.default for field in dataclasses.fields(GPT2Config)}
    fields = {ours: values[theirs] for theirs, ours in LENS_KEYS.items() if theirs in values}
    for theirs, ours in LENS_KEYS.items():
        if ours in fields and not _is_like(fields[ours], defaults[ours]):
            raise ValueError(f"{theirs} = {fields[ours]!r} is not supported; expected a value like {defaults[ours]!r}")
    layer_norm = values.get("normalization_type", "LN") is not None
    config = GPT2Config(**fields, layer_norm=layer_norm, tie_word_embeddings=False, unembedding_bias=True)
    _check_fixed(values, {"d_head": (config.head_width,), "attn_scale": (-1.0, config.head_width**0.5)})
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
        Entry("pos_embed.W_pos", (config.n_positions, width), (_positions_field(config),)),
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
