"""How often the five tests reject on the compiled tracr circuit, over seeds, with noise of a known size on its scores.

The circuit is perfect and the model's L2 to its own output is 0, so what theory says is exact. Scores of known
difference `D` and Gaussian noise put one above the other with chance `Phi(D / (sqrt(2) sigma))`. A distance among m
others of the same distribution has each of m + 1 places with the same chance; others far from it are surely below or
above, as sigma is small.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

import jaxcircuits as jc
from jaxcircuits.evaluation import distance, equivalence, independence, minimality, partial_necessity, sufficiency

SIGMA, SEEDS, OTHERS = 0.01, 400, 100
FAR = 40 * SIGMA**2  # distances of equal scores are about 2 sigma^2; others are larger than this

pytestmark = pytest.mark.slow
rows = []


@pytest.fixture(scope="module", autouse=True)
def table():
    """Printed when all rates are known: pytest -rP shows it."""
    yield
    print(f"\n{'test':<18}{'scores of':<42}{'rate':>8}{'theory':>9}{'standard error':>16}")
    for test, of, rate, theory, error in rows:
        print(f"{test:<18}{of:<42}{rate:>8.4f}{theory:>9.4f}{error:>16.4f}")


@pytest.fixture
def rate_is(record_property):
    """Whether a test's rejection rate is within 3 standard errors of theory; a row of the table."""

    def check(test, of, rejections, theory):
        rate, error = float(np.mean(rejections)), math.sqrt(theory * (1 - theory) / len(rejections))
        rows.append((test, of, rate, theory, error))
        record_property(f"{test}, {of}", f"{rate:.4f}, theory {theory:.4f} +- {error:.4f}")
        assert abs(rate - theory) <= 3 * error + 1e-9, rows[-1]

    return check


@pytest.fixture(scope="module")
def tracr():
    """Reversing three letters; its losses are computed for all circuits of the tests at once."""
    loaded = jc.load("tracr-reverse")
    clean = np.array([[3, *letters] for letters in itertools.product(range(3), repeat=3)])
    pairs = jc.PromptPairs(
        clean=clean, corrupt=np.roll(clean, 1, 0), positions=np.tile(np.arange(4) > 0, (len(clean), 1))
    )
    judged = jc.ablated(jc.Objective(loaded.model, pairs, "l2", "zero"), width=64)
    graph = judged.graph
    known = graph.mask_of(list(jc.tasks.TASKS["tracr_reverse"].circuit(graph)))
    more = known | graph.mask_of(["tok->a0.h0<q>"])
    drawn = jc.random_circuits(graph, int(known.sum()), 2 * OTHERS, seed=1)
    walks = jc.random_circuits(graph, 6, OTHERS, seed=2)  # added to the known circuit
    first = np.array([np.argwhere(walk & ~more)[0] for walk in walks])
    reduced = more | walks
    reduced[np.arange(OTHERS), first[:, 0], first[:, 1]] = False
    parts = {
        "model": graph.valid[None],
        "known": known[None],
        "more": more[None],
        "complement": graph.valid[None] & ~known,
        "drawn": drawn,
        "without_drawn": graph.valid & ~drawn,
        "without_edge": np.stack([more & ~graph.mask_of([name]) for name in graph.names_of(more)]),
        "inflated": more | walks,
        "reduced": reduced,
    }
    losses = judged.losses(np.concatenate(list(parts.values())))
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    s = dict(zip(parts, np.split(losses, ends), strict=True))
    np.testing.assert_allclose(s["model"], 0, atol=1e-9)
    np.testing.assert_allclose(s["known"], s["model"], atol=1e-9)
    np.testing.assert_allclose(s["inflated"], s["reduced"], atol=1e-9)
    return {**s, "names": graph.names_of(more), "is_known": known[more]}


def noisy(scores, random):
    return scores + SIGMA * random.normal(size=scores.shape)


def over_seeds(rejects):
    return [bool(rejects(np.random.default_rng(seed))) for seed in range(SEEDS)]


def wins_that_reject(level=0.05, share=0.9):
    """Of 0 to 100 wins against random circuits: whether they reject `at most share`."""
    return stats.binom.sf(np.arange(OTHERS + 1) - 1, OTHERS, share) <= level


def place_rejects(rejects, own, others):
    """The mean of `rejects` over the places that a distance can have among others that have noise as well."""
    gaps = others - own
    below, tied = int((gaps < -FAR).sum()), int((np.abs(gaps) <= 1e-6).sum())
    assert below + tied + int((gaps > FAR).sum()) == len(others)
    return float(np.mean(rejects[below : below + tied + 1]))


# --- equivalence -------------------------------------------------------------------------------


def above_that_reject(n):
    """Of 0 to n prompts above the model: whether they reject, by the formula of Shi et al."""
    draws = np.arange(n + 1)
    chances = stats.binom.pmf(draws, n, 0.6)
    far = np.abs(draws[None] / n - 0.5) >= np.abs(draws[:, None] / n - 0.5) - 1e-12
    return np.where(far, chances, 0).sum(1) <= 0.05


