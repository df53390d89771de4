"""The architecture as a test: who may import whom, and what importing costs."""

import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcircuits

PACKAGE = Path(jaxcircuits.__file__).parent

BASE = {"types", "files", "finite", "arguments"}
KEEPS = {"savepoint", "identity"}
MAY_IMPORT = {
    "types": set(),
    "files": set(),
    "span_names": set(),
    "layout": {"span_names"},
    "finite": set(),
    "run": set(),
    "arguments": set(),
    "savepoint": {"files"},
    "identity": {"metrics", "run"},
    "axes": {"layout", "span_names"},
    "graph": BASE | {"axes", "layout", "notebook"},
    "notebook": BASE | {"graph"},
    "named_spans": BASE | {"span_names"},
    "texts": BASE | {"named_spans"},
    "framing": BASE | {"texts"},
    "data": BASE | {"framing", "named_spans", "npz", "texts"},
    "batching": BASE,
    "metrics": BASE | {"data"},
    "tasks": BASE | {"data", "texts", "graph", "framing"},
    "precision": set(),
    "models": BASE | {"layout", "span_names", "graph", "precision"},
    "tensors": BASE,
    "gguf_file": BASE | {"tensors"},
    "gguf_names": BASE | {"gguf_file", "tensors"},
    "gguf_tokenizer": BASE,
    "tokenizer": BASE | {"formats", "gguf_file", "gguf_names", "gguf_tokenizer"},
    "formats": BASE | {"models"},
    "npz": BASE,
    "yaml_file": BASE,
    "sources": BASE | {"formats", "gguf_names", "models", "tensors"},
    "checkpoints": BASE | {"graph", "models", "formats", "tensors", "gguf_names", "precision", "sources", "tokenizer"},
    "references": BASE | {"batching"},
    "labels": BASE | {"data", "metrics", "batching"},
    "masks": BASE | {"graph", "batching"},
    "losses": BASE | {"batching"},
    "gradients": BASE | {"batching", "models", "precision"},
    "objective_checks": BASE | {"batching", "data", "references"},
    "objective": BASE
    | {"graph", "data", "models", "metrics", "batching", "references", "labels", "identity", "masks"}
    | {"losses", "gradients", "objective_checks"},
    "scores": BASE | {"graph", "notebook"},
    "conditional": BASE | {"graph", "masks", "objective"},
    "nodes": BASE | {"models", "graph", "gradients", "objective", "masks", "batching"},
    "kinds": BASE | {"graph", "layout"},
    "programs": BASE | {"kinds"},
    "current_run": BASE | {"kinds", "objective", "references", "precision", "programs", "batching"},
    "chains": BASE | {"kinds", "objective", "precision", "programs", "current_run", "models", "metrics", "batching"},
    "lockstep": BASE | {"kinds", "programs", "current_run", "chains", "batching"},
    "live": BASE | {"kinds", "graph", "objective", "programs", "current_run", "chains", "lockstep", "batching"},
    "device_loop": BASE | {"kinds", "programs", "current_run", "chains", "live", "batching"},
    "sparse_plan": BASE | {"kinds", "graph"},
    "sparse": BASE
    | {"kinds", "precision", "programs", "graph", "objective", "references", "models", "batching", "sparse_plan"},
    "resampling": set(),
    "discovery": BASE
    | {"resampling", "npz", "graph", "scores", "gradients", "objective", "references", "nodes", "metrics", "batching"}
    | {"live", "device_loop", "lockstep", "crossings", "conditional", "masks", "precision"}
    | KEEPS,
    "expand": BASE | {"axes", "graph", "masks", "span_names"},
    "circuit_file": BASE | {"graph", "layout"},
    "circuit": BASE | {"graph", "scores", "notebook", "circuit_file", "run", "masks"},
    "crossings": BASE | {"graph", "scores", "circuit", "circuit_file", "models", "span_names"},
    "ilp": BASE | {"graph", "scores", "circuit"},
    "interchange": BASE | {"graph", "scores", "circuit"},
    "evaluation": BASE
    | {"resampling", "graph", "scores", "objective", "references", "batching", "circuit", "sparse"}
    | {"conditional", "losses", "masks", "metrics"}
    | KEEPS,
    "mib": BASE | {"graph", "circuit", "circuit_file", "interchange", "objective", "evaluation"},
    "mib_data": BASE | {"data", "texts", "tasks"},
    "report": BASE | {"resampling", "axes", "graph", "scores", "circuit", "evaluation", "span_names"},
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


def test_a_wheel_has_every_folder_of_code():
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    folders = [path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")]
    names = {".".join(folder.parts) for folder in folders}
    assert set(config["options"]["packages"].split()) == names | {"jaxcircuits.weights"}


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


FAMILIES = re.compile(r"gpt-?2|llama|gemma|qwen|neox|pythia|olmo|mistral|smollm", re.IGNORECASE)
PORTS = {"q", "k", "v", "qk", "kv", "qkv", "<q>", "<k>", "<v>"}
HEAD_COUNTS = re.compile(r"(n|num)_((attention|key_value|kv|q)_)?(heads?|groups)")
NAMES_TAKEN_APART = re.compile(r"\\\.h|[am]\(\\d|<\(?\[?qkv|^[am<]$|^\.?[hg]$")
"""What cuts a node's name up: `a(\\d+)`, `\\.h`, `<([qkv])>` in a pattern, `startswith("m")`, `split(".h")`."""

OF_FAMILIES = ("models/", "formats/", "gguf_file.py", "gguf_names.py", "gguf_tokenizer.py")
MAY_NAME = {
    "a family": {
        "__init__.py": "the table of contents",
        "checkpoints.py": "folding, which one family alone has",
        "tasks/": "published circuits, each of one model",
        "reproduce/": "published tables, each of one model",
        "cli/": "the default model, and what `models` lists",
        "mib.py": "the models of a benchmark",
    },
    "a port": {
        "layout.py": "what ports are called",
        "tasks/": "published circuits",
        "discovery/atp.py": "the ports through which a pattern is read: the method is about these",
        "report/plot.py": "how lines into them look; any other port's are plain",
    },
    "a number of heads": {
        "layout.py": "what lays them out",
        "circuit_file.py": "the sizes that other tools' files state",
    },
    "a part of a node's name": {
        "tasks/circuits.py": "published circuits, in names of its own making",
        "interchange.py": "other tools' names of edges",
    },
}
"""Which files may say what, and why. All others know units as data alone: a layout's kinds, ports, counts and names."""


CUTTING = {"startswith", "endswith", "split", "partition", "rpartition", "removeprefix", "removesuffix", "find"}
MATCHING = {"match", "fullmatch", "search", "compile", "findall", "sub"}


def said(path):
    """Of a file: its identifiers; its strings (docstrings are none); those that cut other strings up."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    names, strings, cuts = [], [], []
    for node in ast.walk(tree):
        names += [value for field in ("id", "attr", "arg", "name") if isinstance(value := getattr(node, field, 0), str)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            strings.append(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            literal = getattr(node.args[0], "value", None)
            if node.func.attr in CUTTING | MATCHING and isinstance(literal, str):
                cuts.append(literal)
    return names, strings, cuts


def findings(path):
    names, strings, cuts = said(path)
    return {
        "a family": [word for word in names + strings if FAMILIES.search(word)],
        "a port": [word for word in strings if word in PORTS],
        "a number of heads": [word for word in names + strings if HEAD_COUNTS.fullmatch(word)],
        "a part of a node's name": [cut for cut in cuts if NAMES_TAKEN_APART.search(cut)],
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_models_and_their_formats_know_an_architecture(path):
    """No other file names a family or a port, counts heads, or takes a node's name apart, but for reasons stated."""
    name = path.relative_to(PACKAGE).as_posix()
    if not name.startswith(OF_FAMILIES):
        for what, found in findings(path).items():
            assert not found or name.startswith(tuple(MAY_NAME[what])), f"{name} names {what}: {found}"


def test_what_may_name_an_architecture_does():
    """An exception that is needed no longer goes; and the rules find what they look for."""
    paths = {path.relative_to(PACKAGE).as_posix(): findings(path) for path in PACKAGE.rglob("*.py")}
    unneeded = [
        (name, what)
        for what, files in MAY_NAME.items()
        for name in files
        if not any(found[what] for path, found in paths.items() if path.startswith(name))
    ]
    assert not unneeded
