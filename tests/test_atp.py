"""AtP* where it is exact, where it is EAP, and against GradDrop spelled out."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


def micro(model="gpt2", metric="nll", reference="resample", pairs=None):
    return jc.Objective(micro_model(model, dtype=jnp.float64), pairs or micro_pairs(), metric, reference)


def one_layer(model):
    """The first layer alone."""
    blocks = jax.tree.map(lambda leaf: leaf[:1], model.blocks)
    return dataclasses.replace(model, blocks=blocks, config=dataclasses.replace(model.config, n_layer=1))


@pytest.mark.mission
@pytest.mark.parametrize("reference", ["resample", pytest.param("zero", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["no-norm", pytest.param("shortformer", marks=pytest.mark.mission)])
def test_the_qk_fix_is_exact_where_only_the_pattern_is_not_linear(name, reference, x64):
    """One layer, no norm, logit difference: the loss is linear in what heads write, and EAP errs only in q and k."""
    model = one_layer(micro_model(name, dtype=jnp.float64))
    blocks = dataclasses.replace(model.blocks, attention_norm=None)
    model = dataclasses.replace(model, blocks=blocks, final_norm=None)
    objective = jc.Objective(model, micro_pairs(), "logit_diff", reference)
    exact = jc.exact(objective).values
    np.testing.assert_allclose(jc.atp_star(objective, grad_drop=False).values, exact, rtol=1e-9, atol=1e-13)
    wrong = np.abs(jc.eap(objective).values - exact).max(0)
    assert [name for name, error in zip(objective.graph.receivers, wrong, strict=True) if error > 1e-6] == [
        name for name in objective.graph.receivers if name.endswith(("<q>", "<k>"))
    ]
    nodes = jc.atp_nodes(objective, grad_drop=False)  # every edge of this graph is the only one into its receiver
    heads = np.array([name != "logits" for name in objective.graph.receivers])
    np.testing.assert_allclose(nodes[heads], exact[0, heads], rtol=1e-9, atol=1e-13)


@pytest.mark.mission
def test_without_its_fixes_it_is_eap_and_the_fix_changes_queries_and_keys_alone(x64):
    objective = micro(reference="mean")
    eap = jc.eap(objective)
    plain = jc.atp_star(objective, qk_fix=False, grad_drop=False)
    np.testing.assert_allclose(plain.values, eap.values, rtol=1e-9, atol=1e-14)
    assert plain.signed
    changed = np.abs(jc.atp_star(objective, grad_drop=False).values - eap.values).max(0) > 1e-7
    assert set(np.array(eap.graph.receivers)[changed]) == {r for r in eap.graph.receivers if r.endswith(("<q>", "<k>"))}


@pytest.mark.mission
def test_grad_drop_is_the_mean_size_over_layers_that_no_gradient_passes(x64):
    """Prompt by prompt; the receiver's own layer is not counted."""
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=2)
    total = 0.0
    for row in range(2):
        objective = jc.Objective(model, pairs[row : row + 1], "nll")
        graph = objective.graph
        heads_and_mlp = graph.sender_groups[1::2] | graph.sender_groups[2::2]
        each = [np.asarray(objective.displacement_gradient(held[None], np.ones(1))) for held in heads_and_mlp]
        in_layer = np.where(graph.reads < 4, 1, 2)
        total = total + np.abs(each).sum(0) / in_layer / 2
    scores = jc.atp_star(micro(pairs=pairs), qk_fix=False)
    np.testing.assert_allclose(scores.values, total, rtol=1e-9, atol=1e-14)
    assert not scores.signed and scores.run["backward_passes"] == 2 and scores.run["forward_passes"] == 4


def project(model, layer, head, kind, x):
    """A head's queries, keys or values of a residual stream, in NumPy."""
    norm, attention = model.blocks.attention_norm, model.blocks.attention
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt(centred.var(-1, keepdims=True) + model.config.layer_norm_epsilon)
    x = x * np.asarray(norm.weight)[layer] + np.asarray(norm.bias)[layer]
    field = {"q": "query", "k": "key", "v": "value"}[kind]
    weight, bias = (np.asarray(getattr(attention, name))[layer, head] for name in (field, f"{field}_bias"))
    return x @ weight + bias


def head_output(model, layer, head, q, k, v):
    scores = q @ k.T * model.config.attention_scales[layer]
    scores[np.triu_indices(len(q), 1)] = -np.inf
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    return pattern / pattern.sum(-1, keepdims=True) @ v @ np.asarray(model.blocks.attention.output)[layer, head]


def forward(model, tokens, frozen, written_more, reads_more):
    """The plain model in NumPy: the last residual, what nodes write, what layers read; `frozen` nodes write constants.

    `written_more`, `reads_more`: node or receiver -> what it writes or reads besides.
    """
    stream = np.asarray(model.token_embedding)[tokens] + np.asarray(model.position_embedding)[: len(tokens)]
    written, streams = {"input": stream}, {}
    for layer in range(model.config.n_layer):
        streams[f"a{layer}"] = x = stream
        for head in range(model.config.n_head):
            node = f"a{layer}.h{head}"
            q, k, v = (project(model, layer, head, kind, x + reads_more.get(f"{node}<{kind}>", 0)) for kind in "qkv")
            written[node] = head_output(model, layer, head, q, k, v) + written_more.get(node, 0)
            written[node] = frozen.get(node, written[node])
            stream = stream + written[node]
        stream = stream + np.asarray(model.blocks.attention.output_bias)[layer]
        node = f"m{layer}"
        written[node] = np.asarray(mlp_output(model, layer, stream + reads_more.get(node, 0)))
        written[node] = frozen.get(node, written[node] + written_more.get(node, 0))
        stream = stream + written[node]
    return stream + reads_more.get("logits", 0), written, streams


