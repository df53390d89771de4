"""Rows at a time, in chunks that fit the memory, on one device or a mesh of them; compile times."""

import contextlib
import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike

from .arguments import checked
from .files import check_can_fill

CANDIDATES, PROMPTS, MODEL = "candidates", "prompts", "model"
"""The axes of a device mesh; the last has one device where every device holds all weights."""


def chunked_vmap(f: Callable[[Any], Any], xs: Any, size: int) -> Any:
    """`jax.vmap(f)(xs)`, computed at most `size` rows at a time, so that `f` is traced once.

    Chunks are even. Where no number of chunks below twice the least divides the rows, they are padded with copies of
    the first. A chunk takes every n-th row, so that rows spread over devices stay where they are.
    """
    rows = jax.tree.leaves(xs)[0].shape[0]
    if rows <= size:
        return jax.vmap(f)(xs)
    least = -(-rows // size)
    chunks = next((count for count in range(least, 2 * least) if rows % count == 0), least)
    size = -(-rows // chunks)

    def split(x):
        if padding := chunks * size - rows:
            x = jnp.concatenate([x, jnp.broadcast_to(x[:1], (padding, *x.shape[1:]))])
        return x.reshape(size, chunks, *x.shape[1:]).swapaxes(0, 1)

    ys = jax.lax.map(jax.vmap(f), jax.tree.map(split, xs))
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(chunks * size, *y.shape[2:])[:rows], ys)


def over_prompts(objective: Any, one: Callable[[Any, Any], Any], prompts: Any) -> Any:
    """`one(objective, prompt)` of every row of `prompts`, `microbatch` at once; its model is that of the prompt."""

    def of_prompt(each: tuple) -> Any:
        return one(eqx.tree_at(lambda o: o.model, objective, objective.model.of_prompt(each[0])), each[1])

    return chunked_vmap(of_prompt, (objective.span_at, prompts), objective.microbatch)


def with_microbatch(objective: Any, size: int) -> Any:
    """The same objective, computed so many prompts at once."""
    other = copy.copy(objective)
    object.__setattr__(other, "microbatch", size)
    return other


# --- arguments ---------------------------------------------------------------------------------


class Rest:
    """What a pytree is besides its arrays, as one value that is hashed once."""

    def __init__(self, structure: Any, leaves: tuple[Any, ...]):
        self.structure, self.leaves = structure, leaves
        self._hash = hash((structure, leaves))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Rest) and (self.structure, self.leaves) == (other.structure, other.leaves)
        )

    def with_arrays(self, arrays: Sequence[Any]) -> Any:
        """The pytree."""
        given = iter(arrays)
        return jax.tree.unflatten(self.structure, [next(given) if leaf is _ARRAY else leaf for leaf in self.leaves])


_ARRAY = object()


def flattened(tree: Any) -> tuple[Rest, list[Any]]:
    """A pytree that many calls of a compiled function take: all but the arrays, to be static, and the arrays."""
    leaves, structure = jax.tree.flatten(tree)
    is_array = [eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]
    rest = tuple(_ARRAY if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    return Rest(structure, rest), [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]


# --- memory ------------------------------------------------------------------------------------


LESS = "take fewer or shorter prompts, a device with more memory, or a mesh of several"


def memory_needed(jitted: Any, *inputs: Any) -> int:
    """Bytes a device that a compiled function takes for results and on the way.

    Of the same shapes it is asked once (a compiler's answer takes as long as some calls); a call then compiles nothing,
    but after `jax.clear_caches()`.
    """
    leaves, structure = jax.tree.flatten(inputs)
    shapes = [(x.shape, x.dtype, getattr(x, "sharding", None)) if hasattr(x, "dtype") else x for x in leaves]
    asked = id(jitted), structure, *shapes, jax.config.jax_enable_x64  # type: ignore[attr-defined]
    if asked not in _MEMORY:
        compiled = jitted.lower(*inputs).compile()
        plan = getattr(compiled, "compiled", compiled).memory_analysis()
        if len(_MEMORY) >= 256:
            _MEMORY.clear()
        _MEMORY[asked] = jitted, plan.temp_size_in_bytes + plan.output_size_in_bytes
    return _MEMORY[asked][1]


_MEMORY: dict[Any, tuple[Any, int]] = {}
"""By a function's `id` (it stays as long as this has it) and what it is called on."""


def check_fits(bytes_needed: int, what: str, share: float = 0.5) -> None:
    """Raises MemoryError if so many bytes are more than a share of the device's memory (the first process's)."""
    limit = int(share * memory_limit())
    if from_first_process(int(bytes_needed > limit)):
        raise MemoryError(f"{what} needs {bytes_needed / 2**30:.1f} GiB, {limit / 2**30:.1f} GiB may be used: {LESS}")


def largest_that_fits(needed: Callable[[int], int], size: int) -> int:
    """`size`, halved until `needed(size)` bytes fit. Raises MemoryError if not even 1 fits."""
    while True:
        try:
            check_fits(needed(size), "one prompt at a time")
            return size
        except MemoryError:
            if size == 1:
                raise
            size = -(-size // 2)


def memory_limit() -> int:
    """Bytes that the default device can hold; on CPU the largest power of two within the machine's and the container's.

    Not what is free now: how many prompts are computed at once shows in the last bits of the answers.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return 1 << (max(total, 1 << 28).bit_length() - 1)


# --- devices -----------------------------------------------------------------------------------


@checked
def device_mesh(prompts: int, devices: int | None = None, model: int = 1) -> Mesh:
    """A mesh of all devices, or of the first `devices`, for an objective of so many prompts.

    Its axes are `candidates` x `prompts` x `model`: the weights are split among `model` devices, the prompts are spread
    over as many of the others as divide them evenly, the candidates (circuits evaluated at once) over the rest. Raises
    ValueError for more devices than there are, and for a number that `model` does not divide.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise ValueError(f"devices: expected 1 to {len(available)} ({available[0].platform}), got {devices}")
    if model < 1 or count % model:
        raise ValueError(f"model: expected a number that divides {count} devices, got {model}")
    return mesh_of(available[:count], prompts, model)


def mesh_of(devices: Sequence[Any], prompts: int, model: int = 1) -> Mesh:
    """`device_mesh` of these devices."""
    others = len(devices) // model
    along_prompts = int(np.gcd(others, prompts))
    shape = others // along_prompts, along_prompts, model
    return Mesh(np.array(devices).reshape(shape), (CANDIDATES, PROMPTS, MODEL), axis_types=(AxisType.Auto,) * 3)


def sharding(mesh: Mesh, shape: tuple[int, ...], *axes: str | None) -> NamedSharding:
    """Spreads the dimensions that `axes` name, those that divide evenly; the others are on every device."""
    even = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*even))


