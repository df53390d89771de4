"""What `evaluate`, `test` and `compare` print of what they found."""

from ..evaluation import Evaluation, Faithfulness, FaithfulnessCurve, HypothesisTests, Paired, Rediscovery, Similarity
from .options import out

OVERSHOT = 1.2
"""Faithfulness beyond which a circuit does far more than the model."""


def print_evaluation(record: Evaluation) -> None:
    """Faithfulness first, then controls, curves and what else was asked for."""
    own = record.faithfulness
    out.print(f"faithfulness {_faithful(own)}, {own.edges} edges")
    losses = own.loss, own.loss_empty, own.loss_full
    texts = [f"{spread.mean:.4g} +- {spread.standard_error:.2g}" for spread in losses]
    out.print(f"loss: circuit {texts[0]}, no circuit {texts[1]}, whole model {texts[2]} ({own.loss.count} prompts)")
    if record.random is not None:
        beside = record.random.value
        value = "refused" if beside is None else f"{beside.mean:.4f} (std {beside.std:.4f})"
        share = _number(record.random.as_faithful)
        out.print(f"  {record.random.circuits} random circuits: {value}; {share} of them are as faithful")
    if record.reset is not None and record.reset.on_reset is not None and record.reset.on_model is not None:
        out.print(f"  {record.reset.method} on a reset network: {_faithful(record.reset.on_reset)} there")
        out.print(f"  the same circuit in the model: {_faithful(record.reset.on_model)}")
    if record.completeness is not None:
        worst = record.completeness
        out.print(f"incompleteness {worst.incompleteness:.4g}, without {worst.worst}", markup=False)
    if record.again is not None:
        _print_again(record.again)
    if record.curve is not None:
        print_curve(record.curve)
    if record.necessity is not None:
        out.print(f"area under F without the best edges {_number(record.necessity.area)} (lower is better)")
    if record.random_curve is not None and record.random_curve.cpr is not None and record.random_curve.cmd is not None:
        out.print(f"  random: CPR {record.random_curve.cpr.mean:.4f}, CMD {record.random_curve.cmd.mean:.4f}")
    if record.reset is not None and record.reset.curve is not None:
        curve = record.reset.curve
        out.print(f"  reset network: CPR {_number(curve.cpr)}, CMD {_number(curve.cmd)}")


def _print_again(again: Rediscovery) -> None:
    found = f"{len(again.edges)} edges, {len(again.shared_nodes)} of their nodes in both"
    out.print(f"{again.method} without its edges: {found}; faithfulness {_faithful(again.second)}")
    out.print(f"  of both together {_faithful(again.union)}, {again.union.edges} edges")


def print_similarity(record: Similarity) -> None:
    """What two circuits share."""
    out.print(f"{record.edges[0]} and {record.edges[1]} edges, {record.shared} in both")
    out.print(f"Jaccard: edges {_number(record.jaccard_edges)}, nodes {_number(record.jaccard_nodes)}")
    correlations = _number(record.rank_correlation), _number(record.rank_correlation_absolute)
    out.print(f"rank correlation of scores: signed {correlations[0]}, absolute {correlations[1]}")
    overlaps = ", ".join(f"{share:.3f} of {size}" for size, share in record.top_overlap)
    out.print(f"best edges in common, by absolute score: {overlaps or 'too few edges'}")


def print_paired(record: Paired) -> None:
    """How much better one of two circuits does on the same prompts."""
    change, (low, high) = record.difference, record.interval
    out.print(f"{record.edges[0]} and {record.edges[1]} edges on {change.count} prompts")
    out.print(
        f"loss of the first less that of the second: {change.mean:+.4g} ({low:+.4g} to {high:+.4g}), p {record.p:.3g}"
    )
    ends = record.faithfulness_interval
    between = "" if ends is None else f"; difference {ends[0]:+.3g} to {ends[1]:+.3g}"
    out.print(f"faithfulness: {' and '.join(map(_number, record.faithfulness))}{between}")


def print_curve(curve: FaithfulnessCurve) -> None:
    """CPR, CMD and acc-AUC, and a warning where CPR is of circuits that do more than the model."""
    areas = [f"CPR {_number(curve.cpr)}{_between(curve.cpr_interval)}"]
    areas += [f"CMD {_number(curve.cmd)}{_between(curve.cmd_interval)}"]
    out.print(f"{', '.join(areas)}{_accuracy(curve)}")
    if curve.most is not None and curve.most > OVERSHOT:
        out.print(f"  F reaches {curve.most:.3f}: CPR counts it, though the model does 1; trust CMD, acc-AUC")


def print_tests(record: HypothesisTests) -> None:
    """A line a hypothesis: what its test says of the circuit."""
    for outcome in record.outcomes:
        if outcome.rejected is None:
            verdict = f"undecided: {outcome.reason}"
        else:
            is_good = outcome.rejected == (outcome.rejecting_is == "good")
            rejected = "rejected" if outcome.rejected else "not rejected"
            verdict = f"{rejected} (p {outcome.p_value:.3g}): {'for' if is_good else 'against'} the circuit"
        out.print(f"{outcome.name:<18}{verdict}", markup=False)
    out.print(f"{record.evaluations} circuits evaluated")


def _accuracy(curve: FaithfulnessCurve) -> str:
    return "" if curve.acc_auc is None else f", acc-AUC {curve.acc_auc:.4f}"


def _faithful(value: Faithfulness) -> str:
    return f"refused ({value.refused})" if value.value is None else f"{value.value:.4f}{_between(value.interval)}"


def _between(interval: tuple[float, float] | None) -> str:
    """A 95 % interval over the prompts."""
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
