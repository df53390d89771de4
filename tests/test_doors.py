"""What callers give is refused by name where it comes in, also without the type checks that other tests run under."""

import json
import subprocess
import sys

import pytest

SETUP = """
import warnings
import numpy as np
import jaxcircuits as jc

graph = jc.Graph.transformer(2, 2)
scores = jc.Scores(graph, np.random.default_rng(0).normal(size=graph.shape), True, "made up", {})
zeros = np.zeros(graph.shape)

def check(call, *message):
    try:
        call()
    except ValueError as error:
        assert all(part in str(error) for part in message) and len(str(error)) < 300, error
        return
    raise AssertionError(f"taken: {message}")
"""


OUTSIDE = """
import json, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    try:
        exec(json.loads(line), {"__name__": "__main__"})
        said = ""
    except BaseException:
        said = traceback.format_exc()
    print(json.dumps(said), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def outside():
    """A process without type checks, which runs texts one after the other and says how each ended: "" or an error."""
    command = [sys.executable, "-W", "error", "-c", OUTSIDE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ended(script):
            process.stdin.write(json.dumps(script) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ended
        process.stdin.close()


@pytest.fixture
def check(outside):
    """Runs calls there, with names of their own."""

    def run(calls, setup=""):
        said = outside(f"{SETUP}\n{setup}\n{calls}")
        assert not said, said[-2000:]

    return run


def test_circuits_are_chosen_by_whole_numbers_and_thresholds(check):
    check("""
for edges in (2.5, True, "3", np.float64(2), 2**70):
    check(lambda: jc.Circuit.select(scores, edges=edges), "edges: expected a whole number")
for edges in (-1, 900):
    check(lambda: jc.Circuit.select(scores, edges=edges), "edges: expected 0 to 46, got")
for threshold in (float("nan"), float("inf"), True, "0.1", 10**400):
    check(lambda: jc.Circuit.select(scores, threshold=threshold), "threshold: expected a finite number or None, got")
assert jc.Circuit.select(scores, edges=np.int64(12)).edges == jc.Circuit.select(scores, edges=12).edges
for dtype in (float, int, np.float32, object):
    check(lambda: jc.Circuit(graph, zeros.astype(dtype), zeros, {}), "mask: expected True and False, got")
assert jc.Circuit(graph, zeros > 0, zeros, {}).num_edges == 0
""")


def test_autocircuits_edges_and_mibs_names(check):
    check("""
for score in (float("nan"), float("inf"), 10**400, True, "1", None):
    check(lambda: jc.from_autocircuit(graph, {"A0.1->MLP 1": score}), "score of A0.1->MLP 1: expected a finite number")
for name in (3, ["A0.1->MLP 1"], None):
    check(lambda: jc.from_autocircuit(graph, [name]), "sender->receiver', got")
circuit = jc.Circuit(graph, graph.valid, zeros, {})
for key in ("ioi", ("ioi",), ("ioi", "gpt2", "x")):
    check(lambda: jc.write_mib({key: circuit}, "nowhere"), "MIB: expected results by (task, model), got")
""")


def test_edges_are_named_in_a_list_and_circuits_are_made_of_results(check):
    check("""
assert graph.mask_of(["m0->m1"]).sum() == 1
check(lambda: graph.mask_of("m0->m1"), "expected names of edges in a list, got 'm0->m1'")
for names in (5, None):
    check(lambda: graph.mask_of(names), "expected names of edges in a list, got")
for name in (5, None, ("m0", "m1")):
    check(lambda: graph.mask_of([name]), "expected an edge as 'sender->receiver', got")
for result in (graph.valid, None, {}):
    check(lambda: jc.Circuit.of(result), "expected a discovery result, got", "which has no graph")
check(lambda: jc.load("tiny-gpt2", dtype=None), "dtype: expected a floating dtype such as float32, got None")
""")


OBJECTIVE = """
import sys

import pytest
sys.path.insert(0, "tests")
import jax
import jax.numpy as jnp
import equinox as eqx
from conftest import micro_model, micro_pairs

model, pairs = micro_model("one-head"), micro_pairs()
objective = jc.Objective(model, pairs, "logit_diff")
graph = objective.graph
scores = jc.random_scores(objective)
circuit = jc.Circuit.select(scores, edges=3)
"""


def test_a_circuit_is_a_mask_and_scores_are_none(check):
    check(
        """
