"""Circuits judged on models: the five tests, completeness, controls and the whole evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHAIN, chain_model, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.evaluation import controls
from jaxcircuits.evaluation.testing import _inflated


def behaving(model):
    """24 prompts on which corrupting hurts: the answer gains most by the clean prompt, the wrong one loses most."""
    pairs = micro_pairs(width=5, batch=24)
    clean, corrupt = (np.asarray(jax.vmap(model)(tokens))[:, -1] for tokens in (pairs.clean, pairs.corrupt))
    best = np.argsort(clean - corrupt)
    return jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt, answer=best[:, -1], wrong=best[:, 0])


@pytest.fixture(scope="module")
def objective():
    """The model whose circuit is known to be CHAIN."""
    model = chain_model()
    return jc.Objective(model, behaving(model), "logit_diff")


@pytest.fixture(scope="module")
def chain(objective):
    graph = objective.graph
    scores = graph.mask_of(list(CHAIN)) + 0.1 * np.random.default_rng(0).random(graph.shape)
    run = {"method": "given", "selection": {"rank": "signed", "edges": 3}}
    return jc.Circuit(graph, graph.mask_of(list(CHAIN)), scores * graph.valid, run)


def test_the_known_circuit_passes_every_test(objective, chain):
    record = jc.hypothesis_tests(objective, chain, seed=1)
    assert [outcome.name for outcome in record.outcomes] == [
        "equivalence",
        "independence",
        "minimality",
        "sufficiency",
        "partial necessity",
    ]
    assert record.of("equivalence").rejected is None  # it ties with the model everywhere
    assert record.of("minimality").rejected is False and record.of("minimality").details["superfluous"] == []
    assert record.of("sufficiency").rejected
    drawn = jc.random_circuits(objective.graph, 3, 100, seed=1)  # removing one of the chain's edges removes all effect
    assert record.of("partial necessity").details["wins"] >= (~(drawn & chain.mask).any((1, 2))).sum()
    assert record.evaluations == 3 + 2 * 100 + 3 + 2 * 100 and record.edges == 3
    assert json.loads(json.dumps(record.to_json()))["outcomes"][3]["rejecting_is"] == "good"
    with pytest.raises(ValueError, match="test: expected one of equivalence"):
        record.of("faithfulness")


def test_superfluous_edges_are_found(objective, chain):
    """Alive edges without effect, beside the known circuit: what they do is never more than a random edge does."""
    extra = objective.graph.mask_of(["input->a0.h1<v>", "a0.h1->logits", "input->a1.h0<q>", "a1.h0->logits"])
    outcome = jc.hypothesis_tests(objective, dataclasses.replace(chain, mask=chain.mask | extra)).of("minimality")
    assert outcome.rejected and set(outcome.details["superfluous"]) == set(objective.graph.names_of(extra))


def test_noise_on_the_known_circuits_scores_is_rejected_as_theory_says(objective, chain):
    """With symmetric noise the circuit scores above the model on half of the prompts: within epsilon, kept."""
    model, circuit = jc.ablated(objective).losses(np.stack([objective.graph.valid, chain.mask]))
    np.testing.assert_allclose(circuit, model, atol=1e-5)
    random = np.random.default_rng(0)
    copies = np.tile(model, 3)[:64]
    noisy = [jc.evaluation.equivalence(copies + random.normal(size=64), copies).rejected for _ in range(300)]
    from scipy import stats

    chances = stats.binom.pmf(np.arange(65), 64, 0.5)
    rejects = [
        jc.evaluation.equivalence(np.where(np.arange(64) < k, 1.0, -1.0), np.zeros(64)).rejected for k in range(65)
    ]
    theory = float(chances[np.array(rejects)].sum())
    assert abs(np.mean(noisy) - theory) <= 3 * np.sqrt(theory * (1 - theory) / 300) + 1e-12


def test_the_whole_model_is_undecided_or_good(objective, chain):
    whole = dataclasses.replace(chain, mask=objective.graph.valid)
    record = jc.hypothesis_tests(objective, whole, random=50)
    assert record.of("equivalence").rejected is None and record.of("minimality").rejected is None
    assert "random path" in record.of("minimality").reason


def test_what_rounding_makes_of_the_scores_decides_no_test():
    """Where corrupt is clean, all circuits are the model; in float32 their scores still differ in the last bits."""
    pairs = micro_pairs(batch=16)
    with pytest.warns(UserWarning, match="16 of 16 prompts do not differ"):
        pairs = dataclasses.replace(pairs, corrupt=pairs.clean)
    objective = jc.Objective(micro_model("gpt2"), pairs, "logit_diff")
    graph, random = objective.graph, np.random.default_rng(0)
    circuit = jc.Circuit(graph, graph.valid & (random.random(graph.shape) < 0.3), np.zeros(graph.shape), {})
    losses = jc.ablated(objective).losses(np.stack([graph.valid, circuit.mask]))
    assert 1e-9 < np.abs(losses[0] - losses[1]).max() < 1e-5
    outcome = jc.hypothesis_tests(objective, circuit, random=3, permutations=9).of("equivalence")
    assert outcome.rejected is None and "ties" in outcome.reason


def test_a_random_circuit_is_told_from_the_known_one(objective, chain):
    [drawn] = jc.random_circuits(objective.graph, 3, 1, seed=5)
    record = jc.hypothesis_tests(objective, dataclasses.replace(chain, mask=drawn))
    assert not record.of("partial necessity").rejected
    assert record.of("equivalence").rejected is not None


# --- completeness ------------------------------------------------------------------------------


def test_knock_outs_by_hand(objective, chain):
    graph = objective.graph
    record = jc.completeness(objective, chain, random=4, seed=2)
    assert [k.name for k in record.knock_outs] == [
        "input",
        "a0.h0",
        "a1.h1",
        "random 0",
        "random 1",
        "random 2",
        "random 3",
    ]
    rows = np.zeros(graph.shape, bool)
    rows[graph.sender_index("a0.h0")] = True
    ours, theirs = objective(chain.mask & ~rows), objective(graph.valid & ~rows)
    knock_out = record.knock_outs[1]
    assert knock_out.edges == 1 and knock_out.circuit.mean == pytest.approx(float(ours), abs=1e-5)
    assert knock_out.model.mean == pytest.approx(float(theirs), abs=1e-5)
    subsets = chain.mask & (np.random.default_rng(2).random((4, *graph.shape)) < 0.5)
    for k, subset in zip(record.knock_outs[3:], subsets, strict=True):
        assert k.edges == subset.sum()
        assert k.circuit.mean == pytest.approx(float(objective(chain.mask & ~subset)), abs=1e-5)


def test_the_known_circuit_is_complete_and_a_part_of_it_is_not(objective, chain):
    assert jc.completeness(objective, chain).incompleteness < 1e-5
    part = dataclasses.replace(chain, mask=objective.graph.mask_of(list(CHAIN[2:])))
    record = jc.completeness(objective, part, random=0)
    assert record.worst == "a1.h1"


# --- every number by hand, on a model that has no circuit of a few edges --------------------------


PARTS = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->a1.h0<k>", "a1.h0->logits"]


@pytest.fixture
def spread_out(x64):
    """A model whose effects are spread over all edges, and one loss for each mask of it, on every prompt."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=12), "logit_diff")
    return objective, lambda mask: np.asarray(objective.per_example(mask & objective.graph.valid), np.float64)


