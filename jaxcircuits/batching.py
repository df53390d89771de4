"""Rows at a time: chunks that fit the memory, padded so that one trace serves all of them; compile times."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp


def chunked_vmap(f: Callable[[Any], Any], xs: Any, size: int) -> Any:
    """`jax.vmap(f)(xs)`, computed `size` rows at a time.

    Rows are padded to a multiple of `size` with copies of the first, so that `f` is traced once.
    """
    rows = jax.tree.leaves(xs)[0].shape[0]
    if rows <= size:
        return jax.vmap(f)(xs)
    chunks = -(-rows // size)

    def split(x):
        padding = jnp.broadcast_to(x[:1], (chunks * size - rows, *x.shape[1:]))
        return jnp.concatenate([x, padding]).reshape(chunks, size, *x.shape[1:])

    ys = jax.lax.map(jax.vmap(f), jax.tree.map(split, xs))
    return jax.tree.map(lambda y: y.reshape(chunks * size, *y.shape[2:])[:rows], ys)


def rows_that_fit(bytes_per_row: int, rows: int, share: float = 0.25) -> int:
    """How many of `rows` to compute at once so that they take at most `share` of the device's memory."""
    return max(1, min(rows, int(share * memory_limit()) // max(1, bytes_per_row)))


def memory_limit() -> int:
    """Bytes that the default device can hold; on CPU the free memory, within the container's limit."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = Path("/sys/fs/cgroup/memory.current")
        free = min(free, int(text) - (int(used.read_text()) if used.is_file() else 0))
    return max(free, 1 << 28)


def use_compilation_cache(folder: str | os.PathLike) -> None:
    """Keeps every compiled program in a folder, so that a later process compiles nothing again; off by default."""
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
