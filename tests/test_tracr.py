"""Compiled transformers: outputs of the haiku models, known circuits, and every method on two embedding senders."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, micro_pairs, random_mask

import jaxcircuits as jc

PROGRAMS = ("tracr-balance", "tracr-proportion", "tracr-reverse", "tracr-sort")
SHIFTED = {4: [1, 2, 3, 0], 5: [1, 2, 3, 4, 0], 6: [1, 2, 3, 4, 5, 0]}


@functools.cache
def loaded(name, dtype="float32"):
    return jc.load(name, dtype=dtype)


# --- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_outputs_are_those_of_the_compiled_haiku_model(name):
    """The whole residual stream, and the values read from it, at the greatest length and one less."""
    checkpoint = loaded(name)
    model, config = checkpoint.model, checkpoint.model.config
    golden = np.load(GOLDEN / "tracr" / f"{name}.npz")
    columns = [config.directions.index(output) for output in config.outputs]
    for size in (config.n_positions - 2, config.n_positions - 1):
        residual = jax.jit(jax.vmap(model.residual))(jnp.asarray(golden[f"tokens_{size}"]))
        np.testing.assert_allclose(residual, golden[f"residual_{size}"], rtol=0, atol=1e-5)
        logits = np.asarray(model.unembed(residual))
        np.testing.assert_array_equal(logits, np.asarray(residual)[..., columns])
        decoded = logits[..., 0] if len(columns) == 1 else logits.argmax(-1)
        np.testing.assert_allclose(decoded, golden[f"decoded_{size}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tracr-sort", "tracr-reverse", "tracr-proportion", "tracr-balance"])
def test_programs_do_what_they_say(name):
    words, expected = {
        "tracr-sort": ("3 1 4 2", "1 2 3 4"),
        "tracr-reverse": ("1 1 2 3", "3 2 1 1"),
        "tracr-proportion": ("x w x y", [1, 1 / 2, 2 / 3, 1 / 2]),
        "tracr-balance": ("( ( ) ) )", [1, 1, 1 / 3, 0, -1 / 5]),
    }[name]
    checkpoint = loaded(name)
    tokens = checkpoint.tokenizer.encode(f"BOS {words}", add_special_tokens=False)
    assert checkpoint.tokenizer.decode(tokens) == f"BOS {words}"
    logits = np.asarray(checkpoint.model(jnp.array(tokens)))[1:]
    if isinstance(expected, str):
        values = [checkpoint.model.config.outputs[row].split(":")[1] for row in logits.argmax(-1)]
        assert values == expected.split()
    else:
        np.testing.assert_allclose(logits[:, 0], expected, atol=1e-4)


def test_graphs_have_two_embeddings():
    graphs = {name: loaded(name).graph for name in PROGRAMS}
    assert {name: graph.num_edges for name, graph in graphs.items()} == {
        "tracr-reverse": 94,
        "tracr-proportion": 32,
        "tracr-sort": 32,
        "tracr-balance": 61,
    }
    assert all(graph.senders[:2] == ("tok", "pos") and graph.embeddings == ("tok", "pos") for graph in graphs.values())


def test_a_saved_model_is_the_same_when_it_is_loaded(tmp_path):
    model = loaded("tracr-sort").model
    jc.save(model, tmp_path / "copy")
    copy = jc.load(tmp_path / "copy").model
    assert copy.config == model.config and type(copy) is jc.Tracr
    assert eqx.tree_equal(copy, model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"directions": ("a", "b")}, "directions: expected 3 names"),
        ({"directions": ("a", "b", "c"), "outputs": ("d",)}, "outputs: expected some of the directions"),
        ({"directions": ("a", "b", "c"), "outputs": ()}, "outputs: expected some of the directions"),
        ({"directions": ("a", "b", "c"), "outputs": ("a",), "n_key": 0}, "n_key must be a positive whole number"),
    ],
)
def test_names_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        jc.TracrConfig(vocab_size=3, n_positions=3, n_embd=3, n_layer=1, n_head=1, **options)


# --- known circuits --------------------------------------------------------------------------------


def needed(objective):
    """By exact single-edge ablation: the edges whose removal alone changes the output."""
    graph = objective.graph
    masks = np.repeat(graph.valid[None], graph.num_edges, 0)
    masks[np.arange(graph.num_edges), *graph.edges.T] = False
    rises = np.asarray(objective.many(masks, width=16)) - float(objective(graph.valid))
    return tuple(graph.edge_name(*edge) for edge, rise in zip(graph.edges, rises, strict=True) if rise > 1e-6)


def reverse_pairs(length):
    """Rows of tokens 1 2 3 of one length, each with another as its corrupt prompt."""
    rows = list(itertools.permutations(range(3))) if length == 3 else list(itertools.product(range(3), repeat=length))
    clean = np.array([[3, *row] for row in rows[:: max(1, len(rows) // 20)]])
    return jc.PromptPairs(
        clean=clean, corrupt=np.roll(clean, 1, 0), positions=np.tile(np.arange(length + 1) > 0, (len(clean), 1))
    )


@pytest.mark.mission
@pytest.mark.parametrize(
    ("length", "zero"),
    [pytest.param(3, 11, marks=pytest.mark.mission), pytest.param(4, 11, marks=pytest.mark.mission), (5, 9)],
)
def test_what_reverse_needs_depends_on_reference_and_length(length, zero, x64):
    model, pairs = loaded("tracr-reverse", "float64").model, reverse_pairs(length)
    rule = set(jc.tasks.TASKS["tracr_reverse"].circuit(model.graph))
    by_zero = needed(jc.Objective(model, pairs, "l2", "zero"))
    assert len(by_zero) == zero and rule - set(by_zero) == ({"tok->a0.h0<v>", "a0.h0->m0"} if length == 5 else set())
    assert needed(jc.Objective(model, pairs, "l2")) == ("tok->a3.h0<v>", "a3.h0->logits")
    scrambled = jc.permute_positions(model, SHIFTED[length + 1])
    by_scrambled = needed(jc.Objective(model, pairs, "l2", scrambled))
    assert len(by_scrambled) == 6 and set(by_scrambled) == set(by_zero) - {
        *("tok->a0.h0<v>", "a0.h0->m0", "tok->m0", "m0->m1", "tok->m1"),
    }


@pytest.mark.mission
@pytest.mark.parametrize(
    ("convention", "counts"), [("letters", (5, 3, 5)), pytest.param("original", (7, 4, 6), marks=pytest.mark.mission)]
)
@pytest.mark.filterwarnings("ignore:.*prompts do not differ")
def test_what_proportion_needs_depends_on_reference_and_convention(convention, counts, x64):
    checkpoint = loaded("tracr-proportion", "float64")
    task = jc.tasks.TASKS["tracr_proportion"]
    pairs = task.generate(checkpoint.tokenizer, convention=convention)
    order = SHIFTED[pairs.clean.shape[1]]
    references = ("zero", "resample", jc.permute_positions(checkpoint.model, order))
    found = [needed(jc.Objective(checkpoint.model, pairs, "l2", reference)) for reference in references]
    assert tuple(map(len, found)) == counts
    assert found[0] == task.circuit(checkpoint.graph, convention=convention)


# --- ACDC in the original's convention -------------------------------------------------------------


def original(name, dtype="float32"):
    """The model, and the prompts that ACDC's own experiments ran."""
    checkpoint = loaded(name, dtype)
    task = jc.tasks.TASKS[name.replace("-", "_")]
    options = {} if name == "tracr-reverse" else {"convention": "original"}
    pairs = task.generate(checkpoint.tokenizer, **options)
    return checkpoint.model, pairs, task.circuit(checkpoint.graph, **options)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "groups"), [("tracr-reverse", 4), ("tracr-proportion", 3)])
