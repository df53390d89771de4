"""Checkpoints in every format that is read, what comes back, and what is refused by file and tensor."""

import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import flax.serialization
import flax.traverse_util
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDEN, MICRO, gpt2_tokenizer, letters_tokenizer, micro_model
from safetensors.numpy import load_file, save_file

import jaxcircuits as jc
from jaxcircuits import checkpoints, tokenizer
from jaxcircuits.tensors import PICKLES, WEIGHT_FILES, FlaxTensors
from jaxcircuits.tokenizer import load_tokenizer

WEIGHTS, INDEX, FLAX = WEIGHT_FILES


def assert_equal_models(ours, theirs):
    assert ours.config == theirs.config
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def saved(tmp_path):
    """A model, and its folder."""
    model = micro_model("gpt2")
    jc.save(model, tmp_path / "model")
    return model, tmp_path / "model"


def rewrite(folder, change):
    """The weights of a folder, changed: `change` alters the dict of tensors or gives another."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def rewrite_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# --- what comes back -------------------------------------------------------------------------------


def test_the_reference_checkpoint_is_loaded_as_it_is_stored():
    loaded = jc.load(GOLDEN / "ref-4l")
    stored = load_file(GOLDEN / "ref-4l" / WEIGHTS)
    assert loaded.source == str(GOLDEN / "ref-4l") and loaded.graph == jc.Graph.transformer(4, 8)
    assert loaded.model.config == jc.GPT2Config(213, 64, 128, 4, 8)
    name = next(name for name in stored if name.endswith("h.2.attn.c_attn.weight"))
    key_of_head_5 = stored[name][:, 128 + 5 * 16 : 128 + 6 * 16]
    np.testing.assert_array_equal(loaded.model.blocks.attention.key[2, 5], key_of_head_5)
    assert loaded.tokenizer.encode(" store", add_special_tokens=False)


@pytest.mark.parametrize("name", MICRO)
def test_a_saved_model_comes_back(name, tmp_path):
    model = micro_model(name)
    jc.save(model, tmp_path / "new" / "model")
    assert_equal_models(jc.load(tmp_path / "new" / "model").model, model)
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["config.json", "model", WEIGHTS]


def test_a_saved_tokenizer_comes_back(tmp_path):
    (tmp_path / "model").mkdir()
    jc.save(micro_model("one-head"), tmp_path / "model", letters_tokenizer())
    assert jc.load(tmp_path / "model").tokenizer.encode("c a") == [3, 1]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_any_precision_are_loaded_in_the_one_asked_for(dtype, saved):
    model, folder = saved
    rewrite(folder, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    rounded = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(dtype).astype(np.float32)), model)
    assert_equal_models(jc.load(folder).model, rounded)
    half = jc.load(folder, dtype="bfloat16").model
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_a_model_in_bfloat16_comes_back(tmp_path):
    model = micro_model("gpt2", dtype=jnp.bfloat16)
    jc.save(model, tmp_path / "model")
    assert_equal_models(jc.load(tmp_path / "model", dtype=jnp.bfloat16).model, model)


def test_float64_is_loaded_exactly_where_it_is_enabled(x64, tmp_path):
    model = micro_model("gpt2", dtype=jnp.float64)
    jc.save(model, tmp_path / "model")
    assert_equal_models(jc.load(tmp_path / "model", dtype="float64").model, model)


def test_names_without_prefix_buffers_and_a_stored_tied_unembedding_are_read(saved):
    """As the hub's `gpt2` has them: no `transformer.`, and causal masks among the weights."""
    model, folder = saved

    def change(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        bare["h.0.attn.bias"] = np.ones((1, 1, 6, 6), np.uint8)
        bare["h.1.attn.masked_bias"] = np.float32([-1e4])
        return {**bare, "lm_head.weight": bare["wte.weight"]}

    rewrite(folder, change)
    assert_equal_models(jc.load(folder).model, model)
    jc.load(folder, dtype="bfloat16")


def shard(folder):
    """The weights in two files and an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return weight_map


def test_shards_are_read(saved):
    model, folder = saved
    shard(folder)
    assert_equal_models(jc.load(folder).model, model)


def as_flax(folder):
    """The weights as Flax's GPT-2 names and turns them: kernels [out, in], but the unembedding [in, out]."""
    tree = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        *stem, leaf = name.split(".")
        if stem[-1] in ("wte", "wpe"):
            leaf = "embedding"
        elif stem[-1].startswith("ln_"):
            leaf = {"weight": "scale", "bias": "bias"}[leaf]
        elif leaf == "weight":
            leaf, tensor = "kernel", np.ascontiguousarray(tensor.T)
        tree[(*stem, leaf)] = tensor
    (folder / WEIGHTS).unlink()
    (folder / FLAX).write_bytes(flax.serialization.msgpack_serialize(flax.traverse_util.unflatten_dict(tree)))


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied-relu"])
def test_a_flax_checkpoint_gives_equal_weights(name, tmp_path):
    jc.save(micro_model(name), tmp_path / "model")
    as_flax(tmp_path / "model")
    assert_equal_models(jc.load(tmp_path / "model").model, micro_model(name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied-relu", "one-head"])
def test_transformers_loads_a_saved_model_with_equal_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = micro_model(name)
    jc.save(model, tmp_path / "model")
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    tokens = np.array([3, 1, 4, 1, 5, 9])
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens[None])).logits[0].numpy()
    ours = eqx.filter_jit(model)(jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


# --- what is refused -------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(ValueError, match="exists and is not empty"):
            jc.save(micro_model("one-head"), taken)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    class Failing:
        bos_token_id = eos_token_id = 0

        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        jc.save(micro_model("one-head"), tmp_path / "model", Failing())
    assert list(tmp_path.iterdir()) == []


BIAS = "transformer.h.1.mlp.c_fc.bias"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda tensors: {name: tensors[name] for name in tensors if name != BIAS},
            "misses the tensor h.1.mlp.c_fc.bias",
        ),
        (lambda tensors: {**tensors, BIAS: np.zeros(9, np.float32)}, rf"{BIAS} has shape \(9,\), expected \(12,\)"),
        (lambda tensors: {**tensors, BIAS: np.zeros(12, np.int32)}, f"{BIAS} has type int32, expected a floating"),
        (lambda tensors: {**tensors, "transformer.h.2.ln_1.bias": np.zeros(8)}, r"has not: \['h.2.ln_1.bias'\]"),
        (lambda tensors: {**tensors, "lm_head.weight": np.zeros((11, 8))}, "lm_head.weight differs from wte.weight"),
    ],
)
def test_wrong_tensors_are_refused_by_file_and_name(change, message, saved):
    _, folder = saved
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as error:
        jc.load(folder)
    assert str(folder) in str(error.value)


