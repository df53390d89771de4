"""NaN and infinity stop where they arise, by name, before anything is decided."""

import dataclasses
import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from safetensors.numpy import load_file, save_file

import jaxcircuits as jc
from jaxcircuits import finite, losses
from jaxcircuits.batching import compile_clock
from jaxcircuits.finite import check_finite
from jaxcircuits.models.parts import LayerNorm, RMSNorm

NAN, INF = float("nan"), float("inf")
WEIGHTS = {
    jax.tree_util.keystr(where).lstrip("."): leaf.shape
    for where, leaf in jax.tree_util.tree_flatten_with_path(micro_model("gpt2"))[0]
}


def planted(name, value):
    """A model with one number, the last, of one weight replaced."""

    def plant(where, leaf):
        return leaf.at[(-1,) * leaf.ndim].set(value) if jax.tree_util.keystr(where).lstrip(".") == name else leaf

    return jax.tree_util.tree_map_with_path(plant, micro_model("gpt2"))


@pytest.mark.quick(5)
@pytest.mark.parametrize("name", WEIGHTS)
def test_one_bad_weight_stops_every_objective_by_its_path(name):
    last = [size - 1 for size in WEIGHTS[name]]
    for value in (NAN, -INF):
        with pytest.raises(ValueError) as error:
            jc.Objective(planted(name, value), micro_pairs())
        assert f"weight {name}{last}: expected a finite number, got {value}" in str(error.value)


def test_a_bad_weight_of_the_reference_model_stops_too():
    with pytest.raises(ValueError, match="reference 'resample from another model': .*sender a1.h1, prompt 0"):
        jc.Objective(micro_model("gpt2"), micro_pairs(), reference=planted("blocks.attention.output", NAN))


def test_a_run_that_overflows_is_named_by_sender_and_prompt():
    """In float16 every weight is finite and the first MLP's output is not."""
    model = micro_model("gpt2", dtype=jnp.float16)
    large = eqx.tree_at(lambda m: m.blocks.mlp.w_out, model, model.blocks.mlp.w_out.at[0].set(60000.0))
    with pytest.raises(ValueError, match=r"clean run: .* first -?inf \(sender m0, prompt \d\)"):
        jc.Objective(large, micro_pairs())


def test_a_reference_that_is_given_is_checked():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs())
    values = np.array(objective.reference)
    values[2, 3, 1, 0] = NAN
    with pytest.raises(ValueError, match=r"reference 'array': .*\(sender a0.h1, prompt 3\)"):
        jc.Objective(micro_model("gpt2"), micro_pairs(), reference=values)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_metric_without_a_number_is_named_with_its_prompt(value):
    def margin(logits, labels):
        return jnp.where(labels.answer[0] == answers[2, 0], value, logits[0])

    answers = micro_pairs().answer
    first = int(np.flatnonzero(answers[:, 0] == answers[2, 0])[0])
    with pytest.raises(ValueError, match=f"metric margin of the whole model: .*prompt {first}"):
        jc.Objective(micro_model("gpt2"), micro_pairs(), margin)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("call", ["__call__", "per_example", "gradient", "value_and_gradient", "many"])
def test_a_mask_without_a_number_is_refused(call, value):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs())
    mask = np.ones(objective.graph.shape)
    mask[1, 2] = value
    for given in (mask, jnp.asarray(mask)):
        with pytest.raises(ValueError, match="mask: expected finite numbers"):
            getattr(objective, call)(given[None] if call == "many" else given)


def test_targets_and_years_are_checked_with_the_prompts():
    pairs = micro_pairs()
    target = pairs.target.copy()
    target[4, 0] = NAN
    with pytest.raises(ValueError, match=r"target: .*\(prompt 4\)"):
        dataclasses.replace(pairs, target=target)
    for year in (-1, 9):
        with pytest.raises(ValueError, match="year: expected two digits, 0 to 8"):
            dataclasses.replace(pairs, year=np.full(5, year))
    with pytest.raises(ValueError, match="year: expected two digits, 0 to 99"):
        dataclasses.replace(pairs, digits=None, year=np.full(5, 100))


def test_a_config_whose_norms_divide_by_nothing_is_refused():
    for epsilon in (NAN, INF, 0.0, -1e-5):
        with pytest.raises(ValueError, match="layer_norm_epsilon must be a finite number above 0"):
            jc.GPT2Config(layer_norm_epsilon=epsilon)
    for inner in (0, -4):
        with pytest.raises(ValueError, match="n_inner must be a positive whole number"):
            jc.GPT2Config(n_inner=inner)