nodes = jc.NodeObjective(objective)
assert float(objective(circuit)) == float(objective(circuit.mask)) != float(objective(graph.valid))
assert (objective.many([circuit, graph.valid]) == objective.many(np.stack([circuit.mask, graph.valid]))).all()
assert (objective.gradient(circuit) == objective.gradient(circuit.mask)).all()
check(lambda: objective(scores), "mask: scores choose no edges; take Circuit.select(scores, edges=...)")
other = jc.Circuit(jc.Graph.transformer(1, 2), jc.Graph.transformer(1, 2).valid, np.zeros((4, 8)), {})
check(lambda: objective(other), "mask: expected a circuit of the model's graph, (3, 5), got one of (4, 8)")
for f in (objective, objective.per_example, objective.gradient, objective.value_and_gradient, objective.many, nodes):
    for bad in (None, "kept", 2.5, [["x"]], 1j * np.ones(graph.shape), graph.valid.astype(object)):
        check(lambda: f(bad), "mask")
    for bad in (7, -2e-3, float("nan"), float("inf")):
        check(lambda: f(np.full(graph.shape, bad)), "mask: expected")
half = np.full(graph.shape, 0.5)
assert np.allclose(jax.jit(objective)(half), objective(half)) and eqx.filter_jit(objective)(half) == objective(half)
assert np.allclose(jax.jit(jax.grad(objective))(jnp.asarray(half)), jax.grad(objective)(jnp.asarray(half)))
other = jc.Objective(model, pairs, "kl")
assert objective != other and np.allclose(jax.jit(other)(half), other(half))
assert not np.allclose(other(half), objective(half))
""",
        OBJECTIVE,
    )


def test_numbers_are_of_the_kind_that_is_meant(check):
    check(
        """
masks = np.ones((2, *graph.shape))
counts = [
    lambda x: jc.Objective(model, pairs, microbatch=x), lambda x: objective.many(masks, width=x),
    objective.memory_needed, lambda x: jc.eap_ig_inputs(objective, steps=x), lambda x: jc.exact(objective, width=x),
    lambda x: jc.edge_pruning(objective, steps=x), lambda x: jc.edge_pruning(objective, steps=2, batch=x),
    lambda x: jc.ugs(objective, 0.1, samples=x), lambda x: jc.acdc(objective, 0.1, width=x),
    lambda x: jc.random_control(objective, circuit, count=x), lambda x: jc.random_circuits(circuit, x),
    lambda x: jc.inspect_circuit(objective, circuit, prompts=x),
    lambda x: jc.hypothesis_tests(objective, circuit, random=x),
    lambda x: jc.tasks.by_name("gendered_pronoun").generate(size=x), pairs.split,
]
for call in counts:
    for bad in (2.5, True, float("nan"), float("inf"), "3", [1], -1, 2**70):
        check(lambda: call(bad), "expected")
seeds = [
    lambda x: jc.random_scores(objective, seed=x), lambda x: jc.acdc(objective, 0.1, seed=x),
    lambda x: jc.ugs(objective, 0.1, seed=x), lambda x: jc.edge_pruning(objective, seed=x),
    lambda x: jc.hypothesis_tests(objective, circuit, seed=x), lambda x: jc.random_control(objective, circuit, seed=x),
    lambda x: jc.tasks.by_name("ioi").generate(jc.load("tiny-gpt2").tokenizer, seed=x),
]
for call in seeds:
    for bad in (-1, 2.5, True, None, "3", [1]):
        check(lambda: call(bad), "seed: expected a whole number of at least 0, got")
numbers = [
    lambda x: jc.acdc(objective, x), lambda x: jc.edge_pruning(objective, x), lambda x: jc.ugs(objective, x),
    lambda x: jc.subnetwork_probing(objective, x), lambda x: jc.optimal_ablation(objective, rate=x),
    lambda x: jc.edge_pruning(objective, decay=x), lambda x: jc.acdc_sweep(objective, [x]),
]
for call in numbers:
    for bad in (True, float("nan"), float("inf"), "3", None, [1]):
        check(lambda: call(bad), "expected a finite number")
check(lambda: jc.edge_pruning(objective, sparsity=5), "sparsity: expected a share of at most 1.5, got 5")
check(lambda: jc.edge_pruning(objective, steps=1), "steps: expected at least 2")
assert jc.acdc(objective, np.float32(0.5)).options["threshold"] == 0.5
for bad in (float("nan"), -float("inf")):
    check(lambda: jc.acdc(objective, 0.5, predictor=np.full(graph.shape, bad)), "predictor: expected finite numbers")
