"""Files are read as what they say they are, and written whole or not at all."""

import os
import stat

import pytest

from jaxcircuits import files
from jaxcircuits.files import DEEPEST, parse_json, read_json, write_json, write_whole


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


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "expected each name once in an object, got 'c' twice"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"at most {DEEPEST} lists and objects"),
        ("[" * 200_000, f"at most {DEEPEST} lists and objects"),
        ('{"a":' * 200_000, f"at most {DEEPEST} lists and objects"),
        ('{"a": [0, 1e999]}', "a 1: expected a finite number, got inf"),
        ("NaN", "^expected a finite number, got nan"),
        ("1" + "0" * 400, "expected a finite number, got one of 401 digits"),
        ("1" + "0" * 5000, "limit"),
        ('["\\ud800"]', "0: expected text, got half of a surrogate pair"),
        ('{"\\udc00": 1}', "expected text, got half of a surrogate pair"),
        ('{"a": ', "Expecting value"),
        ("", "Expecting value"),
    ],
)
def test_json_that_readers_take_differently_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} is malformed: expected a record in JSON; "):
        read_json(path, "record")


def test_json_is_read_as_it_stands():
    text = '{"a": [1, -0.5e300, true, null, "\\ud83d\\ude00"], "": {"a": 1e308}, "c": 1000000000000000019884624838656}'
    assert parse_json(text) == {"a": [1, -0.5e300, True, None, "😀"], "": {"a": 1e308}, "c": int(1e30)}
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


def test_what_is_no_file_of_text_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_text("[1, 2]")
    monkeypatch.setattr(files, "LARGEST", 5)
    for name, message in {
        "nothing": "no record .*nothing",
        "pipe": "is no regular file: expected a record",
        ".": "is no regular file: expected a record",
        "bytes": "is malformed: expected a record in UTF-8",
        "large": "has 6 bytes: expected a record of at most 5",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_json(tmp_path / name, "record")
