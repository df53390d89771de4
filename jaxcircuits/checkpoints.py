"""Names in a checkpoint -> fields of a model, by table, every shape asserted; from the hub, a folder, or bundled."""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .graph import Graph
from .models import GPT2, GPT2Config, Tracr, TracrConfig

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "flax_model.msgpack")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

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


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model: what `load` returns.

    - `model`, `graph`: the weights and their edges. `source`: where they came from. `folder`: their files.
    """

    model: GPT2
    source: str
    folder: Path

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded at first use. Raises ValueError if the folder has none."""
        if not (self.folder / "tokenizer_config.json").is_file():
            raise ValueError(f"{self.source} has no tokenizer_config.json: it cannot read text; use an .npz task file")
        quiet = logging.getLogger("transformers")
        quiet.addFilter(_is_not_about_torch)
        try:
            import transformers

            return transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        finally:
            quiet.removeFilter(_is_not_about_torch)


def load(name: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, revision: str | None = None) -> Checkpoint:
    """Loads a bundled model, a folder, or a model from the Hugging Face hub, in this order.

    - `name`: "tiny-gpt2", "path/to/folder" or "gpt2". `revision`: the hub's branch, tag or commit.
    - `dtype`: of all weights; float64 needs `jax.config.update("jax_enable_x64", True)`.

    Raises ValueError for a name that is nowhere, a pickle, an unsupported config, and for missing, unexpected,
    truncated or misshapen tensors.
    """
    dtype = np.dtype(dtype)
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True) before loading')
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"expected a floating dtype such as float32, got {dtype}")
    name = os.fspath(name)
    if (folder := _bundled_folder() / name) and name in bundled():
        source = f"bundled {name}"
    elif Path(name).is_dir():
        folder, source = Path(name), name
    elif Path(name).exists():
        raise ValueError(f"{name} is a file: expected the folder of a model (config.json and model.safetensors)")
    else:
        folder, source = _download(name, revision), f"hub {name}" + (f" at {revision}" if revision else "")
    config = read_config(folder / "config.json")
    return Checkpoint(_read_gpt2(config, _open_tensors(folder), dtype), source, folder)


def bundled() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in _bundled_folder().glob("*/config.json")))


def save(model: GPT2, folder: str | os.PathLike, tokenizer: Any = None) -> None:
    """Writes a Hugging Face folder (config.json, model.safetensors, tokenizer files if given), whole or not at all.

    Raises ValueError if the folder exists and is not empty.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: choose another folder to save to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        staged.chmod(0o755)
        (staged / "config.json").write_text(json.dumps(_config_json(model.config, tokenizer), indent=1) + "\n")
        save_file(dict(_checkpoint_tensors(model)), staged / "model.safetensors", metadata={"format": "pt"})
        (staged / "model.safetensors").chmod(0o644)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


# --- config ----------------------------------------------------------------------------------------


def read_config(path: Path) -> GPT2Config:
    """A `config.json` as GPT2Config. Raises ValueError, naming the key, for what is unknown or unsupported."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no config.json: expected the folder of a Hugging Face model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is malformed: {error}") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in MODEL_TYPES:
        expected = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"{path}: model_type {kind!r} is not supported; expected {expected}")
    config = MODEL_TYPES[kind][0]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    for key, value in values.items():
        if key in fields and not _is_like(value, fields[key]):
            raise ValueError(f"{path}: {key} = {value!r} is not supported; expected a value like {fields[key]!r}")
        if key in FIXED_KEYS and value not in FIXED_KEYS[key]:
            raise ValueError(f"{path}: {key} = {value!r} is not supported; expected {FIXED_KEYS[key][0]!r}")
        if key not in fields and key not in IGNORED_KEYS and key not in FIXED_KEYS:
            raise ValueError(f"{path}: unknown key {key!r}; its effect on the model is not known, so it is refused")
    try:
        return config(**{key: value for key, value in values.items() if key in fields})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value of a config has its field's type; sizes may be null, a float may be whole."""
    if default is None:
        return value is None or type(value) is int
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _config_json(config: GPT2Config, tokenizer: Any) -> dict[str, Any]:
    kind, model_type = next((kind, model) for kind, (own, model) in MODEL_TYPES.items() if type(config) is own)
    values = {"architectures": [f"{model_type.__name__}LMHeadModel"], "model_type": kind, **dataclasses.asdict(config)}
    for own in ("attn_only", "layer_norm", "causal", "n_key"):
        if values[own] == type(config).__dataclass_fields__[own].default:
            del values[own]
    for token in ("bos_token_id", "eos_token_id"):
        values[token] = getattr(tokenizer, token, None)
    return values


