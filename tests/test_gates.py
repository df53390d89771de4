"""Networks of units: truth tables, exact circuits, and ACDC on graphs whose edges are single connections."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_mask

import jaxcircuits as jc

TASK = jc.tasks.TASKS["logic_gates"]
TRUTH = {
    "and": lambda a, b: [a and b],
    "or": lambda a, b: [a or b],
    "xor": lambda a, b: [a != b],
    "xor_relu": lambda a, b: [a != b],
    "majority": lambda a, b, c: [a + b + c > 1],
    "adder": lambda a, b, c: [(a + b + c) % 2, a + b + c > 1],
}


def on_all_inputs(name, reference="zero"):
    return jc.Objective(jc.gate(name), TASK.generate(gate=name), "l2", reference)


def one_input(name, token, reference="zero"):
    """One clean prompt alone; the corrupt one has every digit 0."""
    pairs = jc.PromptPairs(clean=np.array([[token]]), corrupt=np.array([[0]]))
    return jc.Objective(jc.gate(name), pairs, "l2", reference)


@pytest.mark.parametrize("name", TRUTH)
def test_truth_tables(name):
    model = jc.gate(name)
    inputs = len(model.units[0])
    for token in range(model.vocab_size):
        digits = [token >> place & 1 for place in range(inputs)]
        np.testing.assert_array_equal(model(jnp.array([token]))[0], np.float32(TRUTH[name](*digits)))


def test_edges_are_the_connections_between_neighbouring_layers():
    graph = jc.gate("xor").graph
    assert graph.names_of(graph.valid) == (
        *("x0->or", "x0->and", "x1->or", "x1->and", "or->xor", "and->xor", "xor->logits"),
    )
    assert graph.senders == ("x0", "x1", "or", "and", "xor") and graph.receivers == ("or", "and", "xor", "logits")
    assert graph == jc.gate("xor").graph != jc.gate("xor_relu").graph
    assert hash(graph) == hash(jc.gate("xor").graph)
    assert graph.drop_dead_ends(graph.mask_of(["x0->or", "or->xor", "xor->logits", "and->xor"])).sum() == 3


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", TRUTH)
def test_the_exact_circuit_is_every_connection_that_has_a_weight(name):
    """Each is needed on all inputs together, so the circuit is unique, and ACDC and single ablations agree on it."""
    objective = on_all_inputs(name)
    graph, known = objective.graph, TASK.circuit(objective.graph)
    weight = np.asarray(objective.model.weights)
    units = weight[:, : len(graph.receivers) - 1]
    has_weight = np.append(units != 0, graph.valid[:, -1:], axis=1)
    assert known == graph.names_of(has_weight)
    masks = np.repeat(graph.valid[None], graph.num_edges, 0)
    masks[np.arange(graph.num_edges), *graph.edges.T] = False
    rises = np.asarray(objective.many(masks, width=4)) > 0
    assert known == tuple(graph.edge_name(*edge) for edge in graph.edges[rises])
    result = jc.acdc(objective, 1e-6, width=4)
    assert graph.names_of(result.mask) == known and result.metric_final == 0
    assert result.options["evaluator"] == "DeviceEvaluator"


def test_greedy_removal_keeps_one_of_two_redundant_inputs_of_an_or():
    """The documented limitation: on the input (1, 1) either suffices, and the order decides which one stays."""
    objective = one_input("or", 0b11)
    last_first = jc.acdc(objective, 1e-6, width=4)
    assert last_first.graph.names_of(last_first.mask) == ("x0->or", "or->logits")
    first_last = jc.acdc(objective, 1e-6, width=4, order="first_last")
    assert first_last.graph.names_of(first_last.mask) == ("x1->or", "or->logits")
    without_both = objective.graph.mask_of(["or->logits"])
    assert objective(without_both) == 1 and objective(last_first.mask) == 0


def test_both_inputs_of_an_and_stay_on_one_one():
    result = jc.acdc(one_input("and", 0b11), 1e-6, width=4)
    assert result.graph.names_of(result.mask) == ("x0->and", "x1->and", "and->logits")


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["adder", "xor_relu"])
def test_the_masked_run_has_the_clean_and_the_corrupt_run_at_its_ends(name):
    objective = on_all_inputs(name, "resample")
    model, pairs = objective.model, TASK.generate(gate=name)
    assert objective(objective.graph.valid) == 0
    run, zeros = eqx.filter_jit(model), jnp.zeros(objective.graph.shape)
    for row, (clean, corrupt) in enumerate(zip(pairs.clean, pairs.corrupt, strict=True)):
        masked = run(jnp.asarray(clean), zeros, objective.reference[:, row])
        np.testing.assert_array_equal(masked, run(jnp.asarray(corrupt)))


def test_entries_that_are_no_edge_have_no_effect():
    objective = on_all_inputs("adder", "resample")
    mask = random_mask(objective.graph, 0)
    np.testing.assert_array_equal(objective.per_example(mask), objective.per_example(mask & objective.graph.valid))


def test_the_gradient_of_the_mask_is_that_of_each_connection(x64):
    """`<delta_s, slope_r>` against automatic differentiation of the loss, at a soft mask of the ReLU network."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jc.gate("xor_relu"))
    objective = jc.Objective(model, TASK.generate(gate="xor_relu"), "l2", "resample")
    soft = jnp.asarray(0.3 + 0.4 * np.random.default_rng(0).random(objective.graph.shape))
    by_autodiff = np.asarray(jax.grad(objective)(soft)) * objective.graph.valid
    assert np.abs(by_autodiff).max() > 0.1
    np.testing.assert_allclose(objective.gradient(soft), by_autodiff, rtol=1e-9, atol=1e-12)


def test_bad_networks_and_prompts_are_refused():
    with pytest.raises(ValueError, match="unknown gate 'nand': expected one of and, or"):
        jc.gate("nand")
    with pytest.raises(ValueError, match="activation: expected step or relu"):
        jc.Gates.build([["x"], ["y"]], [[[1]]], [[0]], activation="tanh")
    with pytest.raises(ValueError, match=r"weights: expected shapes \[\(1, 1\)\]"):
        jc.Gates.build([["x"], ["y"]], [[[1], [1]]], [[0]])
    with pytest.raises(ValueError, match="all names different"):
        jc.Gates.build([["x"], ["x"]], [[[1]]], [[0]])
    with pytest.raises(ValueError, match="a mask needs reference values"):
        jc.gate("or")(jnp.array([0]), jnp.ones((3, 2)))
    for options, said in (
        ({"gate": "nand"}, "gate: expected one of"),
        ({"gate": "or", "size": 5}, "the gate has 4 inputs"),
    ):
        with pytest.raises(ValueError, match=said):
            TASK.generate(**options)
