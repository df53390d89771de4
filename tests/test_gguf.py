"""GGUF files: configs and tensors as transformers reads them, and what is refused by name."""

import logging
import struct
import sys
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf_writing import VOCAB, WIDTH, real_model, write
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits import gguf_file, gguf_names, tokenizer
from jaxcircuits.gguf_file import GGUF
from jaxcircuits.gguf_names import ARCHITECTURES, GGUFTensors, llama3_scaling

# Keys that the two name differently, or that transformers does not take from the file.
UNLIKE = {"rope_theta", "rope_scaling", "rope_local_base_freq", "query_pre_attn_scalar", *gguf_names.CAPS}


def theirs(path):
    """The config and the tensors that transformers makes of a GGUF file."""
    torch = pytest.importorskip("torch")
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    values = load_gguf_checkpoint(path)["config"]
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    return config, {name: tensor.numpy() for name, tensor in tensors.items()}


def assert_equal_to_transformers(path):
    ours, (config, tensors) = GGUFTensors(path), theirs(path)
    for key, value in ours.values.items():
        if key not in UNLIKE and hasattr(config, key):
            assert getattr(config, key) == value, key
    assert set(ours.names()) == set(tensors)
    for name, tensor in tensors.items():
        read = ours.read(name, tensor.shape)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, tensor, err_msg=name)


# --- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_configs_and_tensors_are_those_of_transformers(arch, tmp_path):
    assert_equal_to_transformers(write(tmp_path / "model.gguf", arch))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_kind_of_block_is_dequantised(kind, tmp_path):
    assert_equal_to_transformers(write(tmp_path / "model.gguf", "llama", kind=kind))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_models_are_bit_identical_to_transformers(name, tmp_path):
    assert_equal_to_transformers(real_model(name, tmp_path))


