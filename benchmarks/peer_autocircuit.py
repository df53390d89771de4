"""AutoCircuit's side of peers.py; runs in AutoCircuit's own environment (see peers.py).

    python benchmarks/peer_autocircuit.py FOLDER

Its ACDC tests every edge once, by layer of the receiver from last to first, in the order of `model.edges` within a
layer. That is a set, whose order follows the hash seed; here it is the list of the job. What runs is its own
`acdc_prune_scores`: the progress bar is replaced by a clock, and the metric notes its values.
"""

import time

import auto_circuit.prune_algos.ACDC as autocircuit
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.types import Edge
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.patchable_model import PatchableModel
from auto_circuit.utils.tensor_ops import multibatch_kl_div
from ordered_set import OrderedSet
from peer_model import answer_job, versions

VERSIONS = versions("auto-circuit")


def our_name(edge: Edge) -> str:
    """`A0.3->A1.2.Q` as `a0.h3->a1.h2<q>`."""

    def node(name: str) -> str:
        if name in ("Resid Start", "Resid End"):
            return {"Resid Start": "input", "Resid End": "logits"}[name]
        if name.startswith("MLP "):
            return f"m{name[4:]}"
        layer, head, *letter = name[1:].split(".")
        return f"a{layer}.h{head}" + "".join(f"<{x.lower()}>" for x in letter)

    return f"{node(edge.src.name)}->{node(edge.dest.name)}"


class Clock:
    """Stands in for the progress bar: seconds of each turn of the loop. `last`: the loop begun last, over edges."""

    last: "Clock"

    def __init__(self, items):
        self.items, self.seconds = items, []
        Clock.last = self

    def __iter__(self):
        for item in self.items:
            start = time.perf_counter()
            yield item
            self.seconds.append(time.perf_counter() - start)

    def set_description_str(self, *_, **__):
        pass


def acdc(model: PatchableModel, prompts: dict, edges: list[Edge], threshold: float) -> tuple[list, list, list]:
    """AutoCircuit's own run: of each edge, in the order tried, the metric without it, whether it went, the seconds."""
    dataset = PromptDataset(prompts["clean"], prompts["corrupt"], prompts["answer"], prompts["wrong"])
    loader = PromptDataLoader(dataset, seq_len=None, diverge_idx=0, batch_size=len(dataset))
    metrics = []

    def noted(*args):
        metrics.append(multibatch_kl_div(*args))
        return metrics[-1]

    autocircuit.multibatch_kl_div, autocircuit.tqdm = noted, Clock
    model.edges = OrderedSet(edges)
    scores = autocircuit.acdc_prune_scores(model, loader, None, tao_exps=[0], tao_bases=[threshold])
    removed = [bool(edge.prune_score(scores).isfinite()) for edge in edges]
    return [metric.item() for metric in metrics], removed, Clock.last.seconds


def patchable(model) -> PatchableModel:
    return patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)


def gate(model, prompts: dict, job: dict) -> dict:
    """KL of the job's circuits (lists of removed edges), and the run over the job's edges in their order."""
    model = patchable(model)
    edges = {our_name(edge): edge for edge in model.edges}
    if set(edges) != set(job["order"]):
        raise SystemExit(f"other edges: {sorted(set(edges) ^ set(job['order']))[:5]}")
    corrupt = src_ablations(model, prompts["corrupt"])
    circuits = []
    with torch.inference_mode():
        full = model(prompts["clean"])[model.out_slice].log_softmax(-1)
        for removed in job["circuits"]:
            set_all_masks(model, val=0.0)
            with patch_mode(model, corrupt):
                for name in removed:
                    edges[name].patch_mask(model).data[edges[name].patch_idx] = 1.0
                out = model(prompts["clean"])[model.out_slice]
            circuits.append(multibatch_kl_div(out.log_softmax(-1), full).item())
    after, removed, _ = acdc(model, prompts, [edges[name] for name in job["order"]], job["threshold"])
    return {"circuits": circuits, "names": job["order"], "after": after, "removed": removed, "versions": VERSIONS}


def timing(model, prompts: dict, job: dict) -> dict:
    """Seconds [round, trial] of trials spread evenly over its order (those of early layers run more of the model)."""
    model = patchable(model)
    edges = sorted(model.edges, key=lambda edge: (-edge.dest.layer, edge.name))
    count = job["evaluations"]
    sample = [edges[(2 * i + 1) * len(edges) // (2 * count)] for i in range(count)]
    rounds = [acdc(model, prompts, sample, job["threshold"])[2] for _ in range(1 + job["rounds"])]
    return {"seconds": rounds[1:], "edges": len(edges), "versions": VERSIONS}


if __name__ == "__main__":
    answer_job({"gate": gate, "time": timing})
