"""A file is written whole or not at all."""

import os
import stat

import pytest

from jaxcircuits.files import write_json, write_whole


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert os.listdir(tmp_path) == ["result.txt"] and path.read_text() == "old"


def test_a_write_replaces_the_old_file_with_the_usual_permissions(tmp_path):
    path, usual = tmp_path / "result.txt", tmp_path / "usual.txt"
    usual.touch()
    path.write_text("old")
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and sorted(os.listdir(tmp_path)) == ["result.txt", "usual.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append((path.read_text(), temporary.parent))

    write_whole(path, write)
    assert seen == [("old", tmp_path)]


def test_a_folder_and_a_missing_folder_are_refused_before_anything_is_written(tmp_path):
    def never(temporary):
        raise AssertionError("called")

    with pytest.raises(ValueError, match="is a folder: expected the name of a file"):
        write_whole(tmp_path, never)
    with pytest.raises(ValueError, match="missing does not exist; create it first"):
        write_whole(tmp_path / "missing" / "result.txt", never)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_with_a_number_that_json_cannot_hold_is_refused(number, tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"name": "é", "value": 1})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": [number]})
    assert os.listdir(tmp_path) == ["result.json"]
    assert path.read_bytes() == before == '{\n "name": "é",\n "value": 1\n}\n'.encode()