def parts_by_hand(graph, mask, granularity):
    """The edges of a circuit, or all those out of the nodes that its edges' names name."""
    if granularity == "edge":
        return mask & graph.valid
    edges = [name.partition("<")[0].split("->") for name in graph.names_of(mask & graph.valid)]
    named = {node for edge in edges for node in edge}
    return graph.valid & np.array([[sender in named] for sender in graph.senders])


def larger(first, second):
    """How many mean squares exceed others by more than differences of scores that are off by 1e-9 can make of them."""
    return (np.sqrt(first) - np.sqrt(second) > 2e-9).sum()


WAYS = [("edge", "circuit"), ("node", "circuit"), ("edge", "complement"), ("node", "complement")]


@pytest.mark.mission
@pytest.mark.parametrize("granularity, set", WAYS)
def test_every_number_of_the_five_tests_by_hand(granularity, set, spread_out):
    """What each test compares with what, from one run a mask; "without" is the model without it, whatever runs."""
    objective, loss = spread_out
    graph = objective.graph
    mask, valid = graph.mask_of(PARTS), graph.valid
    judged = jc.ablated(objective, granularity=granularity, set=set)
    record = jc.hypothesis_tests(judged, jc.Circuit(graph, mask, np.zeros(graph.shape), {}), random=12, seed=4)

    def parts(circuit):
        return parts_by_hand(graph, circuit, granularity)

    def runs(parts):
        return loss(valid & ~parts if set == "complement" else parts)

    def far(first, second):
        return np.mean((first - second) ** 2)

    own, model = parts(mask), loss(valid)
    drawn = jc.random_circuits(graph, len(PARTS), 12, seed=4)
    above = (runs(own) > model).sum() / 12
    assert record.of("equivalence").statistic == pytest.approx(abs(above - 0.5))
    by_hand = jc.evaluation.independence(loss(valid & ~own), model, seed=4)
    assert record.of("independence").statistic == pytest.approx(by_hand.statistic, rel=1e-9)
    assert record.of("independence").p_value == by_hand.p_value

    distance = far(runs(own), model)
    details = record.of("sufficiency").details
    assert details["distance"] == pytest.approx(distance, rel=1e-9)
    assert details["wins"] == larger([far(runs(parts(circuit)), model) for circuit in drawn], distance)
    distance = far(loss(valid & ~own), model)
    details = record.of("partial necessity").details
    assert details["distance"] == pytest.approx(distance, rel=1e-9) and distance > 1e-3
    assert details["wins"] == larger(distance, [far(loss(valid & ~parts(circuit)), model) for circuit in drawn])

    inflated, reduced = _inflated(judged, mask, 12, np.random.default_rng(4))
    for more, less in zip(inflated, reduced, strict=True):
        [removed] = graph.names_of(more & ~less)
        assert not own[graph.edge_index(removed)] and (more >= own).all() and (more >= less).all()
    random = [far(runs(less), runs(more)) for more, less in zip(inflated, reduced, strict=True)]
    for name, (effect, exceeded, _) in record.of("minimality").details["edges"].items():
        without = own & ~graph.mask_of([name])
        assert effect == pytest.approx(far(runs(without), runs(own)), rel=1e-9, abs=1e-18)
        assert exceeded == (12 - larger(random, effect) if effect else 0)
    assert tuple(record.of("minimality").details["edges"]) == graph.names_of(mask)


