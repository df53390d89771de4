"""Faults injected into a run that is kept: killed at any moment, disk full, files damaged, two at once.

The circuit is that of the run nothing happened to, or there is a clear error and nothing is lost.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.savepoint import Savepoint


@pytest.fixture
def command(tmp_path):
    """A search of some hundred rounds; without its checkpoint."""
    jc.save(micro_model("gpt2"), tmp_path / "micro")
    micro_pairs().save(tmp_path / "micro.npz")
    arguments = ["discover", tmp_path / "micro.npz", "--model", tmp_path / "micro", "--threshold", "0.001"]
    return [*map(str, arguments), "--batch", "1", "--cache", str(tmp_path / "compiled")]


LIMITED = (
    "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (2048, 2048)); os.execv(sys.argv[1], sys.argv[1:])"
)


def started(command, before=()):
    command = [*before, sys.executable, "-m", "jaxcircuits_program", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(command, before=()):
    process = started(command, before)
    printed, error = process.communicate(timeout=300)
    return process.returncode, printed, error


def found(path):
    run = json.loads(path.read_text())["run"]
    return run["decisions"], run["metric_final"], run["edges_kept"]


def check_kills(command, tmp_path, kills):
    """`kill -9` at random moments of the search, again and again, until it is done; then anew."""
    chance, out, folder = random.Random(0), tmp_path / "circuit.json", tmp_path / "run"
    assert ended([*command, "--out", str(out)])[0] == 0
    whole, done, finished = found(out), 0, 0
    while done < kills or not finished:
        out.unlink(missing_ok=True)
        process = started([*command, "--out", str(out), "--checkpoint", str(folder)])
        end = time.monotonic() + 120
        while process.poll() is None and not (folder / "run.state").exists() and time.monotonic() < end:
            time.sleep(0.01)
        try:
            process.wait(chance.uniform(0, 6) if done < kills else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            done += 1
        error = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            assert (process.returncode, error) == (0, "")
            assert found(out) == whole
            finished += 1
            shutil.rmtree(folder)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.mission
def test_kills(command, tmp_path):
    check_kills(command, tmp_path, 2)


@pytest.mark.slow
def test_fifty_kills(command, tmp_path):
    check_kills(command, tmp_path, 50)


def check_full(command, folder, before=(), others=(), make_room=lambda: None):
    """The search is done all the same, with a warning; what was kept before is still there for the next."""
    without_last = slice(None, -1)  # the line that says how long it took
    whole = ended(command)[1].splitlines()[without_last]
    code, printed, error = ended([*command, "--checkpoint", str(folder)], before)
    assert code == 0 and printed.splitlines()[without_last] == whole
    assert error.startswith(f"warning: cannot save in {folder}: ") and error.count("\n") == 1
    kept = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
    has_room = {"lock", "run.state", "searches.state", *others}  # the result alone may
    assert {"lock", "run.state"} <= kept <= has_room
    make_room()
    code, printed, error = ended([*command, "--checkpoint", str(folder)], before)
    assert code == 0 and printed.splitlines()[without_last] == whole


@pytest.mark.mission
def test_files_that_may_not_grow(command, tmp_path):
    """As on a full disk: the compiled programs are there already, what is kept needs more than 2 KiB."""
    check_full(command, tmp_path / "run", [sys.executable, "-c", LIMITED])


@pytest.mark.slow
def test_a_disk_that_is_full(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        larger = ["mount", "-o", "remount,size=1m", disk]
        searches = "search-1.state", "search-2.state"
        check_full(command, disk / "run", others=searches, make_room=lambda: subprocess.run(larger, check=True))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_at_once(command, tmp_path):
    with Savepoint(tmp_path / "run", {}):
        code, printed, error = ended([*command, "--checkpoint", str(tmp_path / "run")])
    assert (code, printed) == (1, "") and error.count("\n") == 1
    assert error == f"error: {tmp_path / 'run'} is in use by another process: wait for it, or choose another folder\n"


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("damages", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files(damages, tmp_path, monkeypatch):
    """Bits flipped, files cut, emptied or gone: the same circuit, or an error that names the file or the folder."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")

    def search(folder):
        return jc.acdc_sweep(objective, [0.01, 0.1], width=4, checkpoint=folder)

    whole, moments = search(tmp_path / "whole"), []

    def reached(self, save, *, milestone=True):
        self.save(save)
        moments.append(1)
        if len(moments) == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Savepoint, "reached", reached)
        with pytest.raises(Killed):
            search(tmp_path / "part")
    names = sorted(path.name for path in (tmp_path / "part").iterdir() if path.suffix == ".state")
    assert len(names) >= 3
    chance, folder, told = np.random.default_rng(0), tmp_path / "damaged", 0
    for number in range(damages):
        shutil.copytree(tmp_path / "part", folder)
        name = names[number % len(names)]
        data = bytearray((folder / name).read_bytes())
        kind = number // len(names) % 4
        if kind == 0:
            data[chance.integers(len(data))] ^= 1 << int(chance.integers(8))
        elif kind == 1:
            del data[chance.integers(len(data)) :]
        elif kind == 2:
            data.clear()
        (folder / name).write_bytes(data)
        if kind == 3:
            (folder / name).unlink()
        try:
            results = search(folder)
            assert kind == 3 and name == "searches.state"
            for ours, theirs in zip(results, whole, strict=True):
                assert ours.decisions == theirs.decisions and ours.metric_final == theirs.metric_final
        except ValueError as error:
            assert "damaged" in str(error) or (kind == 3 and "run.state, which" in str(error)), error
            told += 1
        shutil.rmtree(folder)
    assert told >= damages * 3 // 4
