"""Units at will: the same model, other nodes; what is coarse is what is fine, tied together."""

import dataclasses
import functools
import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO, drawn, micro_model, micro_pairs
from test_engines import FAMILIES

import jaxcircuits as jc
from jaxcircuits import layout, models
from jaxcircuits.discovery.methods import METHODS
from jaxcircuits.models import runs

MODELS = FAMILIES | {name: (models.GPT2, MICRO[name]) for name in ("gpt2", "shortformer")}
FINER = [
    ("split", "ungrouped"),
    ("unsplit", "ungrouped"),
    ("layers", "split"),
    ("layers", "unsplit"),
    ("blocks", "layers"),
    ("blocks", "neurons:3"),
    ("split", "neurons:3"),
    ("split", "neurons:2@1"),
    ("split", "neurons@0"),
    ("split", "split 0:2,3:5"),
    ("layers 0:4", "split 0:4"),
]


def make(name):
    kind, config = MODELS[name]
    return drawn(eqx.filter_eval_shape(kind.random, config, jax.random.key(0), jnp.float64), 0, 0.4)


def make_pairs():
    draws = np.random.default_rng(1)
    clean = draws.integers(0, 11, (3, 6))
    corrupt = (clean + draws.integers(1, 11, (3, 6))) % 11
    answers = {"answer": np.array([[7], [2], [5]]), "wrong": np.array([[3], [4], [1]])}
    return jc.PromptPairs(clean=clean, corrupt=corrupt, length=np.array([6, 4, 5]), **answers)


@functools.cache
def objective_of(name, units):
    """`units` may end with spans: "split 0:2,3:5"."""
    return jc.Objective(jc.with_units(make(name), *units.split()), make_pairs(), "logit_diff")


CASES = [
    pytest.param(name, *units, marks=[pytest.mark.slow] * (name not in ("grouped", "gpt2")))
    for name in MODELS
    for units in FINER
    if name != "shortformer" or "neurons" not in units[1]
]


@pytest.mark.quick(1)
@pytest.mark.parametrize("name, coarse, fine", CASES)
def test_a_circuit_of_coarse_units_is_one_of_fine_ones(name, coarse, fine, x64):
    each = [objective_of(name, units) for units in (coarse, fine)]
    draws, graphs = np.random.default_rng(2), [objective.graph for objective in each]
    masks = [(draws.random(graphs[0].shape) < share) & graphs[0].valid for share in (0.0, 0.3, 0.7, 1.0)]
    expanded = [jc.expand(mask, *graphs) for mask in masks]
    losses = [np.asarray(f.many(np.stack(m))) for f, m in zip(each, (masks, expanded), strict=True)]
    np.testing.assert_allclose(*losses, rtol=1e-10)
    leads_nowhere = (name, coarse, fine) == ("shortformer", "layers 0:4", "split 0:4")  # the few edges of one draw
    assert len(set(np.round(losses[0], 6))) == (3 if leads_nowhere else 4)


ENGINES = [("grouped", "unsplit"), ("gpt2", "neurons:3")]
ENGINES += [pytest.param("gpt2", units, marks=pytest.mark.mission) for units in ("blocks", "split 0:2,3:5")]
SLOW = [("grouped", "layers"), ("grouped", "ungrouped"), ("parallel", "layers"), ("gpt2", "neurons@0")]
SLOW += [("post-norm", units) for units in ("neurons:3", "unsplit", "layers", "split 0:3,3:6")]


