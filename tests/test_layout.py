"""The architecture as a test: who may import whom, and what importing costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcircuits

PACKAGE = Path(jaxcircuits.__file__).parent

BASE = {"types", "files", "finite", "arguments"}
MAY_IMPORT = {
    "types": set(),
    "files": set(),
    "layout": set(),
    "finite": set(),
    "run": set(),
    "arguments": set(),
    "graph": BASE | {"layout", "notebook"},
    "notebook": BASE | {"graph"},
    "framing": BASE,
    "data": BASE | {"framing"},
    "batching": BASE,
    "metrics": BASE | {"data"},
    "tasks": BASE | {"data", "graph", "framing"},
    "models": BASE | {"layout", "graph"},
    "tensors": BASE,
    "gguf_file": BASE | {"tensors"},
    "gguf_names": BASE | {"gguf_file", "tensors"},
    "gguf_tokenizer": BASE,
    "tokenizer": BASE | {"formats", "gguf_file", "gguf_names", "gguf_tokenizer"},
    "formats": BASE | {"models"},
    "checkpoints": BASE | {"graph", "models", "formats", "tensors", "gguf_names", "tokenizer"},
    "references": BASE | {"data", "batching"},
    "labels": BASE | {"data", "metrics", "batching"},
    "gradients": BASE | {"models"},
    "objective": BASE | {"graph", "data", "models", "metrics", "batching", "references", "labels", "gradients", "run"},
    "scores": BASE | {"graph", "notebook"},
    "nodes": BASE | {"models", "graph", "objective", "batching"},
    "kinds": BASE | {"graph", "layout"},
    "programs": BASE | {"kinds"},
    "chains": BASE | {"kinds", "graph", "objective", "references", "programs", "models", "metrics", "batching"},
    "live": BASE | {"kinds", "graph", "objective", "programs", "chains", "batching"},
    "sparse_plan": BASE | {"kinds", "graph"},
    "sparse": BASE | {"kinds", "programs", "graph", "objective", "references", "models", "batching", "sparse_plan"},
    "discovery": BASE | {"graph", "scores", "objective", "references", "nodes", "metrics", "batching", "live"},
    "circuit_file": BASE | {"graph", "layout"},
    "circuit": BASE | {"graph", "scores", "notebook", "circuit_file", "run"},
    "interchange": BASE | {"graph", "scores", "circuit"},
    "evaluation": BASE | {"graph", "scores", "objective", "references", "batching", "circuit", "sparse"},
    "report": BASE | {"graph", "scores", "circuit", "evaluation"},
}
EVERYTHING = {"cli", "reproduce", "__init__"}


def imported(path):
    """First parts of the modules of this package that a file imports."""
    package = ("jaxcircuits", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield from ([module[1]] if len(module) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "jaxcircuits" for name in names), f"{path}: use a relative import"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_in_one_direction(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name in EVERYTHING:
        return
    beyond = set(imported(path)) - MAY_IMPORT[name] - {name}
    assert not beyond, f"{name} imports {sorted(beyond)}, but may import {sorted(MAY_IMPORT[name])} only"


def test_there_is_no_file_for_everything_else():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common", "tools"}


def test_importing_is_quick_and_touches_no_device():
    """Under 2 s of a processor beyond JAX; no backend is started, transformers and the hub are not imported."""
    script = """
import json, sys, time
import jax
start = time.process_time()
import jaxcircuits
seconds = time.process_time() - start
from jax._src import xla_bridge
print(json.dumps({
    "seconds": seconds,
    "backends": list(xla_bridge._backends),
    "heavy": [name for name in ("transformers", "huggingface_hub", "safetensors", "torch") if name in sys.modules],
}))
"""
    times = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        seen = json.loads(run.stdout)
        times.append(seen["seconds"])
        assert not seen["backends"] and not seen["heavy"]
    assert min(times) < 2


def test_the_library_prints_nothing():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli":
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path
