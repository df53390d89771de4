"""What a GGUF file means: its metadata as a Hugging Face config, its tensors by Hugging Face's names.

llama.cpp's converter changes some tensors on the way in: the rows of a Llama's queries and keys are permuted for its
rotary embedding, and Gemma's norms, which multiply by `1 + weight`, are stored as `1 + weight`. Both are undone.
Source: llama.cpp's convert_hf_to_gguf.py and llama-model.cpp.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .gguf_file import GGUF
from .tensors import check_once

# Metadata keys without the architecture's name in front -> what a config calls them.
SIZES = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
CAPS = {"attn_logit_softcapping", "final_logit_softcapping"}
OTHERS = set(
    """vocab_size attention.head_count_kv attention.key_length attention.value_length rope.dimension_count
    attention.layer_norm_rms_epsilon rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.finetuned
    rope.scaling.original_context_length""".split()
)

OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's scaling of the rotary frequencies: what each is divided by."""

LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The constants of Llama 3.1 and 3.2, which differ in `factor` alone."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp writes one family.

    - `permutes`: the rows of queries and keys. `shifts`: norms are stored as `1 + weight`.
    - `every`: each how many layers one attends without a window; 0: there is no window.
    - `large`: layers of the one model whose scores are scaled by `width / heads`, not by the head's width.
    - `fixed`: what the config says besides. `keys`: metadata keys that only this family has.
    """

    model_type: str
    fixed: dict[str, Any]
    names: dict[str, str] = dataclasses.field(default_factory=lambda: LAYER_NAMES)
    permutes: bool = False
    shifts: bool = False
    every: int = 0
    large: int = 0
    keys: frozenset[str] = frozenset()


GEMMA: dict[str, Any] = {"names": GEMMA_NAMES, "shifts": True}
WINDOW = {"attention.sliding_window"}
ARCHITECTURES = {
    "llama": Architecture("llama", {"hidden_act": "silu"}, permutes=True),
    "qwen2": Architecture("qwen2", {"hidden_act": "silu", "use_sliding_window": False}),
    "qwen3": Architecture("qwen3", {"hidden_act": "silu", "use_sliding_window": False}),
    "gemma2": Architecture(
        "gemma2", {"hidden_activation": "gelu_pytorch_tanh"}, every=2, large=46, keys=frozenset(WINDOW | CAPS), **GEMMA
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {"hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10000.0},
        **GEMMA,
        every=6,
        large=62,
        keys=frozenset(WINDOW | {"final_logit_softcapping"}),
    ),
}


def is_gguf(name: str | os.PathLike) -> bool:
    """Whether this is a file whose name says so."""
    return Path(name).suffix.lower() == ".gguf" and Path(name).is_file()


class GGUFTensors:
    """The tensors of a GGUF file by Hugging Face's names, and `values`, its config.json.

    Raises ValueError for a malformed file, an architecture that is not known, and metadata whose effect is not known.
    """

    def __init__(self, path: str | os.PathLike):
        self.file = GGUF(path)
        self.source = self.file.source
        name = self.file.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"{path}: architecture {name!r} is not supported; expected one of {known}")
        if self.file.metadata.get("split.count", 1) not in (0, 1):
            raise ValueError(f"{path} is one of several parts; join them with llama-gguf-split --merge")
        self.architecture = ARCHITECTURES[name]
        try:
            self.values = _Config(self.file, name).values()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        self.file.metadata.clear()  # a vocabulary that would lie in memory beside the weights
        self.stored: dict[str, str] = {}
        for stored in (name for name in self.file.stored if name != ROPE_FACTORS):
            name = self._renamed(stored)
            check_once(name, stored, self.stored.get(name), self.source)
            self.stored[name] = stored

    def names(self) -> list[str]:
        return list(self.stored)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a tensor that is missing or has another shape."""
        if name not in self.stored:
            raise ValueError(f"{self.source} misses the tensor {name}, which its metadata ask for")
        stored = self.stored[name]
        found = self.file.stored[stored].shape
        if found != shape:
            raise ValueError(f"{self.source}: tensor {stored} has shape {found}, expected {shape} from the metadata")

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor in float32. Raises ValueError as `check` does."""
        self.check(name, shape)
        stored = self.stored[name]
        tensor = self.file.tensor(stored)
        if self.architecture.shifts and name.endswith("norm.weight"):
            tensor -= 1
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if self.architecture.permutes and heads:
            rows = tensor.reshape(self.values[heads], -1, 2, *shape[1:])
            tensor = rows.swapaxes(1, 2).reshape(shape)
        return tensor

    def _renamed(self, stored: str) -> str:
        """Hugging Face's name of a tensor; a name that is not known stays."""
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
        layer, name, part = match.groups() if match else (None, stored, "")
        known = OUTER_NAMES if layer is None else self.architecture.names
        if name not in known:
            return stored
        return f"{known[name]}.{part}" if layer is None else f"model.layers.{layer}.{known[name]}.{part}"


