"""Files are UTF-8 and the terminal never raises, whatever the locale; nothing is said of fonts and homes."""

import os
import subprocess
import sys

import pytest

import jaxcircuits as jc
from jaxcircuits import files

GATE = "logic_gates", "--model", "gate-and", "--metric", "l2", "--reference", "zero"
LOCALES = {
    "C": {"LANG": "C", "LC_ALL": "C"},
    "ASCII without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
}
HOMES = {"C": {"HOME": "/proc/none"}, "ASCII without UTF-8 mode": {"HOME": "/proc/none"}, "ASCII output": {}}


EVERY = [name if "without" in name else pytest.param(name, marks=pytest.mark.slow) for name in LOCALES]


def ended(folder, locale, *arguments):
    env = {"PATH": os.environ["PATH"], **LOCALES[locale], **HOMES[locale]}
    command = [sys.executable, "-m", "jaxcircuits_program", *map(str, arguments)]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, timeout=300)


@pytest.mark.parametrize("locale", EVERY)
def test_a_sweep_with_names_that_are_no_ascii(locale, tmp_path):
    result = ended(tmp_path, locale, "sweep", *GATE, "--thresholds", "0.1", "--out", "é", "--report", "π.html")
    assert (result.returncode, result.stderr) == (0, b"")
    assert sorted(os.listdir(tmp_path)) == ["é", "π.html"]
    circuit = jc.Circuit.load(tmp_path / "é" / "circuit-0.1.json")
    assert circuit.run["config"]["out_folder"] == "é" and circuit.num_edges == 3
    assert r"\u03c0.html" in (tmp_path / "π.html").read_text(encoding="utf-8")
    result.stdout.decode("ascii" if locale == "ASCII output" else "utf-8")


@pytest.mark.mission
@pytest.mark.parametrize("locale", EVERY)
def test_what_a_locale_cannot_show_is_shown_by_its_number(locale, tmp_path):
    result = ended(tmp_path, locale, "show", "no-Ж.json")
    assert result.returncode == 1 and result.stderr.startswith(b"error: no circuit file no-")
    assert result.stderr.count(b"\n") == 1


def test_bytes_of_a_command_line_are_text_again(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, files.plain({"name": "c\udcc3\udca9 \udcff é"}))
    assert files.read_json(path) == {"name": "cé \ufffd é"}
    files.write_text(path, "\udcc3\udca9\r\n")
    assert path.read_bytes() == "é\r\n".encode()
