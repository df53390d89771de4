"""Five hypothesis tests of a circuit: Shi et al., 2410.13032. Pure NumPy, from scores that are computed already.

s is the loss on each of n prompts (of a task score's sign nothing here depends); M the model, C the circuit, M - C its
complement. The distance of two is `d = mean over prompts of (s - s')^2`. What the public code does otherwise:

1. Its equivalence test passes the mean difference where the formula has the share of prompts.
2. Its independence test has one width for both kernels, the median distance of a complement's score to a model's: where
   the circuit's removal shifts or shrinks the scores, one kernel is nearly constant and sees no dependence.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " _"]

NOISE = 1e-9
"""Scores that differ by no more are tied, unless a test is told what rounding makes of them."""

CELLS = 2**22  # of permuted kernels held at once


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one test says.

    - `null`: the hypothesis that is tested. `rejecting_is`: "good" or "bad" for the circuit.
    - `rejected`: whether `p_value <= level`; None: undecided, and `reason` says why.
    - `statistic`: its value, named in `null`. `details`: what it was computed from.
    """

    name: str
    null: str
    rejecting_is: str
    level: float
    statistic: float | None
    p_value: float | None
    rejected: bool | None
    reason: str | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def distance(first: Float[np.ndarray, "*n prompt"], second: Float[np.ndarray, "*m prompt"]) -> np.ndarray:
    """`mean over prompts of (s - s')^2`; other axes broadcast."""
    return ((first - second) ** 2).mean(-1)


def _exceeds(first: Any, second: Any, noise: float) -> np.ndarray:
    """Whether a distance is the larger one, beyond what rounding makes: differences of scores are off by `noise`."""
    return np.sqrt(first) > np.sqrt(second) + 2 * noise


def _may_exceed(first: Any, second: Any, noise: float) -> np.ndarray:
    """Whether it is, or ties."""
    return np.sqrt(first) + 2 * noise >= np.sqrt(second)


def equivalence(
    circuit: Values, model: Values, *, epsilon: float = 0.1, level: float = 0.05, noise: float | Values = NOISE
) -> Outcome:
    """Does the circuit score above the model on about half of the prompts?

    `k` prompts with s(C) > s(M), ties counted half; `t = |k/n - 1/2|`; `p = P(|X/n - 1/2| >= t)`, X binomial with
    n draws of chance 1/2 + epsilon. Undecided if all prompts tie: differ by no more than `noise`, each prompt's own or
    that of all. Raises ValueError for lengths that differ and an epsilon outside 0 to 1/2.
    """
    _same_length(circuit, model)
    if not 0 <= epsilon <= 0.5:
        raise ValueError(f"epsilon: expected a number from 0 to 1/2, got {epsilon}")
    null = f"the chance that the circuit scores above the model is within {epsilon} of 1/2"
    difference = circuit - model
    tied = np.abs(difference) <= noise
    if tied.all():
        return _undecided("equivalence", null, "bad", level, "the circuit ties with the model on every prompt")
    from scipy import stats

    n = len(circuit)
    above = float((difference[~tied] > 0).sum() + tied.sum() / 2)
    t = abs(above / n - 0.5)
    draws = np.arange(n + 1)
    far = np.abs(draws / n - 0.5) >= t - 1e-12
    p_value = float(min(1.0, stats.binom.pmf(draws[far], n, 0.5 + epsilon).sum()))
    details = {"above": above, "tied": int(tied.sum()), "prompts": n, "epsilon": epsilon}
    return _decided("equivalence", null, "bad", level, (t, p_value), details)


