"""The same answers on one device, on a mesh of eight, and on two processes."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc

SCRIPT = Path(__file__).with_name("several_devices.py")
SECONDS = 900  # on a busy machine; a process whose peer died hangs for about 100


def start(*arguments, into=None):
    """What it says goes into files `into`.out and `into`.err, or is kept for `reports`."""
    command = [sys.executable, str(SCRIPT), *arguments]
    if into is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with into.with_suffix(".out").open("w") as said, into.with_suffix(".err").open("w") as errors:
        return subprocess.Popen(command, stdout=said, stderr=errors)


def reports(*processes):
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(text.split("REPORT")[1]) for text, _ in outputs]


@pytest.fixture(scope="module")
def eight():
    return reports(start("8"))[0]


def assert_same(some, others):
    assert some["decisions"] == others["decisions"] and some["replicates"] == others["replicates"]
    assert some["device"] == others["device"] == others["decisions"][: len(others["device"])]
    assert some["together"] == others["together"] == others["replicates"]
    for name in ("many", "per_example", "gradient", "metrics", "device_metrics"):
        np.testing.assert_allclose(some[name], others[name], rtol=1e-12, atol=1e-13)


@pytest.mark.mission
def test_eight_devices_decide_what_one_does(eight):
    assert eight["all"]["shape"] == {"candidates": 2, "prompts": 4, "model": 1}
    assert_same(eight["all"], eight["one"])


@pytest.mark.mission
def test_devices_exchange_numbers_only(eight):
    """Of a compiled chain each candidate's metric on each prompt is gathered; no activations travel. Where one is
    committed its changes do; a loop of both exchanges no more.
    """
    candidates, prompts, bytes_each, seen = 4, 4, 8, eight["collectives"]
    assert 0 < max(seen["chain"]) <= candidates * prompts * bytes_each < max(seen["commit"])
    assert seen["loop"] and max(seen["loop"]) <= max(seen["commit"])


@pytest.mark.mission
def test_weights_that_do_not_fit_one_device_are_split(eight):
    arrays, value = eight["split"]
    assert arrays > 3 and abs(value - eight["plain"]) < 1e-12


@pytest.mark.mission
def test_weights_split_between_devices_stay_where_they_are():
    """Answers are those of one device; of a chain its activations travel, and no weights: not even one matrix."""
    [runs] = reports(start("8", "weights"))
    assert runs["all"]["shape"] == {"candidates": 1, "prompts": 4, "model": 2}
    assert_same(runs["all"], runs["one"])
    assert len(runs["split"]) == 6 and set(runs["split"]) == {0.5}
    candidates, prompts, positions, width, bytes_each = 4, 1, 6, 64, 4
    assert (
        0
        < max(runs["collectives"]["chain"])
        <= candidates * prompts * positions * width * bytes_each
        < 64 * 64 * bytes_each
    )


@pytest.mark.mission
def test_every_method_gives_the_same_scores_on_eight_devices():
    [runs] = reports(start("8", "methods"))
    assert len(runs["one"]) > 10
    for name, scores in runs["one"].items():
        largest = np.abs(scores).max()
        np.testing.assert_allclose(runs["all"][name], scores, rtol=1e-9, atol=1e-12 * largest, err_msg=name)


@pytest.mark.mission
def test_eight_devices_decide_at_spans_of_the_prompts_what_one_does():
    [runs] = reports(start("8", "spans"))
    assert_same(runs["all"], runs["one"])


def two_processes(seconds, folder=None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(address, number, seconds, into=folder and folder / number) for number in ("0", "1")]


@pytest.mark.mission
def test_two_processes_decide_what_one_does(eight):
    first, second = reports(*two_processes("100"))
    assert first["all"]["shape"] == {"candidates": 1, "prompts": 4, "model": 1}
    assert_same(first["all"], eight["one"])
    assert_same(second["all"], eight["one"])


@pytest.mark.mission
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_whose_peer_dies_says_so_and_ends(killed, tmp_path):
    """It answers nothing: half of the prompts are no search."""
    processes = two_processes("30", tmp_path)
    try:
        began = time.monotonic()
        while not all("BEGUN" in (tmp_path / f"{number}.out").read_text() for number in (0, 1)):
            assert all(process.poll() is None for process in processes) and time.monotonic() - began < SECONDS
            time.sleep(0.1)
        processes[killed].kill()
        assert processes[1 - killed].wait(SECONDS) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said, errors = ((tmp_path / f"{1 - killed}.{end}").read_text() for end in ("out", "err"))
    assert "REPORT" not in said
    assert re.search("(reset|closed) by peer|unhealthy|heartbeat|task died|Socket closed", errors), errors[-3000:]


def test_a_mesh_of_one_device_and_what_is_refused():
    mesh = jc.device_mesh(4, devices=1)
    model, pairs = micro_model("one-head"), micro_pairs(batch=4)
    objective = jc.Objective(model, pairs, "kl", mesh=mesh)
    assert objective.describe()["mesh"] == {"candidates": 1, "prompts": 1, "model": 1}
    np.testing.assert_allclose(
        objective(objective.full_mask()), jc.Objective(model, pairs, "kl")(objective.full_mask()), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"devices: expected 1 to \d+ \(cpu\), got 4096"):
        jc.device_mesh(4, devices=4096)
    with pytest.raises(ValueError, match="mesh: expected the axes candidates, prompts and model"):
        jc.Objective(model, pairs, "kl", mesh=jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)))


def test_weights_cannot_be_split_among_more_devices_than_there_are(run):
    with pytest.raises(ValueError, match="model: expected a number that divides 1 devices, got 2"):
        jc.device_mesh(4, devices=1, model=2)
    code, _, said = run("discover", "ioi", "--split-weights", "2")
    assert code == 1 and "--split-weights: expected --devices besides, got 2 of one device" in said
