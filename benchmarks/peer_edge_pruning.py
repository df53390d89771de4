"""The side of Edge Pruning's authors in methods.py; runs in the peer's environment (see methods.py).

    python benchmarks/peer_edge_pruning.py FOLDER

What runs is their model, the loss of their trainer for IOI, and their optimiser. Around it:

1. Their trainer's loop is not run. A step is what it does: the loss (which each time runs the whole model on the clean
   and on the corrupt prompts), the backward pass, gradients clipped to norm 1, the optimiser, its schedule.
2. Prompts are token ids of one length, so nothing is padded (they pad to 64), and the KL is at the last position.
3. Weights are copied into a new model: `from_pretrained` of newer transformers leaves the parameters of masks unset.
4. What they import for their command line alone and newer environments lack is left out.

Targets and rates are those of their script for IOI, with the loss of node masks.
"""

import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers.utils
from peer_model import answer_job, peak, versions
from safetensors.torch import load_file
from transformers import GPT2Config

RATE, STEPS, RAMP, WARM_UP, CLIP = 0.8, 3000, 2500, 200, 1.0
NOT_EXPORTED = ("log_alpha", "sparsity_lambda", "common_mask", "write_mask", "lm_head")
"""Parts of their names: masks, multipliers, constants, and the unembedding, which is the token embedding."""


def authors(checkout: str) -> types.ModuleType:
    """Their script for IOI as a module, from a checkout of their repository."""
    sys.path[:0] = [str(Path(checkout) / "src" / folder) for folder in ("modeling", "prune")]
    sys.modules["evaluate"] = types.ModuleType("evaluate")
    transformers.utils.send_example_telemetry = None
    import fpt2_ioi

    return fpt2_ioi


def fpt2(code: types.ModuleType, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Their GPT-2 with masks, token and position embeddings masked too, and the exported weights."""
    model = code.FPT2LMHeadModel(GPT2Config.from_pretrained(folder), with_embedding_nodes=True)
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unexpected or not all(any(part in name for part in NOT_EXPORTED) for name in missing):
        raise SystemExit(f"the model's weights do not fit: missing {missing}, unexpected {unexpected}")
    return model.to(dtype)


def trainer_of(code: types.ModuleType, reference: Callable):
    """Their trainer with what its loss needs; `reference` is the whole model."""
    trainer = object.__new__(code.FPT2InfoTrainer)
    trainer.gpt2_model, trainer.state = reference, types.SimpleNamespace(global_step=0)
    for kind, target in (("edge", 0.95), ("layer", 0.72)):
        setattr(trainer, f"start_{kind}_sparsity", 0.0)
        setattr(trainer, f"target_{kind}_sparsity", target)
        setattr(trainer, f"num_{kind}_sparsity_warmup_steps", RAMP)
    trainer.warmup_type, trainer.skip_layer_loss_if_higher_sparsity = "linear", False
    return trainer


def batch_of(prompts: dict) -> dict:
    """A batch as their collator makes it; the loss takes the last position."""
    clean, corrupt = prompts["clean"], prompts["corrupt"]
    last = torch.full(clean.shape[:1], clean.shape[1] - 1)
    return {
        "input_ids": clean,
        "corr_input_ids": corrupt,
        "labels": clean,
        "start_idxes": last,
        "end_idxes": last + 1,
    }


def set_edge(model: torch.nn.Module, name: str, remove: bool) -> None:
    """Closes or opens an edge of this library's graph; its `input` is two writers of theirs."""
    sender, receiver = name.split("->")
    reader = "resid_post" if receiver == "logits" else receiver.replace("<", ".").removesuffix(">")
    for writer in ("tok_embeds", "pos_embeds") if sender == "input" else (sender,):
        model.add_or_remove_edge(writer, reader, remove=remove)


def gate(exported: Callable, prompts: dict, job: dict) -> dict:
    """Logits and KL of every circuit, given by the edges that it lacks; masks are 0 or 1."""
    code = authors(job["checkout"])
    model, reference = (exported(code).eval() for _ in range(2))
    for each in (model, reference):
        each.set_edge_threshold_for_deterministic(0.5)
        each.set_node_threshold_for_deterministic(0.5)
    trainer, logits, kl = trainer_of(code, reference), [], []
    for removed in job["circuits"]:
        for name in removed:
            set_edge(model, name, remove=True)
        with torch.no_grad():
            _, outputs = trainer.compute_loss(model, batch_of(prompts), return_outputs=True)
        logits.append(outputs["logits"].tolist())
        kl.append(outputs["kl_loss"].item())
        for name in removed:
            set_edge(model, name, remove=False)
    return {"logits": logits, "kl": kl}


def timing(exported: Callable, prompts: dict, job: dict) -> dict:
    """Seconds of each step, and of the whole model's two runs in it, after one step that does not count."""
    code = authors(job["checkout"])
    model, whole = exported(code).train(), exported(code).eval()
    code.freeze_all_except_pruning_params(model)
    optimiser, schedule = code.get_optimizers(model, *[RATE] * 4, STEPS, WARM_UP)
    runs, seconds, before = [], [], peak()

    def reference(**inputs):
        start = time.perf_counter()
        outputs = whole(**inputs)
        runs.append(time.perf_counter() - start)
        return outputs

    trainer = trainer_of(code, reference)
    for step in range(job["turns"] + 1):
        trainer.state.global_step, start = step, time.perf_counter()
        trainer.compute_loss(model, batch_of(prompts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    each = [sum(pair) for pair in zip(runs[::2], runs[1::2], strict=True)]
    gib = {"peak": peak(), "peak_before": before}
    return {"seconds": seconds[1:], "reference": each[1:], "gib": gib, "versions": versions("transformers")}


if __name__ == "__main__":
    answer_job({"gate": gate, "time": timing}, load=lambda folder, dtype: partial(fpt2, folder=folder, dtype=dtype))
