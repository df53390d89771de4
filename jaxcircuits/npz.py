"""Named arrays in `.npz` files: plain numbers, as large as the file itself says and holds."""

import math
import os
import zipfile
from typing import Any

import numpy as np

from .files import LARGEST, check_regular, repeated, write_whole

RATIO = 100
"""How many times larger than its file what it holds may be, beyond `LARGEST` bytes."""


def read_arrays(path: str | os.PathLike, what: str = "file") -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    Nothing is made before its size is known to be that of the bytes the file has for it; nothing is unpickled.

    Raises ValueError for what is no such file, or not a whole one, for arrays of anything but numbers and truth values,
    a name twice, and more than `LARGEST` bytes that are not `RATIO` times less in the file.
    """
    check_regular(path, what)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, os.path.getsize(path))
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except Exception as error:  # numpy, zipfile and zlib raise many unrelated types for bad bytes
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is malformed: expected a {what}, an .npz of plain arrays; {reason}") from None


def write_arrays(path: str | os.PathLike, arrays: dict[str, Any], *, compressed: bool = False) -> None:
    """Writes what `read_arrays` reads, whole or not at all."""

    def write(temporary: Any) -> None:
        with temporary.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)

    write_whole(path, write)


def _check_sizes(archive: zipfile.ZipFile, stored: int) -> None:
    entries = archive.infolist()
    if (twice := repeated(entry.filename for entry in entries)) is not None:
        raise ValueError(f"it has {twice!r} twice")
    if sum(entry.compress_size for entry in entries) > stored:
        raise ValueError(f"its parts have more bytes than the {stored:,} of the file")
    if (size := sum(entry.file_size for entry in entries)) > max(LARGEST, RATIO * stored):
        raise ValueError(f"its arrays have {size:,} bytes, and at most {max(LARGEST, RATIO * stored):,} are read")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename!r} is no array")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename!r} has a header of the unknown version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.kind not in "biuf":
            raise ValueError(f"{entry.filename!r} holds {dtype}: expected numbers or truth values")
        size, rest = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if min(shape, default=0) < 0 or size != rest:
            raise ValueError(f"{entry.filename!r} says its shape is {shape} of {dtype}, and has {rest:,} bytes for it")
        data = np.frombuffer(bytearray(file.read()), dtype)
    return data.reshape(shape, order="F" if is_fortran else "C")
