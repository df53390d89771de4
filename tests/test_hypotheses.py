"""The five tests of Shi et al. on scores: by hand, by brute force, and their rejection rates over seeds."""

import itertools
import math

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.evaluation import (
    distance,
    equivalence,
    independence,
    minimality,
    partial_necessity,
    sufficiency,
)

LEVEL = 0.05


def binomial(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def rate_is(rejections, theory, record_property, name):
    """Whether a rejection rate over seeds is within 3 standard errors of theory; both go into the test's output."""
    rate, n = float(np.mean(rejections)), len(rejections)
    record_property(name, f"{rate:.4f} of {n}, theory {theory:.4f}")
    print(f"{name:<50} {rate:.4f} of {n}, theory {theory:.4f}")
    assert abs(rate - theory) <= 3 * math.sqrt(theory * (1 - theory) / n) + 1e-12


def test_distance_is_the_mean_square():
    first, second = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([1.0, 4.0])
    np.testing.assert_allclose(distance(first, second), [2.0, 8.5])


# --- equivalence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "above, tied, n, epsilon", [(5, 0, 10, 0.1), (10, 0, 10, 0.1), (3, 3, 10, 0.2), (0, 1, 7, 0.0)]
)
def test_equivalence_by_the_formula(above, tied, n, epsilon):
    model = np.zeros(n)
    circuit = np.concatenate([np.ones(above), np.zeros(tied), -np.ones(n - above - tied)])
    k = above + tied / 2
    t = abs(k / n - 0.5)
    p = sum(binomial(x, n, 0.5 + epsilon) for x in range(n + 1) if abs(x / n - 0.5) >= t - 1e-9)
    outcome = equivalence(circuit, model, epsilon=epsilon)
    assert outcome.statistic == pytest.approx(t) and outcome.p_value == pytest.approx(min(p, 1), rel=1e-9)
    assert outcome.rejected == (p <= LEVEL) and outcome.details["above"] == k
    assert equivalence(-circuit, -model, epsilon=epsilon).p_value == pytest.approx(outcome.p_value)


def test_a_perfect_circuit_ties_everywhere_and_is_undecided():
    scores = np.random.default_rng(0).normal(size=50)
    outcome = equivalence(scores + 1e-10, scores)
    assert (outcome.rejected, outcome.p_value) == (None, None) and "ties" in outcome.reason


def test_prompts_whose_scores_differ_by_rounding_tie():
    model = np.zeros(12)
    circuit = np.repeat([1e-6, 1.0, -1.0], [8, 3, 1])
    assert equivalence(circuit, model, noise=np.full(12, 2e-6)).details == {
        **{"above": 3 + 8 / 2, "tied": 8, "prompts": 12, "epsilon": 0.1}
    }
    own = np.repeat([2e-6, 1e-7, 2.0], [4, 4, 4])  # each prompt's own
    assert equivalence(circuit, model, noise=own).details["tied"] == 4 + 4
    assert equivalence(circuit, model).details["above"] == 8 + 3
    narrow = np.linspace(0, 1e-6, 12)
    assert independence(narrow, np.arange(12.0)).rejected
    outcome = independence(narrow, np.arange(12.0), noise=1e-5)
    assert outcome.rejected is None and "bandwidth" in outcome.reason


@pytest.mark.parametrize("chance", [0.5, 0.6, 0.8])
def test_equivalence_rejects_as_often_as_theory_says(chance, record_property):
    n, random = 60, np.random.default_rng(0)
    outcomes = [equivalence((random.random(n) < chance) * 2.0 - 1, np.zeros(n)).rejected for _ in range(2000)]
    theory = sum(
        binomial(k, n, chance)
        for k in range(n + 1)
        if equivalence(np.where(np.arange(n) < k, 1.0, -1.0), np.zeros(n)).rejected
    )
    rate_is(outcomes, theory, record_property, f"equivalence, above with chance {chance}")
    assert (theory <= LEVEL) if chance <= 0.6 else (theory > 0.5)


# --- independence ------------------------------------------------------------------------------