@eqx.filter_jit
def mlp_output(model, layer, x):
    return model.read("m", jnp.int32(layer), jnp.int32(0), x, jnp.arange(x.shape[0]))


@eqx.filter_jit
def nll(model, last, answer):
    return -jax.nn.log_softmax(model.unembed(last))[answer].mean()


def transcribed(model, pairs, effect):
    """Sums over layers of sizes of slopes with that layer frozen, prompt by prompt; over L - 1, `logits` over L.

    `effect(written, changes, streams)` lists, by score, the receiver and what is written or read more: (name, w, r).
    """
    totals, layers, step = {}, model.config.n_layer, 1e-5
    for tokens, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True):

        def loss(frozen, *more, tokens=tokens, answer=answer):
            return float(nll(model, forward(model, tokens, frozen, *more)[0][-1], answer))

        _, written, streams = forward(model, tokens, {}, {}, {})
        reference = forward(model, corrupt, {}, {}, {})[1]
        changes = {node: reference[node] - written[node] for node in written}
        for name, receiver, *more in effect(model, changes, streams):
            slopes = []
            for layer in range(layers):
                frozen = {node: written[node] for node in written if node[1:].split(".")[0] == str(layer)}
                up, down = (
                    loss(frozen, *({node: sign * step * x for node, x in part.items()} for part in more))
                    for sign in (1, -1)
                )
                slopes.append(abs(up - down) / (2 * step))
            counted = layers if receiver == "logits" else layers - 1
            totals[name] = totals.get(name, 0) + sum(slopes) / counted / len(pairs)
    return totals


def head_change(model, receiver, streams, change):
    """What a head writes more when one of its inputs reads `change` more, all else as it was."""
    node, kind = receiver[:-3], receiver[-2]
    layer, head = (int(part[1:]) for part in node.split("."))
    x = streams[f"a{layer}"]
    inputs = {each: project(model, layer, head, each, x) for each in "qkv"}
    moved = {**inputs, kind: project(model, layer, head, kind, x + change)}
    return {node: head_output(model, layer, head, *moved.values()) - head_output(model, layer, head, *inputs.values())}


def edge_effects(model, changes, streams):
    graph = model.graph
    for sender, receiver in graph.edges:
        sender, receiver = graph.senders[sender], graph.receivers[receiver]
        if receiver.endswith(("<q>", "<k>")):
            more = head_change(model, receiver, streams, changes[sender]), {}
        else:
            more = {}, {receiver: changes[sender]}
        yield f"{sender}->{receiver}", receiver, *more


def node_effects(model, changes, streams):
    graph = model.graph
    for column, receiver in enumerate(graph.receivers[:-1]):
        if receiver.startswith("m"):
            yield receiver, receiver, {receiver: changes[receiver]}, {}
        else:
            before = sum(changes[graph.senders[row]] for row in np.flatnonzero(graph.valid[:, column]))
            yield receiver, receiver, head_change(model, receiver, streams, before), {}


@pytest.mark.mission
def test_the_default_is_the_papers_written_by_hand(x64):
    """Both fixes: finite differences of runs with one layer frozen, patterns recomputed, sizes over L - 1."""
    pairs = micro_pairs(batch=2)
    objective = micro(pairs=pairs)
    edges = transcribed(objective.model, pairs, edge_effects)
    scores = jc.atp_star(objective)
    np.testing.assert_allclose([scores.of(edge) for edge in edges], list(edges.values()), rtol=1e-5, atol=1e-9)
    assert len(edges) == objective.graph.num_edges and min(edges.values()) > 1e-7
    nodes = transcribed(objective.model, pairs, node_effects)
    np.testing.assert_allclose(jc.atp_nodes(objective)[:-1], list(nodes.values()), rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_nodes_of_mlps_are_the_slope_at_their_output(x64):
    """An MLP's output reaches the loss through its edges, so its node score is the sum of their EAP scores."""
    objective = micro()
    nodes = jc.atp_nodes(objective, grad_drop=False)
    eap = jc.eap(objective)
    graph = objective.graph
    for name in ("m0", "m1"):
        edges = eap.values[graph.sender_index(name)].sum()
        np.testing.assert_allclose(nodes[graph.receiver_index(name)], edges, rtol=1e-9)
    assert nodes[-1] == 0 and np.abs(nodes[:-1]).min() > 0
    dropped = jc.atp_nodes(objective)
    assert (dropped[:-1] > 0).all() and dropped.shape == nodes.shape


def test_what_is_refused(x64):
    with pytest.raises(ValueError, match="least at the clean run"):
        jc.atp_star(micro(metric="kl"))
    with pytest.raises(ValueError, match="least at the clean run"):
        jc.atp_nodes(micro(metric="kl"))
    with pytest.raises(ValueError, match="at least 2 layers"):
        model = one_layer(micro_model("gpt2", dtype=jnp.float64))
        jc.atp_star(jc.Objective(model, micro_pairs(), "nll"))
