"""CD-T against a transcription in NumPy of its rules, rel and irrel apart, on three families; and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, micro_llama, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.models import Gemma, Gemma2Config, NeoX, NeoXConfig, Olmo2, Olmo2Config, contextual

SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
GROUPED = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8}
CAPS = {"head_dim": 4, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 0.8, "sliding_window": 3}


def another(family, config):
    return drawn(eqx.filter_eval_shape(family.random, config, jax.random.key(0), jnp.float64), 0)


FAMILIES = {
    "gpt2": lambda: micro_model("gpt2", dtype=jnp.float64),
    "llama": lambda: micro_llama(dtype=jnp.float64),
    "gemma2": lambda: another(Gemma, Gemma2Config(**GROUPED, **CAPS)),
}
NEOX = NeoXConfig(**SIZES, num_attention_heads=2, max_position_embeddings=8, partial_rotary_factor=1.0)
FAMILIES["parallel"] = lambda: another(NeoX, NEOX)
OTHERS = {
    "olmo2": lambda: another(Olmo2, Olmo2Config(**GROUPED)),
    "neox": lambda: another(NeoX, NeoXConfig(**GROUPED, partial_rotary_factor=1.0)),
    "shortformer": lambda: micro_model("shortformer", dtype=jnp.float64),
}


# --- the transcription: a pair is (rel, irrel) ----------------------------------------------------


def biased(pair, bias):
    rel, irrel = pair
    total = np.abs(rel) + np.abs(irrel)
    part = np.divide(np.abs(rel), total, where=total > 0, out=np.zeros_like(total))
    return rel + bias * part, irrel + bias * (1 - part)


def linear(pair, weight, bias=None):
    pair = tuple(x @ weight for x in pair)
    return pair if bias is None else biased(pair, bias)


def rest(function, *pairs):
    irrel = function(*(irrel for _, irrel in pairs))
    return function(*(rel + irrel for rel, irrel in pairs)) - irrel, irrel


class Decomposed:
    """One prompt from where `source` wrote: `computed[receiver]` and `logits` as pairs."""

    def __init__(self, model, tokens, source, base):
        self.model = jax.tree.map(np.asarray, model)
        self.source, self.base, self.computed = source, base, {}
        self.is_gpt2, self.is_gemma = isinstance(model, jc.GPT2), isinstance(model, Gemma)
        self.is_parallel = isinstance(model, NeoX)
        self.has_biases = self.is_gpt2 or self.is_parallel
        start = self.model.token_embedding[tokens]
        if self.is_gpt2:
            start = start + self.model.position_embedding[: len(tokens)]
        if self.is_gemma:
            start = start * np.sqrt(8)
        stream = self.placed("input", (np.zeros_like(start), start))
        for layer in range(2):
            before, heads = stream, self.heads(layer, self.norm("attention_norm", layer, stream))
            stream = tuple(map(sum, zip(stream, heads, strict=True)))
            read = self.norm("mlp_norm", layer, before if self.is_parallel else stream)
            m = self.computed[f"m{layer}"] = self.mlp(layer, read)
            stream = tuple(map(sum, zip(stream, self.placed(f"m{layer}", m), strict=True)))
        last = self.norm("final_norm", None, stream)
        unembedding = self.model.token_embedding if self.model.unembedding is None else self.model.unembedding
        self.logits = linear(last, unembedding.T)
        if self.is_gemma:
            self.logits = rest(lambda x: 0.8 * np.tanh(x / 0.8), self.logits)

    def placed(self, name, pair):
        """What a node wrote; of the source all but the base is rel."""
        return pair if name != self.source else (sum(pair) - self.base, self.base)

    def norm(self, name, layer, pair):
        norm = self.model.final_norm if layer is None else getattr(self.model.blocks, name)
        weight, bias = norm.weight, getattr(norm, "bias", None)
        weight, bias = (y if y is None or layer is None else y[layer] for y in (weight, bias))
        if bias is not None:
            pair = tuple(x - x.mean(-1, keepdims=True) for x in pair)
        scale = np.sqrt((sum(pair) ** 2).mean(-1, keepdims=True) + norm.epsilon)
        pair = tuple(x / scale * (weight + getattr(norm, "offset", 0)) for x in pair)
        return pair if bias is None else biased(pair, bias)

    def mlp(self, layer, pair):
        mlp = self.model.blocks.mlp
        if self.has_biases:
            act = lambda x: np.asarray(jax.nn.gelu(x, approximate=self.is_gpt2))  # noqa: E731
            pair = rest(act, linear(pair, mlp.w_in[layer], mlp.b_in[layer]))
            return linear(pair, mlp.w_out[layer], mlp.b_out[layer])
        act = jax.nn.gelu if self.is_gemma else jax.nn.silu
        gate, up = linear(pair, mlp.gate[layer]), linear(pair, mlp.up[layer])
        product = rest(lambda gate, up: np.asarray(act(gate)) * up, gate, up)
        pair = linear(product, mlp.down[layer])
        return self.norm("mlp_post_norm", layer, pair) if self.is_gemma else pair

    def project(self, layer, port, head, pair):
        attention, full = self.model.blocks.attention, {"q": "query", "k": "key", "v": "value"}[port]
        index = head // 2 if port != "q" and not self.has_biases else head
        bias = getattr(attention, f"{full}_bias")
        pair = linear(pair, getattr(attention, full)[layer, index], None if bias is None else bias[layer, index])
        if not self.is_gpt2 and port != "v":
            pair = tuple(map(self.turned, pair))
        letter = "h" if index == head and (self.has_biases or port == "q") else "g"
        self.computed[f"a{layer}.{letter}{index}<{port}>"] = pair
        return pair

    def turned(self, y):
        size = y.shape[-1] // 2
        angles = np.arange(len(y))[:, None] * 10000.0 ** (-np.arange(size) / size)
        one, other, cos, sin = y[:, :size], y[:, size:], np.cos(angles), np.sin(angles)
        return np.concatenate([one * cos - other * sin, other * cos + one * sin], -1)

    def mixed(self, layer, q, k, v):
        back = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
        scores = q @ k.T / np.sqrt(256 if self.is_gemma else q.shape[-1])
        scores = np.tanh(scores) if self.is_gemma else scores
        seen = (back >= 0) & (back < (3 if self.is_gemma and layer == 0 else len(q)))
        weights = np.where(seen, np.exp(scores), 0)
        return weights / weights.sum(-1, keepdims=True) @ v

    def heads(self, layer, pair):
        attention, rows = self.model.blocks.attention, []
        for head in range(attention.query.shape[1]):
            ports = [self.project(layer, port, head, pair) for port in "qkv"]
            rel = self.mixed(layer, *(rel for rel, _ in ports))
            irrel = self.mixed(layer, *(rel + irrel for rel, irrel in ports)) - rel
            rows.append(linear((rel, irrel), attention.output[layer, head]))
        if self.is_gemma:
            norm = self.model.blocks.attention_post_norm
            scale = np.sqrt((sum(map(sum, rows)) ** 2).mean(-1, keepdims=True) + norm.epsilon)
            rows = [tuple(x / scale * (1 + norm.weight[layer]) for x in row) for row in rows]
        shared = (0, 0)
        if self.has_biases:
            bias, total = attention.output_bias[layer], tuple(map(sum, zip(*rows, strict=True)))
            shared = (after - before for after, before in zip(biased(total, bias), total, strict=True))
        rows = [self.placed(f"a{layer}.h{head}", row) for head, row in enumerate(rows)]
        return tuple(map(sum, zip(*rows, shared, strict=True)))


def share(pair):
    rel, irrel = (np.abs(part).mean() for part in pair)
    return rel / (rel + irrel) if rel + irrel else 0


def by_hand(objective, pairs, bases):
    """Scores, and each prompt's pairs."""
    graph, scores = objective.graph, np.zeros(objective.graph.shape)
    for row, source in enumerate(graph.senders):
        for prompt, tokens in enumerate(np.asarray(pairs.clean)):
            last = np.flatnonzero(np.atleast_2d(pairs.scored()[1])[prompt])
            positions = pairs.scored()[0][prompt][last]
            found = Decomposed(objective.model, tokens, source, bases[row, prompt])
            for column, name in enumerate(graph.receivers[:-1]):
                scores[row, column] += share([part[: positions.max() + 1] for part in found.computed[name]])
            scores[row, -1] += share([part[positions] for part in found.logits])
    return scores * graph.valid / len(pairs)


