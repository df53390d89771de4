"""Files are read as what they say they are, and written whole or not at all."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time

import pytest

from jaxcircuits import files
from jaxcircuits.files import (
    DEEPEST,
    check_can_fill,
    check_can_write,
    parse_json,
    read_json,
    visible,
    write_folder,
    write_json,
    write_whole,
)


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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_a_file_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    path.chmod(mode)
    seen = []

    def write(temporary):
        seen.append(stat.S_IMODE(temporary.stat().st_mode) & 0o077)
        temporary.write_text("new")

    write_whole(path, write)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new" and seen == [0]


def test_a_link_leads_to_the_file_that_is_written(tmp_path):
    (tmp_path / "target").mkdir()
    for name in ("there.txt", "not-yet.txt"):
        target, link = tmp_path / "target" / name, tmp_path / name
        link.symlink_to(target)
        if name == "there.txt":
            target.write_text("old")
        write_whole(link, lambda temporary: temporary.write_text("new"))
        assert link.is_symlink() and target.read_text() == "new" and not target.is_symlink()
    assert sorted(os.listdir(tmp_path / "target")) == ["not-yet.txt", "there.txt"]


def test_devices_and_pipes_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path / "pipe", tmp_path / "null"):
        for call in (check_can_write, lambda path: write_whole(path, lambda temporary: temporary.write_text("x"))):
            with pytest.raises(ValueError, match="is a device, a pipe or a socket: expected the name of a file"):
                call(path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "pipe").is_fifo()


def without_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("write", [write_whole, write_folder])
def test_a_disk_that_becomes_full_is_said_with_the_file(write, tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*/result'") as caught:
        write(tmp_path / "result", without_room)
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


def test_whether_a_file_can_be_written_is_known_without_writing(tmp_path, monkeypatch):
    path = tmp_path / "result.txt"
    check_can_write(path)
    check_can_fill(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []
    path.write_text("old")
    check_can_write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.txt"]
    with pytest.raises(ValueError, match="is a file: expected the name of a folder"):
        check_can_fill(path)
    with monkeypatch.context() as full:
        full.setattr(files.os, "write", without_room)
        with pytest.raises(ValueError, match="cannot write .*result.txt: No space left on device; choose"):
            check_can_write(path)
    assert os.listdir(tmp_path) == ["result.txt"]
    monkeypatch.setattr(files.os, "access", lambda path, how: False)
    with pytest.raises(ValueError, match="the file is read-only"):
        check_can_write(path)


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_folder_that_takes_no_files_is_said_so(folder):
    for check in (check_can_write, check_can_fill):
        with pytest.raises(ValueError, match="cannot write .*; choose another place"):
            check(f"{folder}/nothing-of-this-name")


def test_what_a_killed_writer_left_goes_with_the_next_and_what_is_written_stays(tmp_path):
    script = """
import os, signal, sys
from jaxcircuits.files import write_whole
def write(temporary):
    temporary.write_text("half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("written", flush=True)
    sys.stdin.read()
write_whole(sys.argv[1], write)
"""
    path = tmp_path / "result [1].txt"
    subprocess.run([sys.executable, "-c", script, path, "killed"], check=False)
    assert len(os.listdir(tmp_path)) == 1
    slow = subprocess.Popen(
        [sys.executable, "-c", script, path, "slow"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert slow.stdout.readline() == "written\n"
    assert len(os.listdir(tmp_path)) == 1
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert len(os.listdir(tmp_path)) == 2 and path.read_text() == "new"
    slow.communicate()
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "half"


def test_bytes_are_on_the_disk_before_the_name_is_theirs(tmp_path, monkeypatch):
    seen = []
    for name in ("fsync", "replace"):
        known = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *given, name=name, known=known: (seen.append(name), known(*given)))
    write_whole(tmp_path / "result.txt", lambda temporary: temporary.write_text("new"))
    assert seen == ["fsync", "replace", "fsync"]


def test_a_folder_is_on_the_disk_before_the_name_is_its_and_abandoned_ones_go(tmp_path, monkeypatch):
    abandoned, held = (tmp_path / f".model.{name}.tmp" for name in ("0123abcd", "beefbeef"))
    for folder in (abandoned, held):
        folder.mkdir()
        (folder / "half").write_text("half")
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    seen = []
    for name in ("fsync", "replace"):
        known = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *given, name=name, known=known: (seen.append(name), known(*given)))
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", lambda folder: [(folder / name).write_text(name) for name in "ab"])
    os.close(handle)
    assert seen == ["fsync"] * 3 + ["replace", "fsync"]
    assert sorted(os.listdir(tmp_path)) == [held.name, "model"] and os.listdir(tmp_path / "model")
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "model", lambda folder: None)
    assert os.listdir(tmp_path) == ["model"]


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


def test_a_name_that_comes_twice_is_found_at_once_among_many():
    names = ",".join(f'"{number}": 0' for number in range(200_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="got '199999' twice"):
        parse_json(f'{{{names}, "199999": 1}}')
    assert time.process_time() - start < 5


def test_control_characters_are_shown():
    assert visible("plain é 日本 \n text") == "plain é 日本 \n text"
    assert visible("\x1b[2J\x07 a\u202eb\r\t\n") == "\\x1b[2J\\x07 a\\u202eb\\r\\t\n"
