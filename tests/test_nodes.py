import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.batching import compile_clock
from jaxcircuits.nodes import edge_scores


def micro(model="gpt2", metric="logit_diff", reference="resample", **options):
    return jc.Objective(micro_model(model, dtype=jnp.float64), micro_pairs(), metric, reference, **options)


@pytest.mark.quick(2)
@pytest.mark.parametrize("model", ["gpt2", "attention-only", "no-norm", "shortformer"])
@pytest.mark.parametrize("reference", ["zero", "edges"])
def test_ones_are_the_clean_run(model, reference, x64):
    objective = micro(model)
    nodes = jc.NodeObjective(objective, reference)
    np.testing.assert_allclose(nodes.per_example(nodes.full_mask()), objective.per_example(objective.full_mask()))


@pytest.mark.quick(1)
@pytest.mark.parametrize("model", ["gpt2", "gpt2-untied-relu", "attention-only", "shortformer"])
def test_zeros_under_resample_write_what_the_corrupt_run_writes(model, x64):
    """All nodes at zero: the corrupt residual stream, with the clean embedding in it."""
    objective = micro(model)
    pairs = micro_pairs()

    @eqx.filter_jit
    def by_hand(prompt, clean, corrupt):
        model = objective.model
        residual = model.residual(corrupt) + model.sender_values(clean)[0] - model.sender_values(corrupt)[0]
        return objective._score(residual, *prompt[2:])

    nodes = jc.NodeObjective(objective, "edges")
    values = nodes.per_example(jnp.zeros(len(nodes.names)))
    prompts = [jax.tree.map(lambda x, row=row: x[row], objective._prompts()) for row in range(len(pairs))]
    expected = [by_hand(*each) for each in zip(prompts, pairs.clean, pairs.corrupt, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-10)


@pytest.mark.mission
@pytest.mark.parametrize("reference", ["zero", "edges"])
def test_gradients_equal_finite_differences_on_every_prompt(reference, x64):
    nodes = jc.NodeObjective(micro(), reference)
    random = np.random.default_rng(0)
    soft, step = random.random(len(nodes.names)), 1e-5
    gradients = np.asarray(nodes.gradient_per_example(soft))
    for node, direction in enumerate(np.eye(len(nodes.names)) * step):
        finite = (nodes.per_example(soft + direction) - nodes.per_example(soft - direction)) / (2 * step)
        np.testing.assert_allclose(gradients[:, node], finite, rtol=1e-6, atol=1e-8)
    value, gradient = nodes.value_and_gradient(soft)
    np.testing.assert_allclose(value, nodes(soft), rtol=1e-12)
    np.testing.assert_allclose(gradient, gradients.mean(0), rtol=1e-12)


@pytest.mark.mission
def test_microbatches_and_some_of_the_prompts(x64):
    whole, parts = jc.NodeObjective(micro(), "edges"), jc.NodeObjective(micro(microbatch=2), "edges")
    soft = np.random.default_rng(1).random(len(whole.names))
    np.testing.assert_allclose(parts.gradient_per_example(soft), whole.gradient_per_example(soft), rtol=1e-9)
    rows = np.array([3, 1])
    np.testing.assert_allclose(whole.take(rows).per_example(soft), whole.per_example(soft)[rows], rtol=1e-12)
    zero = jc.NodeObjective(micro())
    np.testing.assert_allclose(zero.take(rows).per_example(soft), zero.per_example(soft)[rows], rtol=1e-12)


def test_a_zero_reference_of_the_edges_is_zero_for_nodes(x64):
    objective = micro(reference="zero")
    soft = np.random.default_rng(2).random(len(objective.graph.receivers) - 1)
    assert float(jc.NodeObjective(objective, "edges")(soft)) == float(jc.NodeObjective(objective)(soft))


@pytest.mark.mission
def test_other_masks_compile_nothing():
    def run(seed):
        nodes = jc.NodeObjective(jc.Objective(micro_model("gpt2", seed), micro_pairs(seed)), "edges")
        return jax.block_until_ready(nodes.value_and_gradient(np.random.default_rng(seed).random(len(nodes.names))))

    run(0)
    with compile_clock() as clock:
        run(1)
    assert clock.compilations == 0


def test_any_threshold_on_edges_is_the_rule_on_nodes():
    """Removed q, k, v: no incoming edges. Head without any of them, or removed MLP: no outgoing ones either."""
    graph = jc.Graph.transformer(2, 2)
    names = graph.receivers[:-1]
    values = np.random.default_rng(0).permutation(len(names)) + 1.0
    scores = edge_scores(graph, values)
    for threshold in np.append(values, 0) + 0.5:
        removed = {name for name, value in zip(names, values, strict=True) if value < threshold}
        kept = set()
        for sender, receiver in (graph.edge_name(*edge).split("->") for edge in graph.edges):
            inputs = {f"{sender}<{kind}>" for kind in "qkv"} if ".h" in sender else {sender}
            if receiver not in removed and (sender == "input" or not inputs <= removed):
                kept.add(f"{sender}->{receiver}")
        if len(removed) < len(names):  # else the embedding alone is left, which scores as the best node
            assert set(graph.names_of(scores > threshold)) == kept
    assert (scores[~graph.valid] == 0).all()


def test_what_it_refuses():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs())
    with pytest.raises(ValueError, match="'zero' or 'edges'"):
        jc.NodeObjective(objective, "mean")
    with pytest.raises(ValueError, match=r"expected shape \(14,\)"):
        jc.NodeObjective(objective)(np.ones(3))
