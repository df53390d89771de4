"""The tensors of a checkpoint's files, checked one at a time: safetensors (also in shards) and flax msgpack."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .files import check_regular, read_json

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
    check_shape(name, tensor.shape, shape, source)
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{source}: tensor {name} has type {tensor.dtype}, expected a floating type")
    return tensor


def check_shape(name: str, found: tuple[int, ...], shape: tuple[int, ...], source: str) -> None:
    """Raises ValueError for a tensor of another shape than its config asks for."""
    if found != shape:
        raise ValueError(f"{source}: tensor {name} has shape {found}, expected {shape} from config.json")


def check_once(name: str, stored: str, before: str | None, source: str) -> None:
    """Raises ValueError for a tensor that another stored name, `before`, gives already."""
    if before is not None:
        raise ValueError(f"{source}: {before} and {stored} are both the tensor {name}: expected one of them")


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

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a tensor that is missing or of another shape, without reading it."""
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
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self.files: dict[str, tuple[str, str]] = {}
        for name in stored:
            if (ours := renamed(name)) is not None:
                check_once(ours, name, self.files.get(ours, (None,))[0], self.source)
                self.files[ours] = name, files[name]

    def names(self) -> list[str]:
        return list(self.files)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.files:
            raise ValueError(f"{self.source} misses the tensor {name}, which its config.json asks for")
        stored, file = self.files[name]
        if file not in self.shapes:
            with _open_safetensors(self.folder / file) as opened:
                self.shapes[file] = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
        if stored not in self.shapes[file]:
            raise ValueError(f"{self.folder / file} misses the tensor {stored}, which the index puts there")
        check_shape(stored, self.shapes[file][stored], shape, str(self.folder / file))

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.check(name, shape)
        stored, file = self.files[name]
        with _open_safetensors(self.folder / file) as opened:
            try:
                tensor = opened.get_tensor(stored)
            except Exception as error:  # of types that numpy has not, safetensors raises several
                raise ValueError(f"{self.folder / file}: tensor {stored} cannot be read: {error}") from None
        return checked(tensor, stored, shape, str(self.folder / file))


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ValueError(f"{path} is missing, though the index names it")
    check_regular(path, "file of tensors")
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
        check_regular(path, "flax checkpoint")
        try:
            tree = flax.serialization.msgpack_restore(path.read_bytes())
            flat = flax.traverse_util.flatten_dict(tree, sep=".")
        except Exception as error:  # msgpack raises many unrelated types for bad bytes
            raise ValueError(f"{path} is truncated or no flax checkpoint: {error}") from None
        self.tensors, names = {}, {}
        for stored, tensor in flat.items():
            name = stored.removeprefix("params.").removeprefix("transformer.")
            stem, _, leaf = name.rpartition(".")
            is_transposed = leaf == "kernel" and stem != "lm_head"
            renamed = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
            check_once(renamed, stored, names.get(renamed), self.source)
            names[renamed] = stored
            self.tensors[renamed] = np.asarray(tensor).T if is_transposed or renamed == "lm_head.weight" else tensor

    def names(self) -> list[str]:
        return list(self.tensors)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.tensors:
            raise ValueError(f"{self.source} misses the tensor {name}, which its config.json asks for")
        check_shape(name, np.shape(self.tensors[name]), shape, self.source)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.check(name, shape)
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
        value = read_json(index, "shard index")
        files = value.get("weight_map") if isinstance(value, dict) else None
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index} is malformed: expected weight_map to give each tensor's file")
        for file in set(files.values()):
            if not file.endswith(".safetensors") or any(mark in file for mark in "/\\:") or not file.isprintable():
                raise ValueError(f"{index}: expected the names of .safetensors files beside it, got {file!r:.60}")
        return SafeTensors(folder, files, renamed)
    if flax_file.is_file():
        return FlaxTensors(flax_file)
    return None
