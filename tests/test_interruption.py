"""Ctrl-C and SIGTERM: one line, 130 or 143, at any moment; never 0 for work that was cut."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

ENDS = {signal.SIGINT: (130, "error: interrupted"), signal.SIGTERM: (143, "error: terminated")}
SMALL = "discover", "tracr_reverse", "--model", "tracr-reverse", "--metric", "l2", "--reference", "zero"
STARTED = 0.15
"""Seconds after which Python itself has started; before, it prints its own traceback."""


def started(*arguments):
    command = [sys.executable, "-m", "jaxcircuits_program", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stand_in(run, grace=60):
    """The program with another command line, which says "ready" and then does as `run` says; no JAX."""
    lines = [
        "import gc, os, sys, time, types",
        "import jaxcircuits_program as program",
        f"program.GRACE = {grace}",
        "def ready(): print('ready', flush=True)",
        "def run(arguments):",
        *("    " + line for line in run),
        "for name in ('jaxcircuits', 'jaxcircuits.cli'): sys.modules[name] = types.ModuleType(name)",
        "sys.modules['jaxcircuits.cli'].run = run",
        "program.main()",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


WAIT = "while True: time.sleep(0.01)"
NAP = "    time.sleep(0.05)"
RUNS = {
    "waits": (["ready()", WAIT], ""),
    "is told how to go on": (
        ["try:", "    ready()", "    " + WAIT, "except BaseException as e:", "    e.add_note('go on')", "    raise"],
        "; go on",
    ),
    "fails on the way out": (["try:", "    ready()", "    " + WAIT, "finally:", "    raise ValueError('other')"], ""),
    "is in a callback of C code": (
        ["gc.callbacks.append(lambda *_: time.sleep(0.05))", "ready()", "while True:", "    gc.collect()", NAP],
        "",
    ),
    "swallows it and ends well": (["try:", "    ready()", "    " + WAIT, "except BaseException: return 0"], ""),
}


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("name", RUNS)
def test_a_signal_ends_a_command_that(name, number):
    run, note = RUNS[name]
    process = stand_in(run)
    process.send_signal(number)
    code, line = ENDS[number]
    assert process.communicate(timeout=30) == ("", line + note + "\n")
    assert process.returncode == code


STUBBORN = ["while True:", "    try:", "        ready()", "        " + WAIT, "    except BaseException: pass"]


def test_a_command_that_does_not_stop_is_stopped():
    process = stand_in(STUBBORN, grace=0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "error: terminated\n" and process.returncode == 143


def test_a_run_that_is_ended_in_a_long_call_says_how_to_go_on(tmp_path):
    script = [
        "import ctypes, sys, types",
        "import jaxcircuits_program as program",
        "from jaxcircuits.savepoint import Savepoint",
        "program.GRACE = 0.3",
        "def run(arguments):",
        "    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)",
        f"    with Savepoint({str(tmp_path / 'kept')!r}, {{}}):",
        "        lock(mutex)",
        "        print('ready', flush=True)",
        "        lock(mutex)",  # a second time: Python's handlers never run again
        "sys.modules['jaxcircuits.cli'] = types.ModuleType('jaxcircuits.cli')",
        "sys.modules['jaxcircuits.cli'].run = run",
        "program.main()",
    ]
    command = [sys.executable, "-c", "\n".join(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    words = f"what is done is kept in {tmp_path / 'kept'}, and the same command goes on from there"
    assert error == f"error: terminated; {words}\n" and process.returncode == 143


def test_a_signal_with_a_handler_of_its_own_ends_nothing():
    lines = [
        "import signal",
        "signal.signal(signal.SIGUSR1, lambda *_: None)",
        "ready()",
        "time.sleep(1.5)",
        "return 0",
    ]
    process = stand_in(lines, grace=0.3)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 0


def test_the_second_signal_ends_at_once():
    process = stand_in(STUBBORN)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "error: interrupted\n" and process.returncode == 130


def test_output_that_cannot_be_written_is_no_success():
    with open("/dev/full", "w") as full:
        script = "import sys, types; import jaxcircuits_program as p\n"
        script += "for name in ('jaxcircuits', 'jaxcircuits.cli'): sys.modules[name] = types.ModuleType(name)\n"
        script += "sys.modules['jaxcircuits.cli'].run = lambda _: print('result')\np.main()"
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    assert ended.returncode == 1 and "No space left" in ended.stderr and ended.stderr.count("\n") == 1


def check_signals(commands, runs):
    """Signals at random moments of commands. Each ends by the signal, or had ended by itself."""
    chance = random.Random(0)
    seconds = {}
    for command in commands:
        began = time.monotonic()
        process = started(*command)
        assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
        seconds[command] = time.monotonic() - began
    for _ in range(runs):
        command, number = chance.choice(commands), chance.choice(list(ENDS))
        process = started(*command)
        time.sleep(chance.uniform(STARTED, max(2 * STARTED, seconds[command])))
        process.send_signal(number)
        began = time.monotonic()
        _, error = process.communicate(timeout=60)
        code, line = ENDS[number]
        assert (process.returncode, error) in ((code, line + "\n"), (0, "")), (command, number, error)
        ended_itself = process.returncode == 0  # then it was all but done, and has not passed over the signal
        assert time.monotonic() - began < (5 if ended_itself else 30), (command, number)


@pytest.mark.mission
def test_signals_at_random_moments_of_short_commands():
    check_signals([("--help",), ("models",)], 6)


@pytest.mark.slow
def test_signals_at_random_moments():
    check_signals([("--help",), ("models",), SMALL], 40)
