import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import expected, micro_model, micro_pairs, random_mask, reference_pairs

import jaxcircuits as jc


@pytest.mark.mission
def test_gradient_at_ones_equals_published_eap(x64_reference):
    """Law 2, against the numbers of EAP-IG's own code."""
    objective = jc.Objective(x64_reference.model, reference_pairs("ioi"), "logit_diff")
    scores = expected("ioi-EAP-logit_diff")["scores"]
    ours = -np.asarray(objective.gradient(objective.graph.valid))
    worst = max(abs(ours[objective.graph.edge_index(name)] - score) for name, score in scores.items())
    assert len(scores) == objective.graph.num_edges and worst <= 1e-12


@pytest.mark.mission
def test_masks_with_one_zero_equal_published_edge_patching(x64_reference):
    objective = jc.Objective(x64_reference.model, reference_pairs("induction")[:64], "logit_diff")
    scores = expected("induction-exact-logit_diff")["scores"]
    graph = objective.graph
    some = list(scores)[::40]
    masks = np.stack([graph.valid & ~graph.mask_of([name]) for name in some])
    effects = np.asarray(objective.many(masks)) - float(objective(graph.valid))
    np.testing.assert_allclose(effects, [scores[name] for name in some], atol=1e-10)


@pytest.mark.mission
@pytest.mark.parametrize(
    "batch, microbatch", [(5, 2), *(pytest.param(5, size, marks=pytest.mark.slow) for size in (1, 3, 5, 9))]
)
def test_microbatches_do_not_change_the_value(batch, microbatch, x64):
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs(batch=batch)
    mask = random_mask(model.graph, 3)
    whole = jc.Objective(model, pairs, "kl", microbatch=batch)
    parts = jc.Objective(model, pairs, "kl", microbatch=microbatch)
    np.testing.assert_allclose(parts.per_example(mask), whole.per_example(mask), rtol=1e-10)
    np.testing.assert_allclose(parts.gradient(mask), whole.gradient(mask), rtol=1e-9, atol=1e-14)


def test_mean_reference_is_the_mean_over_prompts_that_reach_a_position(x64):
    model = micro_model("gpt2", dtype=jnp.float64)
    pairs = micro_pairs(kind="lengths")
    objective = jc.Objective(model, pairs, "logit_diff", "mean")
    values = np.stack([eqx.filter_jit(model.sender_values)(jnp.asarray(row)) for row in pairs.corrupt])
    position = int(pairs.length.max()) - 1
    reaching = pairs.length > position
    assert 0 < reaching.sum() < len(pairs)
    for row in range(len(pairs)):
        np.testing.assert_allclose(objective.reference[:, row, position], values[reaching, :, position].mean(0))