@pytest.mark.parametrize(("value", "dtype"), [(NAN, "float32"), (INF, "float32"), (1e5, "float16")])
def test_a_checkpoint_is_checked_as_it_is_loaded(value, dtype, tmp_path):
    jc.save(micro_model("gpt2"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"blocks.mlp.w_in in {dtype}: expected finite numbers"):
        jc.load(tmp_path / "model", dtype=dtype)


def undefined_far_away(logits, labels):
    """A number at the clean run, NaN where the logits are others."""
    return jnp.where(jnp.abs(logits - labels.full).max() > 1e-3, jnp.nan, logits[0])


def test_scores_name_the_edge_that_has_none():
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), undefined_far_away)
    with pytest.raises(ValueError, match=r"scores \(exact\): .*\(sender input, receiver a0.h0<q>\)"):
        jc.exact(objective)


def test_scores_of_nodes_name_the_one_that_has_none(monkeypatch):
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "logit_diff")
    exact, atp = (importlib.import_module(f"jaxcircuits.discovery.{name}") for name in ("exact", "atp"))
    monkeypatch.setattr(exact, "_clean_run", lambda *_: None)
    monkeypatch.setattr(exact, "_without_nodes", lambda *_: NAN)
    with pytest.raises(ValueError, match=r"scores of nodes \(exact\): .*\(sender input\)"):
        jc.exact_nodes(objective)
    monkeypatch.setattr(atp, "_nodes", lambda *_: np.array([0, NAN, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"scores of nodes \(atp-star\): .*\(receiver a0.h0<k>\)"):
        jc.atp_nodes(objective, grad_drop=False)


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_norms_and_turns_need_a_number_above_0(name, value):
    with pytest.raises(ValueError, match=f"config: {name} must be a finite number above 0"):
        jc.models.LlamaConfig(**{name: value})


@pytest.mark.parametrize(("energy", "said"), [(NAN, r"energies: .*\(node input, base 0\)"), (0.0, "metric .*got nan")])
def test_backups_without_a_number_are_no_rounding(energy, said, monkeypatch):
    backups = importlib.import_module("jaxcircuits.evaluation.backups")
    monkeypatch.setattr(backups, "_energies", lambda objective, base, places, width: np.full(len(places), energy))
    monkeypatch.setattr(backups, "_rounding", lambda objective: 0.0)
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), undefined_far_away)
    with pytest.raises(ValueError, match=f"backups: {said}"):
        jc.backups(objective, ["a0.h0"])


def test_a_norm_of_what_overflows_is_no_zero():
    """Every weight is finite, and so is every value but the mean square within a norm."""
    x = jnp.full(4, 1e25)
    for norm in (RMSNorm(jnp.ones(4), 1e-5), LayerNorm(jnp.ones(4), jnp.zeros(4), 1e-5)):
        assert np.isnan(norm(x.at[0].set(0))).all() and np.isfinite(norm(1e-10 * x)).all()
    model = micro_model("gpt2")
    large = eqx.tree_at(lambda m: m.blocks.mlp.w_out, model, model.blocks.mlp.w_out * 1e25)
    with pytest.raises(ValueError, match=r"clean run: expected finite numbers, got .*sender a1.h0, prompt 0"):
        jc.acdc(jc.Objective(large, micro_pairs(), "logit_diff"), 0.1)


def flat(logits, labels):
    return jnp.where(logits.argmax() == labels.answer[0], 0.0, 1.0)


def rounded(logits, labels):
    return jnp.round(logits[labels.answer[0]])


@pytest.mark.parametrize("metric", [flat, rounded])
def test_a_metric_of_steps_has_slopes_of_zero_and_no_edge_scores(metric):
    """Of a size at which XLA's product with constant zeros was NaN on a CPU."""
    loaded = jc.load("tiny-gpt2")
    pairs = jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=2)
    objective = jc.Objective(loaded.model, pairs, metric)
    for share in (1.0, 0.5):
        assert not np.asarray(objective.gradient(np.full(objective.graph.shape, share))).any()
    for method in (jc.eap, jc.eap_ig_inputs, jc.mask_ig, jc.hisp, jc.atp_star):
        with pytest.raises(ValueError, match=f"{metric.__name__} is .* but its gradient is zero for every edge"):
            method(objective)


