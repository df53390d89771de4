"""The original ACDC's side of peers.py; runs in the peer's environment (see peers.py).

    python benchmarks/peer_acdc.py FOLDER

What runs is its own `TLACDCExperiment.step`. The picture that it draws of every kept node is left out.
"""

import sys
import time
import types

import torch
from peer_model import answer_job, versions
from transformer_lens import HookedTransformer

KINDS = {"hook_result": "a{}.h{}", "hook_mlp_out": "m{}", "hook_mlp_in": "m{}", "hook_resid_pre": "input"}
KINDS |= {"hook_resid_post": "logits"} | {f"hook_{x}_input": f"a{{}}.h{{}}<{x}>" for x in "qkv"}


def original(checkout: str):
    """Its experiment class, from a checkout of its repository, without the module that draws pictures."""
    sys.path.insert(0, checkout)
    pictures = types.ModuleType("acdc.acdc_graphics")
    pictures.show = pictures.log_metrics_to_wandb = lambda *_, **__: None
    sys.modules[pictures.__name__] = pictures
    from acdc.TLACDCExperiment import TLACDCExperiment

    return TLACDCExperiment


def our_name(node) -> str:
    """`blocks.3.hook_q_input[:, :, 2]` as `a3.h2<q>`."""
    _, layer, *_, kind = node.name.split(".")
    return KINDS[kind].format(layer, node.index.hashable_tuple[-1])


def recorded(experiment_class: type) -> type:
    """The experiment with a note of every forward pass.

    `known`: the metric of every trial, if this run is to repeat one whose decisions are known: then only the trials of
    `sample` are computed, some `rounds` of times, and each decision follows from the known metric. So a sampled trial
    is timed in the state of the real run. `full`: the metric at the start.
    """

    class Recorded(experiment_class):
        def __init__(self, *args, known=None, full=None, sample=(), rounds=0, **options):
            self.known, self.sample, self.rounds = known, sample, rounds
            self.cur_metric, self.trials, self.seconds, self.forwards = full, [], {}, 0
            super().__init__(*args, **options)

        def update_cur_metric(self, recalc_metric=True, recalc_edges=True, initial=False):
            if not recalc_metric:
                return super().update_cur_metric(False, recalc_edges, initial)
            self.forwards += 1
            number, is_trial, before = len(self.trials), not recalc_edges, self.cur_metric
            if self.known is None or (is_trial and number in self.sample):
                super().update_cur_metric(True, recalc_edges, initial)
                self.seconds[number] = [self.timed() for _ in range(self.rounds)]
            if is_trial:
                self.trials.append((*self.candidate(), before, self.cur_metric))
            if self.known is not None:
                self.cur_metric = self.known[number] if is_trial else before

        def timed(self) -> float:
            start = time.perf_counter()
            super().update_cur_metric(True, False)
            return time.perf_counter() - start

        def candidate(self):
            """Name and edge of the trial: the one edge into the current node that is in doubt."""
            node = self.current_node
            for sender_name, senders in self.corr.edges[node.name][node.index].items():
                for index, edge in senders.items():
                    if not edge.present:
                        sender = our_name(self.corr.graph[sender_name][index])
                        is_group = sender.endswith(">")  # a head's q, k or v, reading its input
                        return (sender if is_group else f"{sender}->{our_name(node)}"), edge

    return Recorded


def run(model: HookedTransformer, prompts: dict, job: dict, **options):
    """The original's whole run."""
    torch.set_grad_enabled(False)
    full = model(prompts["clean"])[:, -1].log_softmax(-1)

    def kl(logits):
        logits = logits[:, -1].log_softmax(-1)
        return torch.nn.functional.kl_div(logits, full, log_target=True, reduction="batchmean")

    def logit_diff(logits):
        answer, wrong = (logits[:, -1].gather(1, prompts[name]) for name in ("answer", "wrong"))
        return (wrong - answer).mean()

    experiment = recorded(original(job["checkout"]))(
        model,
        prompts["clean"],
        prompts["corrupt"],
        job["threshold"],
        {"kl": kl, "logit_diff": logit_diff}[job["metric"]],
        indices_mode="normal",
        names_mode="normal",
        **options,
    )
    while experiment.current_node is not None:
        experiment.step()
    return experiment


def gate(model: HookedTransformer, prompts: dict, job: dict) -> dict:
    """Every trial: name, metric before and without, whether it went."""
    done = run(model, prompts, job)
    trials = [(name, before, after, not edge.present) for name, edge, before, after in done.trials]
    return {"trials": trials, "forwards": done.forwards, "versions": versions()}


def timing(model: HookedTransformer, prompts: dict, job: dict) -> dict:
    """Seconds [trial, round] and metrics of the trials `sample`, in a run whose metrics are known."""
    done = run(model, prompts, job, **{name: job[name] for name in ("known", "full", "sample", "rounds")})
    return {
        "names": [name for name, *_ in done.trials],
        "after": [done.trials[number][3] for number in job["sample"]],
        "seconds": [done.seconds[number] for number in job["sample"]],
        "forwards": done.forwards,
        "versions": versions(),
    }


if __name__ == "__main__":
    answer_job({"gate": gate, "time": timing})
