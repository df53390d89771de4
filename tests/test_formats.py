"""TransformerLens' format against a forward written from its tensors, and folding against what it must not change."""

import dataclasses
import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO, micro_model, micro_pairs
from safetensors.numpy import save_file

import jaxcircuits as jc
from jaxcircuits.formats.transformer_lens import transformer_lens_config
from jaxcircuits.models import gpt2_folding

TOKENS = np.array([3, 1, 4, 1, 5, 9], np.int32)
CONFIG = {
    "n_layers": 2, "n_heads": 2, "d_model": 8, "d_head": 4, "n_ctx": 6, "d_vocab": 11, "d_mlp": 32, "attn_only": True,
    "act_fn": "solu", "normalization": "LN", "lr": 1e-3, "tokenizer_name": "someone/tokenizer",
}  # fmt: skip
FORMS = {
    "standard": {},
    "shortformer": {"shortformer_pos": True},
    "named": {"positional_embedding_type": "shortformer", "eps": 1e-3, "normalization_type": "LN"},
    "no-norm": {"normalization": None, "use_attn_scale": False},
}


def tensors(config, seed=0):
    """Random weights under TransformerLens' names, with the buffers that its checkpoints have."""
    random = np.random.default_rng(seed)
    shapes = {"embed.W_E": (11, 8), "pos_embed.W_pos": (6, 8), "unembed.W_U": (8, 11), "unembed.b_U": (11,)}
    norms = ["ln_final"]
    for layer in range(2):
        name = f"blocks.{layer}.attn"
        shapes |= {f"{name}.W_{kind}": (2, 8, 4) for kind in "QKV"} | {f"{name}.b_{kind}": (2, 4) for kind in "QKV"}
        shapes |= {f"{name}.W_O": (2, 4, 8), f"{name}.b_O": (8,)}
        norms.append(f"blocks.{layer}.ln1")
    if config.get("normalization_type", config["normalization"]):
        shapes |= {f"{norm}.{part}": (8,) for norm in norms for part in "wb"}
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    buffers = {
        f"blocks.{layer}.attn.{kind}": np.ones((6, 6), bool) for layer in range(2) for kind in ("mask", "IGNORE")
    }
    return drawn | buffers


