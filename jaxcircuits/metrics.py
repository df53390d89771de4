"""Metrics: pure functions `metric(logits, labels) -> number` of one prompt at one scored position.

Every metric is a loss: lower is better, so what is usually maximised is negated. A user's own function with
the same signature works wherever a built-in does.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .types import Logits


class Labels(eqx.Module):
    """What a metric may compare the logits with, at one scored position of one prompt.

    - `full`: the whole model's logits there.
    - `answer`, `wrong`: token ids, padded with -1; None if the prompts have none.
    - `target`: the value that `l2` compares with; None: `full`.
    - `year`, `digits`: Greater-Than's two-digit start year and the token ids of "00".."99".
    """

    full: Float[Array, "*prompts vocab"]
    answer: Int[Array, "*prompts answers"] | None = None
    wrong: Int[Array, "*prompts wrongs"] | None = None
    target: Float[Array, "*prompts vocab"] | None = None
    year: Int[Array, "*prompts"] | None = None
    digits: Int[Array, "*prompts years"] | None = None


Metric = Callable[[Logits, Labels], Float[Array, ""]]


def kl(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`KL(full model || run)` in nats (ACDC, section 2).

    With `D = logits - full` and `p = softmax(full)` it is `log sum p exp(D) - sum p D`. That difference would cancel
    where D is small, so D is centred (`sum p D = 0`), which leaves `log1p(sum p expm1(D))`, good to 1e-10 in float32.
    Where D is large, `p exp(D)` is `exp(D + log p)`, whose factors alone might under- and overflow; `exp(-c)` scales
    what is beyond the float's range.
    """
    log_p = jax.nn.log_softmax(labels.full)
    p = jax.nn.softmax(labels.full)
    difference = logits - labels.full
    for _ in range(2):  # again, because p sums to 1 only to 1e-7, which a shift of all logits would multiply
        difference = difference - jnp.sum(p * difference)
    largest = jnp.max(difference + log_p)
    c = jnp.maximum(largest - 0.9 * math.log(jnp.finfo(logits.dtype).max), 0)
    scale = jnp.exp(-c)
    far = jnp.exp(difference + log_p - c) - p * scale
    near = p * jnp.expm1(jnp.minimum(difference, 1)) * scale
    total = jnp.sum(jnp.where(difference > 1, far, near))
    return jnp.where(c > 0, c + jnp.log(scale + total), jnp.log1p(jnp.where(c > 0, 0, total)))


def l2(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Mean squared difference to `target` (without one: to the whole model's output)."""
    target = labels.full if labels.target is None else labels.target
    return jnp.mean((logits - target) ** 2)


def logit_diff(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`-(mean logit of the answers - mean logit of the wrong answers)` (IOI, 2211.00593)."""
    answer, wrong = _needed(labels.answer, "answer"), _needed(labels.wrong, "wrong")
    return _mean_at(logits, wrong) - _mean_at(logits, answer)


def logit_diff_max(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`-(best answer's logit - best wrong answer's logit)` (ACDC's Docstring metric)."""
    answer, wrong = _needed(labels.answer, "answer"), _needed(labels.wrong, "wrong")
    return _max_at(logits, wrong) - _max_at(logits, answer)


def prob_diff(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`-(mean probability of the answers - mean probability of the wrong answers)`."""
    answer, wrong = _needed(labels.answer, "answer"), _needed(labels.wrong, "wrong")
    probabilities = jax.nn.softmax(logits)
    return _mean_at(probabilities, wrong) - _mean_at(probabilities, answer)


def greater_than(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`-(P(years > start year) - P(years <= start year))` over the 100 two-digit tokens (2305.00586)."""
    year, digits = _needed(labels.year, "year"), _needed(labels.digits, "digits")
    probabilities = jax.nn.softmax(logits)[digits]
    return -jnp.sum(jnp.where(jnp.arange(digits.shape[0], dtype=year.dtype) > year, probabilities, -probabilities))


def nll(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`-log P(answer)`, mean over several answers."""
    return -_mean_at(jax.nn.log_softmax(logits), _needed(labels.answer, "answer"))


def match_nll(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """`nll` minus the whole model's `nll` (the original ACDC's `match_nll`)."""
    return nll(logits, labels) - nll(labels.full, labels)


def accuracy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """-1 where the most likely token is one of the answers, else 0."""
    return -jnp.any(jnp.argmax(logits).astype(jnp.int32) == _needed(labels.answer, "answer")).astype(logits.dtype)


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (kl, l2, logit_diff, logit_diff_max, prob_diff, greater_than, nll, match_nll, accuracy)
}


READS_ANSWERS_ONLY: tuple[Metric, ...] = (logit_diff, logit_diff_max)
"""Metrics that need no other logits than those of the answers and wrong answers."""


COMPARES_OUTPUTS: tuple[Metric, ...] = tuple(metric for metric in METRICS.values() if metric is not l2)
"""Metrics of one output among others, which say nothing of a model that has a single one."""


def answer_columns(labels: Labels) -> tuple[Int[Array, " ids"], Labels]:
    """Token ids of answers and wrong answers, and labels that count in these: `metric(logits[ids], labels)`."""
    answer, wrong = _needed(labels.answer, "answer"), _needed(labels.wrong, "wrong")
    ids = jnp.concatenate([answer, wrong])
    index = jnp.where(ids >= 0, jnp.arange(ids.shape[0], dtype=ids.dtype), -1)
    counted = Labels(labels.full[ids], index[: answer.shape[0]], index[answer.shape[0] :])
    return jnp.maximum(ids, 0), counted


def by_name(metric: str | Metric) -> Metric:
    """The metric of a name; a function is returned as it is. Raises ValueError for an unknown name."""
    if callable(metric):
        return metric
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: expected one of {', '.join(METRICS)}, or in Python a function")
    return METRICS[metric]


def name_of(metric: Metric) -> str:
    """What a record calls a metric: a built-in's name is its own, another function of that name is said to be one."""
    name = getattr(metric, "__name__", type(metric).__name__)
    return name if METRICS.get(name, metric) is metric else f"{name} (another function than the built-in)"


def _needed(label: Array | None, name: str) -> Array:
    if label is None:
        raise ValueError(f"this metric needs {name!r}, which these prompts do not have; choose kl or l2, or add it")
    return label


def _mean_at(values: Logits, ids: Int[Array, " ids"]) -> Float[Array, ""]:
    count = jnp.maximum(jnp.sum(ids >= 0), 1)  # none at a position that is not scored: 0, with a gradient of 0
    return jnp.sum(jnp.where(ids >= 0, values[ids], 0)) / count.astype(values.dtype)


def _max_at(values: Logits, ids: Int[Array, " ids"]) -> Float[Array, ""]:
    return jnp.max(jnp.where(ids >= 0, values[ids], -jnp.inf))
