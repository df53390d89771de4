"""Every code block of the README is executed, hub names replaced by a local folder.

The two one-line commands (install and discover, install and test) are what `.ci/run` executes.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import gpt2_tokenizer

import jaxcircuits as jc

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
INSTALLS = ["pip install -e . && jaxcircuits discover ioi\n", "pip install -e '.[test]' && python -m pytest\n"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder beside a small model with GPT-2's tokenizer, standing in for the hub's `gpt2`."""
    config = jc.GPT2Config(vocab_size=50257, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    jc.save(jc.GPT2.random(config, jax.random.key(0)), tmp_path / "gpt2", gpt2_tokenizer())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_blocks_of_both_languages_and_the_two_commands():
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert [text for _, text in BLOCKS if text.startswith("pip")] == INSTALLS


def test_the_commands_of_the_readme_are_those_of_ci():
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    for command in INSTALLS:
        assert command.strip() in ci


@pytest.mark.mission
def test_the_other_blocks_run_in_order(folder, capfd):
    names = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
        elif text not in INSTALLS:
            for command in text.splitlines():
                program, *arguments = shlex.split(command)
                assert program == "jaxcircuits"
                script = "import sys; from jaxcircuits.cli import main; main()"
                subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=300)
    printed = capfd.readouterr().out
    assert "written to ioi.json" in printed and jc.Circuit.load("ioi.json").run["model"] == "gpt2"
    assert jc.Circuit.load("circuit.json").edges == names["circuit"].edges
