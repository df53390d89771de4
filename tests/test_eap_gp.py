"""EAP-GP against a transcription in torch, on two families and padded prompts; what its path is; what it refuses."""

import dataclasses

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


def path(model, tokens, start, target):
    """The points y_1, y_2, ... of one prompt, without its padding."""
    y = start.detach()
    while True:
        y.requires_grad_(True)
        distance = ((Run(model, tokens, "plain", y).every - target) ** 2).sum()
        (v,) = torch.autograd.grad(distance, y)
        y = (y - v / torch.sqrt((v**2).sum())).detach()
        yield y


def edges_of(objective, pairs, metric, rules="plain", steps=STEPS):
    """Mean over prompts and points of <reference - clean, gradient at what r reads>."""
    graph, scores = objective.graph, np.zeros(objective.graph.shape)
    for prompt in range(len(pairs)):
        length = pairs.clean.shape[1] if pairs.length is None else pairs.length[prompt]
        clean, corrupt = (Run(objective.model, x[prompt, :length], rules) for x in (pairs.clean, pairs.corrupt))
        change = torch.stack([corrupt.written[s] - clean.written[s] for s in graph.senders]).detach()
        points = path(objective.model, pairs.clean[prompt, :length], clean.written["input"], corrupt.every.detach())
        for _, y in zip(range(steps), points, strict=False):
            run = Run(objective.model, pairs.clean[prompt, :length], rules, y)
            loss_of(metric, run.logits, clean.logits, pairs, prompt).backward()
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
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1, got 0"):
        jc.eap_gp(jc.Objective(model, micro_pairs(), "logit_diff"), steps=0)
