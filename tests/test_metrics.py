"""Every metric against the plain formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

import jaxcircuits as jc

VOCAB, PROMPTS = 30, 6


def prompts(seed, dtype=np.float32, scale=3.0):
    """Logits of a circuit and the labels of every prompt; one answer list and one wrong list have padding."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.choice(VOCAB, 6, replace=False) for _ in range(PROMPTS)]).astype(np.int32)
    ids[0, 2] = ids[1, 4] = ids[1, 5] = -1
    logits, full, target = (scale * random.normal(size=(PROMPTS, VOCAB)).astype(dtype) for _ in range(3))
    year = random.integers(0, 9, PROMPTS).astype(np.int32)
    digits = np.broadcast_to(np.arange(5, 15, dtype=np.int32), (PROMPTS, 10))
    return logits, jc.Labels(*map(jnp.asarray, (full, ids[:, :3], ids[:, 3:], target, year, digits)))


def kl(logits, label):
    return np.sum(softmax(label.full) * (log_softmax(label.full) - log_softmax(logits)))


def known(ids):
    return ids[ids >= 0]


def nll(logits, label):
    return -np.mean([logits[i] - logsumexp(logits) for i in known(label.answer)])


def greater_than(logits, label):
    years = enumerate(softmax(logits)[label.digits])
    return -sum(p if year > label.year else -p for year, p in years)


FORMULAS = {
    "kl": kl,
    "l2": lambda x, label: np.mean((x - label.target) ** 2),
    "logit_diff": lambda x, label: x[known(label.wrong)].mean() - x[known(label.answer)].mean(),
    "logit_diff_max": lambda x, label: x[known(label.wrong)].max() - x[known(label.answer)].max(),
    "prob_diff": lambda x, label: softmax(x)[known(label.wrong)].mean() - softmax(x)[known(label.answer)].mean(),
    "greater_than": greater_than,
    "nll": nll,
    "match_nll": lambda x, label: nll(x, label) - nll(label.full, label),
    "accuracy": lambda x, label: -float(np.argmax(x) in label.answer),
}


def by_formula(name, logits, labels):
    wide = jax.tree.map(lambda x: np.asarray(x, float if x.dtype.kind == "f" else int), labels)
    rows = [jax.tree.map(lambda x, row=row: x[row], wide) for row in range(len(logits))]
    return [FORMULAS[name](x.astype(np.float64), row) for x, row in zip(logits, rows, strict=True)]


@functools.cache
def compiled(name):
    return jax.jit(jax.vmap(jc.metrics.METRICS[name]))


def ours(name, logits, labels):
    return compiled(name)(jnp.asarray(logits), labels)