@pytest.mark.mission
def test_a_circuit_that_matters_is_missed_more_than_random_ones(spread_out):
    """Partial necessity on the edges of the steepest slopes: random circuits are removed, not run."""
    objective, loss = spread_out
    valid, slopes = objective.graph.valid, np.abs(objective.gradient(objective.full_mask()))
    own = valid & (slopes >= np.sort(slopes, axis=None)[-5])
    drawn = jc.random_circuits(objective.graph, 5, 12, seed=4)
    model = loss(valid)
    distance, others, alone = (
        [np.mean((loss(mask) - model) ** 2) for mask in masks] for masks in ([valid & ~own], valid & ~drawn, drawn)
    )
    circuit = jc.Circuit(objective.graph, own, np.zeros(objective.graph.shape), {})
    wins = jc.hypothesis_tests(objective, circuit, random=12, seed=4).of("partial necessity").details["wins"]
    assert 0 < wins == larger(distance, others) != larger(distance, alone)


def test_what_rounding_makes_of_removed_nodes_is_no_necessity():
    """Random circuits reach back to the embedding: without their nodes every run is the corrupt one."""
    model, outcomes = micro_model("gpt2"), []
    circuit = jc.Circuit(model.graph, model.graph.mask_of(PARTS), np.zeros(model.graph.shape), {})
    for seed in range(4):
        objective = jc.Objective(model, micro_pairs(seed, batch=12), "logit_diff")
        judged = jc.ablated(objective, granularity="node")
        outcomes.append(jc.hypothesis_tests(judged, circuit, random=30, permutations=9).of("partial necessity"))
    assert [(outcome.rejected, outcome.details["tied"]) for outcome in outcomes] == [(None, 30)] * 4