def independence(
    complement: Values,
    model: Values,
    *,
    permutations: int = 1000,
    seed: int = 0,
    level: float = 0.05,
    noise: float = NOISE,
) -> Outcome:
    """Does what is left without the circuit still say something about the model's score?

    `HSIC = tr(K H L H) / n^2` of s(M - C) and s(M), Gaussian kernels `exp(-(s - s')^2 / (2 width^2))`, each with the
    median distance of its own scores as width (Gretton et al., 2007), so that neither's unit matters;
    `p = (1 + permutations with at least this HSIC) / (1 + permutations)`. Undecided if a bandwidth is no more than
    `noise`. Raises ValueError for lengths that differ and no permutations.
    """
    _same_length(complement, model)
    if permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}")
    null = "the scores of the model without the circuit are independent of the model's"
    widths = [_median_distance(values) for values in (complement, model)]
    if min(widths) <= noise:
        reason = f"half of the prompts' scores are the same up to rounding: bandwidth {min(widths):.1g}"
        return _undecided("independence", null, "bad", level, reason)
    n = len(model)
    kernels = [_gaussian(values, width) for values, width in zip((complement, model), widths, strict=True)]
    centre = np.eye(n) - 1 / n
    centred, other = centre @ kernels[0] @ centre, kernels[1]
    found = float((centred * other).sum()) / n**2
    shuffled = _shuffled(centred, other, permutations, np.random.default_rng(seed))
    p_value = (1 + int((shuffled >= found - 1e-15).sum())) / (1 + permutations)
    details = {"permutations": permutations, "seed": seed, "bandwidths": widths}
    return _decided("independence", null, "bad", level, (found, p_value), details)


def minimality(
    effects: Float[np.ndarray, " edge"],
    inflated: Float[np.ndarray, " circuit"],
    names: tuple[str, ...],
    *,
    share: float = 0.9,
    level: float = 0.05,
    noise: float = NOISE,
) -> Outcome:
    """Does every edge matter more than an edge that was added at random?

    For each edge, `k` counts how many of the R `inflated` effects its own exceeds; p is a binomial test of k in R
    against `share`, alternative "less", times the number of edges (Bonferroni). Rejected if the least of these p is;
    `details` names the edges that are, and has effect, k and p of each. Ties, which differences of scores that are off
    by `noise` can make, count for an edge that changes any score at all. Undecided where they alone save one, and
    without edges or inflated circuits.
    """
    null = f"the chance that an edge's removal changes more than a random added edge's is at least {share}, for all"
    if not len(effects) or not len(inflated):
        missing = "edges in the circuit" if len(inflated) else "edges that a random path adds to the circuit"
        return _undecided("minimality", null, "bad", level, f"there are no {missing}")
    counts, least = (of(effects[:, None], inflated[None, :], noise).sum(1) for of in (_may_exceed, _exceeds))
    counts = np.where(effects > 0, counts, 0)

    def p_values_of(counts: np.ndarray) -> np.ndarray:
        each = np.array([_binomial(int(count), len(inflated), share, "less") for count in counts])
        return np.minimum(1.0, each * len(effects))

    p_values = p_values_of(counts)
    superfluous = [names[index] for index in np.flatnonzero(p_values <= level)]
    details = {
        "superfluous": superfluous,
        "edges": {
            name: [float(e), int(k), float(p)] for name, e, k, p in zip(names, effects, counts, p_values, strict=True)
        },
        "inflated_circuits": len(inflated),
        "share": share,
    }
    found = float(counts.min()), float(p_values.min())
    outcome = _decided("minimality", null, "bad", level, found, details)
    return _unless_ties_decide(outcome, float(p_values_of(least).min()))


def sufficiency(
    circuit: float,
    random: Float[np.ndarray, " circuit"],
    *,
    share: float = 0.9,
    level: float = 0.05,
    noise: float = NOISE,
) -> Outcome:
    """Is the circuit at least as close to the model as random circuits of its size?

    `k` counts `d(M, C) <= d(M, C_r)`; a binomial test against `share`, alternative "greater". Ties, which differences
    of scores that are off by `noise` can make, are no wins. Undecided where they would decide, and without any circuit.
    """
    null = f"the chance that the circuit is at least as close to the model as a random one is at most {share}"
    wins = _exceeds(random, circuit, noise), _may_exceed(random, circuit, noise)
    return _against_random("sufficiency", null, wins, (share, level), circuit)


