"""How checkpoints are written: config keys and tensor names -> fields of a model, by table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import read_json
from ..models import (
    GPT2,
    Gemma,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    Llama,
    LlamaConfig,
    MistralConfig,
    NeoX,
    NeoXConfig,
    Olmo2,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Tracr,
    TracrConfig,
)
from . import decoders
from .gpt2 import gpt2_table
from .ignored import IGNORED_KEYS
from .table import Entry, check_fixed, check_positive, fill
from .transformer_lens import transformer_lens_config, transformer_lens_table


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` of a config.json stands for.

    - `table`: a config's tensors. `prefix`: what their stored names may begin with besides. `others`: how names of
      the same may begin elsewhere, and as what; None: they belong to no part of the model.
    - `fixed`: keys that are supported at one value only. `spelled`, `written`: a config.json's values to those that
      are named as the fields are, and back. `has_byte_pairs`: its vocab.json and merges.txt say how texts are cut.
    """

    architecture: str
    config: type
    model: type
    table: Callable[[Any], list[Entry]]
    prefix: str = ""
    others: tuple[tuple[str, str | None], ...] = ()
    fixed: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    spelled: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values
    written: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values
    has_byte_pairs: bool = False

    def renamed(self, name: str) -> str | None:
        """A stored tensor's name in the table; None for one of something else than the model."""
        for beginning, ours in self.others:
            if name.startswith(beginning):
                return None if ours is None else ours + name.removeprefix(beginning)
        return name.removeprefix(self.prefix)

    def stored(self, name: str) -> str:
        """The name to store a tensor of the table by."""
        return name if name.startswith("lm_head.") else self.prefix + name


def _decoder(
    architecture: str, config: type, model: type, table: Callable, fixed: dict[str, tuple[Any, ...]] | None = None
) -> Family:
    fixed = decoders.FIXED | (fixed or {})
    return Family(architecture, config, model, table, fixed=fixed, spelled=decoders.spelled, written=decoders.written)


NO_BIAS = {"attention_bias": (False,)}
"""A bias of the heads' output would meet them in the norm that makes them joint: no head's share."""

GEMMA_3 = dataclasses.replace(
    _decoder("Gemma3ForCausalLM", Gemma3Config, Gemma, decoders.gemma_table, NO_BIAS),
    spelled=decoders.spelled_gemma3,
    others=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        *((f"{outer}{part}.", None) for outer in ("", "model.") for part in ("vision_tower", "multi_modal_projector")),
    ),
)
FAMILIES = {
    "gpt2": Family("GPT2LMHeadModel", GPT2Config, GPT2, gpt2_table, prefix="transformer.", has_byte_pairs=True),
    "tracr": Family("TracrLMHeadModel", TracrConfig, Tracr, gpt2_table, prefix="transformer."),
    "llama": _decoder("LlamaForCausalLM", LlamaConfig, Llama, decoders.llama_table),
    "mistral": _decoder("MistralForCausalLM", MistralConfig, Llama, decoders.llama_table),
    "qwen2": _decoder("Qwen2ForCausalLM", Qwen2Config, Llama, decoders.llama_table),
    "qwen3": _decoder("Qwen3ForCausalLM", Qwen3Config, Llama, decoders.llama_table),
    "olmo2": _decoder("Olmo2ForCausalLM", Olmo2Config, Olmo2, decoders.olmo2_table, NO_BIAS),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        NeoXConfig,
        NeoX,
        decoders.neox_table,
        others=(("lm_head.", "embed_out."),),
        fixed={"num_key_value_heads": (None,), "head_dim": (None,)},
        spelled=decoders.spelled_neox,
        written=decoders.written_neox,
    ),
    "gemma2": _decoder("Gemma2ForCausalLM", Gemma2Config, Gemma, decoders.gemma_table, NO_BIAS),
    "gemma3_text": dataclasses.replace(GEMMA_3, fixed=GEMMA_3.fixed | {"attn_logit_softcapping": (None,)}),
}

# Keys that this library supports at one value only, whatever the family.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
    "quantization_config": (None,),
}

