"""Objectives without some edges: every method on them against the model in which those edges do nothing; backups."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_llama, micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits.cli.judge import _method_of
from jaxcircuits.conditional import Conditional

FAMILIES = {"gpt2": micro_model, "llama": lambda name, dtype: micro_llama(dtype=dtype)}


def family(name):
    return FAMILIES[name]("gpt2", dtype=jnp.float64)


def silenced(model):
    """The same model whose a0.h1 writes nothing."""
    attention = lambda model: model.blocks.attention.output  # noqa: E731
    return eqx.tree_at(attention, model, attention(model).at[0, 1].set(0))


SAME = {
    "eap-ig-activations": lambda objective: jc.eap_ig_activations(objective, steps=2),
    "exact": lambda objective: jc.exact(objective, width=7),
    "exact at positions": lambda objective: jc.exact(objective, positions=[(1, 3), 5]).total(),
    "eap": jc.eap,
    "eap at positions": lambda objective: jc.eap(objective, positions=[(1, 3), 5]).total(),
    "eap by rules": lambda objective: jc.eap(objective, backward="relp"),
    "mask-ig": lambda objective: jc.mask_ig(objective, steps=2),
}


@pytest.fixture(scope="module")
def pair():
    """By family: an objective without a0.h1, and the same of the model whose a0.h1 writes nothing."""
    made = {}

    def of(name):
        if name not in made:
            options = micro_pairs(), "logit_diff", "zero"
            model = family(name)
            made[name] = jc.without(jc.Objective(model, *options), ["a0.h1"]), jc.Objective(silenced(model), *options)
        return made[name]

    return of


@pytest.mark.mission
@pytest.mark.quick(1, rest="slow")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", SAME)
def test_without_a_head_is_the_model_whose_head_writes_nothing(method, name, pair, x64):
    given, silent = pair(name)
    scores, other = SAME[method](given), SAME[method](silent)
    gone = given.graph.sender_index("a0.h1")
    rest = np.arange(len(given.graph.senders)) != gone
    np.testing.assert_allclose(scores.values[rest], other.values[rest], atol=1e-9 * np.abs(other.values).max())
    assert not scores.values[gone].any() and all("a0.h1->" in edge for edge in scores.run["without"])


PATHS = {
    "eap": jc.eap,
    "clean-corrupted": jc.clean_corrupted,
    "eap-ig-inputs": lambda objective: jc.eap_ig_inputs(objective, steps=2),
    "eap-ig-activations": lambda objective: jc.eap_ig_activations(objective, steps=1),
    "exact": jc.exact,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", PATHS)
def test_runs_of_all_edges_give_the_plain_scores(method, x64):
    objective = jc.Objective(family("gpt2"), micro_pairs(), "logit_diff")
    plain, masked = (
        PATHS[method](objective).values,
        PATHS[method](Conditional(objective, jnp.asarray(objective.graph.valid))).values,
    )
    np.testing.assert_allclose(masked, plain, atol=1e-12 * np.abs(plain).max())


@pytest.fixture(scope="module")
def objective():
    return jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")


def test_it_is_f_of_the_other_edges_and_without_nothing_f_itself(objective):
    first, second = jc.without(jc.without(objective, ["a0.h0"]), ["m0"]), jc.without(objective, ["m0", "a0.h0"])
    np.testing.assert_array_equal(first.kept, second.kept)
    assert jc.without(objective, []) is objective is jc.without(objective, ~objective.graph.valid)
    graph, absent = objective.graph, random_mask(objective.graph, 1, 0.3)
    given, masks = jc.without(objective, absent), np.stack([random_mask(objective.graph, seed) for seed in (2, 3, 4)])
    assert given(graph.valid) == objective(graph.valid & ~absent) != objective(graph.valid)
    _, slopes = given.value_and_gradient(masks[0])
    wanted = np.where(absent, 0, objective.value_and_gradient(masks[0] & ~absent)[1])
    np.testing.assert_array_equal(slopes, wanted)


@pytest.mark.mission
def test_many_masks_single_prompts_and_positions_of_it(objective):
    absent = random_mask(objective.graph, 1, 0.3)
    given, masks = jc.without(objective, absent), np.stack([random_mask(objective.graph, seed) for seed in (2, 3, 4)])
    np.testing.assert_array_equal(given.many(masks), objective.many(masks & ~absent))
    np.testing.assert_array_equal(given.gradient(masks[0]), given.value_and_gradient(masks[0])[1])
    at_tokens = masks[..., None] & (np.arange(6) > 2)
    np.testing.assert_array_equal(given.many(at_tokens), objective.many(at_tokens & ~absent[..., None]))
    np.testing.assert_array_equal(given.per_example(masks[0]), objective.per_example(masks[0] & ~absent))
    few = given.take(np.array([0, 2]))
    np.testing.assert_array_equal(
        few.per_example(masks[1]), objective.take(np.array([0, 2])).per_example(masks[1] & ~absent)
    )


@pytest.mark.mission
def test_learnt_masks_and_searches_stay_within_the_other_edges(objective):
    circuit = jc.Circuit.select(jc.eap(objective), edges=30)
    given = jc.without(objective, circuit)
    options = {"steps": 4, "batch": 2}
    for result in (
        jc.edge_pruning(given, 0.5, **options),
        jc.ugs(given, samples=2, **options),
        jc.mattr(given, loss="cmd", **options),
        jc.acdc(given, 0.01),
    ):
        assert not (result.mask & circuit.mask).any() and result.mask.any(), result.run
        assert not result.scores[circuit.mask].any() and result.scores.any()
    searched = jc.acdc(objective, 0.01, within=objective.graph.valid & ~circuit.mask)
    np.testing.assert_array_equal(result.mask, searched.mask)
    inside = random_mask(objective.graph, 0)
    both = jc.acdc(given, 0.01, within=inside)
    np.testing.assert_array_equal(both.mask, jc.acdc(objective, 0.01, within=inside & ~circuit.mask).mask)
    assert not jc.random_scores(given).values[circuit.mask].any()


@pytest.mark.mission
def test_a_checkpoint_is_of_the_edges_that_are_absent(objective, tmp_path):
    first, second = (jc.without(objective, [name]) for name in ("a0.h0", "a0.h1"))
    options = {"steps": 3, "checkpoint": tmp_path / "kept"}
    once = jc.mattr(first, **options)
    np.testing.assert_array_equal(jc.mattr(first, **options).scores, once.scores)
    with pytest.raises(ValueError, match="kept edges"):
        jc.mattr(second, **options)


def test_what_needs_the_whole_models_run_refuses(objective):
    given = jc.without(objective, ["a0.h0"])
    for method in (jc.atp_star, jc.information_flow_routes, jc.hisp, jc.exact_nodes, jc.NodeObjective, jc.faithfulness):
        with pytest.raises(ValueError, match="objective: expected .* got an objective without some edges: only"):
            method(given, *[objective.graph.valid] * (method is jc.faithfulness))
    for absent, message in (
        (["a9.h0"], "a9.h0"),
        (["a0.h0->a0.h0<q>"], "no edge of this graph"),
        (["a0.h1<q>"], "a0.h1<q>"),
        ("a0.h0", "a list of names"),
        (0.5 * objective.graph.valid, "of True and False"),
        (np.zeros((2, 2), bool), r"got one of \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.without(objective, absent)
    with pytest.raises(AttributeError, match="no 'reference'"):
        _ = given.reference


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_method_runs_again_without_the_same_edges(objective, share, tmp_path):
    scores = jc.eap(jc.without(objective, random_mask(objective.graph, 1, share)))
    assert ("within" if share > 0.5 else "without") in scores.run
    jc.Circuit.select(scores, edges=20).save(tmp_path / "best.json")
    again = _method_of(jc.Circuit.load(tmp_path / "best.json"))
    np.testing.assert_array_equal(again(objective).values, scores.values)
    value = json.loads((tmp_path / "best.json").read_text())
    for names, said in (("a0.h0", "expected a list of edges' names"), ([3], "of edges' names"), (["a0"], "'a0'")):
        value["run"]["without"] = names
        (tmp_path / "bad.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=said):
            jc.Circuit.load(tmp_path / "bad.json")


@pytest.mark.mission
def test_kl_has_a_slope_where_edges_are_absent():
    flat = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    assert np.abs(jc.eap(jc.without(flat, ["a0.h0"])).values).max() > 0
    with pytest.raises(ValueError, match="zero for every edge"):
        jc.eap(flat)


@pytest.mark.mission
def test_a_conditional_score_is_the_change_of_a_score(objective):
    change = jc.conditional_scores(objective, jc.mask_ig, ["a0.h0", "m0->logits"], steps=2)
    gone = objective.graph.mask_of([edge for edge in change.run["without"]])
    plain = jc.mask_ig(objective, steps=2)
    given = jc.mask_ig(jc.without(objective, gone), steps=2)
    np.testing.assert_array_equal(change.values, np.where(gone, 0, given.values - plain.values))
    assert change.signed and change.method == "mask-ig" and change.run["on_whole_model"]["steps"] == 2
    assert not jc.conditional_scores(objective, jc.eap, []).values.any()
    learnt = jc.conditional_scores(objective, jc.mattr, ["a0.h0"], optimiser="none", steps=2)
    assert learnt.values.any() and not learnt.values[objective.graph.sender_index("a0.h0")].any()


# --- backups -------------------------------------------------------------------------------------


def energies(model, pairs, reference, base, masks):
    """E of each mask against the base mask, from logits at the last token of plain masked runs, in NumPy."""
    run = jax.jit(jax.vmap(lambda mask, tokens, values: model(tokens, mask, values)[-1], (None, 0, 1)))
    answers = lambda mask: np.asarray(run(mask.astype("float64"), pairs.clean, reference))  # noqa: E731
    z = answers(base)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    found = []
    for mask in masks:
        change = answers(mask) - z
        centred = change - (p * change).sum(-1, keepdims=True)
        found.append(((p * centred**2).sum(-1)).mean())
    return np.array(found)


@pytest.mark.mission
@pytest.mark.parametrize("name", FAMILIES)
def test_energies_are_those_of_plain_masked_runs(name, x64):
    model, pairs = family(name), micro_pairs()
    objective = jc.Objective(model, pairs, "logit_diff")
    graph = objective.graph
    absent = ["a0.h1", "m0->logits"]
    record = jc.backups(objective, absent, width=3)
    gone = graph.mask_of(list(record.absent))
    assert gone.sum() == (graph.valid[graph.sender_index("a0.h1")]).sum() + 1
    names = [sender for sender in graph.senders if sender != "a0.h1"]
    removed = [np.arange(len(graph.senders)) == graph.sender_index(name) for name in names]
    for base, column in ((graph.valid, "energy"), (graph.valid & ~gone, "energy_without")):
        wanted = energies(model, pairs, objective.reference, base, [base & ~rows[:, None] for rows in removed])
        np.testing.assert_allclose([getattr(record.of(name), column) for name in names], wanted, rtol=1e-9)
    ratios = [row.ratio for row in record.rows]
    assert ratios == sorted(ratios, reverse=True) == [row.energy_without / row.energy for row in record.rows]
    assert {row.name for row in record.rows} == set(names)
    assert all(row.difference == row.energy_without - row.energy for row in record.rows)
    assert np.isclose(record.loss_without, float(objective(graph.valid & ~gone))) and record.noise < 1e-20


@pytest.mark.mission
def test_energies_of_edges_and_without_anything():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(kind="positions"), "kl")
    graph = objective.graph
    record = jc.backups(objective, [], units="edges")
    assert {row.ratio for row in record.rows} == {1.0} and len(record.rows) == graph.num_edges
    some = jc.backups(objective, ["a0.h1"], units="edges")
    assert {row.name for row in some.rows} == {name for name in graph.names_of(graph.valid) if "a0.h1->" not in name}
    one = jc.backups(objective, ["a0.h1"]).of("m1")
    assert np.isclose(some.of("m1->logits").energy_without, one.energy_without)  # the only edge out of it
    circuit = jc.Circuit.select(jc.exact(objective), edges=9)
    assert jc.backups(objective, circuit).absent == circuit.edges
    for wrong, message in (({"units": "heads"}, "units: expected one of nodes, edges"), ({"width": 0}, "width")):
        with pytest.raises(ValueError, match=message):
            jc.backups(objective, [], **wrong)
    with pytest.raises(ValueError, match="all edges absent"):
        jc.backups(objective, graph.valid)
    with pytest.raises(ValueError, match="expected one of .* got 'a0.h1'"):
        jc.backups(objective, ["a0.h1"]).of("a0.h1")


def backed_up(suppressed):
    """a0.h0 answers, and a1.h1 answers less what it reads of a0.h0: tokens of one position, four numbers each.

    Of 12 channels 0..3 are the token's, 4..7 a0.h0's, 8..11 a1.h1's; logits read the sum of the last two.
    """
    random = np.random.default_rng(0)
    config = jc.GPT2Config(11, 1, 12, 2, 2, attn_only=True, layer_norm=False, tie_word_embeddings=False)
    model = eqx.filter_eval_shape(jc.GPT2.random, config, jax.random.key(0))
    model = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model)
    model.token_embedding[:, :4] = random.normal(size=(11, 4))
    model.unembedding[:, 4:8] = model.unembedding[:, 8:] = random.normal(size=(11, 4))
    attention = model.blocks.attention
    attention.value[0, 0, :4, :4] = attention.value[1, 1, :4, :4] = np.eye(4)
    attention.value[1, 1, 4:8, :4] = -suppressed * np.eye(4)
    attention.output[0, 0, :4, 4:8] = attention.output[1, 1, :4, 8:] = np.eye(4)
    return jax.tree.map(jnp.asarray, model)


@pytest.mark.parametrize("suppressed", [1.0, 0.9])
def test_the_backup_head_is_found(suppressed):
    objective = jc.Objective(backed_up(suppressed), micro_pairs(width=1), "kl")
    record = jc.backups(objective, ["a0.h0"])
    first = record.rows[0]
    assert first.name == "a1.h1" and first.energy_without > 0.1
    if suppressed == 1:
        assert first.ratio == np.inf and first.energy < record.noise and abs(record.loss_without) < 1e-6
    else:
        assert 20 < first.ratio < np.inf and first.ratio > 5 * record.of("input").ratio
    assert {row.name for row in record.rows if row.ratio is None} == {"a0.h1", "a1.h0"}
    assert [row.ratio is None for row in record.rows[-2:]] == [True, True]
    z = np.asarray(jax.vmap(objective.model)(objective.clean), np.float64)[:, -1]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    last_bits = np.finfo(np.float32).eps * (z - (p * z).sum(-1, keepdims=True))  # the sums here are exact
    np.testing.assert_allclose(record.noise, 4 * (p * last_bits**2).sum(-1).mean(), rtol=1e-5)
    written = json.loads(json.dumps(record.to_json()))
    assert written["kind"] == "backups" and written["rows"][-1]["ratio"] is None


@pytest.mark.mission
def test_the_command(run, tmp_path):
    """Against the call in Python; nodes in place of the circuit's edges; one line for what is wrong."""
    circuit, found = tmp_path / "circuit.json", tmp_path / "backups.json"
    arguments = ["backups", circuit, "--size", 2, "--nodes", "a1.h2,a0.h3", "--show", 3, "--out", found]
    loaded = jc.load("tiny-gpt2")
    mask = loaded.graph.mask_of(["m0->m1", "m1->logits"])
    source = {"task": "ioi", "model": "tiny-gpt2", "seed": 0}
    jc.Circuit(loaded.graph, mask, mask.astype(float), {"metric": "logit_diff", "source": source}).save(circuit)
    code, printed, error = run(*arguments)
    assert (code, error) == (0, "")
    record = json.loads(found.read_text())
    assert {edge.split("->")[0] for edge in record["absent"]} == {"a1.h2", "a0.h3"}
    assert record["run"]["config"]["nodes"] == "a1.h2,a0.h3" and record["run"]["prompts"] == 2
    objective = jc.Objective(
        loaded.model, jc.tasks.by_name("ioi").generate(loaded.tokenizer, seed=0, size=2), "logit_diff"
    )
    wanted = jc.backups(objective, ["a1.h2", "a0.h3"]).rows
    assert [row["name"] for row in record["rows"]] == [row.name for row in wanted]
    lines = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == [row.name for row in wanted[:3]]
    np.testing.assert_allclose([float(line[1]) for line in lines], [row.ratio for row in wanted[:3]], rtol=1e-2)
    code, _, error = run("backups", circuit, "--size", 2, "--nodes", "a9.h9")
    assert code == 1 and "a9.h9" in error
