"""GGUF files as llama.cpp writes them: metadata, and tensors dequantised one at a time.

A file is a header (magic, version, counts), metadata by key, the table of tensors, and their bytes. Every count and
size is compared with the file's length before anything of that size is made.
Source: ggml's docs/gguf.md; the formats of blocks are those of the package `gguf`.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import check_regular
from .tensors import empty

VERSIONS = (2, 3)
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, ARRAY = 8, 9
"""The kinds of metadata values."""

MOST_DIMENSIONS = 4
CHUNK = 2**20
"""Values that are dequantised at a time."""


class Stored(NamedTuple):
    """Where a tensor is: its shape, the kind of its blocks, the first byte and the number of bytes of a row."""

    shape: tuple[int, ...]
    kind: Any
    start: int
    row_bytes: int


class GGUF:
    """A GGUF file: `metadata` by key, `stored` by the file's own tensor names.

    Raises ValueError for a file that is cut off or malformed, for tensors in blocks that cannot be dequantised, and
    where the package `gguf` is missing.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.source = str(path)
        _package()
        check_regular(path, "GGUF file")
        try:
            header = _Header(np.memmap(path, np.uint8, "r"))
            self.metadata = header.metadata()
            self.stored = header.tensors(self.metadata.get("general.alignment", 32))
        except ValueError as error:
            raise ValueError(f"{path} is no readable GGUF file: {error}") from None

    def tensor(self, name: str) -> np.ndarray:
        """A tensor by the file's own name, dequantised to float32, made without a second copy of it."""
        gguf = _package()
        shape, kind, start, row_bytes = self.stored[name]
        tensor = empty(shape, np.float32)
        rows = tensor.reshape(-1, shape[-1])
        step = max(1, CHUNK // shape[-1])
        with self.path.open("rb") as file:
            file.seek(start)
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                stored = np.frombuffer(file.read(len(part) * row_bytes), np.uint8).reshape(len(part), row_bytes)
                part[:] = gguf.dequantize(stored, kind)
        return tensor


class _Header:
    """The bytes before the tensors', read front to back."""

    def __init__(self, data: Any):
        self.data = memoryview(data)
        self.at = 0
        if bytes(self.take(4)) != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        version = self.number("<I")
        if version not in VERSIONS:
            raise ValueError(f"it has version {version}; expected little-endian version 2 or 3")
        self.num_tensors, self.num_values = self.count(8 + 4 + 4 + 8), self.count(8 + 4 + 1)

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(f"at byte {self.at} it announces {size} more bytes, but has {len(self.data) - self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least: int) -> int:
        """A number of entries, each of at least so many bytes."""
        count = self.number("<Q")
        if count * least > len(self.data) - self.at:
            raise ValueError(f"at byte {self.at} it announces {count} entries, more than it has bytes for")
        return count

    def text(self) -> str:
        return str(self.take(self.number("<Q")), "utf-8")

    def value(self) -> Any:
        """A number, a text, or a list of these."""
        kind = self.number("<I")
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"at byte {self.at - 4} it has a value of the unknown kind {kind}")
        kind = self.number("<I")
        if kind == TEXT:
            return [self.text() for _ in range(self.count(8))]
        if kind not in NUMBERS:
            raise ValueError(f"at byte {self.at - 4} it has a list of values of kind {kind}, which is not supported")
        size = struct.calcsize(NUMBERS[kind])
        return np.frombuffer(self.take(self.count(size) * size), np.dtype(NUMBERS[kind])).tolist()

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(self.num_values):
            if (key := self.text()) in values:
                raise ValueError(f"it has {key} twice")
            values[key] = self.value()
        return values

    def tensors(self, alignment: Any) -> dict[str, Stored]:
        """The table of tensors, each of which lies in the file and can be dequantised."""
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}, expected a number of bytes")
        entries = [(self.text(), self._shape(), self.number("<I"), self.number("<Q")) for _ in range(self.num_tensors)]
        first = -(-self.at // alignment) * alignment
        table: dict[str, Stored] = {}
        for name, shape, kind, offset in entries:
            if name in table:
                raise ValueError(f"it has two tensors {name}")
            table[name] = _located(name, shape, kind, first + offset)
            size = math.prod(shape[:-1]) * table[name].row_bytes
            if first + offset + size > len(self.data):
                raise ValueError(f"tensor {name} of {size} bytes lies beyond its end at byte {len(self.data)}")
        return table

    def _shape(self) -> tuple[int, ...]:
        """Sizes, the slowest first; the file has the fastest first."""
        dimensions = self.number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"at byte {self.at - 4} it has a tensor of {dimensions} dimensions")
        return tuple(self.number("<Q") for _ in range(dimensions))[::-1]


def _located(name: str, shape: tuple[int, ...], number: int, start: int) -> Stored:
    gguf = _package()
    try:
        kind = gguf.GGMLQuantizationType(number)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise ValueError(f"tensor {name} is stored in a form (number {number}) that cannot be dequantised") from None
    if 0 in shape or shape[-1] % block:
        raise ValueError(f"tensor {name} of shape {shape} does not divide into blocks of {block} values")
    return Stored(shape, kind, start, shape[-1] // block * block_bytes)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("GGUF files need the package gguf: pip install 'jaxcircuits[gguf]'") from None
    return gguf
