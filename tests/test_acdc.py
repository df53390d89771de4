"""ACDC against the original implementation's runs, against itself one trial at a time, and by hand."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import expected, micro_model, micro_pairs, reference_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits import batching, live
from jaxcircuits.discovery.schedule import HEAD_ORDERS, NAME_ORDERS, Walk, all_steps

RUNS = ["greater_than-kl-zero-0.05", "induction-kl-0.05", "ioi-kl-0.1", "ioi-logit_diff-0.3"]


@pytest.mark.parametrize(
    "name", ["greater_than-kl-0.02", *(pytest.param(name, marks=pytest.mark.mission) for name in RUNS)]
)
def test_edge_by_edge_agreement_with_the_original(name, x64_reference):
    run = expected(name)
    metric = {"kl_div": "kl"}.get(run["metric"], run["metric"])
    objective = jc.Objective(x64_reference.model, reference_pairs(run["task"]), metric, run["reference"])
    result = jc.acdc(objective, run["threshold"])
    assert list(objective.graph.names_of(result.mask)) == sorted(run["kept_edges"], key=objective.graph.edge_index)
    assert sorted(result.kept_groups) == sorted(run["kept_groups"])
    assert result.evaluations == run["evaluations"]
    assert [(d.name, d.removed) for d in result.decisions] == [(name, gone) for name, _, _, gone in run["trace"]]
    assert result.run["signed"] is True and result.run["method"] == "acdc"
    np.testing.assert_allclose([d.after for d in result.decisions], [t[2] for t in run["trace"]], atol=1e-9)
    assert abs(result.metric_final - run["metric_final"]) <= 1e-9
    assert abs(result.metric_full - run["metric_full"]) <= 1e-9
    assert abs(result.smallest_margin - run["smallest_margin"]) <= 1e-9


def sequential(
    objective, threshold, *, groups=True, absolute=False, order="last_first", head_order="descending", joint=False
):
    """The rules of the algorithm once more, one trial at a time, with names instead of indices.

    `joint`: what a head writes depends on what all heads of its layer read, as under a norm of their sum.
    """
    graph = objective.graph
    mask = graph.valid.copy()
    current = float(objective(mask))
    trace = []

    def in_order(senders):
        def key(name):
            layer = -1 if name == "input" else 2 * int(name[1:].split(".")[0]) + (name[0] == "m")
            head = int(name.split(".h")[1]) if ".h" in name else 0
            return (-layer if order == "last_first" else layer, -head if head_order == "descending" else head)

        return sorted(senders, key=key)

    def attempt(name, edges):
        nonlocal mask, current
        smaller = mask.copy()
        for edge in edges:
            smaller[edge] = False
        new = float(objective(smaller))
        change = abs(new - current) if absolute else new - current
        trace.append((name, change < threshold))
        if change < threshold:
            mask, current = smaller, new

    def edges_into(receiver):
        column = graph.receiver_index(receiver)
        return {s: (graph.sender_index(s), column) for s in graph.senders if graph.valid[graph.sender_index(s), column]}

    def is_alive(node):
        return node == "logits" or mask[graph.sender_index(node)].any()

    def one_by_one(receiver):
        into = edges_into(receiver)
        for sender in in_order(into):
            if mask[into[sender]]:
                attempt(f"{sender}->{receiver}", [into[sender]])

    def kill(receiver):
        for edge in edges_into(receiver).values():
            mask[edge] = False

    one_by_one("logits")
    for layer in reversed(range(graph.num_layers)):
        if f"m{layer}" in graph.senders:
            one_by_one(f"m{layer}") if is_alive(f"m{layer}") else kill(f"m{layer}")
        inputs = []
        for kind in "vkq":
            heads = [name for name in graph.senders if name.startswith(f"a{layer}.h")]
            own = [name for name in graph.receivers if name.startswith(f"a{layer}.") and name.endswith(f"<{kind}>")]
            for i, receiver in reversed(list(enumerate(own))):
                sharing = heads if joint else heads[i * len(heads) // len(own) : (i + 1) * len(heads) // len(own)]
                inputs.append(receiver) if any(map(is_alive, sharing)) else kill(receiver)
        for receiver in inputs if groups else []:
            attempt(receiver, list(edges_into(receiver).values()))
        for receiver in inputs:
            one_by_one(receiver)
    return mask, current, trace


CALLS = {  # as a replay of the recorded decisions counts them: predictor, width, device calls
    "every edge is expected to go": ("all_removed", 16, 53),
    "as the sender's last edges": ("history", 16, 44),
    "EAP-IG scores": ("ioi-EAP-IG-inputs-kl", 16, 29),
    "EAP-IG scores, wider": ("ioi-EAP-IG-inputs-kl", 64, 18),
}


@pytest.mark.mission
@pytest.mark.parametrize("predictor", CALLS)
def test_device_calls_are_those_of_a_replay(predictor, x64_reference):
    guess, width, calls = CALLS[predictor]
    objective = jc.Objective(x64_reference.model, reference_pairs("ioi"), "kl")
    if guess.startswith("ioi"):
        by_name = expected(guess)["scores"]
        guess = np.zeros(objective.graph.shape)
        for name, score in by_name.items():
            guess[objective.graph.edge_index(name)] = score
    result = jc.acdc(objective, 0.1, width=width, predictor=guess)
    trace = expected("ioi-kl-0.1")["trace"]
    assert [(d.name, d.removed) for d in result.decisions] == [(name, gone) for name, _, _, gone in trace]
    assert result.device_calls <= calls, result.device_calls


@pytest.mark.mission
@given(
    model=st.sampled_from(["gpt2", "attention-only", "shortformer", "one-head"]),
    reference=st.sampled_from(["resample", "zero"]),
    seed=st.integers(0, 4),
    threshold=st.floats(1e-4, 2.0),
    width=st.sampled_from([None, 1, 2, 4, 9, 16, 64]),
    evaluator=st.sampled_from([jc.DeviceEvaluator, jc.LiveEvaluator, jc.DenseEvaluator]),
    groups=st.booleans(),
    absolute=st.booleans(),
    order=st.sampled_from(["last_first", "first_last"]),
    head_order=st.sampled_from(["descending", "ascending"]),
)
@settings(max_examples=18)
def test_speculation_gives_the_sequential_answer_decision_by_decision(**options):
    assert_sequential(**options)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "options",
    [
        dict(model="gpt2", threshold=0.02, width=9, evaluator=jc.DeviceEvaluator),
        dict(model="gpt2", threshold=0.02, width=4, evaluator=jc.LiveEvaluator, groups=False, order="first_last"),
        dict(model="gpt2", threshold=0.05, width=4, evaluator=jc.DenseEvaluator, absolute=True, head_order="ascending"),
    ],
    ids=["as the original", "first to last, no groups", "sizes, first heads first"],
)
def test_speculation_in_three_searches(options):
    """The same on chosen options; there are decisions of both kinds."""
    assert {removed for _, removed in assert_sequential(reference="resample", seed=0, **options)} == {True, False}


def assert_sequential(model, reference, seed, threshold, width, evaluator, **options):
    with jax.enable_x64(True):
        objective = jc.Objective(
            micro_model(model, seed, jnp.float64), micro_pairs(seed), "logit_diff", reference, microbatch=5
        )
        result = jc.acdc(objective, threshold, width=width, evaluator=evaluator, **options)
        mask, final, trace = sequential(objective, threshold, **options)
    assert [(d.name, d.removed) for d in result.decisions] == trace
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_allclose(result.metric_final, final, rtol=1e-10)
    return trace


@pytest.mark.parametrize("evaluator", [jc.DeviceEvaluator, jc.LiveEvaluator])
def test_a_search_whose_changeable_nodes_become_more_than_its_slots(evaluator, x64, monkeypatch):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    roomy = jc.acdc(objective, 0.02, width=4, evaluator=evaluator)
    monkeypatch.setattr(live, "SLOTS", (1, 2))
    slots = []

    class Growing(evaluator):
        def _program(self, *given):
            slots.append(self._num_slots)
            return super()._program(*given)

    grown = jc.acdc(objective, 0.02, width=4, evaluator=Growing)
    assert slots == sorted(slots) and {1, 2} <= set(slots) <= {1, 2, 4}
    assert [(d.name, d.removed) for d in grown.decisions] == [(d.name, d.removed) for d in roomy.decisions]
    np.testing.assert_allclose([d.after for d in grown.decisions], [d.after for d in roomy.decisions], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("guesses", ["all_removed", "history"])
def test_a_shortformer_is_live_evaluated_as_it_is_dense(guesses, x64):
    """Queries at scored positions alone, and at all: each gets the positions that are its own."""
    objective = jc.Objective(
        micro_model("shortformer", dtype=jnp.float64), micro_pairs(kind="positions"), "kl", microbatch=5
    )
    live, dense = (
        jc.acdc(objective, 0.01, width=8, evaluator=evaluator, predictor=guesses)
        for evaluator in (jc.LiveEvaluator, jc.DenseEvaluator)
    )
    assert 0 < live.mask.sum() < objective.graph.num_edges
    assert [(d.name, d.removed) for d in live.decisions] == [(d.name, d.removed) for d in dense.decisions]
    np.testing.assert_allclose([d.after for d in live.decisions], [d.after for d in dense.decisions], rtol=1e-9)


def test_the_record_adds_up(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    seen, began = [], time.perf_counter()
    result = jc.acdc(objective, 0.02, width=4, on_progress=seen.append)
    elapsed, run = time.perf_counter() - began, result.run
    assert run["edges_total"] == objective.graph.num_edges and run["edges_kept"] == result.mask.sum()
    assert run["evaluations"] == len(run["decisions"]) and run["device_calls"] == len(seen) < run["evaluations"]
    assert abs(float(objective(result.mask)) - run["metric_final"]) < 1e-12
    assert elapsed >= run["seconds"] >= run["seconds_compiling"] >= 0
    assert seen[-1].edges_done == seen[-1].edges_total == run["edges_total"]
    assert seen[-1].edges_kept == run["edges_kept"] and seen[-1].evaluations == run["evaluations"]
    assert all(one.edges_done <= two.edges_done for one, two in zip(seen, seen[1:], strict=False))
    kept = [d for d in result.decisions if not d.removed and "->" in d.name]
    assert {d.name for d in kept} == set(objective.graph.names_of(result.mask))
    for decision in kept:
        effect = result.scores[objective.graph.edge_index(decision.name)]
        assert effect == decision.after - decision.before >= 0.02
    before = result.metric_full
    for decision in result.decisions:
        assert decision.before == before
        before = decision.after if decision.removed else before


def test_a_sweep_gives_each_threshold_its_own_answer(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    thresholds = [0.3, 0.001, 0.02, 0.02, 0.1]
    results = jc.acdc_sweep(objective, thresholds, width=4)
    assert [result.options["threshold"] for result in results] == thresholds
    assert len({result.mask.sum() for result in results}) > 2
    for threshold, result in zip(thresholds, results, strict=True):
        alone = jc.acdc(objective, threshold, width=4)
        assert [(d.name, d.removed) for d in result.decisions] == [(d.name, d.removed) for d in alone.decisions]
        np.testing.assert_array_equal(result.mask, alone.mask)
        assert abs(result.metric_final - alone.metric_final) < 1e-10


@pytest.mark.parametrize("guess", ["all_removed", "scores", "opposite scores", "previous"])
def test_a_predictor_changes_the_cost_only(guess, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff", microbatch=5)
    plain = jc.acdc(objective, 0.05, width=9)
    eap = -np.asarray(objective.gradient(objective.graph.valid))
    predictor = {"scores": eap, "opposite scores": -eap, "previous": plain}.get(guess, guess)
    guided = jc.acdc(objective, 0.05, width=9, predictor=predictor)
    assert [(d.name, d.removed) for d in guided.decisions] == [(d.name, d.removed) for d in plain.decisions]
    if guess == "previous":
        assert guided.evaluations_wasted == 0 and guided.device_calls == -(-guided.evaluations // 9)


@pytest.mark.parametrize("reference", ["resample", pytest.param("zero", marks=pytest.mark.slow)])
def test_a_search_within_a_circuit_tries_only_its_edges(reference, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl", reference)
    graph = objective.graph
    within = np.random.default_rng(1).random(graph.shape) < 0.6
    live = jc.acdc(objective, 0.01, within=within)
    dense = jc.acdc(objective, 0.01, within=within, evaluator=jc.DenseEvaluator)
    assert [(d.name, d.removed) for d in live.decisions] == [(d.name, d.removed) for d in dense.decisions]
    np.testing.assert_allclose([d.after for d in live.decisions], [d.after for d in dense.decisions], atol=1e-12)
    tried = {decision.name for decision in live.decisions if "->" in decision.name}
    assert tried and tried <= set(graph.names_of(within)) and 0 < live.mask.sum() < (live.mask & within).sum() + 1
    assert (
        abs(live.decisions[0].before - float(objective(within)))
        < 1e-12
        < abs(live.metric_full - float(objective(within)))
    )
    assert live.run["edges_within"] == (within & graph.valid).sum()
    whole = jc.acdc(objective, 0.01, within=graph.valid)
    np.testing.assert_array_equal(whole.mask, jc.acdc(objective, 0.01).mask)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no"), MemoryError("planned")])
def test_memory_that_does_not_do_shortens_the_chain(error, x64):
    class Small(jc.LiveEvaluator):
        """Has room for 4 candidates."""

        def chain(self, steps, guesses, width):
            if width > 4:
                raise error
            return super().chain(steps, guesses, width)

    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    result = jc.acdc(objective, 0.02, width=64, evaluator=Small)
    np.testing.assert_array_equal(result.mask, jc.acdc(objective, 0.02).mask)
    assert list(result.run["device_calls_by_width"]) == [4] and result.memory_planned > 0


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("RESOURCE_EXHAUSTED: no", MemoryError, "RESOURCE_EXHAUSTED: no; take fewer or shorter"),
        ("INTERNAL: no", RuntimeError, "INTERNAL"),
    ],
)
def test_what_not_even_one_candidate_has_room_for_says_what_would(said, kind, message):
    class Full(jc.LiveEvaluator):
        def chain(self, steps, guesses, width):
            raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(kind, match=message):
        jc.acdc(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), 0.02, evaluator=Full)


@pytest.mark.quick(1)
@pytest.mark.parametrize("evaluator", [jc.DenseEvaluator, jc.LiveEvaluator])
def test_a_chain_that_cannot_fit_is_refused_before_any_compute(evaluator, monkeypatch):
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "kl")
    monkeypatch.setattr(batching, "memory_limit", lambda: 100)
    with pytest.raises(MemoryError, match="1 .*needs .* GiB .* take fewer or shorter prompts"):
        jc.acdc(objective, 0.02, evaluator=evaluator)


def test_an_increment_equal_to_the_threshold_stays(x64):
    objective = jc.Objective(micro_model("one-head", dtype=jnp.float64), micro_pairs(), "kl")
    options = {"width": 1, "evaluator": jc.DenseEvaluator}
    first = jc.acdc(objective, 0.1, **options).decisions[0]
    increment = first.after - first.before
    with pytest.warns(UserWarning, match="float noise"):
        at = jc.acdc(objective, increment, **options)
    assert not at.decisions[0].removed
    assert jc.acdc(objective, increment * (1 + 1e-6), **options).decisions[0].removed


@pytest.mark.parametrize(("value", "width"), [(jnp.nan, 16), (jnp.inf, 1)])
@pytest.mark.parametrize("evaluator", [jc.DeviceEvaluator, jc.LiveEvaluator])
def test_a_trial_without_a_number_stops_the_search_by_its_name(value, width, evaluator):
    """The same trial stops it whatever is tried at once: what lies behind a wrong guess decides nothing."""

    def undefined(logits, labels):
        return jnp.where(jnp.abs(logits - labels.full).max() > 1e-3, value, 0.0)

    objective = jc.Objective(micro_model("one-head"), micro_pairs(), undefined)
    with pytest.raises(ValueError, match=f"metric without m0->logits: .* first {value} ..?prompt 0"):
        jc.acdc(objective, 0.1, width=width, evaluator=evaluator)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1e-9])
def test_a_threshold_that_noise_or_nothing_decides_is_said_before_the_first_trial(threshold):
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "logit_diff")

    def stop(progress):
        raise KeyboardInterrupt

    said = "not above 0" if threshold <= 0 else "below twice the float noise"
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=f"threshold {threshold:g} is {said}"):
        jc.acdc(objective, threshold, evaluator=jc.DenseEvaluator, on_progress=stop)


def test_margins_within_float_noise_are_reported():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    options = {"width": 1, "evaluator": jc.DenseEvaluator}
    first = next(d for d in jc.acdc(objective, 0.1, **options).decisions if d.after - d.before > 1e-3)
    with pytest.warns(UserWarning, match="decisions lie within float noise"):
        result = jc.acdc(objective, first.after - first.before, **options)
    assert first.name in result.undecided and result.noise > 0


@pytest.mark.parametrize("order", NAME_ORDERS)
@pytest.mark.parametrize("head_order", HEAD_ORDERS)
def test_every_order_tries_every_edge_and_group_once(order, head_order):
    graph = jc.Graph.transformer(2, 3)
    steps = all_steps(graph, order=order, head_order=head_order, seed=3)
    singles = [step.name for step in steps if not step.is_group]
    assert sorted(singles) == sorted(graph.names_of(graph.valid))
    assert sorted(step.name for step in steps if step.is_group) == sorted(r for r in graph.receivers if "<" in r)


def test_groups_come_by_kind_and_head_before_the_single_edges_of_their_layer():
    graph = jc.Graph.transformer(2, 2)
    steps = all_steps(graph)
    groups = [(number, step.name) for number, step in enumerate(steps) if step.is_group]
    order = [f"h{head}<{kind}>" for kind in "vkq" for head in (1, 0)]
    assert [name for _, name in groups] == [f"a{layer}.{name}" for layer in (1, 0) for name in order]
    assert [number for number, _ in groups[:6]] == list(range(groups[0][0], groups[0][0] + 6))
    after = [step.edges[0, 1] for step in steps if not step.is_group]
    receivers = [graph.receivers[column] for column in dict.fromkeys(after)]
    assert receivers == ["logits", "m1", *(f"a1.{name}" for name in order), "m0", *(f"a0.{name}" for name in order)]


def test_nodes_that_nothing_reads_are_not_tried():
    """Without an edge into `logits` nothing is left to try; with one, only what lies behind it."""
    graph = jc.Graph.transformer(2, 2)
    walk = Walk(all_steps(graph))
    into_logits = int(graph.valid[:, -1].sum())
    for _ in range(into_logits):
        walk.take(removed=True)
    assert walk.is_done and not walk.mask.any()
    walk = Walk(all_steps(graph))
    tried = []
    while not walk.is_done:
        step = walk.steps[walk.position]
        tried.append(step.name)
        walk.take(removed=step.name not in ("m0->logits", "input->m0"))
    assert tried[into_logits:] == [f"{name}->m0" for name in ("a0.h1", "a0.h0", "input")]
    assert graph.names_of(walk.mask) == ("input->m0", "m0->logits")


def test_orders_are_those_of_the_senders_inside_a_receiver():
    graph = jc.Graph.transformer(2, 2)

    def into_logits(**options):
        return [step.name.split("->")[0] for step in all_steps(graph, **options)[: len(graph.senders)]]

    assert into_logits() == ["m1", "a1.h1", "a1.h0", "m0", "a0.h1", "a0.h0", "input"]
    assert into_logits(head_order="ascending") == ["m1", "a1.h0", "a1.h1", "m0", "a0.h0", "a0.h1", "input"]
    assert into_logits(order="first_last") == ["input", "a0.h1", "a0.h0", "m0", "a1.h1", "a1.h0", "m1"]
    assert into_logits(order="random", seed=1) != into_logits(order="random", seed=2)


def test_what_it_refuses():
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "kl")
    with pytest.raises(ValueError, match="finite"):
        jc.acdc(objective, float("nan"))
    with pytest.raises(ValueError, match="width"):
        jc.acdc(objective, 0.1, width=0)
    with pytest.raises(ValueError, match="predictor"):
        jc.acdc(objective, 0.1, predictor=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="predictor: expected one of history"):
        jc.acdc(objective, 0.1, predictor="oracle")
    with pytest.raises(ValueError, match="thresholds: expected at least one number"):
        jc.acdc_sweep(objective, [])
    with pytest.raises(ValueError, match="order: expected one of last_first"):
        jc.acdc(objective, 0.1, order="shuffle")
    with pytest.raises(ValueError, match="head_order: expected one of descending"):
        jc.acdc(objective, 0.1, head_order="normal")
    with pytest.raises(ValueError, match="within: expected shape"):
        jc.acdc(objective, 0.1, within=np.ones(3, bool))
