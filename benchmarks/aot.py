"""Compiles every program for chips that are not there, and says what the compiler says of them.

    pip install -e '.[aot]'     # libtpu; for h100 also jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12
    python benchmarks/aot.py [--chip v5e|v5p|v6e|h100] [--devices N] [--split-weights N] [--size tiny|small|xl|8b]
        [--prompts 100] [--only REGEX] [--precision highest|high|tf32x3|bf16x6] [--command-buffers]

One JSON line a program, then a table: whether it compiles, processor seconds, memory beside the chip's, matrix
products and copies in the text, collectives (in loops or not), red flags (float64, host callbacks); of a GPU the loops
and branches that its host runs, waiting for each turn (`--command-buffers`: with the flag that leaves them to the GPU).
No number is measured on a chip.
"""

import argparse
import collections
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

for name, value in {
    "JAX_PLATFORMS": "cpu",  # libtpu only compiles
    "TPU_SKIP_MDS_QUERY": "1",  # it looks for no metadata server
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process fails on a lock file
    "LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=8192",  # as the commands set
}.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402
from aot_cost import size_of  # noqa: E402
from aot_programs import SHAPES, Program, abstract_objective, axes_of, programs  # noqa: E402
from common import emit  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, SingleDeviceSharding  # noqa: E402

from jaxcircuits import batching  # noqa: E402
from jaxcircuits.live import SLOTS  # noqa: E402
from jaxcircuits.precision import PRECISIONS  # noqa: E402

CHIPS = {
    "v5e": (("v5e:2x2", "v5e:2x4"), 16),
    "v5p": (("v5p:2x2x1", "v5p:2x2x2"), 95),
    "v6e": (("v6e:2x2", "v6e:2x4"), 32),
    "h100": (None, 80),
}
"""The topologies of 4 and of 8 that a chip may be part of (None: of a GPU, any), and its memory in GiB."""

COLLECTIVE = re.compile(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")


def topology_of(chip: str, devices: int = 1) -> Any:
    """Chips that are wired together, at least so many. Raises RuntimeError where their compiler is not installed."""
    names, _ = CHIPS[chip]
    if names is None:
        target = (Path(__file__).parent / "h100.txtpb").read_text()
        return topologies.get_topology_desc("", "cuda", target_config=target, topology=f"1x1x{devices}")
    return topologies.get_topology_desc(names[devices > 4], "tpu")


def mesh_of(topology: Any, devices: int, prompts: int, model: int = 1) -> Mesh | None:
    """As `jaxcircuits.device_mesh` makes it; None for one device."""
    return None if devices == 1 else batching.mesh_of(topology.devices[:devices], prompts, model)


def compiled(program: Program, topology: Any, mesh: Mesh | None) -> tuple[Any, float]:
    """The compiled program and the processor seconds that it took."""
    weights = {} if mesh is None else weights_of(program, mesh)

    def place(path: str, leaf: Any) -> Any:
        if mesh is None:
            spread: Any = SingleDeviceSharding(topology.devices[0])
        else:
            spread = weights.get(path) or batching.sharding(mesh, leaf.shape, *axes_of(path))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread)

    start = time.process_time()
    return program.lowered(place).compile(), time.process_time() - start


def weights_of(program: Program, mesh: Mesh) -> dict[str, Any]:
    """How the library spreads the weights among a program's arguments, by their paths."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(program.arrays()[0])}
    weights = {path: leaf for path, leaf in leaves.items() if ".model." in path}
    return dict(zip(weights, jax.tree.leaves(batching.weight_shardings(list(weights.values()), mesh)), strict=True))


def in_loops(text: str) -> list[str]:
    """The collectives of the computations that loops run, or that these call."""
    bodies = {name: body for name, body in re.findall(r"^%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)}
    seen: set[str] = set()
    todo = re.findall(r"(?:body|condition)=%?([\w.\-]+)", text)
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += [called for called in re.findall(r"%([\w.\-]+)", bodies.get(name, "")) if called in bodies]
    return [match for name in seen for match in COLLECTIVE.findall(bodies.get(name, ""))]


def read(text: str) -> dict[str, Any]:
    """What a program's text shows."""
    flags = ["f64"] if re.search(r"\bf64\[", text) else []
    flags += [target for target in set(re.findall(r'custom_call_target="([^"]+)"', text)) if "callback" in target]
    gathers = re.findall(r" = (\(.*?\)|\S+) all-gather(?:-start)?\(", text)  # started ones: operands and results
    gathered = [size_of(shape) for shapes in gathers for shape in re.findall(r"\w+\[[0-9,]*\]", shapes)]
    return {
        "instructions": len(re.findall(r"^\s+\S+ = ", text, re.M)),
        "copies": len(re.findall(r" copy\(", text)),
        "loops": len(re.findall(r" while\(", text)),
        "collectives": dict(collections.Counter(COLLECTIVE.findall(text))),
        "largest_gather_mib": round(max(gathered, default=0) / 2**20, 3),
        "collectives_in_loops": dict(collections.Counter(in_loops(text))),
        "flags": flags,
    }