# --- the table -------------------------------------------------------------------------------------


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


def table(config: GPT2Config) -> list[Entry]:
    """The tensors of a GPT-2 checkpoint, named as in Hugging Face's, without their prefix `transformer.`."""
    width, neurons, heads, key = config.n_embd, config.num_neurons, config.n_head, config.head_width
    qkv = tuple(f"blocks.attention.{field}" for field in ("query", "key", "value"))

    def norm(name: str, field: str) -> list[Entry]:
        if not config.layer_norm:
            return []
        return [Entry(f"{name}.{part}", (width,), (f"{field}.{part}",)) for part in ("weight", "bias")]

    entries = [
        Entry("wte.weight", (config.vocab_size, width), ("token_embedding",)),
        Entry("wpe.weight", (config.n_positions, width), ("position_embedding",)),
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
    return entries


def _field(model: GPT2, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _checkpoint_tensors(model: GPT2) -> Iterator[tuple[str, np.ndarray]]:
    for entry in table(model.config):
        prefix = "" if entry.name == "lm_head.weight" else "transformer."
        fields = [np.asarray(_field(model, path)) for path in entry.fields]
        if "{}" not in entry.name:
            yield prefix + entry.name, entry.from_fields(fields)
            continue
        for layer in range(model.config.n_layer):
            yield prefix + entry.name.format(layer), entry.from_fields([field[layer] for field in fields])


def _read_gpt2(config: GPT2Config, tensors: "SafeTensors | FlaxTensors", dtype: np.dtype) -> GPT2:
    """Fills a model from the table; layers are stacked into arrays made once, without a second copy."""
    model_type = next(model for own, model in MODEL_TYPES.values() if type(config) is own)
    skeleton = eqx.filter_eval_shape(model_type.random, config, jax.random.key(0), dtype)
    arrays: dict[str, np.ndarray] = {}
    unread = set(tensors.names())
    for entry in table(config):
        layers = range(config.n_layer) if "{}" in entry.name else [None]
        for layer in layers:
            name = entry.name if layer is None else entry.name.format(layer)
            unread.discard(name)
            tensor = tensors.read(name, entry.shape)
            for path, part in zip(entry.fields, entry.to_fields(tensor), strict=True):
                shape = _field(skeleton, path).shape
                arrays.setdefault(path, np.empty(shape, dtype))
                arrays[path][... if layer is None else layer] = part
    if "lm_head.weight" in unread and config.tie_word_embeddings:
        unread.discard("lm_head.weight")
        tied = arrays["token_embedding"]
        if not np.array_equal(tensors.read("lm_head.weight", tied.shape).astype(dtype), tied):
            raise ValueError(f"{tensors.source}: lm_head.weight differs from wte.weight, but config.json ties them")
    if unread:
        raise ValueError(f"{tensors.source} has tensors that a GPT-2 of this config has not: {sorted(unread)[:3]}")
    paths = list(arrays)
    return eqx.tree_at(
        lambda model: [_field(model, path) for path in paths], skeleton, [jnp.asarray(arrays.pop(p)) for p in paths]
    )


# --- files -----------------------------------------------------------------------------------------


def _is_buffer(name: str) -> bool:
    """Causal masks that old checkpoints store among the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _checked(tensor: np.ndarray, name: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    if tensor.shape != shape:
        raise ValueError(f"{source}: tensor {name} has shape {tensor.shape}, expected {shape} from config.json")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{source}: tensor {name} has type {tensor.dtype}, expected a floating type")
    return tensor


class SafeTensors:
    """The tensors of one or several `.safetensors` files, read one at a time."""

    def __init__(self, folder: Path, files: dict[str, str]):
        self.source = str(folder)
        self.folder = folder
        self.files = {
            name.removeprefix("transformer."): (name, file) for name, file in files.items() if not _is_buffer(name)
        }

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.files:
            raise ValueError(f"{self.source} misses the tensor {name}, which its config.json asks for")
        stored, file = self.files[name]
        with _open_safetensors(self.folder / file) as opened:
            if stored not in opened.keys():
                raise ValueError(f"{self.folder / file} misses the tensor {stored}, which the index puts there")
            return _checked(opened.get_tensor(stored), stored, shape, str(self.folder / file))


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path} is missing, though the index names it")
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None


class FlaxTensors:
    """A `flax_model.msgpack`; its kernels are [out, in], those of the other formats [in, out]."""

    def __init__(self, path: Path):
        import flax.serialization
        import flax.traverse_util

        self.source = str(path)
        try:
            tree = flax.serialization.msgpack_restore(path.read_bytes())
            flat = flax.traverse_util.flatten_dict(tree, sep=".")
        except Exception as error:  # msgpack raises many unrelated types for bad bytes
            raise ValueError(f"{path} is truncated or no flax checkpoint: {error}") from None
        self.tensors = {}
        for name, tensor in flat.items():
            name = name.removeprefix("params.").removeprefix("transformer.")
            stem, _, leaf = name.rpartition(".")
            is_transposed = leaf == "kernel" and stem != "lm_head"
            renamed = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
            self.tensors[renamed] = np.asarray(tensor).T if is_transposed or renamed == "lm_head.weight" else tensor

    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f"{self.source} misses the tensor {name}, which its config.json asks for")
        return _checked(np.asarray(self.tensors[name]), name, shape, self.source)


def _open_tensors(folder: Path) -> SafeTensors | FlaxTensors:
    single, index, flax_file = (folder / name for name in WEIGHT_FILES)
    if single.is_file():
        with _open_safetensors(single) as opened:
            return SafeTensors(folder, dict.fromkeys(opened.keys(), single.name))
    if index.is_file():
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is malformed: {error!r}") from None
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index} is malformed: expected weight_map to give each tensor's file")
        return SafeTensors(folder, files)
    if flax_file.is_file():
        return FlaxTensors(flax_file)
    if pickles := [path.name for pattern in PICKLES for path in folder.glob(pattern)]:
        raise ValueError(
            f"{folder} has only a pickle ({pickles[0]}), which can run any code when opened. Convert it once, with "
            'torch installed: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
    raise ValueError(f"{folder} has no weights: expected one of {', '.join(WEIGHT_FILES)}")


def _bundled_folder() -> Path:
    """`weights/`: beside this file in a wheel, one level up in a checkout."""
    package = Path(__file__).parent
    return package / "weights" if (package / "weights").is_dir() else package.parent / "weights"


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "merges.txt", "vocab.txt", "*.model"]
    try:
        for weights in ("*.safetensors", "flax_model.msgpack"):
            folder = snapshot_download(
                name, revision=revision, allow_patterns=[*patterns, weights], ignore_patterns=["*/*"]
            )
            if any((Path(folder) / file).is_file() for file in WEIGHT_FILES):
                return Path(folder)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name!r} is no bundled model ({', '.join(bundled())}), no folder, and the hub did not give it: {reason}"
        ) from None
    raise ValueError(
        f"the hub's {name!r} has neither safetensors nor flax weights; convert its pickle once, with torch installed: "
        f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{name}').save_pretrained("
        f"'{name.split('/')[-1]}')\" and load that folder"
    )


def _is_not_about_torch(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage() and "None of PyTorch" not in record.getMessage()