def of_a_logarithm(logits, labels):
    """NaN beyond the whole model's values, where the logarithm's slope is a number."""
    return jnp.log(logits[labels.answer[0]] - labels.full[labels.answer[0]] + 1e-3)


@pytest.mark.parametrize("method", [jc.eap_ig_inputs, jc.eap_ig_activations, jc.mask_ig, jc.eap_gp, jc.node_ig])
def test_a_metric_without_a_number_on_the_path_gives_no_scores(method):
    model, pairs = micro_model("gpt2"), micro_pairs()
    objective = jc.Objective(model, pairs, of_a_logarithm)
    half = np.full(objective.graph.shape, 0.5)
    missing = np.isnan(np.asarray(eqx.filter_jit(losses.per_example)(objective, jnp.asarray(half, jnp.float32))))
    assert missing.any() and np.isnan(np.asarray(objective.gradient(half))).any()
    with pytest.raises(ValueError, match="scores .*: expected finite numbers"):
        method(objective)


def test_information_flow_that_overflows_is_no_zero():
    model = micro_model("gpt2", dtype=jnp.float16)
    large = eqx.tree_at(lambda m: m.token_embedding, model, model.token_embedding * 30000)  # the run itself is finite
    with pytest.raises(ValueError, match=r"scores \(information-flow-routes\)"):
        jc.information_flow_routes(jc.Objective(large, micro_pairs()))


@pytest.mark.mission
@pytest.mark.parametrize("learn", [jc.edge_pruning, jc.subnetwork_probing, jc.ugs, jc.mattr, jc.optimal_ablation])
def test_a_learnt_run_stops_at_the_step_and_saves_nothing(learn):
    def undefined_later(logits, labels):
        return jnp.where(jnp.abs(logits - labels.full).max() > 1e-3, jnp.nan * logits[0], logits[0])

    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), undefined_later)
    saved = []
    with pytest.raises(ValueError, match=r"diverged \(lower `rate`\): \w+: expected finite numbers, .*step \d"):
        learn(objective, steps=20, batch=5, progress=saved.append)
    assert not saved


@pytest.mark.parametrize("judge", [jc.faithfulness, jc.evaluate, jc.hypothesis_tests, jc.completeness])
def test_a_judged_circuit_is_named_with_its_prompt(judge):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), undefined_far_away)
    circuit = jc.Circuit.select(jc.random_scores(objective), edges=20)
    with pytest.raises(ValueError, match=r"metric undefined_far_away: .*\(circuit of \d+ edges, prompt 0\)"):
        judge(objective, circuit)


def test_what_is_finite_passes():
    check_finite("numbers", np.arange(3))
    check_finite("numbers", np.ones((2, 2), bool), row=None)
    check_finite("number", 1.5)
    with pytest.raises(ValueError, match=r"got 2 that are NaN or infinite, first inf \(row b, column 1\)"):
        check_finite("table", np.array([[1, 2], [3, INF], [NAN, 0]]), row=["a", "b", "c"], column=None)


def test_a_sum_that_overflows_is_no_infinity():
    large = np.array([3e38, 3e38, -3e38], np.float32)
    check_finite("large", large)
    check_finite("large", jnp.asarray(large))
    with pytest.raises(ValueError, match=r"large: .* 2 that are NaN or infinite, first inf \(row 1\)"):
        check_finite("large", jnp.array([3e38, np.inf, -np.inf]), row=None)


def test_arrays_of_an_accelerator_are_looked_at_in_one_program():
    """Here there is none, so the program is asked as it is; it says what is said of arrays on the host."""
    arrays = [jnp.ones(3), jnp.array([[1.0, NAN]]), jnp.array([-INF]), jnp.full(2, 3e38), jnp.zeros((0, 2))]
    assert finite._are_finite_there(arrays).tolist() == finite.are_finite(arrays) == [True, False, False, True, True]


def test_an_objective_compiles_two_programs():
    """Its clean run, with the metric there, and its reference; that numbers are finite is looked at on the host."""
    pairs = micro_pairs()[:3]
    with compile_clock() as clock:
        jc.Objective(micro_model("gpt2"), pairs)
    assert clock.compilations <= 2