@pytest.mark.mission
@pytest.mark.parametrize("name, units", ENGINES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW])
def test_engines_and_scores_of_other_units(name, units, x64):
    """Live decisions and sparse losses are those of whole masks; EAP is the gradient, exact scores are differences."""
    objective = objective_of(name, units)
    graph = objective.graph
    gradient = np.asarray(jax.grad(objective)(np.where(graph.valid, 1.0, 0.0)))
    scores = jc.eap(objective).values
    np.testing.assert_allclose(scores[graph.valid], -gradient[graph.valid], atol=1e-9 * np.abs(gradient).max())
    sizes = np.abs(scores[graph.valid])
    threshold = float(np.quantile(sizes[sizes > 0], 0.3))
    absolute = (name, units) == ("parallel", "layers")  # there the loss falls with every edge that goes
    live, dense = (
        jc.acdc(objective, threshold, evaluator=evaluator, width=8, absolute=absolute)
        for evaluator in (jc.LiveEvaluator, jc.DenseEvaluator)
    )
    assert [(d.name, d.removed) for d in live.decisions] == [(d.name, d.removed) for d in dense.decisions]
    np.testing.assert_allclose([d.after for d in live.decisions], [d.after for d in dense.decisions], atol=1e-10)
    assert 0 < live.mask.sum() < graph.num_edges
    draws = np.random.default_rng(1)
    masks = np.stack([live.mask, *(draws.random((3, *graph.shape)) < 0.4)])
    found = jc.SparseEvaluator(objective).per_example_many(masks, width=4)
    np.testing.assert_allclose(found, objective.per_example_many(masks, width=4), atol=1e-10)
    edges = graph.edges[:: max(1, len(graph.edges) // 10)]
    without = np.repeat(graph.valid[None], len(edges), 0)
    without[np.arange(len(edges)), *edges.T] = False
    differences = np.asarray(objective.many(without)) - float(objective(graph.valid))
    np.testing.assert_allclose(jc.exact(objective).values[tuple(edges.T)], differences, atol=1e-10)


SAME = ["exact", "information-flow-routes", "edge-pruning"]
SAME += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in METHODS
    if name not in (*SAME, "hisp", "node-attribution", "node-ig", "cd-t")
]
"""Not HISP and its kind: a node is there what a receiver makes of what it reads, of a head queries, keys and values, of
a layer what it writes. Nor CD-T, which has rules for heads alone."""


@pytest.mark.mission
@pytest.mark.parametrize("method", SAME)
def test_layers_of_one_head_score_as_the_head(method, x64):
    given = {"steps": 3, "sparsity": 0.5, "grad_drop": False}  # AtP*'s needs two layers
    options = {name: value for name, value in given.items() if name in METHODS[method].defaults}
    heads, layers = (
        METHODS[method].run(
            jc.Objective(jc.with_units(micro_model("one-head", dtype=jnp.float64), units), micro_pairs(), "logit_diff"),
            **options,
        )
        for units in ("unsplit", "layers")
    )
    valid = heads.graph.valid
    np.testing.assert_allclose(heads.scores[valid], layers.scores[valid], rtol=1e-9)
    assert len(set(np.round(heads.scores[valid], 9))) > 2


@pytest.mark.parametrize(
    "units, senders, receivers",
    [
        ("unsplit", ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"], ["a0.h0", "a0.h1", "m0", "a1.h0"]),
        ("layers", ["input", "a0", "m0", "a1", "m1"], ["a0", "m0", "a1", "m1", "logits"]),
        ("blocks", ["input", "b0", "b1"], ["b0", "b1", "logits"]),
        ("blocks 0:2", ["input@0:2", "input@rest", "b0@0:2", "b0@rest", "b1@0:2", "b1@rest"], ["b0", "b1", "logits"]),
        ("neurons:2@1", ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1.n0", "m1.n1"], ["a0.h0<q>"]),
    ],
)
def test_names(units, senders, receivers):
    graph = jc.with_units(micro_model("gpt2"), *units.split()).graph
    assert list(graph.senders) == senders and list(graph.receivers[: len(receivers)]) == receivers


def test_a_model_whose_keys_are_not_shared_is_ungrouped_as_it_is():
    model = micro_model("gpt2")
    assert jc.with_units(model, "ungrouped") is model and jc.with_units(model, "split") is model


@pytest.mark.parametrize(
    "units, said",
    [
        ("head", "expected split, ungrouped, .* got 'head'"),
        ("neurons", "got 'neurons'"),
        ("layers:2", "got 'layers:2'"),
        ("neurons:0", "got 'neurons:0'"),
        ("neurons:5", "equal groups of 12 neurons, got 5 groups"),
        ("neurons:2@2", "a layer below 2, got 2"),
    ],
)
def test_units_that_a_model_has_not_are_refused(units, said):
    with pytest.raises(ValueError, match=f"units: .*{said}"):
        jc.with_units(micro_model("gpt2"), units)


class Uneven(models.GPT2):
    """Two heads in the first layer, one in the second."""

    @property
    def layout(self):
        stacks = (layout.Stack(1, (layout.heads(count), layout.mlp())) for count in (2, 1))
        return layout.Layout(("input",), tuple(stacks))


class UnevenGemma(models.Gemma):
    """Two heads in the first layer, one in the second, which meet in a norm."""

    @property
    def layout(self):
        stacks = (layout.Stack(1, (layout.heads(n, 1, is_joint=True), layout.mlp())) for n in (2, 1))
        return layout.Layout(("input",), tuple(stacks))


@pytest.mark.parametrize("units", ["ungrouped", "unsplit", "layers", "neurons:2"])
def test_units_of_layers_that_differ_are_refused(units):
    model = drawn(eqx.filter_eval_shape(Uneven.random, MICRO["gpt2"], jax.random.key(0)), 0)
    with pytest.raises(ValueError, match=f"units: {units}: layers whose nodes differ"):
        jc.with_units(model, units)


def test_neurons_of_a_model_of_another_make_are_refused():
    class Mine(models.AbstractModel):
        model: models.AbstractModel
        layout = vocab_size = max_positions = dtype = property(lambda self: self.model.layout)
        embeddings = read = write = constant = unembed = None

    with pytest.raises(ValueError, match="expected a model of jaxcircuits with MLPs, got a Mine"):
        jc.with_units(Mine(micro_model("gpt2")), "neurons:2")


@pytest.mark.mission
def test_a_fix_of_queries_that_nodes_have_not_is_not_recorded():
    model = micro_model("gpt2")
    for units, fixed in (("split", True), ("unsplit", False)):
        objective = jc.Objective(jc.with_units(model, units), make_pairs(), "logit_diff")
        assert jc.atp_star(objective, grad_drop=False).run["qk_fix"] is fixed


def test_units_of_units_of_gates_and_without_mlps_are_refused():
    model = micro_model("gpt2")
    for given, said in ((["layers"], "layers"), (["split", "0:2"], "split in spans 0:2")):
        with pytest.raises(ValueError, match=f"got one as {said}: take its `model`"):
            jc.with_units(jc.with_units(model, *given), "split")
    with pytest.raises(ValueError, match="has no MLPs"):
        jc.with_units(micro_model("attention-only"), "neurons:2")
    with pytest.raises(ValueError, match="no others than its own"):
        jc.load("gate-xor", units="layers")
    with pytest.raises(ValueError, match="got layers: save its `model`"):
        jc.save(jc.with_units(model, "layers"), "nowhere")


def test_graphs_that_are_no_finer_and_masks_of_another_shape_are_refused():
    grouped, apart = jc.Graph.transformer(2, 4, 2), jc.Graph.transformer(2, 4)
    with pytest.raises(ValueError, match="which is read by a0.h0, a0.h1"):
        jc.expand(apart.valid, apart, grouped)
    with pytest.raises(ValueError, match="mask: expected shape"):
        jc.expand(apart.valid, grouped, apart)
    with pytest.raises(ValueError, match="part of none"):
        jc.expand(grouped.valid, grouped, jc.Graph.transformer(3, 4, 2))


@pytest.mark.mission
def test_a_circuit_of_layers_from_the_command_line_to_its_judgement(run, tmp_path):
    """Found, shown, judged as the units that it records; not mixed with others."""
    file, other = tmp_path / "layers.json", tmp_path / "heads.json"
    options = ("--size", 4, "--threshold", 0.01, "--metric", "logit_diff", "--out")
    assert run("discover", "ioi", "--units", "layers", *options, file)[0] == 0
    circuit = jc.Circuit.load(file)
    assert circuit.graph.senders[:3] == ("input", "a0", "m0") and circuit.run["units"] == "layers"
    code, printed, _ = run("show", file)
    assert code == 0 and "layers" in printed and "logits <-" in printed
    code, printed, said = run("evaluate", file, "--random", 2)
    assert code == 0, said
    assert run("discover", "ioi", *options, other)[0] == 0
    code, _, said = run("compare", file, other)
    assert code == 1 and "graph" in said
    code, _, said = run("evaluate", file, "--units", "split", "--random", 2)
    assert code == 1 and "graph" in said
    assert run("report", file, "--out", tmp_path / "page.html")[0] == 0


@pytest.mark.mission
@pytest.mark.parametrize("name", ["gpt2", "grouped", pytest.param("post-norm", marks=pytest.mark.slow)])
def test_an_edge_at_a_span_is_the_edge_at_these_positions(name, x64):
    """Against masks with an axis of positions over the graph without spans."""
    whole, apart = objective_of(name, "split"), objective_of(name, "split 0:2,3:5")
    span_of_position = np.array([0, 0, 2, 1, 1, 2])
    draws = np.random.default_rng(3)
    for share in (0.2, 0.6):
        mask = (draws.random(apart.graph.shape) < share) & apart.graph.valid
        at_positions = mask.reshape(-1, 3, mask.shape[1])[:, span_of_position]  # [sender, position, receiver]
        there = np.moveaxis(at_positions, 1, 2).astype(float)
        np.testing.assert_allclose(apart.per_example(mask), whole.per_example(there), rtol=1e-10)


@pytest.mark.mission
@pytest.mark.parametrize("method", ["eap", "clean_corrupted", "atp_star", "exact_of_one_span"])
def test_scores_of_spans_are_those_of_edges_at_their_positions(method, x64):
    """What is linear in what is written adds up over the spans."""
    whole, apart = objective_of("gpt2", "split"), objective_of("gpt2", "split 0:2,3:5")
    if method == "exact_of_one_span":
        one = objective_of("gpt2", "split 0:6")
        np.testing.assert_allclose(jc.exact(one).values, jc.exact(whole).values, atol=1e-12)  # all positions there are
        return
    options = {"grad_drop": False, "qk_fix": False} if method == "atp_star" else {}
    score = getattr(jc, method)
    each = score(apart, **options).values.reshape(-1, 3, apart.graph.shape[1])
    np.testing.assert_allclose(each.sum(1), score(whole, **options).values, atol=1e-12)
    assert (np.abs(each) > 1e-6).any((0, 2)).all()


@pytest.mark.parametrize("spans", ["0:2,1:3", "3:2", "0:13", "", "a:b", "4", [(0, 4), (2, 3)]])
def test_spans_that_meet_or_are_none_are_refused(spans):
    with pytest.raises(ValueError, match="spans: expected first and end positions"):
        jc.with_units(micro_model("gpt2"), spans=spans)


@pytest.mark.mission
def test_heads_of_spans_show_their_patterns(run, tmp_path):
    """A circuit by tokens, from the command line to its page."""
    file = tmp_path / "spans.json"
    options = ("--size", 4, "--threshold", 0.05, "--metric", "logit_diff", "--out", file)
    assert run("discover", "ioi", "--spans", "0:8,8:12", *options)[0] == 0
    circuit = jc.Circuit.load(file)
    assert {"input@0:8", "input@8:12", "input@rest"} <= set(circuit.graph.senders)
    code, _, said = run("report", file, "--out", tmp_path / "page.html")
    assert code == 0, said
    assert run("evaluate", file, "--random", 2)[0] == 0


def test_other_embeddings_are_no_parts_of_one():
    one, two = jc.Graph.transformer(2, 2), jc.Graph.transformer(2, 2, embeddings=("tok", "pos"))
    with pytest.raises(ValueError, match="got tok, part of none"):
        jc.expand(one.valid, one, two)


ALL = [("split",), ("unsplit",), ("ungrouped",), ("neurons:3",), ("split", "0:2,3:5")]


def alone(model, moment, layer, x, at):
    """What every receiver of a moment computes of its own row of `x`, and what every node writes, one by one."""
    ys, rows, first = {}, [], 0
    for port in moment.ports:
        own = x[first : first + port.count]
        each = [model.read(port.name, layer, jnp.int32(index), row, at) for index, row in enumerate(own)]
        ys[port.name], first = jnp.stack(each), first + port.count
    for nodes in moment.nodes:
        inputs = [[ys[port][index] for index in numbers] for port, numbers in nodes.inputs]
        if nodes.is_joint:
            joint = tuple(jnp.stack(port) for port in inputs)
            rows.append(model.write(nodes.kind, layer, jnp.arange(nodes.count), joint, at))
        else:
            each = enumerate(zip(*inputs, strict=True))
            rows.append(jnp.stack([model.write(nodes.kind, layer, jnp.int32(index), ys, at) for index, ys in each]))
        rows[-1] = model.in_spans(rows[-1], at) if nodes.spans else rows[-1]
    return ys, jnp.concatenate(rows)


def at_once(model, moment, layer, x, at):
    ys = runs.computed(model, moment, layer, x)
    return ys, *runs.written(model, moment, layer, ys, at)


@pytest.mark.parametrize("units", ALL, ids=" ".join)
@pytest.mark.parametrize("name", MODELS)
def test_all_units_at_once_compute_what_each_does_alone(name, units, x64):
    """Receivers of one stream and of one each, nodes, and their sum: as by `read` and `write`, in each layer."""
    if name == "shortformer" and "neurons:3" in units:
        pytest.skip("it has no MLPs")
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13))
    model, at, random = jc.with_units(make(name), *units), jnp.arange(6, dtype=jnp.int32), np.random.default_rng(0)
    for layer, moment in itertools.product(map(jnp.int32, range(2)), model.layout.stacks[-1].moments):
        each = jnp.asarray(random.normal(size=(moment.num_receivers, 6, 8)))
        for x, own in ((each, each), (each[0], jnp.stack([each[0]] * len(each)))):
            ys, rows = alone(model, moment, layer, own, at)
            same(at_once(model, moment, layer, x, at), (ys, rows, rows.sum(0)))


@pytest.mark.parametrize("rules", ["relp", "attn-lrp", "gim"])
@pytest.mark.parametrize("name", ["gpt2", "grouped", "post-norm", "post-norm-windows"])
def test_rows_and_sums_have_the_gradients_of_rows_alone(name, rules, x64):
    model, at, layer = make(name).with_backward(rules), jnp.arange(6, dtype=jnp.int32), jnp.int32(0)
    for moment in model.layout.stacks[-1].moments:
        x, slope = np.random.default_rng(0).normal(size=(2, 6, 8))

        def pulled(run, x=jnp.asarray(x), slope=jnp.asarray(slope)):
            with model.computing():
                return jax.vjp(run, x)[1](slope)[0]

        own = pulled(lambda x, own=moment: alone(model, own, layer, jnp.stack([x] * own.num_receivers), at)[1].sum(0))
        rows = pulled(lambda x, own=moment: at_once(model, own, layer, x, at)[1].sum(0))
        total = pulled(lambda x, own=moment: at_once(model, own, layer, x, at)[2])
        np.testing.assert_allclose(rows, own, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(total, own, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("kind", "config"), [(Uneven, MICRO["gpt2"]), (UnevenGemma, FAMILIES["post-norm-windows"][1])])
def test_a_layout_may_leave_heads_out(kind, config, x64):
    """Heads that the layout of a layer does not name write nothing, in runs of all units as one by one."""
    model = drawn(eqx.filter_eval_shape(kind.random, config, jax.random.key(0), jnp.float64), 0)
    at, x = jnp.arange(6, dtype=jnp.int32), jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)))
    moment, layer = model.layout.stacks[1].moments[0], jnp.int32(1)
    ys, rows = alone(model, moment, layer, jnp.stack([x] * 3), at)
    assert len(rows) == 1 and moment.num_receivers == 3
    for found, expected in zip(at_once(model, moment, layer, x, at), (ys, rows, rows.sum(0)), strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), found, expected)