@pytest.mark.filterwarnings("ignore:.*prompts do not differ")
def test_acdc_recovers_the_known_circuit_under_zero_ablation(name, groups, x64):
    """Conmy et al. 2023, table 2: ACDC, L2, zero: area 1.000 on both."""
    model, pairs, known = original(name, "float64")
    objective = jc.Objective(model, pairs, "l2", "zero")
    results = jc.acdc_sweep(objective, [1e-3, 1e-2], width=16)
    for result in results:
        assert result.graph.names_of(result.mask) == known and len(result.kept_groups) == groups
        assert len(known) + groups == {"tracr-reverse": 15, "tracr-proportion": 10}[name]


@pytest.mark.mission
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-proportion"])
@pytest.mark.filterwarnings("ignore:.*prompts do not differ")
def test_acdc_keeps_nine_of_the_known_edges_under_corrupt_prompts_and_positions(name, x64):
    """As the original's code of today: 9 of 15 and 9 of 10 at thresholds up to 0.04, internal edges counted."""
    model, pairs, known = original(name, "float64")
    objective = jc.Objective(model, pairs, "l2", jc.permute_positions(model, SHIFTED[4]))
    for result in jc.acdc_sweep(objective, [1e-5, 1e-3, 0.0398], width=16):
        kept = result.graph.names_of(result.mask)
        assert set(kept) < set(known) and len(kept) + len(result.kept_groups) == 9