def test_a_tensor_under_two_names_is_refused_by_both(saved):
    rewrite(saved[1], lambda tensors: {**tensors, "wte.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"model: \S*wte.weight and \S*wte.weight are both the tensor wte.weight"):
        jc.load(saved[1])
    tree = {"h": {"0": {"mlp": {"c_fc": {"kernel": np.ones((2, 2)), "weight": np.ones((2, 2))}}}}}
    (saved[1] / FLAX).write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match=r"c_fc.kernel and \S*c_fc.weight are both the tensor h.0.mlp.c_fc.weight"):
        FlaxTensors(saved[1] / FLAX)


def test_wrong_flax_tensors_are_refused_by_file_and_name(saved):
    _, folder = saved
    as_flax(folder)
    rewrite_config(folder, n_layer=1)
    with pytest.raises(ValueError, match=f"{FLAX} has tensors that a GPT2 of this config has not: .*h.1.attn"):
        jc.load(folder)
    rewrite_config(folder, n_layer=2, n_inner=13)
    with pytest.raises(
        ValueError, match=rf"{FLAX}: tensor h.0.mlp.c_fc.weight has shape \(8, 12\), expected \(8, 13\)"
    ):
        jc.load(folder)
    rewrite_config(folder, n_layer=3, n_inner=12)
    with pytest.raises(ValueError, match=f"{FLAX} misses the tensor h.2"):
        jc.load(folder)


@pytest.mark.parametrize("length", [0, 7, 300, -1])
def test_truncated_weights_are_refused(length, saved):
    _, folder = saved
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is truncated or no safetensors file"):
        jc.load(folder)
    (folder / WEIGHTS).write_bytes(whole)
    as_flax(folder)
    whole = (folder / FLAX).read_bytes()
    (folder / FLAX).write_bytes(whole[:length])
    with pytest.raises(ValueError, match=f"{FLAX} is truncated or no flax checkpoint"):
        jc.load(folder)


def test_a_bad_index_is_refused(saved):
    _, folder = saved
    weight_map = shard(folder)
    last = sorted(weight_map)[-1]
    for bad in ("{", "{}", "[]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
        (folder / INDEX).write_text(bad)
        with pytest.raises(ValueError, match=f"{INDEX} is malformed"):
            jc.load(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, last: "model-3.safetensors"}}))
    with pytest.raises(ValueError, match="model-3.safetensors is missing"):
        jc.load(folder)
    other = weight_map[sorted(weight_map)[-2]]
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, last: other}}))
    with pytest.raises(ValueError, match=f"{other} misses the tensor {last}, which the index puts there"):
        jc.load(folder)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/tmp/model.safetensors", "..", "a\\b.safetensors", "x.bin"]
)
def test_an_index_names_files_of_its_folder_alone(name, saved):
    """Also where the file that it names elsewhere is there and is whole."""
    _, folder = saved
    weight_map = shard(folder)
    (folder.parent / "other").mkdir()
    for path in folder.glob("*.safetensors"):
        (folder.parent / "other" / path.name).write_bytes(path.read_bytes())
        (folder.parent / "other" / "model.safetensors").write_bytes(path.read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, name)}))
    with pytest.raises(ValueError, match="expected the names of .safetensors files beside it, got"):
        jc.load(folder)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n_layer": 2**31 - 1}, "n_layer = 2147483647 is not supported; expected at most 16,384"),
        ({"n_layer": 16000}, r"misses the tensor h.2.ln_1.weight"),
        ({"n_embd": 2**20, "n_head": 1}, r"wte.weight has shape \(11, 8\), expected \(11, 1048576\) from config.json"),
        ({"vocab_size": 2**40}, "vocab_size = 1099511627776 is not supported; expected at most 2,147,483,648"),
        ({"vocab_size": 2**31}, r"has shape \(11, 8\), expected \(2147483648, 8\) from config.json"),
        ({"n_inner": 2**30}, r"expected \(8, 1073741824\) from config.json"),
        ({"model_type": []}, r"model_type \[\] is not supported"),
        ({"n_head": [2]}, r"n_head = \(2,\) is not supported"),
        ({"n_head": {}}, "n_head = {} is not supported"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_anything_is_made(values, message, saved, monkeypatch):
    _, folder = saved
    rewrite_config(folder, **values)
    monkeypatch.setattr(checkpoints, "empty", None)
    monkeypatch.setattr(eqx, "filter_eval_shape", None)
    with pytest.raises(ValueError, match=message):
        jc.load(folder)


def test_tied_embeddings_may_be_stored_by_the_unembeddings_name_alone(saved):
    """As safetensors.torch.save_model writes them."""
    model, folder = saved
    rewrite(folder, lambda tensors: {name.replace("transformer.wte", "lm_head"): t for name, t in tensors.items()})
    assert "lm_head.weight" in load_file(folder / WEIGHTS)
    assert_equal_models(jc.load(folder).model, model)
    rewrite_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="misses the tensor wte.weight"):
        jc.load(folder)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rope_theta": 1e4}, "unknown key 'rope_theta'"),
        ({"model_type": "bloom"}, "model_type 'bloom' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention = True is not supported; expected False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"activation_function": "snake"}, "activation_function 'snake' is not supported"),
        ({"n_head": 3}, "n_embd 8 must be a multiple of n_head 3"),
        ({"n_layer": "2"}, "n_layer"),
        ({"n_embd": 0}, "n_embd must be a positive"),
        ({"scale_attn_weights": "false"}, "scale_attn_weights = 'false'"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon = None"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_its_key(values, message, saved):
    _, folder = saved
    rewrite_config(folder, **values)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        jc.load(folder)


def test_a_config_that_is_missing_or_malformed_is_refused(saved):
    _, folder = saved
    for text, message in (('{"n_layer": ', "config.json is malformed"), ("[]", "config.json: model_type None")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            jc.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        jc.load(folder)


def test_keys_that_fine_tuned_models_carry_change_nothing(saved):
    """As transformers 4 wrote them, and gpt2-medium's own `n_special`."""
    model, folder = saved
    carried = {
        **{"n_special": 0, "predict_special_tokens": True, "torchscript": False, "use_bfloat16": False},
        **{"tf_legacy_loss": False, "tie_encoder_decoder": False, "pruned_heads": {}, "is_decoder": False},
        **{"cross_attention_hidden_size": None, "add_cross_attention": False, "finetuning_task": "lm", "top_k": 50},
        **{"do_sample": True, "max_length": 20, "num_beams": 4, "temperature": 0.7, "torch_dtype": "float16"},
        **{"task_specific_params": {"text-generation": {"do_sample": True}}, "output_past": True, "prefix": None},
        **{"quantization_config": None, "_num_labels": 1, "gradient_checkpointing": True, "unsloth_version": "2025"},
    }
    rewrite_config(folder, **carried)
    assert_equal_models(jc.load(folder).model, model)
    for key, value in (("pruned_heads", {"0": [1]}), ("auto_map", {"AutoModel": "x.y"}), ("alibi", True)):
        rewrite_config(folder, **{key: value})
        with pytest.raises(ValueError, match=f"config.json: .*{key}"):
            jc.load(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))


@pytest.mark.parametrize("pattern", PICKLES)
def test_a_pickle_is_refused_with_the_command_that_converts_it(pattern, saved):
    _, folder = saved
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="has no weights: expected one of model.safetensors"):
        jc.load(folder)
    name = pattern.replace("*", "pytorch_model")
    (folder / name).write_bytes(b"\x80\x04")
    with pytest.raises(
        ValueError, match=rf"only a pickle \({name}\).*python -c .*save_pretrained\('{folder}-safetensors'"
    ):
        jc.load(folder)


def test_a_dtype_that_cannot_be_had_is_refused():
    with pytest.raises(ValueError, match='float64 needs jax.config.update\\("jax_enable_x64", True\\)'):
        jc.load(GOLDEN / "ref-4l", dtype="float64")
    with pytest.raises(ValueError, match="expected a floating dtype such as float32, got int32"):
        jc.load(GOLDEN / "ref-4l", dtype="int32")


def test_a_file_in_place_of_a_folder_is_refused():
    with pytest.raises(ValueError, match="model.safetensors is a file: expected the folder"):
        jc.load(GOLDEN / "ref-4l" / WEIGHTS)


def test_a_folder_without_a_tokenizer_cannot_read_text(saved):
    loaded = jc.load(saved[1])
    assert not loaded.has_tokenizer
    with pytest.raises(ValueError, match="has no tokenizer_config.json or tokenizer.json: it cannot read text"):
        _ = loaded.tokenizer


@pytest.mark.parametrize("settings", [None, {}, {"auto_map": {"AutoTokenizer": ["other.Tokenizer", None]}}])
def test_a_tokenizer_is_read_from_its_json_alone_and_runs_no_code(settings, saved):
    """A stated class of its own would be code of the checkpoint."""
    letters_tokenizer().backend_tokenizer.save(str(saved[1] / "tokenizer.json"))
    (saved[1] / "other.py").write_text("raise SystemExit('this ran')")
    if settings is not None:
        (saved[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    assert jc.load(saved[1]).tokenizer.encode("c a") == [3, 1]


LENS = {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_ctx": 6, "d_vocab": 11, "attn_only": True}


@pytest.mark.parametrize("config", [{"model_type": "tracr"}, LENS, LENS | {"auto_map": {"AutoConfig": "other.Other"}}])
def test_a_tokenizer_of_a_class_of_its_own_is_refused_and_nothing_asks(config, tmp_path, monkeypatch):
    """Of models that transformers does not know: it would ask on the terminal, and run what is there."""
    asked, marker = [], tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = {"tokenizer_class": "Other", "auto_map": {"AutoTokenizer": ["other.Other", None]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "other.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Other: pass\n")
    letters_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="its tokenizer cannot be read: .*contains custom code"):
        load_tokenizer(tmp_path)
    assert not asked and not marker.exists()


@pytest.mark.parametrize(
    "file, settings, said",
    [
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../other/tokenizer.4.0.json"]}, "fast_tokenizer_files"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["{other}/tokenizer.4.0.json"]}, "fast_tokenizer_files"),
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "merges_file": "{other}/m"}, "merges_file"),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "{other}/m"}}, "sp_model_kwargs"),
        ("special_tokens_map.json", {"tokenizer_file": "{other}/tokenizer.4.0.json"}, "tokenizer_file"),
        ("config.json", {"configuration_files": ["../other/config.4.0.json"]}, "configuration_files"),
    ],
)
def test_settings_of_a_tokenizer_lead_to_no_file_elsewhere(file, settings, said, tmp_path, monkeypatch):
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model, other):
        folder.mkdir()
    for name in ("m", "config.4.0.json"):
        (other / name).write_text("{}")
    letters_tokenizer().backend_tokenizer.save(str(other / "tokenizer.4.0.json"))
    letters_tokenizer().backend_tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps(LENS))
    (model / file).write_text(json.dumps(LENS | settings).replace("{other}", str(other)))
    monkeypatch.chdir(model)
    for folder in (model, Path(".")):
        with pytest.raises(ValueError, match=f"cannot be read: {file}: {said}: expected no file elsewhere, got "):
            load_tokenizer(folder)