@pytest.mark.quick(1)
@pytest.mark.parametrize("granularity, set", WAYS)
def test_every_knock_out_by_hand(granularity, set, spread_out):
    """`m(C - K)` and `m(M - K)`, C all that runs: a node with all edges out of it, and random parts of what runs."""
    objective, loss = spread_out
    graph = objective.graph
    mask, valid = graph.mask_of(PARTS), graph.valid
    judged = jc.ablated(objective, granularity=granularity, set=set)
    record = jc.completeness(judged, jc.Circuit(graph, mask, np.zeros(graph.shape), {}), random=3, seed=2)
    runs = parts_by_hand(graph, mask, granularity)
    runs = valid & ~runs if set == "complement" else runs
    nodes = [name for name in graph.senders if runs[graph.sender_index(name)].any()]
    assert [knock_out.name for knock_out in record.knock_outs] == [*nodes, "random 0", "random 1", "random 2"]
    draws = np.random.default_rng(2).random((3, *(graph.shape if granularity == "edge" else (graph.shape[0], 1))))
    parts = [valid & (np.array(graph.senders) == name)[:, None] for name in nodes] + [runs & (d < 0.5) for d in draws]
    for knock_out, part in zip(record.knock_outs, parts, strict=True):
        ours, theirs = loss(runs & ~part), loss(valid & ~part)
        assert knock_out.circuit.mean == pytest.approx(ours.mean(), rel=1e-9, abs=1e-12)
        assert knock_out.model.mean == pytest.approx(theirs.mean(), rel=1e-9, abs=1e-12)
        assert knock_out.difference.standard_error == pytest.approx((ours - theirs).std(ddof=1) / 12**0.5, rel=1e-9)
        assert knock_out.edges == (runs & part).sum() > 0
        assert not np.allclose(theirs, loss(valid))
    means = [abs(knock_out.difference.mean) for knock_out in record.knock_outs]
    assert record.incompleteness == max(means) and record.worst == record.knock_outs[int(np.argmax(means))].name


def test_only_what_may_be_replaced_is_knocked_out(spread_out):
    """Under `component="mlps"` the edges out of heads are always in."""
    objective, loss = spread_out
    graph = objective.graph
    mask = graph.mask_of(PARTS)
    circuit = jc.Circuit(graph, mask, np.zeros(graph.shape), {})
    judged = jc.ablated(objective, component="mlps")
    [knock_out] = jc.completeness(judged, circuit, random=0).knock_outs
    stays = graph.valid & ~np.array([[name.startswith("m")] for name in graph.senders])
    assert knock_out.name == "m1" and knock_out.edges == 1
    assert knock_out.circuit.mean == pytest.approx(loss(stays).mean(), rel=1e-9)
    with pytest.raises(ValueError, match="nothing can be knocked out"):
        jc.completeness(judged, dataclasses.replace(circuit, mask=graph.mask_of(PARTS[:2])))


# --- controls ----------------------------------------------------------------------------------


def test_random_circuits_of_the_same_size_are_less_faithful(objective, chain):
    control = jc.random_control(objective, chain, count=40, seed=3)
    assert control.edges == 3 and control.circuits == control.value.count == 40 and control.drawn == "walks"
    drawn = jc.random_circuits(objective.graph, 3, 40, seed=3)
    results = jc.faithfulness_many(objective, drawn)
    assert control.value.mean == pytest.approx(np.mean([result.value for result in results]), abs=1e-5)
    own = abs(1 - jc.faithfulness(objective, chain).value)
    assert control.as_faithful == np.mean([abs(1 - result.value) <= own for result in results])
    assert control.as_faithful < 0.1 and control.value.mean < 0.5


