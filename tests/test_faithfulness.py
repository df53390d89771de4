"""Faithfulness, its curve, CPR and CMD, against brute force and an independent transcription of MIB's definition."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, expected, micro_model, micro_pairs, random_mask, reference_pairs

import jaxcircuits as jc
from jaxcircuits.evaluation.faithfulness import _faithfulness


@pytest.fixture(scope="module")
def objective():
    return jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")


def circuits_of(graph, count=5):
    masks = np.stack([random_mask(graph, seed, 0.3 + 0.1 * seed) & graph.valid for seed in range(count)])
    masks[0] = False
    return masks


@pytest.mark.mission
@pytest.mark.parametrize(
    "reference", ["resample", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero", "mean"))]
)
def test_many_circuits_equal_a_loop_of_single_ones(reference, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl", reference)
    masks = circuits_of(objective.graph)
    full, empty = float(objective(objective.graph.valid)), float(objective(np.zeros(objective.graph.shape)))
    results = jc.faithfulness_many(objective, masks)
    losses = np.asarray(objective.per_example_many(masks, 2))
    for mask, result, each in zip(masks, results, losses, strict=True):
        loss = float(objective(mask))
        np.testing.assert_allclose(each, objective.per_example(mask), rtol=1e-12, atol=1e-14)
        assert result.loss.mean == pytest.approx(loss, rel=1e-12, abs=1e-13)
        assert result.refused is None and result.value == pytest.approx((loss - empty) / (full - empty), rel=1e-9)
        assert result.edges == result.weighted_edges == mask.sum()


def test_the_two_orders_have_their_own_names(objective):
    [result] = jc.faithfulness_many(objective, circuits_of(objective.graph)[3:4])
    loss, empty, full = (
        np.asarray(objective.per_example(mask), np.float64)
        for mask in (circuits_of(objective.graph)[3], np.zeros(objective.graph.shape), objective.graph.valid)
    )
    assert result.value == pytest.approx((loss.mean() - empty.mean()) / (full.mean() - empty.mean()), rel=1e-4)
    ratios = (loss - empty) / (full - empty)
    assert result.mean_of_ratios.mean == pytest.approx(ratios.mean(), rel=1e-4)
    assert result.mean_of_ratios.std == pytest.approx(ratios.std(ddof=1), rel=1e-4)
    assert result.loss.quantiles[2] == pytest.approx(np.median(loss), rel=1e-4)
    assert result.loss.standard_error == pytest.approx(loss.std(ddof=1) / np.sqrt(5), rel=1e-4)


@pytest.mark.mission
def test_the_ends_are_0_and_1_and_the_sign_of_the_metric_does_not_matter(objective):
    negated = jc.Objective(objective.model, micro_pairs(), lambda logits, labels: -jc.metrics.kl(logits, labels))
    masks = np.stack([np.zeros_like(objective.graph.valid), objective.graph.valid, random_mask(objective.graph, 3)])
    values = [[result.value for result in jc.faithfulness_many(f, masks)] for f in (objective, negated)]
    assert values[0][:2] == values[1][:2] == [0, 1]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_a_ratio_to_noise_is_refused_not_clamped():
    """Prompts whose corrupt versions are as good on average: the difference is below 2 standard errors."""
    pairs = micro_pairs(batch=6)
    both = jc.PromptPairs(
        clean=np.concatenate([pairs.clean, pairs.corrupt]),
        corrupt=np.concatenate([pairs.corrupt, pairs.clean]),
        answer=np.tile(pairs.answer, (2, 1)),
        wrong=np.tile(pairs.wrong, (2, 1)),
    )
    objective = jc.Objective(micro_model("gpt2"), both, "logit_diff")
    result = jc.faithfulness(objective, random_mask(objective.graph, 0))
    assert result.value is None and result.mean_of_ratios is None and "standard error" in result.refused
    assert result.loss.count == 12
    scores = jc.Scores(objective.graph, np.random.default_rng(0).normal(size=objective.graph.shape), True, "x", {})
    curve = jc.faithfulness_curve(objective, scores, shares=(0.5, 1.0))
    assert curve.cpr is None and curve.cmd is None


@pytest.mark.quick(1)
@pytest.mark.parametrize("metric", ["logit_diff", "kl", "nll", "prob_diff"])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_ratio_of_rounding_errors_is_refused(metric, rows):
    """Corrupt prompts that are the clean ones: whatever the circuit, all losses are the same but for rounding."""
    with pytest.warns(UserWarning, match="do not differ"):
        unchanged = dataclasses.replace(micro_pairs(), corrupt=micro_pairs().clean)[:rows]
    objective = jc.Objective(micro_model("gpt2"), unchanged, metric)
    graph = objective.graph
    for result in jc.faithfulness_many(objective, circuits_of(graph)):
        assert result.value is None and result.mean_of_ratios is None and "float error" in result.refused
    scores = jc.Scores(graph, np.random.default_rng(0).normal(size=graph.shape), True, "x", {})
    curve = jc.faithfulness_curve(objective, scores)
    assert curve.cpr is None and curve.cmd is None
    control = jc.random_control(objective, jc.Circuit.select(scores, edges=30), count=3)
    assert control.value is None and control.as_faithful is None


def test_a_single_prompt_whose_difference_is_no_rounding_has_a_ratio():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs()[:1], "logit_diff")
    result = jc.faithfulness(objective, random_mask(objective.graph, 0))
    assert result.refused is None and result.loss.standard_error == 0


@pytest.mark.mission
def test_the_ratio_prompt_by_prompt_needs_every_prompts_difference():
    """One of many prompts is its own corrupt version: the ratio of means stands, that of this prompt is rounding."""
    pairs = micro_pairs(batch=40)
    with pytest.warns(UserWarning, match="do not differ"):
        pairs = dataclasses.replace(pairs, corrupt=np.concatenate([pairs.clean[:1], pairs.corrupt[1:]]))
    result = jc.faithfulness(jc.Objective(micro_model("gpt2"), pairs, "kl"), random_mask(micro_model("gpt2").graph, 1))
    assert result.value is not None and result.mean_of_ratios is None


@pytest.mark.parametrize("errors, refused", [(1.9, True), (2.1, False)])
def test_a_ratio_is_refused_below_two_standard_errors(errors, refused):
    """Of differences with a mean of so many standard errors, without rounding."""
    spread = np.array([-1.0, 1.0, -1.0, 1.0, 0.0])
    difference = spread + errors * spread.std(ddof=1) / 5**0.5
    result = _faithfulness(np.ones((2, 2), bool), np.zeros(5), (np.zeros(5), difference), np.zeros(5))
    assert (result.value is None) == refused == (result.refused is not None)
    noisy = _faithfulness(np.ones((2, 2), bool), np.zeros(5), (np.zeros(5), difference), np.full(5, 0.1))
    assert noisy.value is None and "float error of 0.1" in noisy.refused
    nothing = _faithfulness(np.ones((2, 2), bool), np.ones(5), (np.zeros(5), np.zeros(5)), np.zeros(5))
    assert nothing.value is None and "differ by 0" in nothing.refused


# --- MIB, transcribed on its own: lists and dicts, one evaluation at a time -----------------------

PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def pruned(edges):
    """Edges, by name, on a path from input to logits: repeatedly without those that nothing feeds or nothing reads."""
    edges = set(edges)
    while True:
        senders = {edge.split("->")[0] for edge in edges}
        nodes = {edge.split("->")[1].split("<")[0] for edge in edges}
        kept = {
            edge
            for edge in edges
            if (edge.split("->")[0] == "input" or edge.split("->")[0] in nodes)
            and (edge.split("->")[1] == "logits" or edge.split("->")[1].split("<")[0] in senders)
        }
        if kept == edges:
            return kept
        edges = kept


def mib_areas(objective, scores, absolute):
    def loss(names):
        return float(objective(objective.graph.mask_of(sorted(names))))

    names = list(scores)
    baseline, corrupted = loss(names), loss([])
    faithfulnesses, counts = [], []
    for share in PERCENTAGES:
        ranked = sorted(names, key=lambda name: -(abs(scores[name]) if absolute else scores[name]))
        kept = pruned(ranked[: int(share * len(names))])
        counts.append(len(kept))
        faithfulnesses.append((loss(kept) - corrupted) / (baseline - corrupted))
    area_under = area_from_1 = 0.0
    for i in range(len(PERCENTAGES) - 1):
        width = PERCENTAGES[i + 1] - PERCENTAGES[i]
        area_from_1 += width * (abs(1 - faithfulnesses[i]) + abs(1 - faithfulnesses[i + 1])) / 2
        area_under += width * (faithfulnesses[i] + faithfulnesses[i + 1]) / 2
    return counts, faithfulnesses, area_under, area_from_1


@pytest.mark.mission
@pytest.mark.parametrize("name", ["ioi-EAP-logit_diff", "ioi-EAP-IG-inputs-logit_diff", "induction-EAP-logit_diff"])
def test_cpr_and_cmd_are_mibs(name, x64_reference):
    """On EAP-IG's own scores of the reference checkpoint (tests/golden), to 1e-9."""
    graph, given = x64_reference.graph, expected(name)["scores"]
    objective = jc.Objective(x64_reference.model, reference_pairs(name.split("-")[0])[:16], "logit_diff")
    values = np.zeros(graph.shape)
    for edge, score in given.items():
        values[graph.edge_index(edge)] = score
    curve = jc.faithfulness_curve(objective, jc.Scores(graph, values, True, "given", {}))
    in_order = {graph.edge_name(*edge): given[graph.edge_name(*edge)] for edge in graph.edges}
    for absolute, points in ((False, curve.signed), (True, curve.absolute)):
        counts, faithfulnesses, under, from_1 = mib_areas(objective, in_order, absolute)
        assert [point.weighted_edges for point in points] == counts
        np.testing.assert_allclose([point.value for point in points], faithfulnesses, rtol=1e-9, atol=1e-9)
        if absolute:
            assert abs(curve.cmd - from_1) < 1e-9
        else:
            assert abs(curve.cpr - under) < 1e-9


