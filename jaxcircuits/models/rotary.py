"""Rotary positions: queries and keys are turned, pair by pair, by angles that grow with their position.

Pairs are entries i and i + half. How far a pair turns from one position to the next (its frequency) falls with i;
models that are to read further than they were trained for scale the frequencies.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are scaled, named as in `rope_scaling` of a Hugging Face `config.json`.

    "dynamic" changes nothing up to `max_position_embeddings`, and there a prompt ends. Raises ValueError for another
    `rope_type`, and for a value that it has no use for or lacks.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in SCALED:
            raise ValueError(
                f"rope_scaling: rope_type {self.rope_type!r} is not supported: expected {', '.join(SCALED)}"
            )
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"rope_scaling: factor: expected at least 1, got {self.factor}")
        used = {"rope_type", "factor", *SCALED[self.rope_type][1]}
        if unused := [name for name, value in vars(self).items() if value is not None and name not in used]:
            raise ValueError(f"rope_scaling: {', '.join(unused)} would have no effect in rope_type {self.rope_type!r}")
        length, attention = self.original_max_position_embeddings, self.attention_factor
        if (length is not None and length < 1) or (attention is not None and not 0 < attention < math.inf):
            got = f"got {length} and {attention}"
            raise ValueError(
                f"rope_scaling: expected original_max_position_embeddings and attention_factor above 0, {got}"
            )
        for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):  # 0 is as good as none
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"rope_scaling: {name}: expected a number of at least 0, got {getattr(self, name)}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if self.rope_type == "llama3" and not (low and high and 0 < low < high):
            raise ValueError(f"rope_scaling: expected 0 < low_freq_factor < high_freq_factor, got {low} and {high}")


class Rotation(NamedTuple):
    """What turns queries and keys: the frequency of each pair, and what all are multiplied with, of each layer."""

    frequencies: Float[np.ndarray, "layer pair"]
    scales: Float[np.ndarray, " layer"]

    def __call__(
        self, layer: Int[Array, ""], x: Float[Array, "*head at key"], at: Int[Array, " at"]
    ) -> Float[Array, "*head at key"]:
        """Queries or keys at the positions `at`; entries beyond the pairs stay as they are."""
        wide = np.promote_types(x.dtype, np.float32)  # the 8 bits of bfloat16 count no positions
        frequencies, scales = (jnp.asarray(values, wide) for values in self)
        angles = at[:, None].astype(wide) * frequencies[layer][None]
        cos, sin = ((scales[layer] * turn(angles)).astype(x.dtype) for turn in (jnp.cos, jnp.sin))
        half = self.frequencies.shape[-1]

        def turned(x: Float[Array, "at key"]) -> Float[Array, "at key"]:
            one, other, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
            return jnp.concatenate([one * cos - other * sin, other * cos + one * sin, rest], axis=-1)

        return jnp.vectorize(turned, signature="(t,k)->(t,k)")(x)


def rotation(layers: int, width: int, theta: float, scaling: RopeScaling | None = None, positions: int = 0) -> Rotation:
    """Frequencies `theta^(-2i / width)`, scaled, the same in all layers.

    - `width`: entries that turn. `positions`: the length of training where the scaling names none.
    """
    frequencies, scale = 1 / theta ** (np.arange(0, width, 2) / width), 1.0
    if scaling is not None:
        length = scaling.original_max_position_embeddings or positions
        frequencies, scale = SCALED[scaling.rope_type][0](frequencies, theta, scaling, length)
    return Rotation(np.tile(frequencies, (layers, 1)), np.full(layers, scale))


Scaled = tuple[Float[np.ndarray, " pair"], float]


def _linear(frequencies: np.ndarray, theta: float, scaling: RopeScaling, positions: int) -> Scaled:
    return frequencies / scaling.factor, 1.0


def _dynamic(frequencies: np.ndarray, theta: float, scaling: RopeScaling, positions: int) -> Scaled:
    return frequencies, 1.0


def _llama3(frequencies: np.ndarray, theta: float, scaling: RopeScaling, positions: int) -> Scaled:
    """Pairs that turn rarely in the length of training are slowed by `factor`, fast ones not, others in part."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None
    kept = np.clip((positions * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor), 1.0


def _yarn(frequencies: np.ndarray, theta: float, scaling: RopeScaling, positions: int) -> Scaled:
    """As Llama 3's, but in part by the pair's number; and attention is sharpened (Peng et al. 2023, 2309.00071)."""
    count = len(frequencies)

    def pair_that_turns(times: float) -> float:
        return count * math.log(positions / (times * 2 * math.pi)) / math.log(theta)

    def sharpened(by: float) -> float:
        return 0.1 * by * math.log(scaling.factor) + 1

    first, last = pair_that_turns(scaling.beta_fast or 32), pair_that_turns(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    slowed = np.clip((np.arange(count) - first) / ((last - first) or 1e-3), 0, 1)
    scale = scaling.attention_factor
    if scale is None and scaling.mscale and scaling.mscale_all_dim:
        scale = sharpened(scaling.mscale) / sharpened(scaling.mscale_all_dim)
    return frequencies * (1 - slowed + slowed / scaling.factor), sharpened(1.0) if scale is None else scale


YARN = "original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate".split()

SCALED: dict[str, tuple[Callable[[np.ndarray, float, RopeScaling, int], Scaled], Sequence[str]]] = {
    "linear": (_linear, []),
    "dynamic": (_dynamic, []),
    "llama3": (_llama3, ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    "yarn": (_yarn, YARN),
}
"""What a `rope_type` does, and which keys it reads besides `factor`."""