def partial_necessity(
    complement: float,
    random: Float[np.ndarray, " circuit"],
    *,
    share: float = 0.9,
    level: float = 0.05,
    noise: float = NOISE,
) -> Outcome:
    """Does removing the circuit take the model further away than removing random circuits of its size?

    `k` counts `d(M, M - C) > d(M, M - C_r)`; a binomial test against `share`, alternative "greater". Ties are no wins,
    as in `sufficiency`. Undecided where they would decide, and without any circuit.
    """
    null = f"the chance that removing the circuit changes more than removing a random one is at most {share}"
    wins = _exceeds(complement, random, noise), _may_exceed(complement, random, noise)
    return _against_random("partial necessity", null, wins, (share, level), complement)


def _against_random(
    name: str, null: str, wins: tuple[np.ndarray, np.ndarray], share_and_level: tuple[float, float], own: float
) -> Outcome:
    """`wins`: without ties, and with them."""
    (share, level), (sure, possible) = share_and_level, wins
    if not len(sure):
        return _undecided(name, null, "good", level, "there are no random circuits to compare with")
    count, most = int(sure.sum()), int(possible.sum())
    p_value, p_with_ties = (_binomial(k, len(sure), share, "greater") for k in (count, most))
    details = {"wins": count, "tied": most - count, "random_circuits": len(sure), "share": share, "distance": own}
    return _unless_ties_decide(_decided(name, null, "good", level, (count / len(sure), p_value), details), p_with_ties)


def _unless_ties_decide(outcome: Outcome, p_otherwise: float) -> Outcome:
    """An outcome in which ties count for the null; `p_otherwise`: counted against it."""
    p_value = outcome.p_value
    if p_value is None or not p_otherwise <= outcome.level < p_value:
        return outcome
    reason = f"ties decide: up to rounding, what is compared is the same (p {p_value:.2g} or {p_otherwise:.2g})"
    return dataclasses.replace(outcome, statistic=None, p_value=None, rejected=None, reason=reason)


def _binomial(count: int, draws: int, share: float, alternative: str) -> float:
    from scipy import stats

    return float(stats.binomtest(count, draws, share, alternative=alternative).pvalue)


def _median_distance(values: Values) -> float:
    rows, columns = np.triu_indices(len(values), 1)
    return float(np.median(np.abs(values[rows] - values[columns]))) if len(rows) else 0.0


def _gaussian(values: Values, width: float) -> Float[np.ndarray, "prompt prompt"]:
    return np.exp(-((values[:, None] - values[None, :]) ** 2) / (2 * width**2))


def _shuffled(
    centred: Float[np.ndarray, "prompt prompt"],
    other: Float[np.ndarray, "prompt prompt"],
    permutations: int,
    random: np.random.Generator,
) -> Float[np.ndarray, " permutation"]:
    """HSIC of one kernel with the other's prompts permuted, many times over."""
    n = len(other)
    at_once = max(1, CELLS // n**2)
    values = []
    for first in range(0, permutations, at_once):
        orders = random.permuted(np.tile(np.arange(n), (min(at_once, permutations - first), 1)), axis=1)
        values.append((centred * other[orders[:, :, None], orders[:, None, :]]).sum((1, 2)) / n**2)
    return np.concatenate(values)


def _same_length(first: Values, second: Values) -> None:
    if first.shape != second.shape or not len(first):
        raise ValueError(f"expected scores of the same prompts, at least one, got {first.shape} and {second.shape}")


def _decided(
    name: str, null: str, rejecting_is: str, level: float, values: tuple[float, float], details: dict[str, Any]
) -> Outcome:
    statistic, p_value = values
    return Outcome(name, null, rejecting_is, level, statistic, p_value, p_value <= level, None, details)


def _undecided(name: str, null: str, rejecting_is: str, level: float, reason: str) -> Outcome:
    return Outcome(name, null, rejecting_is, level, None, None, None, reason)