check(lambda: jc.acdc(objective, 0.5, predictor=np.full(graph.shape, "x")), "predictor: expected numbers of shape")
check(lambda: jc.acdc(objective, np.longdouble("1e400")), "threshold: expected a finite number")
check(lambda: jc.edge_pruning(objective, decay=-1), "decay: expected a number of at least 0, got -1")
check(lambda: jc.acdc(objective, 0.1, groups=1), "groups: expected True or False, got 1")
check(lambda: jc.acdc(objective, 0.1, evaluator="live"), "evaluator: expected DeviceEvaluator, LiveEvaluator or")
assert jc.random_scores(objective, seed=np.int64(3)).run["seed"] == 3
two, more = np.int64(2), jc.Objective(model, pairs, microbatch=np.int32(1))
assert more.microbatch == 1 and more.memory_needed(two) == more.memory_needed(2)
assert (objective.many(masks, width=two) == objective.many(masks, width=2)).all()
assert (objective.per_example_many(masks, two) == objective.per_example_many(masks, 2)).all()
assert jc.edge_pruning(objective, steps=two, batch=two, seed=np.uint8(1)).run["batch"] == 2
assert jc.ugs(objective, 0.1, steps=two, samples=two, batch=two).run["samples"] == 2
assert jc.acdc(objective, 0.5, groups=np.bool_(False)).options["groups"] is False
import equinox, jax
assert equinox.tree_equal(jc.reset_network(model, np.int64(3)), jc.reset_network(model, jax.random.key(3)))
for bad in (-1, 1.5, None, True, "0"):
    check(lambda: jc.reset_network(model, bad), "key: expected a whole number, at least 0, got")
""",
        OBJECTIVE,
    )


def test_records_are_of_the_kind_that_is_meant(check):
    check(
        """
for bad in (2.5, "kl", None, [1]):
    check(lambda: jc.Objective(model, bad), "pairs: expected a PromptPairs, got")
    check(lambda: jc.Objective(bad, pairs), "model: expected a model, as `load(...).model`, got a")
    check(lambda: jc.eap(bad), "objective: expected an Objective or a Conditional, got")
    check(lambda: jc.evaluate(bad, circuit), "objective: expected an Objective or an Ablated, got")
    check(lambda: jc.Circuit.select(bad, edges=3), "select: expected scores or a scored circuit, got a")
    check(lambda: jc.ensemble([bad]), "ensemble: expected a list of scores, got")
    check(lambda: jc.Circuit(graph, graph.valid, bad, {}), "scores: expected")
    check(lambda: jc.data.from_text([bad], None), "rows: expected a list of dicts, one a prompt, got")
for bad in (2.5, "kl", [1]):
    check(lambda: jc.Objective(model, pairs, mesh=bad), "mesh: expected the axes")
for bad in (2.5, None, [1]):
    check(lambda: jc.Circuit.load(bad), "path: expected a text or a path, got")
    check(lambda: jc.load(bad), "name: expected a text or a path, got")
    check(lambda: jc.PromptPairs.load(bad), "path: expected a text or a path, got")
check(lambda: jc.load("tiny-gpt2", dtype="foo"), "dtype: expected a floating dtype such as float32, got 'foo'")
check(lambda: jc.Objective(model, pairs, ["kl"]), "unknown metric ['kl']")
""",
        OBJECTIVE,
    )


@pytest.mark.mission
def test_a_search_in_bfloat16_ends_with_a_circuit(check):
    check(
        """
model = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), model)
objective = jc.Objective(model, pairs, "kl")
warnings.simplefilter("ignore")
found = jc.acdc(objective, 0.1)
assert 0 < found.mask.sum() < graph.num_edges and len(found.undecided) > 0
assert abs(float(objective(found.mask)) - found.metric_final) < 0.01
""",
        OBJECTIVE,
    )


def test_what_is_no_circuit_no_graph_and_no_number_is_refused_by_its_name(check):
    check("""
circuit = jc.Circuit.select(scores, edges=9)
for layers in (2.5, "2", True):
    check(lambda: jc.Graph.transformer(layers, 2), "layers: expected a whole number")
check(lambda: jc.Graph.transformer(2, 2.0), "heads: expected a whole number")
check(lambda: jc.device_mesh(2.5), "prompts: expected a whole number")
check(lambda: jc.gate(["and"]), "name: expected a text")
for compare in (jc.similarity, jc.jaccard):
    check(lambda: compare(circuit, "circuit.json"), "second: expected a Circuit, got 'circuit.json'")
check(lambda: jc.rank_correlation(zeros, circuit), "first: expected a Scores or a Circuit, got a ndarray")
check(lambda: jc.top_overlap(circuit, circuit, 2.5), "size: expected a whole number")
assert jc.similarity(circuit, circuit).jaccard_edges == 1
""")


def test_a_circuit_or_a_mask_of_yes_and_no_is_taken_wherever_one_is_asked_for(check):
    check(
        """
