"""What the scripts that run in a peer's environment share: the exported model as a HookedTransformer, the job.

Needs torch, transformer-lens and safetensors, not jaxcircuits.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig


def answer_job(answers: dict[str, Callable[..., dict]], load: Callable[..., Any] | None = None) -> None:
    """Reads FOLDER/job.json, calls the function of its `what`, writes FOLDER/answer.json.

    `load` makes the function's model of FOLDER/model and a dtype; default: `hooked_transformer`.
    """
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    prompts = {name: torch.from_numpy(array).long() for name, array in np.load(folder / "prompts.npz").items()}
    model = (load or hooked_transformer)(folder / "model", getattr(torch, job["dtype"]))
    answer = answers[job["what"]](model, prompts, job)
    (folder / "answer.json").write_text(json.dumps(answer))


def hooked_transformer(folder: Path, dtype: torch.dtype) -> HookedTransformer:
    """A GPT-2 folder of Hugging Face's format, its weights as they are: nothing folded, nothing centred."""
    config = json.loads((folder / "config.json").read_text())
    layers, heads, width = config["n_layer"], config["n_head"], config["n_embd"]
    cfg = HookedTransformerConfig(
        n_layers=layers,
        n_heads=heads,
        d_model=width,
        d_head=width // heads,
        d_mlp=4 * width,
        n_ctx=config["n_positions"],
        d_vocab=config["vocab_size"],
        act_fn=config["activation_function"],
        eps=config["layer_norm_epsilon"],
        normalization_type="LN",
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        init_weights=False,
        device="cpu",
        dtype=dtype,
    )
    model = HookedTransformer(cfg)
    tensors = {name.removeprefix("transformer."): x for name, x in load_file(folder / "model.safetensors").items()}
    state = {name: value.to(dtype) for name, value in _state(tensors, layers, heads).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    weights = {name for name, _ in model.named_parameters()}
    if unexpected or weights & set(missing):
        raise SystemExit(f"the model's weights do not fit: missing {missing}, unexpected {unexpected}")
    return model.requires_grad_(False).eval()


def _state(tensors: dict[str, torch.Tensor], layers: int, heads: int) -> dict[str, torch.Tensor]:
    embedding = tensors["wte.weight"]
    state = {
        "embed.W_E": embedding,
        "pos_embed.W_pos": tensors["wpe.weight"],
        "unembed.W_U": embedding.T,
        "unembed.b_U": torch.zeros(len(embedding)),
        "ln_final.w": tensors["ln_f.weight"],
        "ln_final.b": tensors["ln_f.bias"],
    }
    for layer in range(layers):
        ours, theirs = f"h.{layer}", f"blocks.{layer}"
        for norm in ("1", "2"):
            state[f"{theirs}.ln{norm}.w"] = tensors[f"{ours}.ln_{norm}.weight"]
            state[f"{theirs}.ln{norm}.b"] = tensors[f"{ours}.ln_{norm}.bias"]
        qkv = tensors[f"{ours}.attn.c_attn.weight"].chunk(3, dim=1)
        qkv_bias = tensors[f"{ours}.attn.c_attn.bias"].chunk(3)
        for letter, weight, bias in zip("QKV", qkv, qkv_bias, strict=True):
            state[f"{theirs}.attn.W_{letter}"] = weight.unflatten(1, (heads, -1)).permute(1, 0, 2)
            state[f"{theirs}.attn.b_{letter}"] = bias.unflatten(0, (heads, -1))
        state[f"{theirs}.attn.W_O"] = tensors[f"{ours}.attn.c_proj.weight"].unflatten(0, (heads, -1))
        state[f"{theirs}.attn.b_O"] = tensors[f"{ours}.attn.c_proj.bias"]
        for part, name in (("in", "c_fc"), ("out", "c_proj")):
            state[f"{theirs}.mlp.W_{part}"] = tensors[f"{ours}.mlp.{name}.weight"]
            state[f"{theirs}.mlp.b_{part}"] = tensors[f"{ours}.mlp.{name}.bias"]
    return state


def peak() -> float:
    """GiB that the process held at most so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def versions(*packages: str) -> dict[str, Any]:
    """Versions of the peer's environment."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformer-lens", *packages)}