def test_the_curve_of_a_micro_model_is_mibs(x64):
    """The same on a graph so small that shares round to no edge, with ties."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    graph = objective.graph
    values = np.round(np.random.default_rng(1).normal(size=graph.shape), 1)
    curve = jc.faithfulness_curve(objective, jc.Scores(graph, values, True, "ties", {}))
    scores = {graph.edge_name(*edge): values[tuple(edge)] for edge in graph.edges}
    counts, faithfulnesses, under, _ = mib_areas(objective, scores, absolute=False)
    assert [point.edges for point in curve.signed] == counts and curve.chosen[0] == 0
    np.testing.assert_allclose([point.value for point in curve.signed], faithfulnesses, rtol=1e-9, atol=1e-9)
    assert abs(curve.cpr - under) < 1e-9
    assert abs(curve.cmd - mib_areas(objective, scores, absolute=True)[3]) < 1e-9


def test_weighted_edges_count_the_share_of_neurons():
    mask = np.array([[True, True, False], [False, True, True]])
    assert jc.weighted_edge_count(mask) == 4
    assert jc.weighted_edge_count(mask, np.array([0.5, 0.25])) == 1.5


def test_the_record_is_saved_whole(objective, tmp_path):
    graph = objective.graph
    scores = jc.Scores(graph, np.random.default_rng(0).normal(size=graph.shape), True, "given", {"seed": 3})
    curve = jc.faithfulness_curve(objective, scores)
    assert curve.most == max(point.value for point in (*curve.signed, *curve.absolute))
    curve.save(tmp_path / "curve.json")
    read = jc.read_record(tmp_path / "curve.json")
    assert read == json.loads(json.dumps(curve.to_json()))
    assert (read["format"], read["kind"]) == ("jaxcircuits-evaluation/1", "faithfulness curve")
    assert read["cpr"] == curve.cpr and read["run"]["scores"]["seed"] == 3
    assert read["run"]["ablation"]["granularity"] == "edge" and read["run"]["metric"] == "kl"
    assert len(read["signed"]) == 10 and read["signed"][-1]["loss"]["count"] == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.cpr = 0.0


def test_what_is_refused(objective, tmp_path):
    graph = objective.graph
    other = jc.Circuit(
        jc.Graph.transformer(1, 2), jc.Graph.transformer(1, 2).valid, np.zeros(jc.Graph.transformer(1, 2).shape), {}
    )
    with pytest.raises(ValueError, match="of the model.s graph"):
        jc.faithfulness(objective, other)
    with pytest.raises(ValueError, match="expected shape"):
        jc.faithfulness(objective, np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="expected one circuit, got 5"):
        jc.faithfulness(objective, circuits_of(graph))
    scores = jc.Scores(graph, np.zeros(graph.shape), True, "flat", {})
    for shares in ((), (0.0, 1.0), (0.5, 0.1), (0.5, 2.0)):
        with pytest.raises(ValueError, match="shares"):
            jc.faithfulness_curve(objective, scores, shares=shares)
    with pytest.raises(ValueError, match="scores: expected those of the objective's graph"):
        jc.faithfulness_curve(objective, other)
    with pytest.raises(ValueError, match="masks: expected shape"):
        objective.per_example_many(np.ones((2, 3)))
    with pytest.raises(ValueError, match="at least one number"):
        jc.Spread.of(np.zeros(0))
    for text in ("{", "[1]", '{"format": "jaxcircuits/1", "kind": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="bad.json"):
            jc.read_record(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="no record"):
        jc.read_record(GOLDEN / "nothing.json")


def test_two_prompts_have_an_interval_and_one_has_none():
    for count in (2, 1):
        objective = jc.Objective(micro_model("gpt2"), micro_pairs(batch=count), "kl")
        judged = jc.faithfulness(objective, jc.Circuit.select(jc.exact(objective), edges=8))
        assert judged.value is not None, judged.refused
        assert (judged.interval is None) == (count == 1)


@pytest.mark.mission
def test_intervals_are_the_bootstraps_over_the_prompts(x64):
    """Of F, CPR and CMD, against draws of one's own."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=40), "kl")
    scores, shares = jc.exact(objective), (0.3, 0.6, 1.0)
    curve = jc.faithfulness_curve(objective, scores, shares=shares)
    losses = [objective.per_example(mask) for mask in (np.zeros(objective.graph.shape), objective.full_mask())]
    empty, full = (np.asarray(loss) for loss in losses)
    rows = np.random.default_rng(7).integers(0, 40, (8000, 40))

    def ratios(rank):
        chosen = [jc.Circuit.select(scores, edges=count, rank=rank) for count in curve.chosen]
        each = np.array([objective.per_example(circuit) for circuit in chosen])
        return (each - empty)[:, rows].sum(2) / (full - empty)[rows].sum(1)

    signed, absolute = ratios("signed"), ratios("absolute")
    areas = np.trapezoid(signed, shares, axis=0), np.trapezoid(np.abs(1 - absolute), shares, axis=0)
    points = [(point.interval, point.value, values) for point, values in zip(curve.signed[:2], signed, strict=False)]
    found = [(curve.cpr_interval, curve.cpr, areas[0]), (curve.cmd_interval, curve.cmd, areas[1]), *points]
    for interval, value, values in found:
        ends = np.quantile(values, [0.025, 0.975])
        assert interval[0] < value < interval[1]
        np.testing.assert_allclose(interval, ends, atol=0.15 * np.ptp(ends))
    np.testing.assert_allclose(curve.signed[-1].interval, [1, 1], atol=1e-9)
