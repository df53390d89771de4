"""Checkpoints: models from the hub, a folder, or bundled, and models saved to a folder."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .arguments import checked
from .files import write_folder
from .finite import check_finite
from .formats import Family, Format, config_json, family_of, format_of, read_format
from .formats.table import Entry
from .gguf_names import GGUFTensors, is_gguf
from .graph import Graph
from .models import GPT2, Regrouped, gpt2_folding, with_units
from .precision import HIGHEST, check_precision
from .sources import BIASES, BUILT, NORMS, find, of_source
from .sources import bundled as bundled
from .tensors import PICKLES, WEIGHT_FILES, Tensors, empty, open_tensors
from .tokenizer import has_tokenizer, load_tokenizer
from .types import Model

UNEMBEDDINGS = "lm_head.weight", "embed_out.weight"
"""Names of what is left out where it is the token embedding, and may be stored nevertheless."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded model: what `load` returns.

    - `model`, `graph`: the weights and their edges. `source`: where they came from. `files`: their folder or GGUF file;
      None for a model that is built, not read.
    """

    model: Model
    source: str
    files: Path | None

    @property
    def graph(self) -> Graph:
        return self.model.graph

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model can read text."""
        return self.files is None or has_tokenizer(self.files)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded at first use. Raises ValueError if its files have none."""
        return self.model.tokenizer if self.files is None else load_tokenizer(self.files)


@checked
def load(
    name: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    fold_layer_norms: bool = False,
    fold_value_biases: bool = False,
    units: str = "split",
    spans: Sequence[tuple[int, int]] | Sequence[str] | str | None = None,
    precision: str = HIGHEST,
) -> Checkpoint:
    """Loads a bundled model, a folder, a GGUF file, or a model from the Hugging Face hub, in this order.

    - `name`: "tiny-gpt2", "gate-xor", "path/to/folder", "path/to/model.gguf" or "gpt2"; or a checkpoint's `source`.
    - `revision`: the hub's branch, tag or commit.
    - `dtype`: of all weights; float64 needs `jax.config.update("jax_enable_x64", True)`.
    - `precision`: how exactly the model multiplies matrices: "highest" is full float32 anywhere; "high", "tf32x3" and
      "bf16x6" are faster on tensor units. See `precision.py`.
    - `fold_layer_norms`, `fold_value_biases`: see `models.gpt2_folding`; both together give the weights of ACDC's
      published zero-ablation numbers. The model computes the same; what an absent head leaves out differs.
    - `units`, `spans`: what the nodes are: "split", "ungrouped", "unsplit", "layers", "blocks", "neurons:G", ..., and
      at which tokens they are apart; see `with_units`.

    Raises ValueError for a name that is nowhere, a pickle, an unsupported config, missing, unexpected, truncated or
    misshapen tensors, units that the model has not, and a precision that the device has not.
    """
    try:
        dtype = np.dtype("" if dtype is None else dtype)  # None would be float64
    except TypeError:
        raise ValueError(f"dtype: expected a floating dtype such as float32, got {dtype!r:.60}") from None
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True) before loading')
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"expected a floating dtype such as float32, got {dtype}")
    check_precision(precision, dtype)
    name = os.fspath(name)
    if not Path(name).exists():
        name, said = of_source(name)
        revision = revision or said["revision"]
        fold_layer_norms, fold_value_biases = fold_layer_norms or said[NORMS], fold_value_biases or said[BIASES]

    def made(model: Model) -> Model:
        return with_units(model.computed(precision=precision), units, spans)

    if name in BUILT:
        if fold_layer_norms or fold_value_biases:
            raise ValueError(f"{name} has neither layer norms nor value biases that could be folded")
        model = jax.tree.map(lambda leaf: leaf.astype(dtype), BUILT[name]())
        return Checkpoint(made(model), f"bundled {name}", None)
    files, source = find(name, revision)
    model = _read(*_open(files), dtype)
    if (fold_layer_norms or fold_value_biases) and not isinstance(model, GPT2):
        raise ValueError(
            f"{name}: only a GPT2's layer norms and value biases can be folded, got {type(model).__name__}"
        )
    if fold_layer_norms:
        model, source = gpt2_folding.fold_layer_norms(model), source + NORMS
    if fold_value_biases:
        model, source = gpt2_folding.fold_value_biases(model), source + BIASES
    return Checkpoint(made(model), source, files)


def _open(files: Path) -> tuple[Format, Tensors]:
    """What a folder or a GGUF file holds, and its tensors, none of them read yet."""
    if is_gguf(files):
        tensors = GGUFTensors(files)
        return format_of(tensors.values, str(files)), tensors
    form = read_format(files / "config.json")
    return form, open_tensors(files, form.family.renamed) or _refuse(files, form)


def _refuse(folder: Path, form: Format) -> NoReturn:
    """Raises ValueError for a folder without weights that can be read, saying how to convert a pickle."""
    if pickles := [path.name for pattern in PICKLES for path in folder.glob(pattern)]:
        raise ValueError(
            f"{folder} has only a pickle ({pickles[0]}), which can run any code when opened. Convert it once, with "
            f"torch installed: {form.conversion.format(folder=folder, file=pickles[0])}"
        )
    raise ValueError(f"{folder} has no weights: expected one of {', '.join(WEIGHT_FILES)}")


def save(model: Model, folder: str | os.PathLike, tokenizer: Any = None) -> None:
    """Writes a Hugging Face folder (config.json, model.safetensors, tokenizer files if given), whole or not at all.

    Raises ValueError if the folder exists and is not empty, and for a model that no checkpoint holds.
    """
    if isinstance(model, Regrouped):
        raise ValueError(
            f"save: a checkpoint holds no units, got {model.units_name}: save its `model`, and load it with them"
        )
    if (family := family_of(model)) is None:
        raise ValueError(f"save: a {type(model).__name__} has no checkpoint format")
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: choose another folder to save to")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(staged: Path) -> None:
        (staged / "config.json").write_text(json.dumps(config_json(model.config, tokenizer), indent=1) + "\n")
        save_file(dict(_checkpoint_tensors(model, family)), staged / "model.safetensors", metadata={"format": "pt"})
        (staged / "model.safetensors").chmod(0o644)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)

    write_folder(folder, write)


def _field(model: Any, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _checkpoint_tensors(model: Any, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    for entry in family.table(model.config):
        name, fields = family.stored(entry.name), [np.asarray(_field(model, path)) for path in entry.fields]
        if "{}" not in entry.name:
            yield name, entry.from_fields(fields)
            continue
        for layer in range(model.layout.num_layers):
            yield name.format(layer), entry.from_fields([field[layer] for field in fields])


def _read(form: Format, tensors: Tensors, dtype: np.dtype) -> Any:
    """Fills a model from the table; layers are stacked into arrays made once, without a second copy."""
    unread = set(tensors.names())
    names = list(_names_of(form, unread))
    for name, entry, _ in names:
        tensors.check(name, entry.shape)
    skeleton = eqx.filter_eval_shape(lambda: form.family.model.random(form.config, jax.random.key(0), dtype))
    arrays: dict[str, np.ndarray] = {}
    for name, entry, layer in names:
        unread.discard(name)
        tensor = tensors.read(name, entry.shape)
        for path, part in zip(entry.fields, entry.to_fields(tensor), strict=True):
            if path not in arrays:
                arrays[path] = empty(_field(skeleton, path).shape, dtype)
            with np.errstate(over="ignore"):  # what a small dtype cannot hold is refused below
                arrays[path][... if layer is None else layer] = part
    if form.config.tie_word_embeddings:
        for name in unread & set(UNEMBEDDINGS):
            unread.discard(name)
            tied = arrays["token_embedding"]
            if not np.array_equal(tensors.read(name, tied.shape).astype(dtype), tied):
                raise ValueError(
                    f"{tensors.source}: {name} differs from {form.entries[0].name}, but config.json ties them"
                )
    if unread:
        name = form.family.model.__name__
        raise ValueError(f"{tensors.source} has tensors that a {name} of this config has not: {sorted(unread)[:3]}")
    for path, array in arrays.items():
        check_finite(f"{tensors.source}: {path} in {dtype}", array)
    paths = list(arrays)
    leaves = [jax.device_put(arrays.pop(path), may_alias=True) for path in paths]
    return eqx.tree_at(lambda model: [_field(model, path) for path in paths], skeleton, leaves)


def _names_of(form: Format, stored: set[str]) -> Iterator[tuple[str, Entry, int | None]]:
    """Every tensor of a config: its name, its entry in the table, and its layer.

    A token embedding that is the unembedding too may be stored by that one's name alone.
    """
    embedding = form.entries[0].name
    if form.config.tie_word_embeddings and embedding not in stored:
        embedding = next((name for name in UNEMBEDDINGS if name in stored), embedding)
    for entry in form.entries:
        if "{}" in entry.name:
            yield from ((entry.name.format(layer), entry, layer) for layer in range(form.num_layers))
        else:
            yield (embedding if entry is form.entries[0] else entry.name), entry, None
