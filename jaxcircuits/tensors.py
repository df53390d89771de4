"""The tensors of a checkpoint's files, checked one at a time: safetensors (also in shards) and flax msgpack."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "flax_model.msgpack")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ALIGNMENT = 64
"""Bytes: where JAX's arrays begin."""


def _is_buffer(name: str) -> bool:
    """Causal masks and rotary frequencies that checkpoints store among the weights."""
    return name.endswith(
        (".attn.bias", ".attn.masked_bias", ".attn.mask", ".attn.IGNORE")
        + (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    )


def checked(tensor: np.ndarray, name: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    """The tensor. Raises ValueError for another shape, or one that is not floating."""
    if tensor.shape != shape:
        raise ValueError(f"{source}: tensor {name} has shape {tensor.shape}, expected {shape} from config.json")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{source}: tensor {name} has type {tensor.dtype}, expected a floating type")
    return tensor


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array to be filled, placed so that JAX on a CPU can take it over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


@runtime_checkable
class Tensors(Protocol):
    """The tensors of a checkpoint by the names of its config's family, read one at a time."""

    source: str

    def names(self) -> list[str]:
        """Of all tensors."""
        ...

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor. Raises ValueError for one that is missing, of another shape, or not floating."""
        ...


class SafeTensors:
    """The tensors of one or several `.safetensors` files, read one at a time.

    - `files`: the file of each stored name. `renamed`: what that is called in a table; None: it is not of the model.
    """

    def __init__(self, folder: Path, files: dict[str, str], renamed: Callable[[str], str | None]):
        self.source = str(folder)
        self.folder = folder
        stored = [name for name in files if not _is_buffer(name)]
        self.files = {ours: (name, files[name]) for name in stored if (ours := renamed(name)) is not None}

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.files:
            raise ValueError(f"{self.source} misses the tensor {name}, which its config.json asks for")
        stored, file = self.files[name]
        with _open_safetensors(self.folder / file) as opened:
            if stored not in opened.keys():
                raise ValueError(f"{self.folder / file} misses the tensor {stored}, which the index puts there")
            return checked(opened.get_tensor(stored), stored, shape, str(self.folder / file))


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
        return checked(np.asarray(self.tensors[name]), name, shape, self.source)


def open_tensors(folder: Path, renamed: Callable[[str], str | None]) -> Tensors | None:
    """The weights of a folder; None if it has none in these formats. Raises ValueError for a malformed file.

    `renamed`: as of `SafeTensors`.
    """
    single, index, flax_file = (folder / name for name in WEIGHT_FILES)
    if single.is_file():
        with _open_safetensors(single) as opened:
            return SafeTensors(folder, dict.fromkeys(opened.keys(), single.name), renamed)
    if index.is_file():
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{index} is malformed: {error!r}") from None
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index} is malformed: expected weight_map to give each tensor's file")
        return SafeTensors(folder, files, renamed)
    if flax_file.is_file():
        return FlaxTensors(flax_file)
    return None