@pytest.mark.mission
def test_the_reset_network_is_judged_by_the_same_method(objective, chain):
    """Another network stands for the reset one; the method there finds other edges."""
    reset = jc.Objective(chain_model(seed=1), behaving(chain_model(seed=1)), "logit_diff")
    control = jc.reset_control(objective, chain, reset, lambda f: jc.random_scores(f, seed=1))
    found = jc.Circuit.select(jc.random_scores(reset, seed=1), edges=3)
    assert control.method == "random" and control.shared_edges == (found.mask & chain.mask).sum()
    assert control.on_reset.value == pytest.approx(jc.faithfulness(reset, found).value, abs=1e-5)
    assert control.on_model.value == pytest.approx(jc.faithfulness(objective, found).value, abs=1e-5)
    assert control.curve.cpr == pytest.approx(jc.faithfulness_curve(reset, jc.random_scores(reset, seed=1)).cpr)
    masked = jc.reset_control(objective, chain, reset, lambda f: jc.acdc(f, 0.01, width=4))
    assert masked.method == "acdc" and masked.curve is None


# --- all of it ---------------------------------------------------------------------------------


def test_a_circuit_and_its_scores_are_evaluated_with_controls(objective, chain, tmp_path):
    record = jc.evaluate(objective, chain, random=20)
    assert record.faithfulness.value == pytest.approx(1, abs=1e-5) and record.faithfulness.edges == 3
    assert record.random.circuits == 20 and record.random.as_faithful < 0.3
    assert record.curve.cpr > record.random_curve.cpr.mean and record.curve.cmd < record.random_curve.cmd.mean
    assert record.random_curve.edges == tuple(point.edges for point in record.curve.signed)
    assert record.completeness.incompleteness < 1e-5 and record.reset is None
    record.save(tmp_path / "evaluation.json")
    read = jc.read_record(tmp_path / "evaluation.json")
    assert read["kind"] == "evaluation" and read["random"]["value"]["count"] == 20
    assert read["run"]["circuit"]["method"] == "given" and read["run"]["ablation"]["set"] == "circuit"


@pytest.mark.mission
def test_scores_alone_have_a_curve_and_a_mask_alone_has_none(objective, chain):
    scores = dataclasses.replace(chain, mask=objective.graph.valid)
    record = jc.evaluate(objective, scores, random=5, reset=objective, method=lambda f: jc.random_scores(f))
    assert record.completeness is None and record.random is None
    assert record.random_curve.cpr.count == 5 and record.reset.curve.cpr is not None and record.reset.on_reset is None
    unscored = dataclasses.replace(chain, scores=np.zeros(objective.graph.shape))
    record = jc.evaluate(objective, unscored, random=0)
    assert record.curve is None and record.random is None and record.random_curve is None


def test_what_is_refused(objective, chain):
    empty = dataclasses.replace(chain, mask=np.zeros(objective.graph.shape, bool))
    for call in (jc.hypothesis_tests, jc.completeness, jc.evaluate):
        with pytest.raises(ValueError, match="circuit with edges"):
            call(objective, empty)
    with pytest.raises(ValueError, match="random: expected a whole number, from 1"):
        jc.hypothesis_tests(objective, chain, random=0)
    with pytest.raises(ValueError, match="share in"):
        jc.completeness(objective, chain, share=0.0)
    with pytest.raises(ValueError, match="edges and at least 1 circuit"):
        jc.random_control(objective, chain, count=0)
    with pytest.raises(ValueError, match="both `reset` and `method`"):
        jc.evaluate(objective, chain, reset=objective)


def test_random_circuits_better_than_the_model_are_as_far_from_it_as_worse_ones(objective, chain, monkeypatch):
    """CMD has the distance of F from 1 to either side: here 0.5 below it at the first size, 0.5 above at the second."""
    curve = jc.faithfulness_curve(objective, chain, shares=(0.5, 1.0))
    at = dataclasses.replace(curve.signed[0], value=0.5), dataclasses.replace(curve.signed[0], value=1.5)
    monkeypatch.setattr(controls, "faithfulness_many", lambda judged, masks: [at[0], at[0], at[1], at[1]])
    found = jc.random_curve(objective, curve, count=2)
    np.testing.assert_allclose([found.cpr.mean, found.cmd.mean], [0.5, 0.25])
