"""What a page draws of judged circuits: an evaluation's numbers with the controls beside them, and the five tests.

The only place that knows the form of their JSON; a refused ratio stays refused, with its reason.
"""

from collections.abc import Sequence
from typing import Any

EVALUATION, TESTS = "evaluation", "hypothesis tests"
ASKED = {
    "equivalence": ("Does it score above the model on about half of the prompts?", "|share − 1/2|"),
    "independence": ("Is what is left without it independent of the model's score?", "HSIC"),
    "minimality": ("Does every edge matter more than an edge added at random?", "fewest exceeded"),
    "sufficiency": ("Is it closer to the model than random circuits of its size?", "share of them"),
    "partial necessity": ("Does removing it change more than removing random circuits?", "share of them"),
}

Part = dict[str, Any]


def judged(records: Sequence[Part]) -> Part:
    """`measures`, `losses`, `curves` and `tests` of at most one evaluation and one record of the five tests.

    Raises ValueError for records of another kind, two of one kind, and records without their parts.
    """
    found: dict[str, Part] = {}
    for record in records:
        kind = str(record.get("kind"))
        if kind not in (EVALUATION, TESTS):
            raise ValueError(f"a page draws an {EVALUATION} or {TESTS}, got a record of kind {kind!r}")
        if kind in found:
            raise ValueError(f"a page draws one record of kind {kind!r}, got two")
        found[kind] = record
    evaluation, tests = found.get(EVALUATION), found.get(TESTS)
    try:
        return {
            "measures": [] if evaluation is None else measures(evaluation),
            "losses": [] if evaluation is None else losses(evaluation),
            "curves": [] if evaluation is None else curves(evaluation),
            "tests": [] if tests is None else [_test(outcome) for outcome in tests["outcomes"]],
        }
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        odd = f"{error} is missing" if isinstance(error, KeyError) else f"{error!r}"
        raise ValueError(f"record: {odd}; expected what `jaxcircuits evaluate` or `test` writes") from None


def measures(evaluation: Part) -> list[Part]:
    """Each number of an evaluation: `name`, `value`, `spread`, `refused`, `note`; `beside`: the controls, likewise."""
    found = []
    if not _is_of_scores(evaluation):
        found = [_faithfulness(evaluation), _mean_of_ratios(evaluation["faithfulness"])]
    if curve := evaluation["curve"]:
        refused = curve["signed"][0]["refused"]
        found += [
            _measure("CPR", curve["cpr"], refused, "area under faithfulness", beside=_areas_beside(evaluation, "cpr")),
            _measure("CMD", curve["cmd"], refused, "area between it and 1", beside=_areas_beside(evaluation, "cmd")),
        ]
        if (accuracy := curve.get("acc_auc")) is not None:
            note = "share of prompts whose answer wins, over the logarithm of the size"
            found.append(_measure("acc-AUC", accuracy, None, note))
    if without := evaluation.get("necessity"):
        refused = without["points"][0]["refused"]
        found.append(_measure("Without the best", without["area"], refused, "area under faithfulness; lower is better"))
    if again := evaluation.get("again"):
        found.append(_again(again))
    if whole := evaluation["completeness"]:
        note = f"the most that a knock-out differs from the model's: without {whole['worst']}"
        found.append(_measure("Incompleteness", whole["incompleteness"], None, note))
    return found


def losses(evaluation: Part) -> list[Part]:
    """How losses spread over the prompts, and random circuits' mean losses over these: rows of a box plot."""
    own, random = evaluation["faithfulness"], evaluation["random"]
    rows = [("whole model", own["loss_full"]), ("circuit", own["loss"]), ("no edges", own["loss_empty"])]
    if _is_of_scores(evaluation):
        del rows[1]
    if random:
        rows.append((f"{random['circuits']} random circuits, their means", random["loss"]))
    return [{"name": name, **spread} for name, spread in rows]