@pytest.mark.parametrize("name", ["gpt2", "grouped"])
def test_a_gradient_holds_no_second_copy_of_the_weights(name):
    """Backward passes take a layer's weights again: less memory is needed on the way than half of what they take."""
    kind, config = MODELS[name]
    sizes = {"n_embd": 192, "n_layer": 6} if name == "gpt2" else {"hidden_size": 192, "intermediate_size": 768}
    layers = {} if name == "gpt2" else {"num_hidden_layers": 6}
    config = dataclasses.replace(config, **sizes, **layers)
    model = drawn(eqx.filter_eval_shape(kind.random, config, jax.random.key(0), jnp.float32), 0)
    tokens = jnp.zeros((2, 4), jnp.int32)

    def loss(x, model, tokens):
        return jax.vmap(lambda tokens: model.residual_of(model.embeddings(tokens).sum(0) + x))(tokens).sum()

    def slopes(model, tokens):
        return jax.vmap(lambda tokens: model.receiver_slopes(tokens, lambda x: x.sum())[1])(tokens)

    x = jnp.zeros((4, 192))
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(model.blocks))
    for compiled in (
        eqx.filter_jit(eqx.filter_grad(loss)).lower(x, model, tokens).compile(),
        eqx.filter_jit(slopes).lower(model, tokens).compile(),
    ):
        assert compiled.compiled.memory_analysis().temp_size_in_bytes < held / 2
