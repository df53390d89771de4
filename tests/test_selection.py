"""Circuits of scores: the integer program and the retained share, each against brute force; what is left without."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_llama, micro_model
from test_judging import behaving

import jaxcircuits as jc


def scores_of(graph, seed, low=-1.0):
    return jc.Scores(graph, np.random.default_rng(seed).uniform(low, 1, graph.shape), True, "given", {})


@pytest.mark.parametrize("seed", range(6))
def test_the_integer_program_is_the_best_circuit_without_dead_ends(seed):
    """Of all 2^8 circuits of a model with one head."""
    graph = micro_model("one-head").graph
    scores, edges = scores_of(graph, seed), graph.edges
    totals = {}
    for chosen in itertools.product((False, True), repeat=len(edges)):
        mask = np.zeros(graph.shape, bool)
        mask[tuple(np.array(edges).T)] = chosen
        if (graph.drop_dead_ends(mask) == mask).all():
            totals[chosen] = float(scores.scores[mask].sum())
    assert len(totals) > 20
    for count in (0, 1, 2, 3, 5, 8):
        best = jc.select_connected(scores, count)
        assert best.num_edges <= count and best.run["edges_with_dead_ends"] == best.num_edges
        expected = max(total for chosen, total in totals.items() if sum(chosen) <= count)
        assert best.scores[best.mask].sum() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("model", [lambda: micro_model("gpt2"), micro_llama])
def test_the_integer_program_beats_the_others_and_keeps_no_dead_ends(model):
    graph = model().graph
    scores = scores_of(graph, 0)
    for rank in ("signed", "absolute"):
        best = jc.select_connected(scores, 12, rank=rank)
        value = (np.abs if rank == "absolute" else np.asarray)(scores.scores)
        assert (graph.drop_dead_ends(best.mask) == best.mask).all() and 0 < best.num_edges <= 12
        for greedy in (False, True):
            other = jc.Circuit.select(scores, edges=12, rank=rank, greedy=greedy)
            assert value[best.mask].sum() >= value[other.mask].sum()


@pytest.fixture(scope="module")
def chain():
    """The model whose circuit is known, its objective, and scores that begin with two of the circuit's three edges."""
    model = chain_model(dtype=jnp.float32)
    objective = jc.Objective(model, behaving(model), "logit_diff")
    graph = objective.graph
    values = 0.1 * np.random.default_rng(0).random(graph.shape)
    for place, edge in enumerate(CHAIN):
        values[graph.edge_index(edge)] = 3 - place if place < 2 else 0.095
    return objective, jc.Scores(graph, values, True, "given", {})


def test_what_is_retained_is_a_crossing(chain):
    objective, scores = chain
    found = jc.retained(objective, scores, 0.9)
    size = found.run["selection"]["edges"]
    values = [jc.faithfulness(objective, jc.Circuit.select(scores, edges=n)).value for n in (size - 1, size)]
    assert values[0] < 0.9 <= values[1] and found.mask[objective.graph.edge_index(CHAIN[2])]
    assert found.run["retention"]["faithfulness"] == pytest.approx(values[1], abs=1e-6)
    assert found.run["retention"]["evaluations"] <= 2 + np.log2(objective.graph.num_edges)
    with pytest.raises(ValueError, match="above 0, at most 1, got 1.5"):
        jc.retained(objective, scores, 1.5)


@pytest.mark.filterwarnings("ignore:.*prompts do not differ")
def test_one_edge_may_be_enough_and_nothing_is_retained_of_a_refused_share(x64):
    model = micro_model("gpt2", dtype=jnp.float64)
    objective = jc.Objective(model, pairs := behaving(model), "logit_diff")
    graph = objective.graph
    alone = graph.mask_of(["input->logits"])
    share = jc.faithfulness(objective, alone).value
    scores = jc.Scores(graph, np.where(alone, 1, 0.5 * graph.valid), True, "given", {})
    assert share > 0 and jc.retained(objective, scores, share / 2).run["selection"]["edges"] == 1
    same = jc.Objective(model, dataclasses.replace(pairs, corrupt=pairs.clean), "logit_diff")
    with pytest.raises(ValueError, match="retain: faithfulness is refused: the whole model and no circuit differ by"):
        jc.retained(same, scores, 0.5)


