"""Arrays in files: what comes back, and that nothing is made that the file has no bytes for."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxcircuits import npz
from jaxcircuits.npz import read_arrays, write_arrays

ARRAYS = {
    "a": np.arange(6, dtype=np.int32).reshape(2, 3),
    "b.c": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.array(True),
    "little": np.arange(3, dtype=">u2"),
}


def header(shape, dtype="<f4", version=(1, 0)):
    file = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
    write(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("_npy", ".npy"), data)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_as_they_were(compressed, tmp_path):
    write_arrays(tmp_path / "x.npz", ARRAYS, compressed=compressed)
    ours = read_arrays(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as theirs:
        assert ours.keys() == set(theirs.files) == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(ours[name], array, strict=True)
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
    ours["a"][0, 0] = 7


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize(
    "shape", [(2**40,), (2**20, 2**20, 2**20), (10**30,), (7,), (5,), (), (-6,), (-2, -3), (2**63, 0)]
)
def test_shapes_that_the_file_has_no_bytes_for_are_refused(shape, version, tmp_path):
    archive(tmp_path / "x.npz", a_npy=header(shape, version=version) + bytes(24))
    tracemalloc.start()
    with pytest.raises(ValueError, match="x.npz is malformed: expected a state, an .npz of plain arrays; "):
        read_arrays(tmp_path / "x.npz", "state")
    assert tracemalloc.get_traced_memory()[1] < 1 << 21
    tracemalloc.stop()


def test_what_unpacks_to_far_more_than_the_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    archive(path, a_npy=header((1 << 24,)) + bytes(1 << 26))
    assert os.path.getsize(path) < 1 << 17
    assert read_arrays(path)["a"].shape == (1 << 24,)
    monkeypatch.setattr(npz, "LARGEST", 1 << 25)
    with pytest.raises(ValueError, match="its arrays have 67,108,992 bytes, and at most 33,554,432 are read"):
        read_arrays(path)


def test_only_plain_arrays_are_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.array([print, None]))
    with pytest.raises(ValueError, match="'a.npy' holds object: expected numbers or truth values"):
        read_arrays(path)
    for dtype in ("<U4", "|S4", "<c8", "<M8[s]", [("x", "<f4")]):
        np.savez(path, a=np.zeros(2, dtype))
        with pytest.raises(ValueError, match="expected numbers or truth values"):
            read_arrays(path)
    archive(path, **{"script.py": "print()"})
    with pytest.raises(ValueError, match="'script.py' is no array"):
        read_arrays(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as file:
        for value in (1, 2):
            file.writestr("a.npy", header((1,)) + np.float32([value]).tobytes())
    with pytest.raises(ValueError, match="it has 'a.npy' twice"):
        read_arrays(path)


def test_what_is_not_whole_or_no_file_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    write_arrays(path, ARRAYS, compressed=True)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="x.npz is malformed"):
            read_arrays(path)
    flipped = bytearray(whole)
    flipped[whole.index(b"a.npy") + 30] ^= 0x10
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="x.npz is malformed"):
        read_arrays(path)
    os.mkfifo(tmp_path / "pipe.npz")
    for name, message in (("none.npz", "no state"), ("pipe.npz", "is no regular file"), (".", "is no regular file")):
        with pytest.raises(ValueError, match=message):
            read_arrays(tmp_path / name, "state")