def test_weights_are_read_without_a_second_copy(tmp_path):
    """Rows are dequantised piece by piece into memory that begins where JAX's arrays do."""
    ours = GGUFTensors(write(tmp_path / "model.gguf", "llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_file, "CHUNK", 3 * WIDTH)
        pieces = ours.read("model.embed_tokens.weight", (VOCAB, WIDTH))
    np.testing.assert_array_equal(pieces, ours.read("model.embed_tokens.weight", (VOCAB, WIDTH)))
    assert pieces.ctypes.data % 64 == 0


def test_a_bias_of_a_llama_is_permuted_as_its_rows_are(tmp_path):
    bias = np.arange(64, dtype=np.float32)
    path = write(tmp_path / "model.gguf", "llama", tensors=lambda drawn: drawn.update({"blk.0.attn_q.bias": bias}))
    ours = GGUFTensors(path)
    assert ours.values["attention_bias"]
    read = ours.read("model.layers.0.self_attn.q_proj.bias", (64,))
    np.testing.assert_array_equal(read, bias.reshape(4, 8, 2).swapaxes(1, 2).ravel())


def test_metadata_become_the_keys_of_a_config(tmp_path):
    own = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    values = GGUFTensors(write(tmp_path / "a.gguf", "gemma3", values={f"gemma3.{key}": own[key] for key in own})).values
    assert values["layer_types"] == [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert (values["query_pre_attn_scalar"], values["sliding_window"], values["tie_word_embeddings"]) == (128, 16, True)
    values = GGUFTensors(write(tmp_path / "b.gguf", "gemma2")).values
    assert (values["attn_logit_softcapping"], values["final_logit_softcapping"]) == (40, 20)
    assert values["layer_types"] == ["sliding_attention", "full_attention"]
    values = GGUFTensors(write(tmp_path / "c.gguf", "llama")).values
    assert not values["tie_word_embeddings"] and "rope_scaling" not in values and values["rope_theta"] == 5000
    values = GGUFTensors(write(tmp_path / "d.gguf", "llama", values={"llama.rope.scaling.factor": 8.0})).values
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}  # llama.cpp's default


@pytest.mark.parametrize("factor, theta, width", [(8.0, 500000.0, 128), (32.0, 500000.0, 64)])
def test_llama_3s_scaling_is_found_in_its_divisors(factor, theta, width):
    """Against transformers' frequencies with and without the scaling."""
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": factor, **gguf_names.LLAMA_3}
    config = LlamaConfig(rope_parameters={"rope_theta": theta, **scaling}, head_dim=width)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    divisors = theta ** -(np.arange(0, width, 2) / width) / scaled
    found = llama3_scaling(divisors.astype(np.float32), theta, width)
    assert found == {**scaling, "factor": pytest.approx(factor, rel=1e-6)}
    divisors[width // 4] *= 1.1
    with pytest.raises(ValueError, match="not Llama 3's"):
        llama3_scaling(divisors, theta, width)


def test_rotary_divisors_are_no_tensor_of_the_model(tmp_path):
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    ours = GGUFTensors(write(tmp_path / "model.gguf", "llama", tensors=lambda drawn: drawn.update(ones)))
    assert ours.values["rope_scaling"]["rope_type"] == "llama3" and "rope_freqs.weight" not in ours.names()
    both = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0}
    path = write(tmp_path / "both.gguf", "llama", values=both, tensors=lambda drawn: drawn.update(ones))
    with pytest.raises(ValueError, match="type = 'linear' is not supported beside rope_freqs.weight; expected none"):
        GGUFTensors(path)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, message",
    [
        ({"llama.expert_count": 4}, "llama.expert_count = 4: its effect on the model is not known"),
        ({"llama.attention.sliding_window": 9}, "llama.attention.sliding_window = 9: its effect"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8 is not supported; expected the head's width 16"),
        ({"llama.attention.value_length": 8}, "attention.value_length = 8 is not supported"),
        ({"llama.vocab_size": 41}, "vocab_size = 41, but token_embd.weight has 40 rows"),
        ({"llama.block_count": 0}, "block_count is 0: expected a whole number above 0"),
        ({"llama.attention.head_count": [4, 4]}, r"attention.head_count is \[4, 4\]: expected a whole number"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base is nan: expected a number above 0"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "'longrope' is not supported"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, "original_context_length is None"),
        ({"split.count": 3}, "one of several parts"),
    ],
)
def test_metadata_whose_effect_is_not_known_are_refused_by_name(values, message, tmp_path):
    with pytest.raises(ValueError, match=f"model.gguf.*{message}"):
        GGUFTensors(write(tmp_path / "model.gguf", "llama", values=values))


@pytest.mark.parametrize(
    "arch, keys, message",
    [
        ("gemma2", ["block_count"], "block_count is 4294967295: expected fewer blocks than the file's 25 tensors"),
        ("gemma3", ["block_count"], "block_count is 4294967295: expected fewer blocks than"),
        ("llama", ["attention.key_length", "attention.value_length"], r"rope_freqs.weight has shape \(8,\), expected"),
    ],
)
def test_a_size_that_no_tensor_has_is_refused_before_anything_of_it_is_made(arch, keys, message, tmp_path):
    values, ones = {f"{arch}.{key}": 2**32 - 1 for key in keys}, {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write(tmp_path / "model.gguf", arch, values=values, tensors=lambda drawn: drawn.update(ones))
    with pytest.raises(ValueError, match=f"model.gguf: {message}"):
        GGUFTensors(path)


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture 'mamba' is not supported; expected one of llama"):
        GGUFTensors(tmp_path / "model.gguf")


def test_missing_and_misshapen_tensors_are_refused_by_name(tmp_path):
    ours = GGUFTensors(write(tmp_path / "model.gguf", "llama", tensors=lambda drawn: drawn.pop("output_norm.weight")))
    with pytest.raises(ValueError, match="model.gguf misses the tensor model.norm.weight"):
        ours.read("model.norm.weight", (WIDTH,))
    with pytest.raises(ValueError, match=r"token_embd.weight has shape \(40, 64\), expected \(40, 32\)"):
        ours.read("model.embed_tokens.weight", (VOCAB, 32))
    extra = write(tmp_path / "extra.gguf", "llama", tensors=lambda drawn: drawn.update(odd=np.ones(3, np.float32)))
    assert "odd" in GGUFTensors(extra).names()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    values = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5, 1.5]}
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama", values=values).read_bytes()


def test_a_file_cut_off_anywhere_is_refused(whole, tmp_path):
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 200), *range(200, len(whole), 997), len(whole) - 33]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.gguf is no readable GGUF file"):
            GGUF(path)


