"""Resampled prompts, and what shares and quantiles of replicates say."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

RESAMPLES = ("bootstrap", "keep")
LEFT_OUT = 0.9
"""Share of the prompts that "keep" leaves out, if nothing else is said."""

ABSTAINS = -1
"""Stands in a certificate for: nothing is known."""


def draws(prompts: int, count: int, resample: str, q: float, seed: int) -> Int[np.ndarray, "replicate prompt"]:
    """How often each prompt is in each of `count` replicates.

    - `resample`: "bootstrap", as many prompts as there are with replacement; "keep", each with probability `1 - q`.

    Raises ValueError for another `resample` and for a `q` that is no share.
    """
    if resample not in RESAMPLES:
        raise ValueError(f"resample: expected one of {', '.join(RESAMPLES)}, got {resample!r}")
    if not 0 < q < 1:
        raise ValueError(f"q: expected the share of prompts left out, above 0 and below 1, got {q}")
    rng = np.random.default_rng(seed)
    if resample == "keep":
        return (rng.random((count, prompts)) >= q).astype(int)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)


def interval_of(kept: np.ndarray, count: int, confidence: float = 0.95) -> Float[np.ndarray, "2 *edges"]:
    """Lower and upper end of a share, of `kept` in `count` draws: Clopper and Pearson's exact interval (1934)."""
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(kept > 0, stats.beta.ppf(tail, kept, count - kept + 1), 0.0)
        high = np.where(kept < count, stats.beta.ppf(1 - tail, kept + 1, count - kept), 1.0)
    return np.stack([low, high])


def certificates_of(
    kept: Int[np.ndarray, "*edges"], count: int, q: float, prompts: int, confidence: float = 0.95
) -> dict[str, Int[np.ndarray, "*edges"]]:
    """How many prompts may be "replaced" or "deleted" before the majority of `count` "keep" replicates can change.

    By randomised deletion (2602.22968): each prompt is out of a replicate with probability q, so that r changed
    prompts are all out in a share `q ** r`. With mu the lower end of the majority's share, the decision stands under
    r replaced prompts if `q ** r > 3 / 2 - mu`, under r deleted ones if `q ** r > 2 (1 - mu)`; at most so many as
    there are prompts. `ABSTAINS` where mu does not say even that the majority is one.
    """
    mu = interval_of(np.maximum(kept, count - kept), count, confidence)[0]

    def most(least: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.ceil(np.log(least) / np.log(q)) - 1  # the largest r with q ** r > least
        found = np.where(least <= 0, prompts, np.minimum(found, prompts))
        return np.where(mu > 0.5, np.maximum(found, 0), ABSTAINS).astype(int)

    return {"replaced": most(3 / 2 - mu), "deleted": most(2 * (1 - mu))}