def written(objective):
    run = eqx.filter_jit(objective.model.sender_values)
    return np.stack([run(tokens) for tokens in objective.clean], 1)


@pytest.mark.quick(1, rest="slow")
@pytest.mark.parametrize(
    "family, kind, base",
    [
        ("llama", "lengths", "mean"),
        ("gpt2", "lengths", "mean"),
        ("llama", "positions", "reference"),
        ("gemma2", "last", "mean"),
        ("gpt2", "positions", "reference"),
        pytest.param("parallel", "last", "mean", marks=pytest.mark.mission),
    ],
)
def test_scores_are_the_formula(family, kind, base, x64):
    pairs = micro_pairs(batch=3, kind=kind)
    objective = jc.Objective(FAMILIES[family](), pairs, "kl", microbatch=2)
    bases = np.asarray(objective.reference)
    if base == "mean":
        inside = pairs.inside()[None, :, :, None]
        total = (written(objective) * inside).sum(1, keepdims=True) / np.maximum(inside.sum(1, keepdims=True), 1)
        bases = np.broadcast_to(total, bases.shape)
    expected, found = by_hand(objective, pairs, bases), jc.cd_t(objective, base=base, width=4)
    assert np.abs(found.values - expected).max() < 1e-9 * expected.max() and expected.max() > 0.1
    assert not found.signed and found.run["base"] == base and found.run["backward_passes"] == 0