def test_hsic_is_the_trace_with_a_width_of_its_own_for_each_kernel():
    """Scores of other sizes: what one width for both kernels gives is another number."""
    random = np.random.default_rng(0)
    x = random.normal(size=12)
    y = 5 + 0.03 * (x**2 + random.normal(size=12))

    def kernel(values, width):
        return np.array([[math.exp(-((a - b) ** 2) / (2 * width**2)) for b in values] for a in values])

    def trace(first, second):
        centre = np.eye(12) - np.full((12, 12), 1 / 12)
        return np.trace(kernel(x, first) @ centre @ kernel(y, second) @ centre) / 144

    def median(values):
        return np.median([abs(a - b) for i, a in enumerate(values) for b in values[:i]])

    outcome = independence(x, y, permutations=20)
    assert outcome.statistic == pytest.approx(trace(median(x), median(y)))
    assert outcome.details["bandwidths"] == pytest.approx([median(x), median(y)])
    shared = np.median(np.abs(x[:, None] - y[None]))
    assert trace(shared, shared) < 0.01 * outcome.statistic
    assert outcome.p_value * 21 == pytest.approx(round(outcome.p_value * 21))


def test_neither_the_unit_nor_the_origin_of_scores_matters_to_independence():
    random = np.random.default_rng(5)
    x = random.normal(size=30)
    y = np.abs(x) + 0.5 * random.normal(size=30)
    one, other = independence(x, y, permutations=99), independence(100 * x - 7, y / 50, permutations=99)
    assert other.statistic == pytest.approx(one.statistic) and other.p_value == one.p_value


def test_the_share_of_permutations_is_that_of_all_of_them():
    """Four prompts have 24 orders: the p-value is near the share of these that reach the trace."""
    x, y = np.array([0.0, 1.0, 3.0, 7.0]), np.array([0.1, 0.9, 3.2, 6.0])

    def statistic(order):
        return independence(x, y[list(order)], permutations=1).statistic

    share = np.mean([statistic(order) >= statistic(range(4)) - 1e-15 for order in itertools.permutations(range(4))])
    found = independence(x, y, permutations=4000).p_value
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_independence_has_its_size(record_property):
    """Independent scores: rejected in a share of `level`, within 3 standard errors."""
    random = np.random.default_rng(1)
    pairs = [(random.normal(size=25), random.exponential(size=25)) for _ in range(600)]
    outcomes = [independence(x, y, permutations=199, seed=i).rejected for i, (x, y) in enumerate(pairs)]
    rate_is(outcomes, LEVEL, record_property, "independence of independent scores")


def test_independence_sees_dependence_without_correlation():
    x = np.random.default_rng(2).normal(size=60)
    assert independence(x**2, x, permutations=199).rejected
    assert independence(x, x, permutations=199).p_value == 1 / 200


def test_scores_that_are_mostly_the_same_are_undecided():
    outcome = independence(np.zeros(20), np.arange(20.0))
    assert outcome.rejected is None and "bandwidth 0" in outcome.reason


# --- minimality, sufficiency, partial necessity ------------------------------------------------


def test_minimality_names_superfluous_edges():
    inflated = np.linspace(0.1, 1, 100)
    outcome = minimality(np.array([5.0, 0.0, 2.0]), inflated, ("a", "b", "c"))
    assert outcome.rejected and outcome.details["superfluous"] == ["b"]
    one = sum(binomial(k, 100, 0.9) for k in range(86))  # 85 of 100 exceeded
    outcome = minimality(np.array([inflated[85] - 1e-6, 5.0]), inflated, ("a", "b"))
    assert outcome.details["edges"]["a"][1:] == pytest.approx([85, min(1, 2 * one)])
    assert outcome.p_value == pytest.approx(2 * one) and not outcome.rejected
    near = np.full(100, 1.0)
    outcome = minimality(np.array([1.0, 4.0]), near, ("a", "b"), noise=1e-3)
    assert outcome.rejected is None and outcome.details["superfluous"] == [] and "ties" in outcome.reason
    nothing = minimality(np.array([0.0, 4.0]), np.zeros(100), ("a", "b"), noise=1e-3)
    assert nothing.rejected and nothing.details["superfluous"] == ["a"]  # to the bit, which is no rounding
    assert minimality(np.array([0.9, 4.0]), near, ("a", "b"), noise=1e-3).details["superfluous"] == ["a"]
    assert minimality(np.array([1.1, 4.0]), near, ("a", "b"), noise=1e-3).rejected is False
    assert minimality(np.array([]), inflated, ()).rejected is None
    assert minimality(np.ones(2), np.array([]), ("a", "b")).rejected is None