# --- scrambled positions ---------------------------------------------------------------------------


def test_permuted_positions_are_read_in_another_order():
    model = loaded("tracr-reverse").model
    other = jc.permute_positions(model, [2, 0, 1])
    tokens = jnp.array([3, 0, 1, 2])
    np.testing.assert_array_equal(other.embeddings(tokens)[1], model.embeddings(tokens)[1][jnp.array([2, 0, 1, 3])])
    np.testing.assert_array_equal(other.embeddings(tokens)[0], model.embeddings(tokens)[0])
    for order in ([0, 2], [1, 1], [], list(range(7))):
        with pytest.raises(ValueError, match=r"order: expected 0\.\.n-1 in another order, n up to 6"):
            jc.permute_positions(model, order)


@pytest.mark.mission
def test_a_model_as_reference_is_its_run_on_the_corrupt_prompts(x64):
    model, pairs, _ = original("tracr-reverse", "float64")
    other = jc.permute_positions(model, SHIFTED[4])
    objective = jc.Objective(model, pairs, "l2", other)
    values = jax.vmap(other.sender_values, out_axes=1)(jnp.asarray(pairs.corrupt))
    np.testing.assert_allclose(objective.reference, values, rtol=1e-12, atol=1e-14)
    assert objective.describe()["reference"] == "resample from another model"
    same = jc.Objective(model, pairs, "l2", model).reference
    np.testing.assert_array_equal(same, jc.Objective(model, pairs, "l2").reference)
    with pytest.raises(ValueError, match="a model with the same graph"):
        jc.Objective(model, pairs, "l2", loaded("tracr-proportion", "float64").model)


# --- every method on two embeddings ----------------------------------------------------------------


def micro_tracr(seed=0):
    """2 layers x 2 heads, all weights and biases random, 11 outputs along 12 directions; key width 3."""
    names = tuple(f"d{index}" for index in range(12))
    config = jc.TracrConfig(11, 6, 12, 2, 2, 7, n_key=3, directions=names, outputs=names[:11])
    random = np.random.default_rng(seed)
    skeleton = eqx.filter_eval_shape(jc.Tracr.random, config, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape)), skeleton)


@pytest.fixture
def objective(x64):
    return jc.Objective(micro_tracr(), micro_pairs(kind="positions"), "logit_diff")


@pytest.mark.mission
def test_the_masked_run_has_the_clean_and_the_corrupt_run_at_its_ends(objective):
    model, pairs = objective.model, micro_pairs(kind="positions")
    residual = jax.vmap(model.residual)(jnp.asarray(pairs.clean))
    ones, zeros = jnp.ones(objective.graph.shape), jnp.zeros(objective.graph.shape)
    masked = jax.vmap(model.residual, (0, None, 1))(jnp.asarray(pairs.clean), ones, objective.reference)
    np.testing.assert_allclose(masked, residual, rtol=1e-11, atol=1e-12)
    masked = jax.vmap(model.residual, (0, None, 1))(jnp.asarray(pairs.clean), zeros, objective.reference)
    corrupt = jax.vmap(model.residual)(jnp.asarray(pairs.corrupt))
    np.testing.assert_allclose(masked, corrupt, rtol=1e-11, atol=1e-12)


def test_attention_is_bidirectional(objective):
    tokens = jnp.asarray(micro_pairs().clean[0])
    run = eqx.filter_jit(objective.model)
    changed = run(tokens.at[-1].set((tokens[-1] + 1) % 11))
    assert np.abs(np.asarray(changed - run(tokens))[0]).max() > 1e-3


