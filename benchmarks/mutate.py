"""Mutants: one small change of the package at a time; the tests that concern the file should notice.

    python benchmarks/mutate.py [--count N] [--seed S] [--only metrics.py ...] [--minutes M] [--out mutants.jsonl]

Draws mutants at random over the files of `TESTS`, runs each file's tests on a copy of the package, prints one line a
mutant and at last planted, killed and the survivors. What is already in `--out` is not run again.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

LEARNT = ("learning", "hard_concrete")
TESTS = {
    "metrics.py": ("metrics", "objective", "acdc"),
    "gradients.py": ("gate_methods", "objective", "attribution", "eap_gp"),
    "losses.py": ("gate_methods", "objective"),
    "masks.py": ("objective", "doors", "finite", "attribution"),
    "evaluation/ablation.py": ("ablation",),
    "evaluation/completeness.py": ("judging", "faithfulness"),
    "evaluation/controls.py": ("judging", "random_circuits"),
    "evaluation/evaluate.py": ("judge", "judging"),
    "evaluation/faithfulness.py": ("faithfulness", "judging"),
    "evaluation/hypotheses.py": ("hypotheses", "judging"),
    "evaluation/inspection.py": ("inspection",),
    "evaluation/random_circuits.py": ("random_circuits", "gate_methods"),
    "evaluation/roc.py": ("roc",),
    "evaluation/similarity.py": ("similarity",),
    "evaluation/testing.py": ("judging", "hypotheses"),
    "evaluation/backups.py": ("conditional", "cli_peap", "finite"),
    "evaluation/comparison.py": ("comparison",),
    "evaluation/necessity.py": ("hypotheses", "judging"),
    "evaluation/paired.py": ("paired",),
    "evaluation/rediscovery.py": ("rediscovery",),
    "evaluation/retention.py": ("selection",),
    "evaluation/records.py": ("judge", "page"),
    "evaluation/variation.py": ("variation",),
    "discovery/search.py": ("acdc", "conditional", "within", "lockstep", "precision", "replicates"),
    "discovery/judges.py": ("acdc", "lockstep", "replicates", "per_prompt"),
    "discovery/sweep.py": ("acdc", "lockstep", "savepoint", "cli"),
    "discovery/noise.py": ("acdc", "precision", "conditional"),
    "discovery/width.py": ("batching", "acdc", "lockstep", "replicates"),
    "discovery/replicates.py": ("replicates", "selection"),
    "discovery/per_prompt.py": ("per_prompt",),
    "discovery/score_replicates.py": ("score_replicates", "savepoint"),
    "discovery/resampled.py": ("replicates", "score_replicates", "selection"),
    "discovery/conditional_scores.py": ("conditional",),
    "objective.py": ("objective", "doors", "finite", "gate_methods", "precision"),
    "nodes.py": ("nodes", "objective"),
    "conditional.py": ("conditional", "within"),
    "batching.py": ("batching",),
    "models/runs.py": ("laws", "units", "engines", "families"),
    "models/slopes.py": ("laws", "attribution", "units", "families"),
    "models/node_runs.py": ("nodes", "laws", "hisp", "families"),
    "models/displaced.py": ("laws", "atp", "atp_families", "engines", "families"),
    "models/decoder.py": ("families", "laws", "engines"),
    "discovery/acdc.py": ("acdc", "conditional", "within", "lockstep"),
    "discovery/acdc_result.py": ("acdc",),
    "discovery/atp.py": ("atp",),
    "discovery/attribution.py": ("gate_methods", "attribution", "eap_gp", "methods"),
    "discovery/cd_t.py": ("cd_t",),
    "models/contextual.py": ("cd_t",),
    "discovery/edge_pruning.py": (*LEARNT, "edge_pruning"),
    "discovery/evaluators.py": ("acdc",),
    "discovery/exact.py": ("gate_methods", "exact", "conditional", "methods"),
    "discovery/hard_concrete.py": LEARNT,
    "discovery/hisp.py": ("hisp", "methods"),
    "discovery/information_flow.py": ("information_flow", "gate_methods"),
    "discovery/learning.py": (*LEARNT, "edge_pruning", "subnetwork_probing", "savepoint"),
    "models/backward.py": ("backward",),
    "discovery/mattr.py": ("mattr",),
    "discovery/measure.py": ("gate_methods", "attribution", "information_flow"),
    "discovery/optimal_ablation.py": ("optimal_ablation",),
    "discovery/peap.py": ("peap",),
    "crossings.py": ("peap", "cli_peap"),
    "models/crossing.py": ("peap",),
    "discovery/predictors.py": ("acdc",),
    "discovery/schedule.py": ("acdc",),
    "discovery/subnetwork_probing.py": (*LEARNT, "subnetwork_probing"),
    "discovery/ugs.py": ("ugs", "methods"),
    "chains.py": ("gate_methods", "acdc", "engines"),
    "current_run.py": ("gate_methods", "acdc", "engines", "lockstep"),
    "device_loop.py": ("device_loop",),
    "lockstep.py": ("lockstep",),
    "live.py": ("gate_methods", "acdc", "engines", "savepoint"),
    "programs.py": ("gate_methods", "acdc", "engines"),
    "sparse.py": ("gate_methods", "sparse", "engines"),
    "sparse_plan.py": ("gate_methods", "sparse", "engines"),
}
"""The test files (`tests/test_NAME.py`) that concern a file, the quickest first."""

OTHER = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and",
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum", "zeros": "ones",
         "ones": "zeros", "argmax": "argmin", "argmin": "argmax", "minimum": "maximum", "maximum": "minimum",
         "zeros_like": "ones_like", "ones_like": "zeros_like", "abs": "asarray"}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what it says after the change, the whole changed file) of every mutant.

    Operators, comparisons, constants, conditions, reductions and keyword arguments are changed; what only words an
    error, `strict`, annotations and docstrings are not.
    """
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()

    def place(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    for node in _computing(ast.parse(source)):
        for first, last, new in _changes(node, place, data):
            changed = (data[:first] + new.encode() + data[last:]).decode()
            if not _parses(changed):
                continue
            said = changed[len(data[:first].decode().rpartition("\n")[0]) :].lstrip("\n").split("\n")[0].strip()
            yield node.lineno, said, changed  # type: ignore[attr-defined]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes but annotations, decorators, documentation, imports, errors and `strict=`, which raises one."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            yield node
            yield from _computing(node)


def _changes(node: ast.AST, place, data: bytes) -> Iterator[tuple[int, int, str]]:
    """(first byte, last byte, new text) of what may stand there instead."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OTHER:
        yield place(node.left)[1], place(node.comparators[0])[0], f" {OTHER[type(node.ops[0])]} "
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        first, last = place(node.left)[1], place(node.right)[0]
        if not set(data[first:last].decode()) & set("()"):
            yield first, last, f" {OTHER[type(node.op)]} "
    elif isinstance(node, ast.BoolOp):
        first, last = place(node.values[0])[1], place(node.values[1])[0]
        if not set(data[first:last].decode()) & set("()"):
            yield first, last, f" {OTHER[type(node.op)]} "
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield place(node)[0], place(node.operand)[0], ""
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        new = not node.value if isinstance(node.value, bool) else node.value + 1
        yield *place(node), str(new)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield *place(node.test), "False"
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        end = place(node)[1]
        yield end - len(node.attr), end, NAMES[node.attr]
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in NAMES:
            yield *place(node.func), NAMES[node.func.id]


NONE_CHOSEN = 5
"""What pytest ends with where no test has the marks."""


def survives(name: str, changed: str, tests: tuple[str, ...], timeout: float) -> str:
    """ "killed", "timeout", or "survived": whether the tests that CI runs pass on a copy with one changed file."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("jaxcircuits", "tests", "weights"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("setup.cfg", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, folder)
        (Path(folder) / "jaxcircuits" / name).write_text(changed)
        files = [f"tests/test_{test}.py" for test in tests]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "mutants-compiled")}
        cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        environment = {**os.environ, **cache, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        for marks in ("not slow and not mission", "mission and not slow"):  # the quick ones first: both are CI's
            marked = [*command, "-m", marks]
            try:
                run = subprocess.run(
                    marked, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
                )
            except subprocess.TimeoutExpired:
                return "timeout"
            if run.returncode not in (0, 1, NONE_CHOSEN) and not _collected(name, folder, command, environment):
                raise SystemExit(f"the tests of {name} do not run:\n{(run.stdout + run.stderr)[-2000:]}")
            if run.returncode not in (0, NONE_CHOSEN):
                return "killed"
        return "survived"


def _collected(name: str, folder: str, command: list[str], environment: dict[str, str]) -> bool:
    """Whether pytest finds the tests of the file as it was: then it is the mutant that broke importing."""
    shutil.copy(ROOT / "jaxcircuits" / name, Path(folder) / "jaxcircuits" / name)
    found = [*command, "--collect-only", "-m", ""]
    return subprocess.run(found, cwd=folder, env=environment, capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="files whose names hold one of these")
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds, of the quick and of the mission's tests each"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no mutant after this")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    options = parser.parse_args()
    every = [
        (name, line, said, changed)
        for name in TESTS
        for line, said, changed in mutants((ROOT / "jaxcircuits" / name).read_text())
        if any(part in name for part in options.only)
    ]
    print(f"{len(every)} mutants; {min(options.count, len(every))} are drawn", flush=True)
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    known = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.is_file() else []
    done = {(each["file"], each["line"], each["now"]): each for each in known}
    start = time.monotonic()
    for name, line, said, changed in drawn:
        if (name, line, said) in done or time.monotonic() - start > 60 * options.minutes:
            continue
        began = time.monotonic()
        end = survives(name, changed, TESTS[name], options.timeout)
        record = {"file": name, "line": line, "now": said, "end": end, "seconds": round(time.monotonic() - began)}
        done[name, line, said] = record
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{end:9} {record['seconds']:4} s  {name}:{line}  {said}", flush=True)
    survivors = [each for each in done.values() if each["end"] == "survived"]
    print(f"planted {len(done)}, killed {len(done) - len(survivors)}; survivors:")
    print(*(f"  {each['file']}:{each['line']}  {each['now']}" for each in survivors), sep="\n")


if __name__ == "__main__":
    main()