def forward(config, state, tokens):
    """Logits as TransformerLens' documentation describes them, in NumPy."""
    positions = state["pos_embed.W_pos"][: len(tokens)].astype(float)
    is_short = config.get("shortformer_pos") or config.get("positional_embedding_type") == "shortformer"
    x = state["embed.W_E"][tokens] + (0 if is_short else positions)

    def norm(x, name):
        if f"{name}.w" not in state:
            return x
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + config.get("eps", 1e-5)) * state[f"{name}.w"]
            + state[f"{name}.b"]
        )

    for layer in range(2):
        w = {name.split("attn.")[1]: value for name, value in state.items() if name.startswith(f"blocks.{layer}.attn")}
        v_in = norm(x, f"blocks.{layer}.ln1")
        qk_in = v_in + (positions if is_short else 0)
        q, k, v = (np.einsum("td,hdk->htk", y, w[f"W_{c}"]) + w[f"b_{c}"][:, None] for c, y in
                   (("Q", qk_in), ("K", qk_in), ("V", v_in)))  # fmt: skip
        scores = np.einsum("htk,huk->htu", q, k) / (2 if config.get("use_attn_scale", True) else 1)
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        x = x + np.einsum("htu,huk,hkd->td", pattern, v, w["W_O"]) + w["b_O"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def write(folder, config, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.quick(2)
@pytest.mark.parametrize("form", FORMS)
def test_a_transformer_lens_folder_gives_its_logits(form, tmp_path):
    config = CONFIG | FORMS[form]
    state = tensors(config)
    loaded = jc.load(write(tmp_path / "model", config, state))
    assert loaded.graph == jc.Graph.transformer(2, 2, mlps=False)
    ours = eqx.filter_jit(loaded.model)(jnp.asarray(TOKENS))
    theirs = forward(config, state, TOKENS)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * max(10, np.abs(theirs).max()))
    jc.save(loaded.model, tmp_path / "again")
    again = eqx.filter_jit(jc.load(tmp_path / "again").model)(jnp.asarray(TOKENS))
    np.testing.assert_array_equal(again, ours)


def test_a_whole_number_is_read_as_an_epsilon():
    assert type(transformer_lens_config(CONFIG | {"eps": 1}).layer_norm_epsilon) is float


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d_model": 10}, "d_head = 4 is not supported; expected 5"),
        ({"normalization_type": "LNPre"}, "normalization_type = 'LNPre' is not supported; expected 'LN'"),
        ({"attention_dir": "bidirectional"}, "attention_dir = 'bidirectional' is not supported; expected 'causal'"),
        ({"positional_embedding_type": "rotary"}, "positional must be one of standard, shortformer, got 'rotary'"),
        ({"attn_only": False}, "activation_function 'solu' is not supported"),
        ({"n_heads": "2"}, "n_heads = '2' is not supported"),
        ({"n_ctx": None}, r"misses \['n_ctx'\]; a TransformerLens config needs d_vocab"),
        ({"final_rms": True}, "final_rms = True is not supported; expected False"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_its_key(change, message, tmp_path):
    folder = write(tmp_path / "model", CONFIG | change, tensors(CONFIG))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        jc.load(folder)


def test_tensors_that_miss_or_do_not_fit_are_refused(tmp_path):
    state = tensors(CONFIG)
    folder = write(tmp_path / "model", CONFIG, state | {"pos_embed.W_pos": np.zeros((5, 8), np.float32)})
    with pytest.raises(ValueError, match=r"W_pos has shape \(5, 8\), expected \(6, 8\)"):
        jc.load(folder)
    del state["blocks.1.ln1.b"]
    with pytest.raises(ValueError, match="misses the tensor blocks.1.ln1.b"):
        jc.load(write(folder, CONFIG, state))


def test_a_pickled_state_is_refused_with_the_command_that_converts_it(tmp_path):
    """The command is run, where torch is installed."""
    folder = write(tmp_path / "model", CONFIG, tensors(CONFIG))
    (folder / "model.safetensors").unlink()
    (folder / "model_final.pth").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="only a pickle.*Convert it once") as error:
        jc.load(folder)
    torch = pytest.importorskip("torch")
    state = tensors(CONFIG)
    torch.save({name: torch.tensor(value) for name, value in state.items()}, folder / "model_final.pth")
    exec(str(error.value).split('python -c "')[1].rstrip('"'), {})
    ours = eqx.filter_jit(jc.load(folder).model)(jnp.asarray(TOKENS))
    np.testing.assert_allclose(ours, forward(CONFIG, state, TOKENS), rtol=0, atol=2e-5)


def test_a_model_without_tokenizer_names_the_one_it_was_trained_with(tmp_path):
    loaded = jc.load(write(tmp_path / "model", CONFIG, tensors(CONFIG)))
    with pytest.raises(ValueError, match="cannot read text.*or save the tokenizer 'someone/tokenizer' into"):
        _ = loaded.tokenizer


# --- folding ---------------------------------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gpt2", "attention-only", "no-norm"])
def test_folding_changes_no_logits_and_no_resampled_circuit(name, x64):
    model = micro_model(name, dtype=jnp.float64)
    folded = gpt2_folding.fold_value_biases(gpt2_folding.fold_layer_norms(model))
    assert not folded.blocks.attention.value_bias.any()
    mask = np.random.default_rng(0).random(model.graph.shape) < 0.5
    before, after = (jc.Objective(m, micro_pairs(), "logit_diff") for m in (model, folded))
    np.testing.assert_allclose(after.per_example(mask), before.per_example(mask), rtol=1e-9)
    np.testing.assert_allclose(after.per_example(model.graph.valid), before.per_example(model.graph.valid), rtol=1e-9)


def test_after_folding_a_head_without_input_writes_nothing(x64):
    """No layer norm bias, no value bias: zero in, zero out; before, a head left out more than it read."""
    model = micro_model("attention-only", dtype=jnp.float64)
    norms = gpt2_folding.fold_layer_norms(model)
    both = gpt2_folding.fold_value_biases(norms)
    zero = jnp.zeros((6, 8))
    for one, writes in ((model, True), (norms, True), (both, False)):
        value = one.read("v", jnp.int32(0), jnp.int32(1), zero, jnp.arange(6))
        assert bool(jnp.abs(value).max() > 1e-6) == writes
    empty = np.zeros(model.graph.shape)
    before, after = (float(jc.Objective(m, micro_pairs(), "logit_diff", "zero")(empty)) for m in (model, both))
    assert abs(before - after) > 1e-3


def test_the_loader_folds_if_asked_and_says_so(tmp_path):
    model = micro_model("gpt2")
    jc.save(model, tmp_path / "model")
    plain = jc.load(tmp_path / "model")
    assert plain.source == str(tmp_path / "model") and plain.model.blocks.attention.value_bias.any()
    loaded = jc.load(tmp_path / "model", fold_layer_norms=True, fold_value_biases=True)
    assert loaded.source.endswith("model, layer norms folded, value biases folded")
    np.testing.assert_array_equal(loaded.model.blocks.mlp_norm.weight, 1)
    one, other = (eqx.filter_jit(m)(jnp.asarray(TOKENS)) for m in (model, loaded.model))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_norms_of_a_shortformer_are_not_folded():
    with pytest.raises(ValueError, match="norms of a shortformer cannot be folded"):
        gpt2_folding.fold_layer_norms(micro_model("shortformer"))
    assert dataclasses.replace(MICRO["shortformer"], positional="standard") != MICRO["shortformer"]