def test_an_edge_is_in_at_some_positions(x64):
    """A mask with a third axis: constant along it, it is the mask without; else it is another circuit."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    masks = np.stack([random_mask(objective.graph, seed) for seed in range(3)])
    constant = np.repeat(masks[..., None], 6, -1)
    np.testing.assert_allclose(objective.many(constant), objective.many(masks), rtol=1e-10)
    late = constant | (np.arange(6) < 4)
    each = [float(objective(mask)) for mask in late]
    np.testing.assert_allclose(objective.many(late, width=2), each, rtol=1e-10)
    assert np.abs(np.array(each) - objective.many(masks)).min() > 1e-3
    with pytest.raises(ValueError, match="mask: expected shape"):
        objective.gradient(late[0])
    with pytest.raises(ValueError, match="masks: expected shape"):
        objective.many(late[..., :5])


@pytest.mark.mission
def test_an_array_as_reference(x64):
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs()
    zero = jc.Objective(model, pairs, "logit_diff", "zero")
    same = jc.Objective(model, pairs, "logit_diff", np.zeros(zero.reference.shape))
    mask = random_mask(model.graph, 0)
    assert float(same(mask)) == float(zero(mask))
    with pytest.raises(ValueError, match="sender, batch, position, width"):
        jc.Objective(model, pairs, reference=np.zeros((3, 2)))


@pytest.mark.mission
def test_two_ways_to_average_several_positions(x64):
    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs(kind="positions")
    mask = random_mask(model.graph, 1)
    logits = [
        eqx.filter_jit(model)(jnp.asarray(tokens), jnp.asarray(mask, float), reference)
        for tokens, reference in zip(
            pairs.clean, jnp.moveaxis(jc.Objective(model, pairs, "nll").reference, 1, 0), strict=True
        )
    ]
    losses = [
        np.array([-np.asarray(jax.nn.log_softmax(row))[pairs.answer[i]].mean() for row in np.asarray(logits[i])])
        for i in range(len(pairs))
    ]
    chosen = [row[where] for row, where in zip(losses, pairs.positions, strict=True)]
    assert len({len(row) for row in chosen}) > 1
    together = jc.Objective(model, pairs, "nll", average="together")(mask)
    per_prompt = jc.Objective(model, pairs, "nll", average="per_prompt")(mask)
    np.testing.assert_allclose(together, np.concatenate(chosen).mean(), rtol=1e-12)
    np.testing.assert_allclose(per_prompt, np.mean([row.mean() for row in chosen]), rtol=1e-12)


@pytest.mark.mission
def test_padding_changes_nothing(x64):
    """A prompt alone and the same prompt padded beside a longer one."""
    model = micro_model("gpt2", dtype=jnp.float64)
    pairs = micro_pairs(kind="lengths")
    row = int(pairs.length.argmin())
    length = int(pairs.length[row])
    alone = jc.PromptPairs(
        clean=pairs.clean[row : row + 1, :length],
        corrupt=pairs.corrupt[row : row + 1, :length],
        answer=pairs.answer[row : row + 1],
        wrong=pairs.wrong[row : row + 1],
    )
    mask = random_mask(model.graph, 2)
    assert length < pairs.clean.shape[1]
    for metric in ("kl", "logit_diff"):
        padded = jc.Objective(model, pairs, metric).per_example(mask)[row]
        np.testing.assert_allclose(padded, jc.Objective(model, alone, metric)(mask), rtol=1e-10)


def test_a_metric_of_ones_own(x64):
    traces = []

    def margin(logits, labels):
        traces.append(1)
        return logits[labels.wrong[0]] - logits[labels.answer[0]]

    model, pairs = micro_model("gpt2", dtype=jnp.float64), micro_pairs()
    objective = jc.Objective(model, pairs, margin)
    first = float(objective(random_mask(model.graph, 0)))
    count = len(traces)
    assert float(objective(random_mask(model.graph, 1))) != first
    assert len(traces) == count and objective.describe()["metric"] == "margin"


def test_new_prompts_masks_and_weights_compile_nothing():
    """Law 7."""
    from jaxcircuits.batching import compile_clock

    def run(seed):
        objective = jc.Objective(micro_model("gpt2", seed), micro_pairs(seed), "kl")
        mask = random_mask(objective.graph, seed)
        masks = np.stack([mask, ~mask, mask])
        return jax.block_until_ready((objective(mask), objective.many(masks, 2), objective.gradient(mask)))

    run(0)
    with compile_clock() as clock:
        run(1)
    assert clock.compilations == 0


@pytest.mark.mission
@pytest.mark.parametrize("kind", ["last", "positions", "lengths"])
def test_some_of_the_prompts(kind, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(kind=kind), "logit_diff")
    mask, rows = random_mask(objective.graph, 0), np.array([4, 1, 2])
    some = objective.take(rows)
    assert some.num_prompts == 3
    np.testing.assert_allclose(some.per_example(mask), objective.per_example(mask)[rows], rtol=1e-12)
    value, gradient = some.value_and_gradient(mask)
    np.testing.assert_allclose(value, some(mask), rtol=1e-12)
    np.testing.assert_allclose(gradient, some.gradient(mask), rtol=1e-12, atol=1e-15)


@pytest.mark.mission
def test_it_is_a_pytree_under_vmap_and_grad(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    masks = jnp.asarray(np.stack([random_mask(objective.graph, seed) for seed in range(3)]), float)
    one_by_one = [float(objective(mask)) for mask in masks]
    np.testing.assert_allclose(jax.vmap(objective)(masks), one_by_one, rtol=1e-10)
    np.testing.assert_allclose(objective.many(masks, 2), one_by_one, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(objective)(masks[0]), objective.gradient(masks[0]), atol=1e-12)


def test_a_list_of_masks_may_be_traced(x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")
    some = random_mask(objective.graph, 1)
    both = jax.jit(lambda mask: objective.many([mask, 0 * mask]))(1.0 * some)
    np.testing.assert_allclose(both, objective.many([some, 0 * some]), rtol=1e-12)


def test_what_it_refuses():
    model, pairs = micro_model("gpt2"), micro_pairs()
    with pytest.raises(ValueError, match="unknown reference 'noise'"):
        jc.Objective(model, pairs, reference="noise")
    with pytest.raises(ValueError, match="unknown metric"):
        jc.Objective(model, pairs, "klx")
    with pytest.raises(ValueError, match="together"):
        jc.Objective(model, pairs, average="mean")
    with pytest.raises(ValueError, match="microbatch"):
        jc.Objective(model, pairs, microbatch=0)
    with pytest.raises(ValueError, match="vocabulary of 11"):
        jc.Objective(model, micro_pairs(vocab=40))
    with pytest.raises(ValueError, match="7 positions, the model has 6"):
        jc.Objective(model, micro_pairs(width=7))
    with pytest.raises(ValueError, match="needs 'answer'"):
        jc.Objective(model, jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt), "nll")
    with pytest.raises(ValueError, match="one number"):
        jc.Objective(model, pairs, lambda logits, labels: logits)
    objective = jc.Objective(model, pairs)
    with pytest.raises(ValueError, match="expected shape"):
        objective(np.ones((2, 2)))
    with pytest.raises(ValueError, match="expected shape"):
        objective.many(np.ones((2, 2)))
    with pytest.raises(ValueError, match="width"):
        objective.many(objective.graph.valid[None], 0)


@pytest.mark.parametrize("value", [7, 1.002, -0.002, np.nan, np.inf])
def test_a_mask_is_numbers_from_0_to_1(value):
    """Also where all others are."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    mask = np.ones(objective.graph.shape, np.float32)
    mask[0, 0], mask[0, 1] = 0, value
    for refused in (
        lambda: objective(mask),
        lambda: objective.many(np.stack([mask])),
        lambda: objective.gradient(mask),
    ):
        with pytest.raises(ValueError, match="mask: expected (finite )?numbers"):
            refused()
    mask[0, 1] = 1.0005  # a step beyond the end, for a slope there
    assert np.isfinite(objective(mask))


def test_models_of_one_kind_are_traced_once():
    """A trace leaves some kilobytes in JAX: thousands of objectives would fill the memory."""
    traced = []

    class Counted(jc.GPT2):
        def residual(self, *given):
            traced.append(1)
            return super().residual(*given)

    def objective(seed):
        model = micro_model("gpt2", seed)
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        return jc.Objective(Counted(**fields), micro_pairs(seed), "logit_diff")

    objective(0)
    before = len(traced)
    objective(1)
    assert before and len(traced) == before