def test_necessity_and_accuracy_are_as_defined(chain):
    objective, scores = chain
    graph, shares = objective.graph, (0.1, 0.5, 1.0)
    curve, without = (
        jc.faithfulness_curve(objective, scores, shares=shares),
        jc.necessity_curve(objective, scores, shares=shares),
    )
    full, empty = (float(objective(mask)) for mask in (graph.valid, 0 * graph.valid))
    values, correct = [], []
    for share in shares:
        best = jc.Circuit.select(scores, edges=int(share * graph.num_edges)).mask
        values.append((float(objective(graph.valid & ~best)) - empty) / (full - empty))
        correct.append(float((np.asarray(objective.per_example(best)) < 0).mean()))
    np.testing.assert_allclose([point.value for point in without.points], values, atol=1e-4)
    assert without.area == pytest.approx(
        0.4 * (values[0] + values[1]) / 2 + 0.5 * (values[1] + values[2]) / 2, abs=1e-4
    )
    logs = np.log(shares)
    area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(logs, logs[1:], correct, correct[1:], strict=False))
    assert curve.acc_auc == pytest.approx(area / (logs[-1] - logs[0]))
    assert [point.correct for point in curve.signed] == correct
    kl = jc.Objective(objective.model, behaving(objective.model), "kl")
    assert jc.faithfulness_curve(kl, scores, shares=shares).acc_auc is None


def test_the_command_takes_what_enough_replicates_keep(run, tmp_path):
    """Where scores would choose otherwise; and only of a circuit that has replicates."""
    graph, file, sure = jc.Graph.transformer(1, 1), tmp_path / "c.json", tmp_path / "sure.json"
    kept = {"m0->logits": 19, "input->m0": 20, "input->logits": 18, "input->a0.h0<v>": 20}
    scores = np.where(graph.valid, 1.0, 0)
    scores[graph.edge_index("m0->logits")] = -5
    record = {
        "replicates": {"count": 20, "kept": kept, "edges": [3] * 20, "metrics": [0.1] * 20, "jaccards": [1.0] * 20}
    }
    jc.Circuit(graph, graph.valid, scores, record).save(file)
    code, printed, error = run("prune", file, "--at-least", "0.95", "--out", sure)
    assert (code, error) == (0, "") and "3 edges chosen, 1 of them dead ends" in printed
    assert jc.Circuit.load(sure).edges == ("input->m0", "m0->logits")
    for wrong, message in ((["--edges", "2"], "expected one of"), (["--retain", "0.5"], "leave out --edges")):
        code, _, error = run("prune", file, "--at-least", "0.95", *wrong)
        assert code == 1 and message in error
    jc.Circuit(graph, graph.valid, scores, {}).save(file)
    code, _, error = run("prune", file, "--at-least", "0.95")
    assert code == 1 and "expected a circuit with replicates" in error


@pytest.mark.mission
def test_the_commands(run, tmp_path):
    file, best = tmp_path / "scores.json", tmp_path / "best.json"
    assert run("score", "ioi", "--size", "8", "--out", file)[0] == 0
    code, printed, error = run("prune", file, "--edges", "30", "--select", "ilp", "--out", best)
    assert (code, error) == (0, "") and "0 of them dead ends" in printed
    assert jc.Circuit.load(best).run["selection"]["select"] == "ilp"
    code, printed, error = run("prune", file, "--retain", "0.5", "--out", best)
    assert (code, error) == (0, "") and "found by bisection (one crossing)" in printed
    assert jc.Circuit.load(best).run["retention"]["faithfulness"] >= 0.5
    code, printed, _ = run("evaluate", file, "--no-controls")
    assert code == 0 and "acc-AUC 0." in printed and "area under F without the best edges" in printed
    for wrong, message in (
        (["--retain", "0.9", "--edges", "3"], "--retain says how many"),
        (["--select", "ilp"], "--select ilp needs --edges"),
        (["--select", "best", "--edges", "3"], "--select: expected one of top, ilp"),
    ):
        code, _, error = run("prune", file, *wrong)
        assert code == 1 and message in error