def curves(evaluation: Part) -> list[Part]:
    """Faithfulness against edges: `name`, `kind` and `points` (x, y, and low to high of random circuits)."""
    curve, random, reset = evaluation["curve"], evaluation["random_curve"], evaluation["reset"]
    if not curve or curve["cpr"] is None:
        return []
    rows = [
        ("best edges by signed score", "signed", _points(curve["signed"])),
        ("by absolute score", "absolute", _points(curve["absolute"])),
    ]
    if random and random["values"]:
        sized = zip(random["edges"], random["values"], strict=True)
        points = [{"x": x, "y": y["mean"], "low": y["mean"] - y["std"], "high": y["mean"] + y["std"]} for x, y in sized]
        rows.append((f"{random['circuits']} random circuits, ± their deviation", "random", points))
    if reset and reset["curve"] and reset["curve"]["cpr"] is not None:
        rows.append((f"{reset['method']} on a reset network", "reset", _points(reset["curve"]["signed"])))
    return [{"name": name, "kind": kind, "points": points} for name, kind, points in rows]


def _points(results: Sequence[Part]) -> list[Part]:
    return [{"x": result["edges"], "y": result["value"]} for result in results]


def _is_of_scores(evaluation: Part) -> bool:
    """Whether all edges were judged: then only the curve tells anything."""
    curve = evaluation["curve"]
    return bool(curve) and evaluation["faithfulness"]["edges"] == curve["chosen"][-1] and not evaluation["completeness"]


def _measure(
    name: str,
    value: float | None,
    refused: str | None,
    note: str = "",
    *,
    spread: float | None = None,
    beside: Sequence[Part] = (),
) -> Part:
    return {"name": name, "value": value, "spread": spread, "refused": refused, "note": note, "beside": list(beside)}


def _faithfulness(evaluation: Part) -> Part:
    own, random, reset = evaluation["faithfulness"], evaluation["random"], evaluation["reset"]
    beside = []
    if random:
        value, share = random["value"] or {}, random["as_faithful"]
        name = f"{random['circuits']} random circuits of its size"
        note = "" if share is None else f"{100 * share:.3g} % of them as faithful"
        beside.append(_measure(name, value.get("mean"), own["refused"], note, spread=value.get("std")))
    if reset and reset["on_reset"]:
        there, here = reset["on_reset"], reset["on_model"]
        beside.append(_measure(f"{reset['method']} on a reset network, there", there["value"], there["refused"]))
        beside.append(_measure("that circuit in the model", here["value"], here["refused"]))
    note = f"{own['edges']} edges on {own['loss']['count']} prompts; ratio of means"
    return _measure("Faithfulness", own["value"], own["refused"], note, beside=beside)


def _mean_of_ratios(own: Part) -> Part:
    each = own["mean_of_ratios"]
    if each is None:
        refused = own["refused"] or "on some prompt the whole model and no circuit do not differ"
        return _measure("Prompt by prompt", None, refused)
    low, high = each["quantiles"][1], each["quantiles"][3]
    note = f"mean of ratios; the middle half of prompts from {low:.3g} to {high:.3g}"
    return _measure("Prompt by prompt", each["mean"], None, note, spread=each["std"])


def _again(again: Part) -> Part:
    second, both = again["second"], again["union"]
    note = f"by {again['method']} without its edges: {second['edges']} edges, {len(again['shared_nodes'])} shared nodes"
    together = _measure("both together", both["value"], both["refused"], f"{both['edges']} edges")
    return _measure("Found again", second["value"], second["refused"], note, beside=[together])


def _areas_beside(evaluation: Part, area: str) -> list[Part]:
    random, reset, beside = evaluation["random_curve"], evaluation["reset"], []
    if random:
        value, refused = random[area] or {}, None if random[area] else "as the curve"
        name = f"{random['circuits']} random circuits a size"
        beside.append(_measure(name, value.get("mean"), refused, spread=value.get("std")))
    if reset and reset["curve"]:
        curve = reset["curve"]
        refused = curve["signed"][0]["refused"]
        beside.append(_measure(f"{reset['method']} on a reset network", curve[area], refused))
    return beside


def _test(outcome: Part) -> Part:
    """One test's row; `speaks`: "for" or "against" the circuit, None where it is undecided."""
    rejected, details = outcome["rejected"], outcome["details"]
    question, statistic = ASKED.get(outcome["name"], ("", "statistic"))
    speaks = None if rejected is None else "for" if rejected == (outcome["rejecting_is"] == "good") else "against"
    verdict = "undecided" if rejected is None else "rejected" if rejected else "not rejected"
    return {
        **{key: outcome[key] for key in ("name", "null", "reason", "level", "statistic")},
        "p": outcome["p_value"],
        "question": question,
        "statisticName": statistic,
        "verdict": verdict,
        "speaks": speaks,
        "superfluous": details.get("superfluous", []),
    }
