"""A wheel built from a clean copy of the tree, unpacked elsewhere, brings the bundled model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.mission
def test_a_wheel_brings_the_bundled_model(tmp_path):
    tree = tmp_path / "tree"
    files = "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "jaxcircuits_program.py"
    for name in (*files, "jaxcircuits", "weights"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / name, tree / name)

    def run(*command, **options):
        return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, **options)

    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), cwd=tree)
    [wheel] = tmp_path.glob("*.whl")
    run("-m", "pip", "install", "--no-deps", "--quiet", "--target", str(tmp_path / "site"), str(wheel))
    script = "import jaxcircuits as jc; print(jc.__file__); print(jc.load('tiny-gpt2').files)"
    script += "; print((jc.report.page.ASSETS / 'page.html').is_file())"
    seen = run("-c", script, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}).stdout.split()
    assert seen == [
        str(tmp_path / "site" / "jaxcircuits" / "__init__.py"),
        str(tmp_path / "site" / "jaxcircuits" / "weights" / "tiny-gpt2"),
        "True",
    ]