class _Config:
    """The metadata of one file, checked key by key."""

    def __init__(self, file: GGUF, name: str):
        self.architecture = ARCHITECTURES[name]
        keys = (key for key in file.metadata if key.startswith(f"{name}."))
        self.own = {key.removeprefix(f"{name}."): file.metadata[key] for key in keys}
        self.file, self.stored = file, file.stored
        if unknown := self.own.keys() - SIZES.keys() - OTHERS - self.architecture.keys:
            key = sorted(unknown)[0]
            raise ValueError(
                f"{name}.{key} = {self.own[key]!r}: its effect on the model is not known, so it is refused"
            )

    def number(self, key: str, default: int | float | None = None, kind: type = int) -> Any:
        value = self.own.get(key, default)
        if type(value) is not kind or not 0 < value < math.inf:
            raise ValueError(f"{key} is {value!r}: expected a {'whole ' if kind is int else ''}number above 0")
        return value

    def values(self) -> dict[str, Any]:
        sizes = {theirs: self.number(ours) for ours, theirs in SIZES.items()}
        width, heads, layers = (sizes[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        if layers >= len(self.stored):
            raise ValueError(
                f"block_count is {layers}: expected fewer blocks than the file's {len(self.stored)} tensors"
            )
        head_dim = self.number("attention.key_length", width // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.number(key, head_dim) != head_dim:
                raise ValueError(f"{key} = {self.own[key]} is not supported; expected the head's width {head_dim}")
        embedding = self.stored.get("token_embd.weight")
        if embedding is None:
            raise ValueError("it has no tensor token_embd.weight")
        vocabulary = self.number("vocab_size", embedding.shape[0])
        if vocabulary != embedding.shape[0]:
            raise ValueError(f"vocab_size = {vocabulary}, but token_embd.weight has {embedding.shape[0]} rows")
        values = {
            "model_type": self.architecture.model_type,
            "vocab_size": vocabulary,
            **sizes,
            "num_key_value_heads": self.number("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon", kind=float),
            "rope_theta": self.number("rope.freq_base", 10000.0, float),
            "tie_word_embeddings": "output.weight" not in self.stored,
            **self.architecture.fixed,
        }
        if "blk.0.attn_q.bias" in self.stored and values["model_type"] != "qwen2":
            values["attention_bias"] = True
        if (scaling := self._rope_scaling(values["rope_theta"], head_dim)) is not None:
            values["rope_scaling"] = scaling
        if self.architecture.every:
            values |= self._windows(layers)
            is_large = layers == self.architecture.large
            values["query_pre_attn_scalar"] = width // heads if is_large else head_dim
        return values

    def _windows(self, layers: int) -> dict[str, Any]:
        kinds = [
            "full_attention" if (layer + 1) % self.architecture.every == 0 else "sliding_attention"
            for layer in range(layers)
        ]
        caps = {cap: self.number(cap, kind=float) for cap in sorted(CAPS) if cap in self.own}
        return {"sliding_window": self.number("attention.sliding_window"), "layer_types": kinds, **caps}

    def _rope_scaling(self, theta: float, head_dim: int) -> dict[str, Any] | None:
        """`rope_scaling` of a config, None without one."""
        kind = self.own.get("rope.scaling.type", "linear" if "rope.scaling.factor" in self.own else "none")
        if ROPE_FACTORS in self.stored:
            if kind != "none":
                raise ValueError(f"rope.scaling.type = {kind!r} is not supported beside {ROPE_FACTORS}; expected none")
            return llama3_scaling(self.file.tensor(ROPE_FACTORS), theta, head_dim)
        if kind == "none":
            return None
        scaling = {"rope_type": kind, "factor": self.number("rope.scaling.factor", kind=float)}
        if kind == "linear":
            return scaling
        if kind == "yarn":
            length = self.number("rope.scaling.original_context_length")
            return {**scaling, "original_max_position_embeddings": length}
        raise ValueError(f"rope.scaling.type = {kind!r} is not supported; expected none, linear or yarn")


def llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The `rope_scaling` whose divisors of the rotary frequencies these are.

    With wavelength `w = 2 pi theta^(2i / head_dim)` and `s = (8192 / w - 1) / (4 - 1)`, a frequency is divided by 1
    where `s > 1`, by `factor` where `s < 0`, and between by `1 / ((1 - s) / factor + s)`.

    Raises ValueError for divisors that no `factor` gives.
    """
    if factors.shape != ((head_dim + 1) // 2,):
        raise ValueError(
            f"{ROPE_FACTORS} has shape {factors.shape}, expected one for two of a head's {head_dim} entries"
        )
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA_3}
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA_3["low_freq_factor"], LLAMA_3["high_freq_factor"]
    smooth = (LLAMA_3["original_max_position_embeddings"] / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    if not np.allclose(factors, expected, rtol=1e-5):
        raise ValueError(f"{ROPE_FACTORS} has a scaling of the rotary frequencies that is not Llama 3's")
    return scaling
