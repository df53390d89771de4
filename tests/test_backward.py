"""Rules of the backward pass against a transcription in torch, on two families; and what they leave as it is."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import micro_llama, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.measure import ruled
from jaxcircuits.models.backward import BACKWARD

RULES = ("plain", "relp", "attn-lrp", "gim")
FAMILIES = {"gpt2": lambda: micro_model("gpt2", dtype=jnp.float64), "llama": lambda: micro_llama(dtype=jnp.float64)}


def difference(logits, labels):
    return logits[labels.wrong[0]] - logits[labels.answer[0]]


def objective_of(family, metric=difference):
    return jc.Objective(FAMILIES[family](), micro_pairs(), metric)


class Relevance(torch.autograd.Function):
    """AttnLRP's proposition 3.1: of relevances R of what a softmax gives, x (R - p sum(R)) is that of what it reads."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, p := torch.softmax(x, -1))
        return p

    @staticmethod
    def backward(ctx, g):
        x, p = ctx.saved_tensors
        relevance = x * (g * p - p * (g * p).sum(-1, keepdim=True))
        return torch.where(x == 0, 0, relevance / x)


class Warm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.softmax(x, -1)

    @staticmethod
    def backward(ctx, g):
        q = torch.softmax(ctx.saved_tensors[0] / 2, -1)
        return q * (g - (g * q).sum(-1, keepdim=True))


def half(x):
    return x / 2 + (x / 2).detach()


def t(array):
    return torch.tensor(np.asarray(array))