def test_bonferroni_bounds_false_rejections(record_property):
    """Edges that exceed with chance 0.9 exactly: any of 10 is rejected in at most a share of `level`."""
    random = np.random.default_rng(3)
    rejections = []
    for _ in range(400):
        inflated = random.random(100)
        rejections.append(minimality(np.full(10, 0.9), inflated, tuple("abcdefghij")).rejected)
    names = tuple("abcdefghij")
    rejected = [minimality(np.full(10, 0.5), _exceeded(k), names).rejected for k in range(101)]
    theory = sum(binomial(k, 100, 0.9) for k in range(101) if rejected[k])
    rate_is(rejections, theory, record_property, "minimality of 10 edges as good as required")
    assert theory <= LEVEL


def _exceeded(k):
    """100 effects, k of which are below 1/2."""
    return np.where(np.arange(100) < k, 0.0, 1.0)


@pytest.mark.parametrize("test, wins", [(sufficiency, lambda d: d), (partial_necessity, lambda d: 2 - d)])
def test_counts_against_random_circuits(test, wins):
    """The p-value is the upper tail of the binomial; ties are no wins, and where they would decide nothing is said."""
    others = np.concatenate([np.full(95, wins(2.0)), np.full(5, wins(0.0))])
    outcome = test(wins(1.0), others)
    tail = sum(binomial(k, 100, 0.9) for k in range(95, 101))
    assert outcome.p_value == pytest.approx(tail) and outcome.statistic == 0.95 and not outcome.rejected
    assert test(wins(1.0), np.full(100, wins(2.0))).rejected
    for tied, noise in ((1.0, 0.0), (1.0, 1e-9), (1 + 1e-3, 1e-3), (1 - 1e-3, 1e-3)):
        outcome = test(1.0, np.full(100, tied), noise=noise)
        assert outcome.rejected is None and "ties" in outcome.reason and outcome.details["tied"] == 100
    some = np.concatenate([np.full(97, wins(2.0)), np.full(3, wins(1.0))])
    assert test(wins(1.0), some).rejected and test(wins(1.0), some).details["wins"] == 97
    assert test(wins(1.5), np.full(100, wins(1.0)), noise=1e-3).rejected is False
    assert not test(np.nan, np.full(100, 1.0)).rejected and not test(1.0, np.full(100, np.nan)).rejected
    assert test(1.0, np.array([])).rejected is None


def test_random_circuits_are_as_sufficient_as_chance(record_property):
    """A random circuit's place among 100 others is uniform, so it is among the best 5 with chance 5 in 101."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    drawn = jc.random_circuits(objective.graph, 12, 501, seed=4)
    losses = jc.ablated(objective, width=64).losses(np.concatenate([objective.graph.valid[None], drawn]))
    distances = distance(losses[1:], losses[0])
    random = np.random.default_rng(0)
    outcomes = []
    for index in range(400):
        others = random.choice(np.delete(distances, index), 100, replace=False)
        outcomes.append(sufficiency(distances[index], others).rejected)
    least = next(k for k in range(101) if sufficiency(0.5, 1 - _exceeded(k)).rejected)
    rate_is(outcomes, (101 - least) / 101, record_property, "sufficiency of random circuits")


def test_what_is_refused():
    for call in (equivalence, independence):
        with pytest.raises(ValueError, match="same prompts"):
            call(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="epsilon"):
        equivalence(np.zeros(3), np.ones(3), epsilon=0.7)
    with pytest.raises(ValueError, match="permutations"):
        independence(np.zeros(3), np.ones(3), permutations=0)
