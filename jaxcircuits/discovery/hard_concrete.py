"""The hard concrete distribution (Louizos et al. 1712.01312): masks in [0, 1] that are often exactly 0 or 1.

    u ~ Uniform(margin, 1 - margin)
    s = sigmoid((log u - log(1 - u) + a) / beta)
    z = clip(s (zeta - gamma) + gamma, 0, 1)

with one parameter `a` (log alpha) an entry; z is differentiable in a, and P(z > 0) is known in closed form.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

BETA = 2 / 3
GAMMA = -0.1
ZETA = 1.1


def sample(key: PRNGKeyArray, log_alpha: Float[Array, "..."], *, margin: float = 1e-4) -> Float[Array, "..."]:
    """One draw of every entry (equations 10 and 11)."""
    u = jax.random.uniform(key, log_alpha.shape, log_alpha.dtype, margin, 1 - margin)
    return _stretched(jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / BETA))


def expected_l0(log_alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """`P(z > 0) = sigmoid(a - beta log(-gamma / zeta))` (equation 12)."""
    return jax.nn.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def deterministic(log_alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """`clip(sigmoid(a) (zeta - gamma) + gamma, 0, 1)`, the value used after training (equation 13)."""
    return _stretched(jax.nn.sigmoid(log_alpha))


def log_alpha_of(value: float) -> float:
    """The parameter whose deterministic value is `value`, in (0, 1): 0.9 gives 1.609, the start of Cao et al."""
    share = (value - GAMMA) / (ZETA - GAMMA)
    return math.log(share / (1 - share))


def _stretched(s: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)