@settings(max_examples=60)
@given(data=st.data())
def test_a_file_with_wrong_bytes_is_read_or_refused_without_making_anything_large(data, whole, tmp_path_factory):
    """Counts and sizes of the header may say anything."""
    changed = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, 2500), min_size=1, max_size=3)):
        changed[place : place + 8] = data.draw(
            st.sampled_from([b"\xff" * 8, b"\x00\x00\x00\x00\x01" + bytes(3), bytes(8)])
        )
    path = tmp_path_factory.mktemp("wrong") / "model.gguf"
    path.write_bytes(changed)
    tracemalloc.start()
    try:
        GGUFTensors(path)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * len(whole)


def test_tensors_that_overlap_the_end_or_come_twice_are_refused(whole, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.replace(b"blk.1.ffn_down", b"blk.0.ffn_down"))
    with pytest.raises(ValueError, match="two tensors blk.0.ffn_down.weight"):
        GGUF(path)
    start = whole.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight")
    at = start + 4 + 16
    assert whole[at : at + 4] == struct.pack("<I", 8)  # Q8_0
    path.write_bytes(whole[:at] + struct.pack("<I", 26) + whole[at + 4 :])  # I32
    with pytest.raises(
        ValueError, match="blk.0.ffn_up.weight is stored in a form .number 26. that cannot be dequantised"
    ):
        GGUF(path)
    path.write_bytes(whole[: at + 4] + struct.pack("<Q", 2**63) + whole[at + 12 :])
    with pytest.raises(ValueError, match="blk.0.ffn_up.weight of 6528 bytes lies beyond its end"):
        GGUF(path)


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxcircuits\[gguf\]'"):
        GGUF(path)


def test_a_gguf_file_is_loaded_by_its_path(tmp_path):
    with pytest.raises(ValueError, match="no file .*none.gguf"):
        jc.load(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="bad.gguf is no readable GGUF file"):
        jc.load(tmp_path / "bad.gguf")


def test_a_tokenizer_is_read_without_a_word_about_torch(monkeypatch, tmp_path):
    """Transformers says it when it is imported, to those without PyTorch."""
    heard, logger = [], logging.getLogger("transformers")
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())
    sentences = "PyTorch was not found. Models won't be available", "another sentence"
    monkeypatch.setattr(tokenizer, "read_tokenizer", lambda metadata: [logger.warning(text) for text in sentences])
    write(tmp_path / "m.gguf", "llama")
    logger.addHandler(listener)
    try:
        tokenizer.load_tokenizer(tmp_path / "m.gguf")
    finally:
        logger.removeHandler(listener)
    assert heard == ["another sentence"]


def test_a_tensor_under_two_names_is_refused(tmp_path):
    twice = {"model.norm.weight": np.ones(WIDTH, np.float32)}
    path = write(tmp_path / "model.gguf", "llama", tensors=lambda drawn: drawn.update(twice))
    with pytest.raises(ValueError, match="output_norm.weight and model.norm.weight are both the tensor model.norm.wei"):
        GGUFTensors(path)


def test_a_key_that_comes_twice_is_refused(whole, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.replace(b"tokenizer.ggml.scores", b"tokenizer.ggml.tokens"))
    with pytest.raises(ValueError, match="it has tokenizer.ggml.tokens twice"):
        GGUF(path)
