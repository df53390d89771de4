"""Every method on networks of units: right against a network in NumPy, or refused before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits.discovery.methods import METHODS

TASK = jc.tasks.TASKS["logic_gates"]
NODES = {"information-flow-routes", "atp-star", "hisp", "node-attribution", "node-ig", "subnetwork-probing"}
"""Methods that need not score every connection above 0: a unit that is off has no share, an effect may be negative,
and what is published for nodes learns or scores those."""


@pytest.fixture(scope="module")
def steps():
    return jc.Objective(jc.gate("xor"), TASK.generate(gate="xor"), "l2", "zero")


@pytest.fixture(scope="module")
def relu():
    """The ReLU XOR in float64, moved off its kinks, with targets that it misses."""
    with jax.enable_x64(True):
        random, xor = np.random.default_rng(0), jc.gate("xor_relu")
        moved = jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf) + 0.2 * random.normal(size=leaf.shape)), xor)
        pairs = TASK.generate(gate="xor_relu")
        pairs = jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt, target=random.normal(size=(4, 1)))
        yield jc.Objective(moved, pairs, "l2", "resample")


def run(objective, digits, *, held=(), values=None, offsets=None, mask=None, reference=None):
    """What senders write and the output, in NumPy: layer by layer, edge by edge."""
    graph, weights = objective.graph, np.asarray(objective.model.weights)
    written = np.zeros(weights.shape)
    output = 0.0
    reads = dict.fromkeys(graph.receivers, 0.0)
    for s, sender in enumerate(graph.senders):
        if sender in graph.embeddings:
            z = digits[s]
        else:
            x = reads[sender] + float(objective.model.biases[graph.receiver_index(sender)])
            z = max(0.0, x + (0 if offsets is None else offsets[graph.receiver_index(sender)]))
        written[s] = values[s] if s in held else z * weights[s]
        for r in np.flatnonzero(graph.valid[s]):
            keep = 1 if mask is None else mask[s, r]
            reads[graph.receivers[r]] += keep * written[s, r] + (0 if keep else reference[s, r])
    output = reads["logits"] + (0 if offsets is None else offsets[-1])
    return written, output


def digits_of(token):
    return [int(token) >> place & 1 for place in range(2)]


def slopes_at(objective, held, alpha):
    """Mean over prompts of `<reference_s - clean_s, d loss / d x_r>` with some senders held on the way; differences."""
    pairs, graph, h = TASK.generate(gate="xor_relu"), objective.graph, 1e-6
    total = np.zeros(graph.shape)
    for row in range(4):
        clean, reference = (run(objective, digits_of(tokens[row, 0]))[0] for tokens in (pairs.clean, pairs.corrupt))
        target, values = float(objective.labels.target[row, 0, 0]), reference + alpha * (clean - reference)

        def loss(offsets, row=row, values=values, target=target):
            output = run(objective, digits_of(pairs.clean[row, 0]), held=held, values=values, offsets=offsets)[1]
            return (output - target) ** 2

        for r in range(graph.shape[1]):
            step = h * np.eye(graph.shape[1])[r]
            total[:, r] += (reference - clean)[:, r] * (loss(step) - loss(-step)) / (2 * h) / 4
    return total * graph.valid


EMBEDDINGS, NOBODY = (0, 1), ()
BY_HAND = {
    "eap": [(NOBODY, 1)],
    "clean-corrupted": [(EMBEDDINGS, 0), (EMBEDDINGS, 1)],
    "eap-ig-inputs": [(EMBEDDINGS, 0), (EMBEDDINGS, 0.5)],
    "eap-ig-activations": [(group, alpha) for group in ((0, 1), (2, 3), (4,)) for alpha in (0.5, 1)],
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_of_relu_units_are_differences(name, relu, x64):
    options = {"steps": 2} if "steps" in METHODS[name].defaults else {}
    by_hand = np.mean([slopes_at(relu, *point) for point in BY_HAND[name]], axis=0)
    assert np.abs(by_hand).max() > 0.01
    np.testing.assert_allclose(METHODS[name].run(relu, **options).values, by_hand, atol=1e-8)


def test_exact_is_a_loop_over_networks_without_one_edge(relu, x64):
    pairs, graph = TASK.generate(gate="xor_relu"), relu.graph
    expected = np.zeros(graph.shape)
    for row in range(4):
        target = float(relu.labels.target[row, 0, 0])
        digits, reference = digits_of(pairs.clean[row, 0]), run(relu, digits_of(pairs.corrupt[row, 0]))[0]
        whole = (run(relu, digits)[1] - target) ** 2
        for edge in graph.edges:
            mask = graph.valid.copy()
            mask[tuple(edge)] = False
            # what logits read of the last unit stands in its own direction, the last
            ends = np.concatenate([reference[:, : graph.shape[1] - 1], reference[:, -1:]], axis=1)
            loss = (run(relu, digits, mask=mask, reference=ends)[1] - target) ** 2
            expected[tuple(edge)] += (loss - whole) / 4
    np.testing.assert_allclose(jc.exact(relu, width=4).values, expected, atol=1e-12)
    nodes = jc.exact_nodes(relu, width=4)
    without = graph.valid[None] & (np.arange(5)[:, None, None] != np.arange(5)[:, None])
    np.testing.assert_allclose(nodes, np.asarray(relu.many(without, 4)) - float(relu(graph.valid)), atol=1e-12)


@pytest.mark.mission
def test_mask_ig_sums_to_what_all_edges_do(relu, x64):
    scores = jc.mask_ig(relu, steps=100)
    assert abs(scores.values.sum() - float(relu(np.zeros(relu.graph.shape)) - relu(relu.graph.valid))) < 1e-2


def test_what_needs_the_whole_stream_is_refused_where_receivers_read_their_neighbours(relu):
    with pytest.raises(ValueError, match="information-flow-routes: expected a model whose .* got a network of units"):
        jc.information_flow_routes(relu)


def test_exact_finds_every_connection_of_the_step_network(steps):
    scores = jc.exact(steps, width=4)
    assert (scores.values[steps.graph.valid] > 0).all() and scores.of("xor->logits") == 0.5


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("exact", "random", "information-flow-routes")]
)
def test_what_needs_gradients_is_refused_on_steps(name, steps):
    with pytest.raises(ValueError, match=f"^{name}: expected a model with .*got Gates.* choose"):
        METHODS[name].run(steps)


@pytest.mark.mission
def test_node_attribution_of_relu_units_is_the_slope_of_the_node_mask(relu, x64):
    nodes = jc.NodeObjective(relu, "edges")
    found = jc.node_attribution(relu).run["nodes"]
    for row, name in enumerate(nodes.names):
        up, down = (nodes(nodes.full_mask().at[row].add(h)) for h in (1e-5, -1e-5))
        assert abs(found[name] + float(up - down) / 2e-5) < 1e-7, name


@pytest.mark.mission
def test_live_and_sparse_runs_of_units_are_whole_runs(relu, steps, x64):
    for objective in (relu, steps):
        masks = np.random.default_rng(0).random((6, *objective.graph.shape)) < 0.6
        few, whole = jc.SparseEvaluator(objective).per_example_many(masks), objective.per_example_many(masks)
        np.testing.assert_allclose(few, whole, atol=1e-12)
        live, dense = (jc.acdc(objective, 0.01, evaluator=e) for e in (jc.LiveEvaluator, jc.DenseEvaluator))
        assert [d.removed for d in live.decisions] == [d.removed for d in dense.decisions]
        assert (live.mask == dense.mask).all() and live.mask.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in NODES | BY_HAND.keys() | {"exact", "mask-ig", "cd-t", "eap-gp"}]
)
def test_the_other_methods_score_every_edge_of_relu_units(name, relu, x64):
    options = {"steps": 3} if "batch" in METHODS[name].defaults else {}
    result = METHODS[name].run(relu, **options)
    scores = result.scores[relu.graph.valid]
    without_score = 1 if name == "mattr" else 0  # the least of its scores is 0
    assert result.run["method"] == name and (scores >= 0).all() and (scores == 0).sum() == without_score


@pytest.mark.slow
def test_probing_masks_of_edges_keeps_what_is_worth_its_price(relu, x64):
    """At a price above any loss nothing stays, at none all that helps."""
    dear = jc.subnetwork_probing(relu, 100.0, on="edges", steps=300, rate=0.1)
    cheap = jc.subnetwork_probing(relu, 0.0, on="edges", steps=300, rate=0.1)
    assert not dear.mask.any() and cheap.mask.any()
    assert cheap.run["metric_final"] <= dear.run["metric_final"]


def test_other_ways_to_evaluate_are_refused(steps):
    for made, said in (
        (lambda: jc.optimal_ablation(steps), "optimal-ablation: .* steps"),
        (lambda: jc.atp_nodes(steps), "atp-star: .* steps"),
        (lambda: jc.save(steps.model, "gate"), "a Gates has no checkpoint format"),
        (lambda: jc.ablated(steps, component="heads").baselines(), "has no heads; choose 'all'"),
        (lambda: jc.Objective(jc.gate("xor"), TASK.generate(gate="xor")), "kl: .* single output.* choose l2"),
    ):
        with pytest.raises(ValueError, match=said):
            made()


def test_random_circuits_hold_connections_only():
    graph = jc.gate("adder").graph
    circuits = jc.random_circuits(graph, 9, 20)
    assert not (circuits & ~graph.valid).any() and (circuits.sum((1, 2)) == 9).all()
    assert all((graph.drop_dead_ends(circuit) == circuit).all() for circuit in circuits)