def test_byte_pairs_come_before_stale_paths_and_tokens_in_settings(saved):
    """With transformers 5.0 too, whose tokenizer of a path that leads nowhere knew no token at all."""
    (saved[1] / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5}))
    (saved[1] / "merges.txt").write_text("#version: 0.2\na b\nc d\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "vocab_file": "/gone/vocab.json", "merges_file": "/gone/m.txt"}
    (saved[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    assert jc.load(saved[1]).tokenizer.encode("abcd") == [4, 5]
    (saved[1] / "tokenizer_config.json").write_text(json.dumps(settings | {"vocab": {"z": 0}, "merges": []}))
    with pytest.raises(ValueError, match="tokenizer_config.json: vocab: expected tokens in their own files"):
        jc.load(saved[1]).tokenizer  # noqa: B018


def test_a_panic_of_the_tokenizers_code_is_a_refusal(saved):
    """It is no `Exception`, and would end a program that catches those."""
    (saved[1] / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2, "d": 3, "cd": "a0.h0<q>"}))
    (saved[1] / "merges.txt").write_text("#version: 0.2\na b\nc d\n")
    with pytest.raises(ValueError, match="model: its tokenizer cannot be read: "):
        jc.load(saved[1]).tokenizer  # noqa: B018


def test_a_version_of_a_tokenizer_may_be_named(saved):
    letters_tokenizer().backend_tokenizer.save(str(saved[1].parent / "blob"))
    (saved[1] / "tokenizer.4.0.json").symlink_to("../blob")  # as in the hub's cache
    settings = {
        "merges_file": "",
        "fast_tokenizer_files": ["tokenizer.4.0.json"],
        "special_tokens_map_file": "/old",
        "vocab_file": None,
    }
    settings["tokenizer_file"] = "/of/another/machine/tokenizer.json"
    (saved[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    assert jc.load(saved[1]).tokenizer.encode("c a") == [3, 1]


def test_byte_pairs_alone_are_a_gpt_2s_tokenizer(saved):
    """As the hub's `gpt2` had it for years: vocab.json and merges.txt, no tokenizer_config.json."""
    theirs = gpt2_tokenizer()
    theirs.backend_tokenizer.model.save(str(saved[1]))
    loaded = jc.load(saved[1])
    assert loaded.has_tokenizer
    for text in ("Then, Mary's  store\n in 1734 é", " Mary"):
        assert loaded.tokenizer.encode(text) == theirs.encode(text)
    (saved[1] / "merges.txt").unlink()
    assert not jc.load(saved[1]).has_tokenizer


@pytest.mark.parametrize("text", ["{}", "{", "[]", '{"model": {"type": "BPE"}}'])
def test_a_malformed_tokenizer_is_refused_by_name(text, saved):
    (saved[1] / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="model: its tokenizer cannot be read: "):
        _ = jc.load(saved[1]).tokenizer


@pytest.mark.parametrize("settings", [{"model_max_length": "x"}, {"model_max_length": [1]}, {"truncation_side": 3}])
def test_a_setting_that_is_no_setting_is_refused_with_the_tokenizer(settings, saved):
    (saved[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="model: its tokenizer cannot be read: "):
        _ = jc.load(saved[1]).tokenizer


# --- the hub ---------------------------------------------------------------------------------------


def test_a_name_that_is_nowhere_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("no-such-model", "no/such/model", "what?"):
        with pytest.raises(ValueError, match="is no bundled model .*, no folder, and the hub did not give it") as error:
            jc.load(name)
        assert error.value.__suppress_context__ and "\n" not in str(error.value)


def test_a_model_of_the_hub_is_downloaded_without_pickles(monkeypatch, saved):
    model, folder = saved
    calls = []

    def download(name, *, revision, allow_patterns, ignore_patterns):
        calls.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = jc.load("someone/model", revision="main")
    assert_equal_models(loaded.model, model)
    assert loaded.source == "hub someone/model at main" and loaded.files == folder
    assert [call[:2] for call in calls] == [("someone/model", "main")]
    as_flax(folder)
    assert_equal_models(jc.load("someone/model").model, model)
    (folder / FLAX).unlink()
    with pytest.raises(ValueError, match="neither safetensors nor flax weights; convert its pickle once"):
        jc.load("someone/model")
    assert not any(pattern.endswith((".bin", ".pt")) for call in calls for pattern in call[2])


def test_all_of_a_tokenizer_is_downloaded_from_the_hub(monkeypatch, saved):
    allowed = []

    def download(name, *, allow_patterns, **options):
        allowed.append(allow_patterns)
        return str(saved[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    jc.load("someone/model")
    for file in (*tokenizer.FILES, *tokenizer.BYTE_PAIRS, *tokenizer.OTHERS):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in allowed[0]), file


# --- memory ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    """200 MB in bfloat16, computed in float32: the process' highest resident size, less what it was before."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say how much memory a process had")
    script = """
import pathlib, re, sys
import jax, jaxcircuits as jc

def size(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

jc.load("tiny-gpt2")
before = size("VmRSS")
model = jc.load(sys.argv[1]).model
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
assert weights > 400e6 and model.dtype == "float32"
print((size("VmHWM") - before) / weights)
"""
    config = jc.GPT2Config(20000, 1024, 768, 12, 12)
    jc.save(jc.GPT2.random(config, jax.random.key(0), jnp.bfloat16), tmp_path / "model")
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "model"], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.3
