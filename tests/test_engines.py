"""Laws of the engines over families: incremental = whole masks, decision by decision; scores = differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, micro_model, micro_pairs
from test_acdc import sequential

import jaxcircuits as jc
from jaxcircuits import current_run, models

SIZES = dict(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=4,
    head_dim=4,
    max_position_embeddings=12,
)
GROUPED = SIZES | dict(num_key_value_heads=2)
WINDOW = dict(sliding_window=3, layer_types=("sliding_attention", "full_attention"))
FAMILIES = {
    "grouped": (models.Llama, models.Qwen3Config(**GROUPED, rms_norm_eps=1e-3)),
    "parallel": (models.NeoX, models.NeoXConfig(**SIZES, partial_rotary_factor=0.5)),
    "post-norm": (models.Olmo2, models.Olmo2Config(**GROUPED)),
    "post-norm-windows": (models.Gemma, models.Gemma2Config(**GROUPED, **WINDOW, query_pre_attn_scalar=5)),
}


MARKS = {"post-norm": [pytest.mark.mission], "post-norm-windows": [pytest.mark.slow]}
"""Heads computed together compile for minutes."""


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in FAMILIES])
def objective(request):
    """Random weights, norms and biases included; prompts scored at the last of their own lengths."""
    with jax.enable_x64(True):
        kind, config = FAMILIES[request.param]
        model = drawn(eqx.filter_eval_shape(kind.random, config, jax.random.key(0), jnp.float64), 0, 0.4)
        draws = np.random.default_rng(1)
        clean = draws.integers(0, 11, (3, 6))
        corrupt = (clean + draws.integers(1, 11, (3, 6))) % 11
        answers = {"answer": np.array([[7], [2], [5]]), "wrong": np.array([[3], [4], [1]])}
        pairs = jc.PromptPairs(clean=clean, corrupt=corrupt, length=np.array([6, 4, 5]), **answers)
        yield jc.Objective(model, pairs, "logit_diff")


@pytest.mark.mission
def test_all_edges_are_the_clean_run_none_the_corrupt_one_and_integrated_slopes_the_difference(objective, x64):
    """Laws 1 and 3."""
    model, ends = objective.model, np.array([5, 3, 4])
    differences = []
    for tokens in (objective.clean, objective.corrupt):
        logits = np.stack([eqx.filter_jit(model)(tokens[row])[end] for row, end in enumerate(ends)])
        differences.append(logits[np.arange(3), [3, 4, 1]] - logits[np.arange(3), [7, 2, 5]])
    found = [
        np.asarray(objective.per_example(mask)) for mask in (objective.graph.valid, np.zeros(objective.graph.shape))
    ]
    np.testing.assert_allclose(found, differences, atol=1e-10)
    change = np.mean(differences[1]) - np.mean(differences[0])
    assert abs(jc.mask_ig(objective, steps=400).values.sum() - change) < 1e-3 * abs(change)


@pytest.mark.mission
def test_acdc_by_live_nodes_decides_as_by_whole_masks(objective, x64):
    spread = np.abs(jc.eap(objective).values[objective.graph.valid])
    threshold = float(np.quantile(spread, 0.6))
    live, dense = (
        jc.acdc(objective, threshold, evaluator=evaluator, width=8)
        for evaluator in (jc.LiveEvaluator, jc.DenseEvaluator)
    )
    assert [(d.name, d.removed) for d in live.decisions] == [(d.name, d.removed) for d in dense.decisions]
    np.testing.assert_allclose([d.after for d in live.decisions], [d.after for d in dense.decisions], atol=1e-10)
    assert (live.mask == dense.mask).all() and 0 < live.mask.sum() < objective.graph.num_edges
    groups = {d.name for d in live.decisions if "->" not in d.name}
    assert {name[-3:] for name in groups} == {"<q>", "<k>", "<v>"}


@pytest.mark.mission
def test_acdc_decides_as_the_algorithm_by_names(objective, x64):
    """One trial at a time by whole masks, in an order that follows from the names alone."""
    spread = np.abs(jc.eap(objective).values[objective.graph.valid])
    threshold = float(np.quantile(spread, 0.6))
    joint = isinstance(objective.model, models.Olmo2 | models.Gemma)
    mask, final, trace = sequential(objective, threshold, joint=joint)
    found = jc.acdc(objective, threshold, evaluator=jc.DenseEvaluator, width=8)
    assert [(d.name, d.removed) for d in found.decisions] == trace and (found.mask == mask).all()
    assert abs(found.metric_final - final) < 1e-10


@pytest.mark.mission
def test_circuits_by_live_nodes_are_those_by_whole_masks(objective, x64):
    draws = np.random.default_rng(1)
    masks = np.concatenate([draws.random((4, *objective.graph.shape)) < share for share in (0.2, 0.7)])
    found = jc.SparseEvaluator(objective).per_example_many(masks, width=4)
    np.testing.assert_allclose(found, objective.per_example_many(masks, width=8), atol=1e-10)


@pytest.mark.mission
def test_exact_scores_are_differences_of_losses(objective, x64):
    graph = objective.graph
    scores, nodes = jc.exact(objective).values, jc.exact_nodes(objective)
    edges = graph.edges[:: max(1, len(graph.edges) // 40)]
    masks = np.repeat(graph.valid[None], len(edges), 0)
    masks[np.arange(len(edges)), *edges.T] = False
    whole = float(objective(graph.valid))
    np.testing.assert_allclose(scores[tuple(edges.T)], np.asarray(objective.many(masks)) - whole, atol=1e-10)
    rows = np.arange(len(graph.senders))
    without = graph.valid[None] & (rows[:, None, None] != rows[None, :, None])
    np.testing.assert_allclose(nodes, np.asarray(objective.many(without)) - whole, atol=1e-10)


@pytest.mark.mission
def test_gradients_and_node_masks(objective, x64):
    """EAP is the gradient at ones; at ones a node mask changes nothing, and its slopes are differences."""
    at_ones = -np.asarray(objective.gradient(objective.full_mask()))
    np.testing.assert_allclose(jc.eap(objective).values, at_ones, atol=1e-10)
    nodes = jc.NodeObjective(objective, "edges")
    ones = nodes.full_mask()
    np.testing.assert_allclose(nodes.per_example(ones), objective.per_example(objective.graph.valid), atol=1e-10)
    slopes = np.asarray(nodes.value_and_gradient(ones)[1])
    for row in range(0, len(ones), 5):
        up, down = (float(nodes(ones.at[row].add(h))) for h in (1e-6, -1e-6))
        assert abs(slopes[row] - (up - down) / 2e-6) < 1e-6 * max(1, np.abs(slopes).max())


def rewritten(model, sender):
    """The model with other output weights of one sender."""

    def change(weight, *index):
        own = np.random.default_rng(7).normal(size=weight[index].shape)
        return weight.at[index].add(own)

    if sender.kind == "embedding":
        old = model.token_embedding  # where the unembedding is tied to it, that stays
        parts = change(old), old if model.unembedding is None else model.unembedding
        place = lambda m: (m.token_embedding, m.unembedding)  # noqa: E731
        return eqx.tree_at(place, model, parts, is_leaf=lambda leaf: leaf is None)
    if sender.kind == "head":
        place = lambda m: m.blocks.attention.output  # noqa: E731
        return eqx.tree_at(place, model, change(place(model), sender.layer, sender.index))
    place = lambda m: m.blocks.mlp.w_out if isinstance(m, models.NeoX) else m.blocks.mlp.down  # noqa: E731
    return eqx.tree_at(place, model, change(place(model), sender.layer))


@pytest.mark.quick(1)
def test_a_sender_without_edges_may_write_anything(objective, x64):
    """The references stay. With one edge kept it counts; a joint one counts through the others of its layer too."""
    graph = objective.graph
    some = graph.valid & (np.random.default_rng(2).random(graph.shape) < 0.6)
    some[:, -1] = True
    for row, sender in enumerate(graph.sender_table):
        others = eqx.tree_at(lambda o: o.model, objective, rewritten(objective.model, sender))
        together = next((r.readers for r in graph.receiver_table if row in r.readers), (row,))

        def difference(kept, row=row, others=others, together=together):
            mask = some.copy()
            mask[[other for other in together if other not in kept]] = False
            mask[row, :-1] = False
            return np.abs(objective.per_example(mask) - others.per_example(mask)).max()

        assert difference(()) < 1e-12, sender.name
        assert difference((row,)) > 1e-3, sender.name
        if len(together) > 1:
            assert difference([other for other in together if other != row]) > 1e-3, sender.name


@pytest.mark.quick(1)
def test_a_circuit_is_saved_drawn_and_named(objective, tmp_path):
    graph = objective.graph
    mask = graph.valid & (np.random.default_rng(3).random(graph.shape) < 0.3)
    circuit = jc.Circuit(graph, mask, np.where(graph.valid, 1.0, 0.0) * mask, {})
    circuit.save(tmp_path / "circuit.json")
    again = jc.Circuit.load(tmp_path / "circuit.json")
    assert again.graph == graph and again.edges == circuit.edges
    for column, receiver in enumerate(graph.receiver_table[:-1]):
        owners = graph.owners(column)
        assert set(owners) <= {graph.senders[row] for row in receiver.readers} and owners
    assert all(f'"{node}"' in jc.report.to_dot(circuit) for node in circuit.nodes)
    assert jc.report.plot(circuit) is not None and "<!doctype html>" in jc.report.render_page([circuit]).lower()


@pytest.mark.parametrize("kind", ["last", "positions"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_scored_positions_of_a_run_are_its_rows(kind, dtype):
    """Exactly, whatever the others hold: where one of each prompt is scored, it is masked, not gathered."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(kind=kind), "kl")
    scored = np.asarray(objective.scored)
    assert (scored.shape[1] == 1) == (kind == "last")
    x = np.array(jax.random.normal(jax.random.key(0), (2, 3, *objective.clean.shape, 5)).astype(dtype))
    is_other = np.ones(objective.clean.shape, bool)
    is_other[np.arange(len(scored))[:, None], scored] = False
    x[:, :, is_other] = np.array([np.nan, np.inf, -np.inf, 1e9, 0], x.dtype)
    rows = x[:, :, np.arange(len(scored))[:, None], scored].reshape(2, 3, scored.size, 5)
    np.testing.assert_array_equal(np.asarray(current_run.at_scored(objective, jnp.asarray(x))), rows)