OF_IMAGES = (
    *("vision_config", "mm_tokens_per_image"),
    *(f"{token}_token_{spelt}" for token in ("boi", "eoi", "image") for spelt in ("index", "id")),
)
"""Keys beside a text's config that say what images are."""

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
class Format:
    """What a folder's `config.json` says: the model, the names of its tensors, and how to convert a pickle of it."""

    family: Family
    config: Any
    entries: list[Entry]
    conversion: str
    tokenizer_name: str | None = None

    @property
    def num_layers(self) -> int:
        return self.config.n_layer if isinstance(self.config, GPT2Config) else self.config.num_hidden_layers


def read_format(path: Path) -> Format:
    """The format of a `config.json`. Raises ValueError, naming the key, for what is unknown or unsupported."""
    if not path.exists():
        raise ValueError(f"{path.parent} has no config.json: expected the folder of a Hugging Face model")
    return format_of(read_json(path, "config"), str(path))


def format_of(values: Any, source: str) -> Format:
    """The format that a config's values ask for. Raises ValueError, naming the source and the key."""
    try:
        if isinstance(values, dict) and "d_model" in values and "model_type" not in values:
            config = transformer_lens_config(values)
            named = values.get("tokenizer_name")
            if not isinstance(named, str | None):
                raise ValueError(f"tokenizer_name = {named!r:.60} is not supported; expected a text")
            return Format(FAMILIES["gpt2"], config, transformer_lens_table(config), CONVERSION_OF_STATE, named)
        family, config = config_of(values)
        return Format(family, config, family.table(config), CONVERSION_OF_MODEL)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def config_of(values: Any) -> tuple[Family, Any]:
    """A Hugging Face config. Raises ValueError, naming the key, for what is unknown or unsupported.

    Of a Gemma 3 with images it is that of its text.
    """
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind == "gemma3":
        kind, values = "gemma3_text", _text_of(values)
    if not isinstance(kind, str) or kind not in FAMILIES or not isinstance(values, dict):
        expected = " or ".join(map(repr, FAMILIES))
        raise ValueError(f"model_type {kind!r:.60} is not supported; expected {expected}, or a TransformerLens config")
    family = FAMILIES[kind]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    values = family.spelled(values)
    fields, fixed = {field.name for field in dataclasses.fields(family.config)}, FIXED_KEYS | family.fixed
    if unknown := [key for key in values if key not in fields and key not in IGNORED_KEYS and key not in fixed]:
        raise ValueError(f"unknown key {unknown[0]!r}; its effect on the model is not known, so it is refused")
    check_fixed(values, fixed)
    check_positive(family.config, values)
    return family, fill(family.config, values)


def _text_of(values: dict[str, Any]) -> Any:
    """The config of the text of a model with images. Raises ValueError for a key beside it that changes the text."""
    beside = {key: value for key, value in values.items() if key not in ("model_type", "text_config", *OF_IMAGES)}
    fixed = FIXED_KEYS | {"tie_word_embeddings": (True,)}
    if unknown := [key for key in beside if key not in IGNORED_KEYS and key not in fixed]:
        raise ValueError(f"unknown key {unknown[0]!r} beside text_config; its effect on the model is not known")
    check_fixed(beside, fixed)
    return values.get("text_config")


def config_json(config: Any, tokenizer: Any) -> dict[str, Any]:
    """The `config.json` of a model to be saved."""
    kind, family = next((kind, family) for kind, family in FAMILIES.items() if type(config) is family.config)
    values = family.written(dataclasses.asdict(config))
    if values.get("head_dim", 0) is None:  # which transformers takes as no width at all
        del values["head_dim"]
    for own in ("attn_only", "layer_norm", "causal", "n_key", "positional", "unembedding_bias"):
        if own in values and values[own] == type(config).__dataclass_fields__[own].default:
            del values[own]
    tokens = {token: getattr(tokenizer, token, None) for token in ("bos_token_id", "eos_token_id")}
    return {"architectures": [family.architecture], "model_type": kind, **values, **tokens}


def family_of(model: Any) -> Family | None:
    """The family whose checkpoints hold such a model; None if there is none."""
    found = (family for family in FAMILIES.values() if type(model) is family.model)
    return next((family for family in found if type(model.config) is family.config), None)