def pairs_of(objective, source):
    """rel of one prompt from a sender on, and the whole run, of everything that is computed."""
    model, base = objective.model.by_rules("contextual"), objective.reference[:, 0]
    tokens, row = objective.clean[0], objective.graph.sender_index(source)

    @eqx.filter_jit
    def run(model):
        rel = objective.model.sender_values(tokens)[row] - base[row]
        sources = contextual.Sources(jnp.array([row]), rel[None])
        targets = contextual.Targets(jnp.ones(6), jnp.arange(6), jnp.ones(6))
        with model.computing():
            return contextual.run(model, tokens, sources, targets, lambda y, weights: y)

    *stacks, logits = run(model)
    computed = [y for stack in stacks for moment in stack for y in moment]
    return [np.asarray(y) for y in (*computed, logits)]


@pytest.mark.mission
def test_the_parts_add_up_to_the_models_own_activations(x64):
    """The whole run is the plain one, and what the transcription carries apart as irrel is the rest of it."""
    objective = jc.Objective(FAMILIES["gpt2"](), micro_pairs(), "kl")
    found = pairs_of(objective, "a0.h1")
    tokens, base = np.asarray(objective.clean[0]), np.asarray(objective.reference)[2, 0]
    expected = Decomposed(objective.model, tokens, "a0.h1", base)
    np.testing.assert_allclose(found[-1][0, -1], objective.labels.full[0, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[-1][0] - found[-1][1], expected.logits[1], rtol=0, atol=1e-12)
    queries, mlps = found[0], found[3]
    for layer in range(2):
        own = expected.computed[f"m{layer}"]
        np.testing.assert_allclose(mlps[0, layer, 0], sum(own), rtol=0, atol=1e-12)
        np.testing.assert_allclose(mlps[0, layer, 0] - mlps[1, layer, 0], own[1], rtol=0, atol=1e-12)
        for head in range(2):
            own = expected.computed[f"a{layer}.h{head}<q>"]
            np.testing.assert_allclose(queries[:, layer, head], [sum(own), own[0]], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*OTHERS, *FAMILIES])
def test_with_nothing_irrelevant_all_is_due_to_the_input(family, x64):
    """rel = all that the embedding wrote: so it is everywhere, whatever norms, biases and caps do."""
    objective = jc.Objective((FAMILIES | OTHERS)[family](), micro_pairs(), "kl", "zero")
    found = jc.cd_t(objective, base="reference").values
    np.testing.assert_allclose(found[0], 1, rtol=0, atol=1e-11 if family == "gpt2" else 1e-12)  # it rounds more
    assert 0 < found[1:][objective.graph.valid[1:]].min() and found[1:].max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("units", ["ungrouped", "unsplit", "neurons:3"])
def test_other_units_are_other_sources_and_targets_of_the_same_rules(units, x64):
    split = jc.Objective(FAMILIES["llama"](), micro_pairs(), "kl")
    other = jc.Objective(jc.with_units(split.model, units), micro_pairs(), "kl")
    scores, found = jc.cd_t(split), jc.cd_t(other)
    for name in ("input->logits", "a0.h1->logits", "a0.h0->a1.h3<q>", "a0.h2->m1"):
        if units != "unsplit" or "<" not in name:
            if units != "neurons:3" or "m1" not in name:
                assert abs(scores.of(name) - found.of(name)) < 1e-12


def test_what_is_refused():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "kl")
    with pytest.raises(ValueError, match="base: expected one of mean, reference, got 'median'"):
        jc.cd_t(objective, base="median")
    with pytest.raises(ValueError, match="expected 2 prompts or more"):
        jc.cd_t(objective.take(np.array([1])))
    layers = eqx.tree_at(lambda o: o.model, objective, jc.with_units(objective.model, "layers"))
    with pytest.raises(ValueError, match="cd-t: expected a model with attention heads as nodes.*got Layers.*'layers'"):
        jc.cd_t(layers)
    with pytest.raises(ValueError, match="width: expected a whole number, at least 1, got 0"):
        jc.cd_t(objective, width=0)
    with pytest.raises(ValueError, match="backward: expected one of plain, relp, attn-lrp, gim, got 'contextual'"):
        objective.model.with_backward("contextual")