def test_every_metric_has_a_formula():
    assert FORMULAS.keys() == jc.metrics.METRICS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_a_metric_is_its_formula(name):
    logits, labels = prompts(0)
    logits[2, labels.answer[2, 1]] = 50  # once the answer is the most likely token, so that accuracy is not all 0
    np.testing.assert_allclose(ours(name, logits, labels), by_formula(name, logits, labels), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_metric_is_its_formula_in_float64(name, x64):
    logits, labels = prompts(1, np.float64)
    values = ours(name, logits, labels)
    assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, by_formula(name, logits, labels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_metric_falls_where_the_right_answers_rise(name):
    """Lower is better: logits that favour the answers, and are those of the whole model, against the opposite."""
    good = np.where(np.isin(np.arange(VOCAB), [3, 4]), 9, 0).astype(np.float32)
    label = jc.Labels(
        *map(jnp.asarray, (good, np.int32([3]), np.int32([7]), good, np.int32(1), np.arange(1, 9, dtype=np.int32)))
    )
    labels = jax.tree.map(lambda x: jnp.stack([x, x]), label)
    right, wrong = ours(name, np.stack([good, -good]), labels)
    assert right < wrong


def test_l2_without_a_target_compares_with_the_whole_model():
    logits, labels = prompts(2)
    value = jc.metrics.l2(jnp.asarray(logits[0]), jc.Labels(labels.full[0]))
    np.testing.assert_allclose(value, np.mean((logits[0] - labels.full[0]) ** 2), rtol=1e-6)


def small_differences(difference, shift=0):
    random = np.random.default_rng(0)
    full = random.normal(size=(PROMPTS, VOCAB)).astype(np.float32)
    logits = (full + difference * random.normal(size=full.shape) + shift).astype(np.float32)
    labels = jc.Labels(jnp.asarray(full))
    return np.float64(ours("kl", logits, labels)), by_formula("kl", logits, labels)


@pytest.mark.parametrize("difference, error", [(0, 0), (1e-5, 1e-10), (1e-3, 1e-10), (0.1, 1e-8)])
def test_kl_of_small_differences_is_exact_in_float32(difference, error):
    values, expected = small_differences(difference)
    assert np.abs(values - expected).max() <= error


@pytest.mark.parametrize("difference", [0, 1e-5, 1e-3])
@pytest.mark.parametrize("shift", [8, 100])
def test_kl_of_small_differences_ignores_a_shift_of_all_logits(difference, shift):
    """Up to the rounding of `logits - full`, which is 4e-6 at a shift of 100."""
    values, expected = small_differences(difference, shift)
    np.testing.assert_allclose(values, expected, rtol=5e-3, atol=1e-11)


def test_kl_is_right_and_differentiable_from_small_to_huge_differences():
    slope = jax.jit(jax.vmap(jax.grad(jc.metrics.kl)))
    for scale in (0.05, 0.5, 2, 10, 60):
        logits, labels = prompts(3, scale=scale)
        np.testing.assert_allclose(ours("kl", logits, labels), by_formula("kl", logits, labels), rtol=1e-5, atol=1e-6)
        expected = softmax(np.float64(logits), axis=1) - softmax(np.float64(labels.full), axis=1)
        np.testing.assert_allclose(slope(jnp.asarray(logits), labels), expected, rtol=0, atol=1e-5)
    extreme = jnp.asarray([[0.0, 1.0, 2.0, -1e4], [-1e4, 2.0, 1.0, 0.0]])
    for full in (extreme, extreme[::-1]):
        assert np.isfinite(slope(extreme, jc.Labels(full))).all()


def test_kl_is_right_on_both_sides_of_what_a_float_holds():
    """Of two answers the unlikely one's logit rises by about 80: beyond a point its exponential is scaled."""
    for rise in np.arange(75, 95, 0.25):
        full, logits = (np.array([[0.0, each]], np.float32) for each in (-5.0, rise - 5.0))
        labels = jc.Labels(jnp.asarray(full))
        np.testing.assert_allclose(ours("kl", logits, labels), by_formula("kl", logits, labels), rtol=1e-5)


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "nll"])
def test_a_position_without_answers_has_a_finite_gradient(name):
    """Positions that are not scored have weight 0, but 0 * NaN would still be NaN."""
    none = jnp.full(2, -1)
    label = jc.Labels(jnp.ones(VOCAB), none, none)
    value, slopes = jax.value_and_grad(jc.metrics.METRICS[name])(jnp.ones(VOCAB), label)
    assert value == 0 and (np.asarray(slopes) == 0).all()


@pytest.mark.parametrize(
    "name, missing",
    [
        ("logit_diff", "answer"),
        ("logit_diff", "wrong"),
        ("logit_diff_max", "wrong"),
        ("prob_diff", "wrong"),
        ("greater_than", "year"),
        ("greater_than", "digits"),
        ("nll", "answer"),
        ("match_nll", "answer"),
        ("accuracy", "answer"),
    ],
)
def test_a_metric_without_its_labels_is_refused(name, missing):
    fields = {"answer": np.int32([1]), "wrong": np.int32([2]), "year": np.int32(1), "digits": np.int32([3, 4])}
    del fields[missing]
    labels = jc.Labels(jnp.ones(VOCAB), **{field: jnp.asarray(value) for field, value in fields.items()})
    with pytest.raises(ValueError, match=f"needs '{missing}'"):
        jc.metrics.METRICS[name](jnp.ones(VOCAB), labels)


def test_a_name_or_a_function_gives_a_metric():
    assert jc.metrics.by_name("kl") is jc.metrics.kl
    assert jc.metrics.by_name(FORMULAS["l2"]) is FORMULAS["l2"]
    with pytest.raises(ValueError, match="unknown metric 'kl_div': expected one of kl, l2"):
        jc.metrics.by_name("kl_div")
