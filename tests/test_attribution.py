"""Attribution against published numbers, brute force, finite differences, and its own laws."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, expected, micro_model, micro_pairs, reference_pairs

import jaxcircuits as jc

METHODS = {
    "EAP": jc.eap,
    "clean-corrupted": jc.clean_corrupted,
    "EAP-IG-inputs": lambda objective: jc.eap_ig_inputs(objective, steps=5),
    "EAP-IG-activations": lambda objective: jc.eap_ig_activations(objective, steps=3),
}
mission = pytest.mark.mission
PUBLISHED = [
    "ioi-EAP-logit_diff",
    pytest.param("ioi-clean-corrupted-logit_diff", marks=mission),
    "ioi-EAP-IG-inputs-kl",
    pytest.param("ioi-EAP-IG-inputs-logit_diff", marks=mission),
    "ioi-EAP-IG-activations-logit_diff",
    pytest.param("induction-EAP-logit_diff", marks=mission),
    pytest.param("induction-EAP-IG-inputs-logit_diff", marks=mission),
]


def micro(model="gpt2", metric="logit_diff", reference="resample", kind="last", **options):
    model = micro_model(model, dtype=jnp.float64)
    return jc.Objective(model, micro_pairs(kind=kind), metric, reference, **options)


def compare(name, model, tolerance):
    task, rest = name.split("-", 1)
    method, metric = rest.rsplit("-", 1)
    golden = expected(name)
    scores = METHODS[method](jc.Objective(model, reference_pairs(task), metric))
    assert scores.run.get("steps", golden["steps"]) == golden["steps"]
    assert len(golden["scores"]) == scores.graph.num_edges
    largest = max(map(abs, golden["scores"].values()))
    worst = max(abs(scores.of(edge) - score) for edge, score in golden["scores"].items())
    assert worst <= tolerance * largest
    return scores


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_equal_those_of_the_public_code(name, x64_reference):
    compare(name, x64_reference.model, 1e-10)


@mission
@pytest.mark.parametrize("name", [pytest.param("ioi-EAP-logit_diff", marks=mission), "ioi-EAP-IG-inputs-kl"])
def test_single_precision_is_close(name):
    compare(name, jc.load(GOLDEN / "ref-4l").model, 1e-4)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "model, reference",
    [
        ("gpt2", "resample"),
        pytest.param("gpt2-untied-relu", "zero", marks=mission),
        pytest.param("attention-only", "mean", marks=mission),
        pytest.param("no-norm", "resample", marks=mission),
        ("shortformer", "resample"),
        ("one-head", "zero"),
    ],
)
def test_eap_is_minus_the_gradient_at_ones(model, reference, x64):
    """Law 2: the plain model's backward pass gives the masked model's gradient."""
    objective = micro(model, reference=reference, kind="positions")
    gradient = np.asarray(objective.gradient(objective.full_mask()))
    assert np.abs(gradient).max() > 1e-4
    np.testing.assert_allclose(jc.eap(objective).values, -gradient, rtol=1e-9, atol=1e-14)


@eqx.filter_jit
def displaced_loss(objective, held, alpha, mask):
    """f_k(mask) of `displacement_gradient`, spelled out: a masked run with real displacements.

    The edges of held senders are cut, and carry what they are held at.
    """
    model = objective.model
    cut = jnp.where(held[:, None], 0.0, jnp.ones(mask.shape))

    def one(prompt):
        tokens, reference, *rest = prompt
        clean = model.sender_values(tokens)
        constants = jnp.where(held[:, None, None], reference + alpha * (clean - reference), 0.0)
        offsets = jnp.einsum("sr,std->rtd", jnp.where(model.graph.valid, 1 - mask, 0), reference - clean)
        return objective._score(model.masked_run(tokens, cut, constants, offsets)[0], *rest)

    return jax.vmap(one)(objective._prompts()).mean()


@mission
@pytest.mark.parametrize("group", [0, 1, *(pytest.param(group, marks=mission) for group in (2, 3))])
def test_displacement_gradient_equals_a_finite_difference(group, x64):
    """Held senders are constants, displacements are constants, and the slope is that of a real run."""
    objective = micro(metric="kl")
    random = np.random.default_rng(group)
    held = jnp.asarray(objective.graph.sender_groups[group])
    direction = jnp.asarray(random.normal(size=objective.graph.shape) * objective.graph.valid)
    ours = float(jnp.sum(objective.displacement_gradient(held[None], np.array([0.3])) * direction))
    step, ones = 1e-5, jnp.ones(objective.graph.shape)
    up, down = (float(displaced_loss(objective, held, 0.3, ones + sign * step * direction)) for sign in (1, -1))
    assert abs(ours) > 1e-4
    np.testing.assert_allclose(ours, (up - down) / (2 * step), rtol=1e-5)


@pytest.mark.mission
def test_one_path_point_at_the_corrupt_prompt_is_the_other_half_of_clean_corrupted(x64):
    objective = micro()
    both = jc.eap(objective).values + jc.eap_ig_inputs(objective, steps=1).values
    np.testing.assert_allclose(jc.clean_corrupted(objective).values, both / 2, rtol=1e-10, atol=1e-14)


@mission
def test_path_points_are_the_stated_ones(x64):
    objective = micro()
    for points, alphas in (("public", [0, 0.5]), ("midpoint", [0.25, 0.75])):
        scores = jc.eap_ig_inputs(objective, steps=2, points=points)
        each = [-np.asarray(objective.along(np.array([alpha]))) for alpha in alphas]
        np.testing.assert_allclose(scores.values, np.mean(each, axis=0), rtol=1e-10, atol=1e-14)
        assert scores.run["points"] == points and scores.run["steps"] == 2


@mission
@pytest.mark.parametrize("reference", ["resample", "mean"])
def test_mask_ig_is_complete(reference, x64):
    """Law 3: the sum is f(zeros) - f(ones), the closer the more steps."""
    objective = micro(metric="nll", reference=reference)
    shape = objective.graph.shape
    whole = float(objective(np.zeros(shape)) - objective(np.ones(shape)))
    errors = [abs(jc.mask_ig(objective, steps=steps).values.sum() - whole) for steps in (8, 32)]
    assert errors[1] < 1e-2 * abs(whole) and errors[1] < errors[0] / 10  # midpoints: 16 times less


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [jc.eap, jc.clean_corrupted, jc.eap_ig_inputs, jc.eap_ig_activations, jc.eap_gp, jc.mask_ig]
)
def test_scores_depend_neither_on_the_microbatch_nor_on_the_split_into_positions(method, x64):
    whole = method(micro())
    np.testing.assert_allclose(method(micro(microbatch=2)).values, whole.values, rtol=1e-9, atol=1e-14)
    spans = method(micro(), positions=[0, (1, 4), (4, 6)])
    assert spans.values.shape == (3, *whole.graph.shape) and spans.positions == ((0, 1), (1, 4), (4, 6))
    assert np.abs(spans.values[1]).max() > 1e-5
    np.testing.assert_allclose(spans.total().scores, whole.values, rtol=1e-9, atol=1e-14)


def test_what_the_record_says(x64):
    scores = jc.eap_ig_inputs(micro(), steps=3)
    assert scores.signed and scores.method == "eap-ig-inputs"
    expected = {"method": "eap-ig-inputs", "signed": True, "steps": 3, "forward_passes": 4, "backward_passes": 3}
    assert expected.items() <= scores.run.items()
    assert {"metric", "reference", "ablation", "versions", "seconds", "dtype"} <= scores.run.keys()


def test_what_is_refused(x64):
    with pytest.raises(ValueError, match="least at the clean run"):
        jc.eap(micro(metric="kl"))
    with pytest.raises(ValueError, match="least at the clean run"):
        pairs = micro_pairs()
        jc.eap(jc.Objective(micro_model("gpt2"), jc.PromptPairs(clean=pairs.clean, corrupt=pairs.corrupt), "l2"))
    with pytest.raises(ValueError, match="accuracy has no gradient"):
        jc.eap_ig_inputs(micro(metric="accuracy"))
    for method in (jc.eap_ig_inputs, jc.clean_corrupted):
        with pytest.raises(ValueError, match="expected reference 'resample', got 'zero'"):
            method(micro(reference="zero"))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        jc.eap_ig_inputs(micro(), steps=0)
    with pytest.raises(ValueError, match="whole number"):
        jc.mask_ig(micro(), steps=True)
    with pytest.raises(ValueError, match="public, midpoint"):
        jc.eap_ig_inputs(micro(), points="left")
    for positions in ([6], [(2, 2)], [(3, 1)], [(0, 7)], [(0, 1, 2)]):
        with pytest.raises(ValueError, match="positions: expected positions 0 to 5"):
            jc.eap(micro(), positions=positions)
    with pytest.raises(ValueError, match="at least one position"):
        jc.eap(micro(), positions=[])
    objective = micro()
    with pytest.raises(ValueError, match="held: expected shape"):
        objective.displacement_gradient(np.ones((2, 3), bool), np.ones(2))
    with pytest.raises(ValueError, match="spans: expected shape"):
        objective.clean_gradient(spans=np.ones((1, 3)))


def steps(logits, labels):
    """A loss of whole numbers: how many tokens are likelier than the first answer."""
    return jnp.sum(logits > logits[labels.answer[0]]).astype(logits.dtype)


def zero_at_the_clean_run(logits, labels):
    return jnp.sum((logits - labels.full) ** 2)


GRADIENT_METHODS = {
    "at the clean run": (jc.eap, jc.hisp, jc.node_attribution, jc.atp_star, jc.atp_nodes),
    "elsewhere": (
        jc.clean_corrupted,
        jc.eap_ig_inputs,
        jc.eap_ig_activations,
        jc.eap_gp,
        jc.mask_ig,
        jc.node_ig,
        jc.subnetwork_probing,
        jc.edge_pruning,
        jc.ugs,
        jc.mattr,
        jc.optimal_ablation,
    ),
}


@pytest.mark.mission
def test_a_metric_of_ones_own_without_a_slope_is_refused_by_every_gradient_method(x64):
    objective = micro("attention-only", metric=steps)
    assert float(objective(np.zeros(objective.graph.shape))) != float(objective(np.ones(objective.graph.shape)))
    for method in (*GRADIENT_METHODS["at the clean run"], *GRADIENT_METHODS["elsewhere"]):
        with pytest.raises(ValueError, match=r"the metric steps is .* gradient is zero for every edge"):
            method(objective)
    flat_there = micro("attention-only", metric=zero_at_the_clean_run)
    for method in GRADIENT_METHODS["at the clean run"]:
        with pytest.raises(ValueError, match="zero_at_the_clean_run .* gradient is zero"):
            method(flat_there)
    assert jc.mask_ig(flat_there, steps=2).values.any()
    with pytest.warns(UserWarning, match="do not differ"):
        pairs = dataclasses.replace(micro_pairs(), corrupt=micro_pairs().clean)
    nothing = jc.Objective(objective.model, pairs, steps)  # no edge matters: scores of 0 are right
    assert not jc.eap(nothing).values.any()


@pytest.mark.mission
def test_new_prompts_and_weights_compile_nothing():
    """Law 7."""
    from jaxcircuits.batching import compile_clock

    def run(seed):
        objective = jc.Objective(micro_model("gpt2", seed), micro_pairs(seed), "logit_diff")
        return jc.eap(objective), jc.eap_ig_inputs(objective, steps=3)

    run(0)
    with compile_clock() as clock:
        run(1)
    assert clock.compilations == 0
