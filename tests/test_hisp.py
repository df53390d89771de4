import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc


def numpy_logit_diff(model, tokens, answer, wrong, z):
    """A plain transcription of GPT-2 with a multiplier on each query, key, value and MLP output; one prompt."""
    weights = model.blocks.attention
    x = np.asarray(model.token_embedding)[tokens] + np.asarray(model.position_embedding)[: len(tokens)]

    def normed(norm, layer, x):
        gain, bias = np.asarray(norm.weight), np.asarray(norm.bias)
        gain, bias = (gain, bias) if layer is None else (gain[layer], bias[layer])
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon) * gain + bias

    heads = model.config.n_head
    for layer in range(model.config.n_layer):
        own = z[layer * (3 * heads + 1) :]
        stream = normed(model.blocks.attention_norm, layer, x)
        for head in range(heads):
            q, k, v = (
                (stream @ np.asarray(weight)[layer, head] + np.asarray(bias)[layer, head]) * own[kind * heads + head]
                for kind, (weight, bias) in enumerate(
                    [
                        (weights.query, weights.query_bias),
                        (weights.key, weights.key_bias),
                        (weights.value, weights.value_bias),
                    ]
                )
            )
            scores = q @ k.T / np.sqrt(q.shape[-1])
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + pattern / pattern.sum(-1, keepdims=True) @ v @ np.asarray(weights.output)[layer, head]
        x = x + np.asarray(weights.output_bias)[layer]
        hidden = normed(model.blocks.mlp_norm, layer, x) @ np.asarray(model.blocks.mlp.w_in)[layer]
        hidden = hidden + np.asarray(model.blocks.mlp.b_in)[layer]
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        written = hidden @ np.asarray(model.blocks.mlp.w_out)[layer] + np.asarray(model.blocks.mlp.b_out)[layer]
        x = x + written * own[3 * heads]
    logits = normed(model.final_norm, None, x[-1]) @ np.asarray(model.token_embedding).T
    return logits[wrong[wrong >= 0]].mean() - logits[answer].mean()


def test_hisp_equals_a_transcription(x64):
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs()
    objective = jc.Objective(model, pairs, "logit_diff")
    count, step = len(model.graph.receivers) - 1, 1e-5
    slopes = np.zeros((len(pairs), count))
    for row, (tokens, answer, wrong) in enumerate(zip(pairs.clean, pairs.answer, pairs.wrong, strict=True)):
        np.testing.assert_allclose(
            numpy_logit_diff(model, tokens, answer, wrong, np.ones(count)),
            objective.per_example(objective.full_mask())[row],
            rtol=1e-10,
        )
        for node, move in enumerate(np.eye(count) * step):
            up, down = (numpy_logit_diff(model, tokens, answer, wrong, 1 + sign * move) for sign in (1, -1))
            slopes[row, node] = (up - down) / (2 * step)
    sizes = np.abs(slopes).mean(0).reshape(2, 7)  # a layer: 2 queries, 2 keys, 2 values, 1 MLP
    expected = (sizes / np.sqrt((sizes**2).sum(1, keepdims=True))).ravel()
    scores = jc.hisp(objective)
    np.testing.assert_allclose(list(scores.run["nodes"].values()), expected, rtol=1e-6)
    assert tuple(scores.run["nodes"]) == model.graph.receivers[:-1]
    assert not scores.signed and scores.values.dtype == np.float64
    edge = model.graph.edge_index("a0.h1->a1.h0<k>")
    inputs = [scores.run["nodes"][f"a0.h1<{kind}>"] for kind in "qkv"]
    assert scores.values[edge] == min(scores.run["nodes"]["a1.h0<k>"], max(inputs))


@pytest.mark.mission
def test_hisp_does_not_depend_on_the_reference(x64):
    model = micro_model("gpt2", dtype=jnp.float64)
    one, other = (jc.hisp(jc.Objective(model, micro_pairs(), "nll", name)) for name in ("resample", "zero"))
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.mission
def test_a_layer_without_effect_scores_zero(x64):
    """The clamp of the norm: 0 / 1e-6, not NaN."""
    import equinox as eqx

    model = micro_model("no-norm", dtype=jnp.float64)
    model = eqx.tree_at(lambda m: m.blocks.attention.output, model, replace_fn=lambda w: w.at[1].set(0))
    scores = jc.hisp(jc.Objective(model, micro_pairs(), "logit_diff"))
    assert [scores.run["nodes"][name] for name in ("a1.h0<q>", "a1.h1<v>")] == [0, 0]
    assert np.isfinite(scores.values).all() and scores.run["nodes"]["a0.h0<v>"] > 0


@pytest.mark.mission
def test_node_attribution_is_the_slope_towards_the_reference(x64):
    """Minus the derivative of f as all nodes but one stay on: against finite differences of f itself."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    nodes, step = jc.NodeObjective(objective, "edges"), 1e-5
    scores = jc.node_attribution(objective)
    assert scores.signed
    for node, name in enumerate(nodes.names):
        move = np.eye(len(nodes.names))[node] * step
        finite = (nodes(1 - move) - nodes(1 + move)) / (2 * step)
        np.testing.assert_allclose(scores.run["nodes"][name], finite, rtol=1e-6, atol=1e-8)


@pytest.mark.mission
@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
def test_node_ig_is_complete(metric, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), metric)
    nodes = jc.NodeObjective(objective, "edges")
    total = float(nodes(np.zeros(len(nodes.names))) - nodes(nodes.full_mask()))
    errors = [abs(sum(jc.node_ig(objective, steps=steps).run["nodes"].values()) - total) for steps in (4, 64)]
    assert errors[1] < 2e-3 * abs(total) and errors[1] < errors[0]


def test_what_it_refuses():
    model, pairs = micro_model("gpt2"), micro_pairs()
    for method in (jc.hisp, jc.node_attribution):
        with pytest.raises(ValueError, match="its gradient there is zero"):
            method(jc.Objective(model, pairs, "kl"))
    own = jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt)
    with pytest.raises(ValueError, match="l2 to the model's own output"):
        jc.hisp(jc.Objective(model, own, "l2"))
    with pytest.raises(ValueError, match="steps"):
        jc.node_ig(jc.Objective(model, pairs, "nll"), steps=0)
