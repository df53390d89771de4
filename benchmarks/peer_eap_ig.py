"""The public EAP-IG's side of methods.py; runs in the peer's environment (see methods.py).

    python benchmarks/peer_eap_ig.py FOLDER

What runs is its own `attribute`. Around it:

1. It takes texts. Here a batch of prompts is an array of token ids, and the model's `to_tokens` returns it as it is;
   there is no tokenizer, so nothing is padded and every position is attended.
2. It puts its scores on the device "cuda" by name; here every `torch.zeros` is on the CPU.
3. Its modules that evaluate and draw circuits are left out: no score from gradients needs them.
4. It divides by the number of prompts, so the metric is the sum over them. Its graph keeps scores in float32; here in
   the model's type.

Weights have gradients, as those of a HookedTransformer have unless one turns them off.
"""

import sys
import time
import types
from pathlib import Path

import torch
from peer_model import answer_job, peak, versions
from transformer_lens import HookedTransformer


def package(checkout: str):
    """Its `attribute` and `Graph`, from a checkout of its repository."""
    sys.path.insert(0, str(Path(checkout) / "src"))
    for name, contents in {
        "evaluate": ("evaluate_graph", "evaluate_baseline"),
        "visualization": ("get_color", "generate_random_color"),
    }.items():
        module = types.ModuleType(f"eap.{name}")
        vars(module).update(dict.fromkeys(contents))
        sys.modules[module.__name__] = module
    from eap.attribute import attribute
    from eap.graph import Graph

    return attribute, Graph


def scores(model: HookedTransformer, prompts: dict, job: dict):
    """The graph with every edge's score, and the seconds of `attribute`."""
    attribute, graph_class = package(job["checkout"])
    graph = graph_class.from_model(model)
    graph.scores = graph.scores.to(model.cfg.dtype)
    batch = prompts["clean"], prompts["corrupt"], (prompts["answer"], prompts["wrong"])

    def metric(logits, _clean_logits, _lengths, labels):
        answer, wrong = (logits[:, -1].gather(1, label) for label in labels)
        return (wrong - answer).sum()

    start = time.perf_counter()
    attribute(model, graph, [batch], metric, method=job["method"], ig_steps=job["points"], quiet=True)
    return graph, time.perf_counter() - start


def prepare(model: HookedTransformer) -> None:
    """Points 1 and 2 of the header, and gradients of the weights."""
    model.requires_grad_(True)
    model.to_tokens = lambda tokens, **_: tokens
    zeros = torch.zeros
    torch.zeros = lambda *shape, device=None, **options: zeros(*shape, device="cpu", **options)


def gate(model: HookedTransformer, prompts: dict, job: dict) -> dict:
    """The score of every edge, by name."""
    prepare(model)
    graph, _ = scores(model, prompts, job)
    return {"scores": {name: edge.score.item() for name, edge in graph.edges.items()}}


def timing(model: HookedTransformer, prompts: dict, job: dict) -> dict:
    """Seconds of `attribute`, after one turn that does not count, each without gradients of weights from before."""
    prepare(model)
    before, seconds = peak(), []
    for _ in range(job["turns"] + 1):
        model.zero_grad()
        seconds.append(scores(model, prompts, job)[1])
    gib = {"peak": peak(), "peak_before": before}
    return {"seconds": seconds[1:], "gib": gib, "versions": versions()}


if __name__ == "__main__":
    answer_job({"gate": gate, "time": timing})