class Run:
    """One prompt: `read[name]`, an offset at what each receiver reads; `computed`; `written` of each sender."""

    def __init__(self, model, tokens, rules, embedding=None):
        self.model, self.rules, self.is_llama = model, rules, isinstance(model, jc.models.Llama)
        self.read, self.computed, self.written = {}, {}, {}
        if embedding is None:
            embedding = t(model.token_embedding)[tokens]
            embedding = embedding if self.is_llama else embedding + t(model.position_embedding)[: len(tokens)]
        self.written["input"], stream = embedding, embedding
        for layer in range(2):
            stream = stream + self.heads(layer, stream)
            stream = stream + self.mlp(layer, stream)
        last = self.norm(model.final_norm, None, self.at("logits", stream))
        unembedding = model.token_embedding if model.unembedding is None else model.unembedding
        self.every = last @ t(unembedding).T
        self.logits = self.every[-1]

    def at(self, name, x):
        self.read[name] = torch.zeros_like(x, requires_grad=True)
        return x + self.read[name]

    def norm(self, norm, layer, x):
        weight, bias = (None if y is None else t(y) for y in (norm.weight, getattr(norm, "bias", None)))
        x = x if bias is None else x - x.mean(-1, keepdim=True)
        scale = torch.sqrt((x**2).mean(-1, keepdim=True) + norm.epsilon)
        x = x / (scale if self.rules == "plain" else scale.detach())
        weight, bias = (y if y is None or layer is None else y[layer] for y in (weight, bias))
        return x * weight if bias is None else x * weight + bias

    def act(self, x):
        act = torch.nn.functional.silu if self.is_llama else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
        if self.rules in ("plain", "gim"):
            return act(x)
        divisor = torch.where(x.abs() < 1e-6, torch.where(x < 0, -1e-6, 1e-6).double(), x)
        return x * (act(x) / divisor).detach()

    def mlp(self, layer, stream):
        mlp = self.model.blocks.mlp
        x = self.norm(self.model.blocks.mlp_norm, layer, self.at(f"m{layer}", stream))
        if self.is_llama:
            product = self.act(x @ t(mlp.gate[layer])) * (x @ t(mlp.up[layer]))
            y = (product if self.rules == "plain" else half(product)) @ t(mlp.down[layer])
        else:
            y = self.act(x @ t(mlp.w_in[layer]) + t(mlp.b_in[layer])) @ t(mlp.w_out[layer]) + t(mlp.b_out[layer])
        self.written[f"m{layer}"] = self.computed[f"m{layer}"] = y
        if y.requires_grad:
            y.retain_grad()
        return y

    def project(self, layer, port, index, stream):
        group = self.is_llama and port != "q"
        name = f"a{layer}.{'g' if group else 'h'}{index}<{port}>"
        if name not in self.computed:
            attention, full = self.model.blocks.attention, {"q": "query", "k": "key", "v": "value"}[port]
            x = self.norm(self.model.blocks.attention_norm, layer, self.at(name, stream))
            y = x @ t(getattr(attention, full)[layer, index])
            y = y if self.is_llama else y + t(getattr(attention, f"{full}_bias")[layer, index])
            self.computed[name] = self.turned(y) if self.is_llama and port != "v" else y
            self.computed[name].retain_grad()
        return self.computed[name]

    def turned(self, y):
        size = y.shape[-1] // 2
        angles = torch.arange(len(y))[:, None] * 10000.0 ** (-torch.arange(size).double() / size)
        first, second = y[:, :size], y[:, size:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def heads(self, layer, stream):
        attention, total = self.model.blocks.attention, 0
        for head in range(attention.query.shape[1]):
            shared = head // 2 if self.is_llama else head
            q, k, v = (self.project(layer, p, i, stream) for p, i in (("q", head), ("k", shared), ("v", shared)))
            scores = q @ k.T / math.sqrt(q.shape[-1])
            halves = self.rules in ("attn-lrp", "gim")
            scores = half(scores) if halves else scores
            seen = torch.ones(len(q), len(q)).tril().bool()
            scores = torch.where(seen, scores, torch.finfo(torch.float64).min)
            softmax = {"attn-lrp": Relevance.apply, "gim": Warm.apply}.get(self.rules, lambda x: torch.softmax(x, -1))
            mixed = softmax(scores) @ v
            self.written[f"a{layer}.h{head}"] = (half(mixed) if halves else mixed) @ t(attention.output[layer, head])
            total = total + self.written[f"a{layer}.h{head}"]
        return total if self.is_llama else total + t(attention.output_bias[layer])


def runs(objective, rules, alpha=None):
    """Each prompt's run after a backward pass of the loss, its clean and corrupt run's `written`."""
    pairs = micro_pairs()
    for i in range(len(pairs)):
        clean, corrupt = (Run(objective.model, tokens[i], rules) for tokens in (pairs.clean, pairs.corrupt))
        own = clean
        if alpha is not None:
            ends = (run.written["input"] for run in (corrupt, clean))
            own = Run(objective.model, pairs.clean[i], rules, torch.lerp(*ends, alpha))
        (own.logits[pairs.wrong[i, 0]] - own.logits[pairs.answer[i, 0]]).backward()
        yield own, clean, corrupt


def edges_of(objective, rules, alpha=None):
    """Mean over prompts of <reference - clean, gradient at what r reads>."""
    graph = objective.graph
    scores, each = np.zeros(graph.shape), list(runs(objective, rules, alpha))
    for own, clean, corrupt in each:
        change = torch.stack([corrupt.written[s] - clean.written[s] for s in graph.senders]).detach()
        slopes = torch.stack([own.read[r].grad for r in graph.receivers])
        scores += torch.einsum("std,rtd->sr", change, slopes).numpy() / len(each)
    return np.where(graph.valid, scores, 0)


def close(found, expected):
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max() and expected.any()


SLOW = {("gpt2", "plain"), ("llama", "plain"), ("gpt2", "attn-lrp")}


@pytest.mark.mission
@pytest.mark.parametrize(
    "family, rules",
    [
        pytest.param(family, rules, marks=[pytest.mark.slow] * ((family, rules) in SLOW))
        for family in FAMILIES
        for rules in RULES
    ],
)
def test_edges_score_as_the_formulas_say(family, rules, x64):
    objective = objective_of(family)
    expected = edges_of(objective, rules)
    found = jc.eap(objective, backward=rules)
    close(found.values, expected)
    assert found.run["backward"] == rules
    masked = ruled(objective, rules)
    close(-np.asarray(masked.gradient(masked.full_mask())), expected)
    close(jc.atp_star(objective, qk_fix=False, grad_drop=False, backward=rules).values, expected)
    corrupt = edges_of(objective, rules, 0.0)
    close(jc.clean_corrupted(objective, backward=rules).values, (expected + corrupt) / 2)
    path = (corrupt + edges_of(objective, rules, 0.5)) / 2
    close(jc.eap_ig_inputs(objective, steps=2, backward=rules).values, path)
    if rules != "plain":
        assert np.abs(expected - jc.eap(objective).values).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.quick(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rules", ["relp", *(pytest.param(rules, marks=pytest.mark.slow) for rules in ("plain", "attn-lrp", "gim"))]
)
def test_nodes_score_as_the_formulas_say(family, rules, x64):
    objective = objective_of(family)
    expected, names = 0, objective.graph.receivers[:-1]
    for own, _, corrupt in runs(objective, rules):
        pairs = [(own.computed[name], corrupt.computed[name]) for name in names]
        expected = expected + np.array([float(((there - y) * y.grad).sum().detach()) for y, there in pairs]) / 5
    found = jc.node_attribution(objective, backward=rules).run["nodes"]
    close(np.array([found[name] for name in names]), expected)


@pytest.mark.mission
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_the_same_to_the_bit(family, x64):
    objective = objective_of(family, "logit_diff")
    mask = np.random.default_rng(0).random(objective.graph.shape)
    values, loss = objective.per_example(mask), objective.value_and_gradient(mask)[0]
    tokens = objective.clean[0]
    for rules in RULES[1:]:
        other = ruled(objective, rules)
        np.testing.assert_array_equal(other.per_example(mask), values)
        np.testing.assert_array_equal(other.value_and_gradient(mask)[0], loss)
        np.testing.assert_array_equal(other.model(tokens), objective.model(tokens))


@pytest.mark.mission
@pytest.mark.parametrize(
    "rules", ["relp", "gim", *(pytest.param(rules, marks=pytest.mark.slow) for rules in ("plain", "attn-lrp"))]
)
def test_other_units_follow_the_same_rules(rules, x64):
    """A head that reads once has the slopes of its query, key and value together."""
    split = objective_of("gpt2", "logit_diff")
    unsplit = jc.Objective(jc.with_units(split.model, "unsplit"), micro_pairs(), "logit_diff")
    scores, once = jc.eap(split, backward=rules), jc.eap(unsplit, backward=rules)
    for name in unsplit.graph.receivers:
        ports = [f"{name}<{port}>" for port in "qkv"] if name.startswith("a") else [name]
        columns = [split.graph.receivers.index(port) for port in ports]
        together = scores.values[:, columns].sum(1)
        np.testing.assert_allclose(once.values[:, unsplit.graph.receivers.index(name)], together, rtol=1e-9, atol=1e-13)


def test_units_of_a_model_have_its_rules(x64):
    model = micro_model("gpt2").with_backward("relp")
    for made in (jc.with_units(model, "unsplit"), jc.with_units(model, "neurons:3"), jc.with_units(model, spans="0:2")):
        assert made.backward == made.model.backward == "relp" and made.with_backward("gim").model.backward == "gim"
    objective = jc.Objective(model, micro_pairs(), "logit_diff")
    assert objective.describe()["backward"] == "relp" and "backward" not in objective_of("gpt2").describe()


@pytest.mark.mission
def test_the_commands_take_list_and_record_them(run, tmp_path):
    file = tmp_path / "scores.json"
    assert run("score", "ioi", "--size", "2", "--option", "backward=gim", "--out", file)[0] == 0
    assert json.loads(file.read_text())["run"]["backward"] == "gim"
    printed = run("methods")[1]
    assert all(name in printed for name in BACKWARD) and tuple(BACKWARD) == RULES
    code, _, errors = run("score", "ioi", "--size", "2", "--option", "backward=lrp")
    assert code == 1 and "backward: expected one of plain, relp, attn-lrp, gim, got 'lrp'" in errors