half, kept = np.full(graph.shape, 0.5), circuit.mask
for bad, said in ((half, "True or False"), (7 * half, ": expected numbers from 0 to 1"), (np.nan * half, "nan"),
                  (kept[1:], "expected shape"), (scores, "scores choose no edges"), ("kept", "expected an array")):
    check(lambda: jc.faithfulness(objective, bad), said)
    check(lambda: jc.faithfulness_many(objective, [circuit, bad]), said)
    check(lambda: jc.acdc(objective, 0.1, within=bad), said)
    check(lambda: jc.Circuit.select(scores, edges=2, within=bad), said)
    check(lambda: jc.optimal_ablation(objective, bad), said)
    check(lambda: jc.roc([circuit], bad), said)
check(lambda: jc.faithfulness_many(objective, []), "expected at least one circuit, got none")
check(lambda: jc.acdc(objective, 0.1, within=[circuit, circuit]), "within: expected one circuit, got 2")
for same in (kept.astype(int), kept.astype(float), jnp.asarray(kept), [circuit], kept[None], kept.tolist()):
    assert jc.faithfulness(objective, same).value == jc.faithfulness(objective, circuit).value
    assert (jc.Circuit.select(scores, edges=2, within=same).mask <= kept).all()
    assert jc.roc([circuit], same).trapezoid == 1
assert not (jc.acdc(objective, 0.001, within=circuit).mask & ~circuit.mask).any()
""",
        OBJECTIVE,
    )


def test_positions_are_whole_numbers_and_pairs(check):
    check(
        """
for bad in (None, 2.5, True, "ab", [0, 1, 2], [0.5, 2], ["a", "b"], [3, 3], [2, 99], -1, [None, 2]):
    check(lambda: jc.eap(objective, positions=[bad]), "positions: expected positions 0 to 5 or spans")
check(lambda: jc.eap(objective, positions=[]), "positions: expected at least one")
one, pair = jc.eap(objective, positions=[1, 3]), jc.eap(objective, positions=np.array([[1, 2], [3, 4]]))
assert one.positions == pair.positions == ((1, 2), (3, 4)) and (one.values == pair.values).all()
""",
        OBJECTIVE,
    )


def test_rows_points_and_spans_are_what_they_mean(check):
    check(
        """
own = objective.per_example(graph.valid)
for same in ([0, 2], np.array([0, 2]), [0, -3], [True, False, True, False, False]):
    assert (objective.take(same).per_example(graph.valid) == own[jnp.array([0, 2])]).all()
for bad in ([99], [-99], [], 3, "a", [0.5], [True]):
    check(lambda: objective.take(bad), "take: expected rows of 0 to 4, at least one, got")
ones, held = np.ones((1, 6)), np.ones((1, len(graph.senders)))
for bad in (np.nan * ones, 2 * ones, -3 * ones, 1j * ones, [["a"] * 6]):
    for f in (lambda: objective.gradient(graph.valid, spans=bad), lambda: objective.clean_gradient(spans=bad)):
        check(f, "spans: expected")
for bad in (np.nan * held, 3 * held, held.astype(str)):
    check(lambda: objective.displacement_gradient(bad, [1.0]), "held: expected")
for bad in ([np.nan], [1j], ["a"]):
    check(lambda: objective.displacement_gradient(held, bad), "alphas: expected")
    check(lambda: objective.along(bad), "alphas: expected")
for bad in (0, -1, 2.5, True, "2"):
    check(lambda: objective.down_path(bad), "steps: expected a whole number, at least 1")
""",
        OBJECTIVE,
    )


def test_a_reference_is_an_array_of_numbers_or_a_model_that_fits(check):
    check(
        """
import dataclasses
def like(**changed):
    return jc.GPT2.random(dataclasses.replace(model.config, **changed), jax.random.key(0))
vocab, width = model.config.vocab_size, model.config.n_embd
check(lambda: jc.Objective(model, pairs, "nll", like(vocab_size=5)), "reference: expected a model of", "got 5 and")
check(lambda: jc.Objective(model, pairs, "nll", like(n_positions=2)), "reference: expected a model of", "and 2")
check(lambda: jc.Objective(model, pairs, "nll", like(n_embd=2 * width)), f"as wide as the objective's, {width}, got")
for bad in (np.full(objective.reference.shape, "a"), np.asarray(objective.reference) + 1j, [[1], [1, 2]]):
    check(lambda: jc.Objective(model, pairs, "nll", bad), "reference: expected")