def test_a_perfect_circuit_is_undecided_without_noise(tracr, rate_is):
    outcome = equivalence(tracr["known"][0], tracr["model"][0])
    assert outcome.rejected is None and "ties" in outcome.reason
    rate_is("equivalence", "known circuit, no noise (undecided)", [outcome.rejected is True], 0.0)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_equivalence_with_noise(shift, tracr, rate_is):
    """`shift`: of the circuit's scores, in standard deviations of the noise."""
    model, known = tracr["model"][0], tracr["known"][0] + shift * SIGMA
    rejections = over_seeds(lambda random: equivalence(noisy(known, random), noisy(model, random)).rejected)
    n = len(model)
    chances = stats.binom.pmf(np.arange(n + 1), n, stats.norm.cdf(shift / math.sqrt(2)))
    name = "known circuit" + (f", shifted by {shift} sigma" if shift else "")
    rate_is("equivalence", name, rejections, float(chances[above_that_reject(n)].sum()))


def test_equivalence_of_random_circuits(tracr, rate_is):
    """All of them score above the model by far more than the noise, on enough prompts to be rejected whatever it is."""
    surely_above = int((tracr["drawn"] > 10 * SIGMA).sum(1).min())
    assert above_that_reject(tracr["drawn"].shape[1])[surely_above:].all()

    def rejects(random):
        return equivalence(noisy(random.choice(tracr["drawn"]), random), noisy(tracr["model"][0], random)).rejected

    rate_is("equivalence", "random circuits", over_seeds(rejects), 1.0)


# --- independence ------------------------------------------------------------------------------


@pytest.mark.parametrize("part, name", [("complement", "known circuit"), ("without_drawn", "random circuits")])
def test_independence_has_its_size(part, name, tracr, rate_is):
    """The model's scores are noise alone, so independence holds, and 10 of 200 places reject."""

    def rejects(random):
        left, model = noisy(random.choice(tracr[part]), random), noisy(tracr["model"][0], random)
        return independence(left, model, permutations=199, seed=int(random.integers(2**31))).rejected

    rate_is("independence", name, over_seeds(rejects), 10 / 200)


# --- minimality --------------------------------------------------------------------------------


@pytest.mark.parametrize("superfluous", [False, True])
def test_minimality(superfluous, tracr, rate_is):
    """Known edges matter far more than noise; an edge without effect has any place among the random ones."""
    chosen = np.ones(len(tracr["names"]), bool) if superfluous else tracr["is_known"]
    names = tuple(np.array(tracr["names"])[chosen].tolist())

    def rejects(random):
        own = distance(noisy(tracr["without_edge"][chosen], random), noisy(tracr["more"][0], random))
        return minimality(
            own, distance(noisy(tracr["inflated"], random), noisy(tracr["reduced"], random)), names
        ).rejected

    theory = 0.0
    assert distance(tracr["without_edge"], tracr["more"][0])[tracr["is_known"]].min() > FAR
    if superfluous:
        at_most = stats.binom.cdf(np.arange(OTHERS + 1), OTHERS, 0.9) * len(names) <= 0.05
        theory = place_rejects(at_most, 0.0, np.zeros(OTHERS))
    name = "known circuit" + (" and an edge without effect" if superfluous else "")
    rate_is("minimality", name, over_seeds(rejects), theory)


# --- against random circuits -------------------------------------------------------------------

AGAINST = [
    ("sufficiency", sufficiency, "drawn", "known"),
    ("partial necessity", partial_necessity, "without_drawn", "complement"),
]


@pytest.mark.parametrize("name, test, part, own", AGAINST)
def test_the_known_circuit_against_random_ones(name, test, part, own, tracr, rate_is):
    """Without the known circuit the output is 0, as it is without most random ones: there the noise decides."""
    others = tracr[part][:OTHERS]

    def rejects(random):
        model = noisy(tracr["model"][0], random)
        mine = distance(noisy(tracr[own], random), model)
        return test(float(mine[0]), distance(noisy(others, random), model)).rejected

    exact = distance(tracr[own], tracr["model"]), distance(others, tracr["model"])
    sign = -1 if test is sufficiency else 1  # a win is to be nearer, or further
    theory = place_rejects(wins_that_reject(), sign * exact[0], sign * exact[1])
    rate_is(name, "known circuit", over_seeds(rejects), theory)


@pytest.mark.parametrize("name, test, part, own", AGAINST)
def test_random_circuits_against_random_ones(name, test, part, own, tracr, rate_is):
    """Any place among 100 others has the same chance."""

    def rejects(random):
        model = noisy(tracr["model"][0], random)
        mine, *others = distance(noisy(random.permutation(tracr[part])[: OTHERS + 1], random), model)
        return test(float(mine), np.array(others)).rejected

    rate_is(name, "random circuits", over_seeds(rejects), float(np.mean(wins_that_reject())))