@pytest.mark.mission
def test_gradients_and_single_edges_equal_those_of_the_masked_run(objective):
    graph, ones = objective.graph, objective.full_mask()
    np.testing.assert_allclose(objective.clean_gradient(), objective.gradient(ones), rtol=1e-9, atol=1e-12)
    by_autodiff = np.asarray(jax.grad(objective)(ones)) * graph.valid
    np.testing.assert_allclose(objective.gradient(ones), by_autodiff, rtol=1e-9, atol=1e-12)
    masks = np.repeat(graph.valid[None], graph.num_edges, 0)
    masks[np.arange(graph.num_edges), *graph.edges.T] = False
    dense = np.asarray(objective.many(masks, width=16)) - float(objective(ones))
    np.testing.assert_allclose(jc.exact(objective).values[*graph.edges.T], dense, rtol=1e-9, atol=1e-11)


@pytest.mark.mission
def test_the_live_evaluator_decides_as_the_dense_one(objective):
    dense = jc.acdc(objective, 0.02, evaluator=jc.DenseEvaluator, width=16)
    live = jc.acdc(objective, 0.02, width=16)
    assert 0 < dense.mask.sum() < objective.graph.num_edges
    assert [d.name for d in live.decisions] == [d.name for d in dense.decisions]
    np.testing.assert_array_equal(live.mask, dense.mask)
    np.testing.assert_allclose(live.metric_final, dense.metric_final, rtol=1e-10)


@pytest.mark.mission
def test_node_masks_have_the_clean_run_at_ones_and_nodes_of_a_run_are_that_runs(objective):
    nodes = jc.NodeObjective(objective, "edges")
    np.testing.assert_allclose(nodes(nodes.full_mask()), objective(objective.full_mask()), rtol=1e-11)
    model, tokens = objective.model, objective.clean[0]
    own = model.node_values(model.sender_values(tokens))
    mask = jnp.asarray(np.random.default_rng(0).random(len(nodes.names)))
    np.testing.assert_allclose(model.node_run(tokens, mask, own), model.residual(tokens), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_other_methods_run_on_two_embeddings(objective):
    """Complete sums, shares and shapes; each method's laws are tested in its own file."""
    graph = objective.graph
    difference = float(objective(np.zeros(graph.shape)) - objective(graph.valid))
    np.testing.assert_allclose(jc.mask_ig(objective, steps=300).values.sum(), difference, rtol=1e-2)  # ReLU: slow
    np.testing.assert_allclose(jc.information_flow_routes(objective).values.sum(0), 1, rtol=1e-9)
    for method in (jc.eap_ig_inputs, jc.eap_ig_activations, jc.atp_star, jc.hisp):
        scores = method(objective).values
        assert scores.shape == graph.shape and np.isfinite(scores).all() and np.abs(scores[:2]).max() > 0
    assert jc.subnetwork_probing(objective, 1.0, steps=3).mask.shape == graph.shape
    assert jc.edge_pruning(objective, 0.5, steps=3).mask.shape == graph.shape
    assert jc.optimal_ablation(objective, random_mask(graph, 0)[None], steps=3).values.shape[0] == graph.shape[0]


@pytest.mark.mission
def test_padding_that_a_program_would_read_is_refused():
    checkpoint = loaded("tracr-reverse")
    rows = [{"clean": "BOS 2 1", "corrupt": "BOS 1 2"}, {"clean": "BOS 2 1 3 2", "corrupt": "BOS 3 1 3 1"}]
    together = jc.data.from_text(rows, checkpoint.tokenizer)
    with pytest.raises(ValueError, match="length: expected 5 tokens in every prompt, got 3 in prompt 0: positions of"):
        jc.Objective(checkpoint.model, together, reference="zero")
    longer = jc.PromptPairs(together.clean[1:], together.corrupt[1:], length=[4])
    with pytest.raises(ValueError, match="read later ones, and so the padding; make one objective"):
        jc.Objective(checkpoint.model, longer, reference="zero")
    config = dataclasses.replace(checkpoint.model.config, causal=True)
    causal = dataclasses.replace(checkpoint.model, config=config)
    with pytest.raises(ValueError, match="got 3 in prompt 0"):
        jc.Objective(causal, together, reference=checkpoint.model)
    jc.Objective(causal, together, reference="zero")
    for row, last in zip(rows, ("2", "2"), strict=True):
        alone = jc.Objective(
            checkpoint.model, jc.data.from_text([row], checkpoint.tokenizer), metric=_largest, reference="zero"
        )
        best = checkpoint.model.config.outputs[int(alone(alone.graph.valid))]
        assert best == f"reverse_1:{last}"


def _largest(logits, labels):
    return jnp.argmax(logits).astype(logits.dtype)