assert float(jc.Objective(model, pairs, "nll", like(vocab_size=5 + vocab))(graph.valid)) > 0
""",
        OBJECTIVE,
    )


def test_scores_circuits_and_graphs_take_real_numbers_and_masks_of_their_own(check):
    check("""
for bad in (zeros + 1j, zeros.astype(str), zeros * np.nan, [[1], [1, 2]]):
    check(lambda: jc.Scores(graph, bad, True, "x", {}), "scores (x): expected")
    check(lambda: jc.Circuit(graph, graph.valid, bad, {}), "scores: expected")
for given in ((None, zeros, True, "x", {}), (graph, zeros, "yes", "x", {}), (graph, zeros, True, 3, {}),
              (graph, zeros, True, "x", None), (graph, zeros, True, "x", {}, 5)):
    check(lambda: jc.Scores(*given), "expected")
check(lambda: jc.Circuit(None, graph.valid, zeros, {}), "graph: expected a Graph, got None")
for f in (graph.names_of, graph.drop_dead_ends, graph.edges_to_nodes):
    for bad in (zeros + 2, [True], None, "x", zeros * np.nan):
        check(lambda: f(bad), "mask: expected True or False for each edge")
    assert (np.asarray(f(graph.valid.astype(float))) == np.asarray(f(graph.valid))).all()
check(lambda: graph.nodes_to_edges([True]), "node_mask: expected True or False for each of")
check(lambda: graph.inputs("x"), "unknown node 'x'")
check(lambda: graph.sender_index([0]), "unknown sender")
whole = jc.Circuit(graph, graph.valid, zeros, {})
assert (jc.expand(whole, graph, graph) == jc.expand(graph.valid, graph, graph)).all()
for bad in ("x", None, zeros + 2, zeros[1:]):
    check(lambda: jc.expand(bad, graph, graph), "mask: expected")
for f in (jc.to_autocircuit, jc.mib_circuits):
    check(lambda: f(None), "expected a", "got None")
for bad in (None, "x"):
    check(lambda: jc.from_autocircuit(graph, bad), "edges: expected names of edges")
check(lambda: jc.weighted_edge_count(None), "mask: expected")
check(lambda: jc.weighted_edge_count(np.ma.masked_array(graph.valid, ~graph.valid)), "got one with masked values")
check(lambda: jc.weighted_edge_count(scores), "mask: scores choose no edges")
assert jc.weighted_edge_count(whole) == graph.num_edges
""")


def test_what_is_traced_is_refused_where_its_value_decides(check):
    check(
        """
values, number = jnp.asarray(scores.values), jnp.asarray(3)
for f, given in (
    (lambda x: jc.random_scores(objective, seed=x), number), (lambda x: jc.acdc(objective, x), jnp.asarray(0.1)),
    (lambda x: jc.acdc(objective, 0.1, within=x), values > 0), (lambda x: jc.Circuit.select(scores, edges=x), number),
    (lambda x: jc.faithfulness(objective, x), values > 0), (lambda x: jc.Scores(graph, x, True, "x", {}), values),
    (lambda x: jc.Circuit(graph, x, scores.values, {}), values > 0),
    (lambda x: jc.eap_ig_inputs(objective, steps=x), number),
    (lambda x: jc.PromptPairs(clean=x, corrupt=x), jnp.asarray(pairs.clean)),
):
    check(lambda: jax.jit(f)(given), "expected")
""",
        OBJECTIVE,
    )


def test_seeds_count_with_all_of_their_bits_and_counts_have_an_end(check):
    check(
        """
from jaxcircuits.arguments import key_of
keys = [jax.random.key_data(key_of(seed)).tolist() for seed in (0, 1, 2**32, 2**32 + 1, 2**33, 2**62)]
assert len({tuple(key) for key in keys}) == 6 and keys[1] == jax.random.key_data(jax.random.key(1)).tolist()
for f in (jc.mattr, jc.ugs, jc.edge_pruning):
    check(lambda: f(objective, steps=2**32), "steps: expected a whole number, from 1 to 2147483647, got 4294967296")
check(lambda: jc.ugs(objective, samples=10**11), "samples: expected a whole number, from 1 to 2147483647")
check(lambda: jc.replicates(objective, 0.1, count=40_000_000), "count: expected a whole number, from 1 to 100000")
check(lambda: jc.variation(objective, jc.eap, bootstrap=10**9), "bootstrap: expected a whole number, from 2 to 100000")
check(lambda: jc.evaluate(objective, circuit, random=10**9), "random: expected a whole number, from 0 to 100000")
check(lambda: jc.hypothesis_tests(objective, circuit, random=10**9), "random: expected a whole number, from 1 to 100")
""",
        OBJECTIVE,
    )