def place(x: ArrayLike, mesh: Mesh | None, *axes: str | None) -> Array:
    """The array on the devices of the mesh; without one, on the default device."""
    if mesh is None:  # a copy: what JAX takes over, nobody else may change
        return jax.device_put(np.array(x)) if isinstance(x, np.ndarray) else jnp.asarray(x)
    x = np.asarray(x) if jax.process_count() > 1 else jnp.asarray(x)
    return jax.device_put(x, sharding(mesh, x.shape, *axes))


def constrain(x: Array, mesh: Mesh | None, *axes: str | None) -> Array:
    """Inside a compiled function: how a value is spread; without axes, that all devices hold it."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, sharding(mesh, x.shape, *axes))


def place_weights(model: Any, mesh: Mesh | None) -> Any:
    """The model on the devices of a mesh, as `weight_shardings` says."""
    if mesh is None:
        return model
    arrays, rest = eqx.partition(model, eqx.is_array)

    def put(leaf: Array, spread: NamedSharding) -> Array:
        return jax.device_put(np.asarray(leaf) if jax.process_count() > 1 else leaf, spread)

    return eqx.combine(jax.tree.map(put, arrays, weight_shardings(arrays, mesh)), rest)


def weight_shardings(arrays: Any, mesh: Mesh) -> Any:
    """How the arrays of a model are spread: split along the mesh's axis `model`; without one whole on every device,
    or split among all devices where that takes over half of a device's memory.

    Matrices, also those of all layers and heads, are split along the larger of their sides that divides evenly; what is
    less than a thousandth of the model is whole. So a product with a part gives parts that are added, or put
    together: along `model` the devices exchange activations, not weights.
    """
    leaves = jax.tree.leaves(arrays)
    numbers, nbytes = sum(leaf.size for leaf in leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    axes: tuple[str, ...] = (MODEL,) if mesh.shape[MODEL] > 1 else ()
    if not axes and from_first_process(nbytes > memory_limit() // 2):
        axes = mesh.axis_names
    parts = math.prod(mesh.shape[axis] for axis in axes)

    def spread(leaf: Any) -> NamedSharding:
        sides = {axis: leaf.shape[axis] for axis in range(leaf.ndim)[-2:] if leaf.shape[axis] % parts == 0}
        spec: list[Any] = [None] * leaf.ndim
        if axes and leaf.ndim > 1 and sides and 1000 * leaf.size >= numbers:
            spec[max(sides, key=lambda axis: sides[axis])] = axes
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(spread, arrays)


def tokens_and_devices(objective: Any) -> tuple[int, int]:
    """Of one circuit on a device, of the prompts that it has; and over how many devices circuits are spread."""
    mesh, prompts = objective.mesh, objective.clean
    if mesh is None:
        return prompts.size, 1
    even = mesh.shape[PROMPTS] if len(prompts) % mesh.shape[PROMPTS] == 0 else 1
    return prompts.size // even, mesh.shape[CANDIDATES]


def from_first_process(value: int) -> int:
    """What the first process of a distributed run measured: the others must not decide by their own clock."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(value)))


# --- compiling ---------------------------------------------------------------------------------


def use_compilation_cache(folder: str | os.PathLike) -> None:
    """Keeps every compiled program in a folder, so that a later process compiles nothing again; off by default.

    Raises ValueError for a folder that cannot be filled.
    """
    if os.fspath(folder):  # an empty name turns it off
        check_can_fill(folder)
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclasses.dataclass
class CompileClock:
    """Seconds that JAX spent tracing, lowering and compiling while the clock ran, and how many compilations."""

    seconds: float = 0.0
    compilations: int = 0


@contextlib.contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """Counts the compilations inside the `with` block."""
    clock = CompileClock()

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            clock.seconds += duration_secs
            clock.compilations += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield clock
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
