"""EAP-GP against a transcription in torch, on two families and padded prompts; what its path is; what it refuses."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import micro_model, micro_pairs
from test_backward import FAMILIES, Run, close, difference

import jaxcircuits as jc

STEPS = 3


def loss_of(metric, logits, full, pairs, prompt):
    if metric is difference:
        return logits[pairs.wrong[prompt, 0]] - logits[pairs.answer[prompt, 0]]
    if metric == "nll":
        return -torch.log_softmax(logits, -1)[torch.tensor(pairs.answer[prompt])].mean()
    log_p = torch.log_softmax(full.detach(), -1)
    return (log_p.exp() * (log_p - torch.log_softmax(logits, -1))).sum()


class Without(Run):
    """A run in which receivers read the reference of what is `absent`: {receiver: senders}."""

    def __init__(self, model, tokens, rules, embedding=None, *, absent, reference):
        self.absent, self.reference = absent, reference
        super().__init__(model, tokens, rules, embedding)

    def at(self, name, x):
        lost = [self.reference[sender] - self.written[sender] for sender in self.absent.get(name, ())]
        return super().at(name, x + sum(lost))


def path(run, start, target):
    """The points y_1, y_2, ... of one prompt, without its padding."""
    y = start.detach()
    while True:
        y.requires_grad_(True)
        distance = ((run("plain", y).every - target) ** 2).sum()
        (v,) = torch.autograd.grad(distance, y)
        y = (y - v / torch.sqrt((v**2).sum())).detach()
        yield y


def edges_of(objective, pairs, metric, rules="plain", steps=STEPS, absent=()):
    """Mean over prompts and points of <reference - clean, gradient at what r reads>."""
    lost = {}
    for sender, receiver in (edge.split("->") for edge in absent):
        lost.setdefault(receiver, []).append(sender)
    graph, scores = objective.graph, np.zeros(objective.graph.shape)
    for prompt in range(len(pairs)):
        length = pairs.clean.shape[1] if pairs.length is None else pairs.length[prompt]
        corrupt = Run(objective.model, pairs.corrupt[prompt, :length], rules)
        reference = {sender: value.detach() for sender, value in corrupt.written.items()}
        own = partial(Without, objective.model, pairs.clean[prompt, :length], absent=lost, reference=reference)
        whole, clean = Run(objective.model, pairs.clean[prompt, :length], rules), own(rules)
        change = torch.stack([reference[s] - clean.written[s] for s in graph.senders]).detach()
        points = path(own, clean.written["input"], corrupt.every.detach())
        for _, y in zip(range(steps), points, strict=False):
            run = own(rules, y)
            loss_of(metric, run.logits, whole.logits, pairs, prompt).backward()
            slopes = torch.stack([run.read[r].grad for r in graph.receivers])
            scores += torch.einsum("std,rtd->sr", change, slopes).numpy() / len(pairs) / steps
    return np.where(graph.valid, scores, 0)


CASES = [("llama", "nll", "gim"), ("gpt2", "kl", "plain"), ("gpt2", difference, "relp"), ("llama", difference, "plain")]


@pytest.mark.quick(1, rest="slow")
@pytest.mark.parametrize("family, metric, rules", CASES)
def test_it_is_the_formula_and_padding_is_nothing(family, metric, rules, x64):
    pairs = micro_pairs(kind="lengths")
    assert np.ptp(pairs.length) > 0
    objective = jc.Objective(FAMILIES[family](), pairs, metric)
    found = jc.eap_gp(objective, steps=STEPS, backward=rules)
    close(found.values, edges_of(objective, pairs, metric, rules))
    costs = {"steps": STEPS, "forward_passes": 2 * STEPS + 2, "backward_passes": 2 * STEPS, "backward": rules}
    assert costs.items() <= found.run.items() and found.signed


GONE = ["input->m0", "a0.h0->logits", "a0.h1->m1", "m0->a1.h0<q>", "input->a1.h1<q>"]


@pytest.mark.mission
@pytest.mark.quick(1, rest="slow")
@pytest.mark.parametrize("family, metric, rules", CASES)
def test_without_some_edges_all_runs_are_without_them(family, metric, rules, x64):
    pairs = micro_pairs(kind="lengths")
    objective = jc.Objective(FAMILIES[family](), pairs, metric)
    found = jc.eap_gp(jc.without(objective, GONE), steps=STEPS, backward=rules).values
    expected = np.where(objective.graph.mask_of(GONE), 0, edges_of(objective, pairs, metric, rules, absent=GONE))
    close(found, expected)
    whole = jc.eap_gp(objective, steps=STEPS, backward=rules).values
    assert np.abs(whole - found)[expected != 0].max() > 1e-2 * np.abs(whole).max()


@pytest.mark.slow
@pytest.mark.parametrize("spans", [[(0, 2)], ["one", "other"]])
def test_without_some_edges_spans_are_parts_of_the_input(spans, x64):
    named = {"one": np.tile((0, 2), (5, 1)), "other": np.tile((2, 5), (5, 1))} if "one" in spans else {}
    pairs = jc.PromptPairs(**{**vars(micro_pairs()), "spans": named})
    model = micro_model("gpt2", dtype=jnp.float64)
    whole = jc.eap_gp(jc.without(jc.Objective(model, pairs, "logit_diff"), GONE), steps=2)
    parts = jc.Objective(jc.with_units(model, spans=spans), pairs, "logit_diff")
    bare = np.array([name.split("@")[0] for name in parts.graph.senders])
    gone = [
        f"{name}->{edge.split('->')[1]}"
        for edge in GONE
        for name in np.array(parts.graph.senders)[bare == edge.split("->")[0]]
    ]
    found = jc.eap_gp(jc.without(parts, gone), steps=2).values
    for row, name in enumerate(whole.graph.senders):
        np.testing.assert_allclose(
            found[bare == name].sum(0), whole.values[row], rtol=0, atol=1e-9 * np.abs(found).max()
        )


@pytest.mark.mission
def test_the_embeddings_count_as_their_sum_and_spans_add_up(x64):
    model = micro_model("gpt2", dtype=jnp.float64)
    whole = jc.eap_gp(jc.Objective(model, micro_pairs(), "logit_diff"), steps=2)
    parts = jc.Objective(jc.with_units(model, "split", spans=[(0, 2)]), micro_pairs(), "logit_diff")
    found = jc.eap_gp(parts, steps=2)
    rows = [index for index, name in enumerate(parts.graph.senders) if name.startswith("input")]
    to_logits = found.values[rows, parts.graph.receivers.index("logits")].sum()
    assert len(rows) == 2
    np.testing.assert_allclose(to_logits, whole.of("input->logits"), rtol=1e-9)
    each = jc.eap_gp(jc.Objective(model, micro_pairs(), "logit_diff"), steps=2, positions=[(0, 2), (2, 6)])
    np.testing.assert_allclose(each.total().scores, whole.values, rtol=1e-9, atol=1e-14)


@pytest.mark.mission
@pytest.mark.filterwarnings("ignore:.*do not differ")
def test_a_prompt_that_is_its_own_corrupt_one_scores_nothing():
    same = dataclasses.replace(micro_pairs(), corrupt=micro_pairs().clean)
    assert not jc.eap_gp(jc.Objective(micro_model("gpt2"), same, "logit_diff"), steps=2).values.any()


def test_what_it_refuses():
    model = micro_model("gpt2")
    with pytest.raises(ValueError, match="expected reference 'resample', got 'mean'"):
        jc.eap_gp(jc.Objective(model, micro_pairs(), "logit_diff", "mean"))
    with pytest.raises(ValueError, match="eap-gp: accuracy has no gradient"):
        jc.eap_gp(jc.Objective(model, micro_pairs(), "accuracy"))
    with pytest.raises(ValueError, match="steps: expected a whole number, at least 1, got 0"):
        jc.eap_gp(jc.Objective(model, micro_pairs(), "logit_diff"), steps=0)
