"""How exactly matrices are multiplied, by name.

Full float32 costs tensor units several passes. Fewer passes err more; what that does to a search's decisions it
measures itself (`discovery/noise.py`). A CPU computes "high" in full float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = "highest"

PRECISIONS = {
    HIGHEST: "highest",  # full float32: six passes of bfloat16 on a TPU
    "high": "high",  # three passes of bfloat16 on a TPU, one of TF32 on a GPU
    "tf32x3": "TF32_TF32_F32_X3",  # three passes of TF32, on a GPU
    "bf16x6": "BF16_BF16_F32_X6",  # six passes of bfloat16, on a GPU or TPU
}
"""JAX's name of each: a `jax.lax.Precision` in small letters, or a `jax.lax.DotAlgorithmPreset`."""


def products(name: str) -> Any:
    """The context in which matrices are multiplied so. Raises ValueError for an unknown name."""
    _check_known(name)
    return jax.default_matmul_precision(PRECISIONS[name])


def check_precision(name: str, dtype: Any) -> None:
    """Raises ValueError for an unknown name, for one of another dtype than float32, and where the device lacks it."""
    _check_known(name)
    if name == HIGHEST:
        return
    if np.dtype(dtype) != np.float32:
        raise ValueError(f"precision: {name} is of float32, got a model in {np.dtype(dtype)}: expected {HIGHEST}")
    if not _is_had(name):
        raise ValueError(f"precision: {name} is not to be had on this {jax.default_backend()}, expected {HIGHEST}")


def _check_known(name: str) -> None:
    if name not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")


def _is_had(name: str) -> bool:
    """Whether the device compiles such products; a CPU knows some of them, but not of all shapes."""
    if jax.default_backend() == "cpu":
        return PRECISIONS[name].islower()
    square = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    try:
        with products(name):
            jax.jit(jnp.dot).lower(square, square).compile()
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        return False
    return True