def keep_thunks(command_buffers: bool) -> Path:
    """Makes XLA write down what a GPU's host does, in the folder. To be called before anything is compiled."""
    folder = Path(tempfile.mkdtemp(prefix="thunks-"))
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_dump_to={folder}", "--xla_dump_hlo_as_text"]
    flags += ["--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"] if command_buffers else []
    os.environ["XLA_FLAGS"] = " ".join(flags)
    return folder


def host_turns(thunks: str) -> int:
    """Loops and branches that a GPU's host runs itself: those that lie in no command buffer."""
    count, buffer = 0, None
    for spaces, kind in re.findall(r"^( *)\d+: (k\w+)", thunks, re.M):
        if buffer is not None and len(spaces) <= buffer:
            buffer = None
        if buffer is None and kind == "kCommandBuffer":
            buffer = len(spaces)
        count += buffer is None and kind in ("kWhile", "kConditional")
    return count


def row_of(name: str, program: Program, topology: Any, mesh: Mesh | None, gib: float) -> dict[str, Any]:
    """What the compiler says of a program."""
    try:
        made, seconds = compiled(program, topology, mesh)
    except jax.errors.JaxRuntimeError as error:
        return {"program": name, "compiles": False, "error": str(error)[:300]}
    plan = made.memory_analysis()
    sizes = plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes, -plan.alias_size_in_bytes
    peak = sum(sizes) / 2**30
    row = {"program": name, "compiles": True, "processor_s": round(seconds, 1), "peak_gib": round(peak, 2)}
    return {**row, "fits": peak < 0.97 * gib, **read(made.as_text())}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = "program", "compiles", "processor_s", "peak_gib", "fits", "copies", "loops", "host_turns", "collectives"
    names += ("flags",)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    cells = [["-" if row.get(name) in (None, {}, []) else str(row[name]) for name in names] for row in rows]
    return "\n".join(lines + [f"| {' | '.join(line)} |" for line in cells])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, default="v5e")
    parser.add_argument("--devices", type=int, choices=range(1, 9), default=1)
    parser.add_argument("--split-weights", type=int, default=1, help="devices that the weights are split among")
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--microbatch", type=int, default=10)
    parser.add_argument("--metric", default="kl")
    parser.add_argument("--precision", choices=PRECISIONS, default="highest")
    parser.add_argument("--command-buffers", action="store_true", help="of a GPU, for loops and branches too")
    parser.add_argument("--slots", type=int, default=SLOTS[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--only", default="", help="programs whose names match")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    thunks = keep_thunks(options.command_buffers) if CHIPS[options.chip][0] is None else None
    topology = topology_of(options.chip, options.devices)
    mesh = mesh_of(topology, options.devices, options.prompts, options.split_weights)
    shape = options.prompts, options.length, options.metric, options.microbatch, options.precision
    made = programs(abstract_objective(SHAPES[options.size], *shape), options.slots, options.width, mesh)
    emit(**vars(options), device=topology.devices[0].device_kind, jax=jax.__version__)
    rows = []
    for name, program in made.items():
        if re.search(options.only, name):
            rows.append(row_of(name, program, topology, mesh, CHIPS[options.chip][1]))
            if thunks is not None:
                written = max(thunks.glob("*thunk_sequence_after*"), key=lambda path: path.stat().st_mtime)
                rows[-1]["host_turns"] = host_turns(written.read_text())
            emit(**rows[-1])
    if thunks is not None:
        shutil.rmtree(thunks)
    print(table(rows))


if __name__ == "__main__":
    main()
