"""PEAP against a transcription, one pair of positions at a time, on GPT-2 and grouped heads; its circuit; its file."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from conftest import micro_model, micro_pairs
from test_backward import FAMILIES, difference, objective_of, runs

import jaxcircuits as jc
from jaxcircuits.models import Gemma, Gemma2Config

SPANS = [(0, 2), (2, 5)]
INSIDE = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]], float)
NAMES = ("0:2", "2:5", "rest")


def divided(family, metric=difference):
    return jc.Objective(jc.with_units(FAMILIES[family](), spans=SPANS), micro_pairs(), metric)


def pattern(q, k):
    scores = np.where(np.tri(len(q)) > 0, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def by_pairs(g, clean, reference, output):
    """[port, key position, query position] of one head."""
    (q, k, v), (q2, k2, v2) = clean, reference
    a, found = pattern(q, k), np.zeros((3, len(q), len(q)))
    for i in range(len(q)):
        for j in range(i + 1):
            one_key, one_query = k.copy(), q.copy()
            one_key[j], one_query[i] = k2[j], q2[i]
            found[0, j, i] = g[i] @ ((pattern(one_query, k)[i, j] - a[i, j]) * v[j] @ output)
            found[1, j, i] = g[i] @ ((pattern(q, one_key)[i] - a[i]) @ v @ output)
            found[2, j, i] = g[i] @ (a[i, j] * (v2[j] - v[j]) @ output)
    return found


def by_hand(family):
    """Means over prompts: edges within spans [span, node, receiver], and crossing ones."""
    objective = objective_of(family)
    graph, model, heads = objective.graph, objective.model, 4 if family == "llama" else 2
    within, crossing = np.zeros((3, *graph.shape)), np.zeros((2, heads, 3, 3, 3))
    for own, clean, corrupt in runs(objective, "plain"):
        slopes = torch.stack([own.read[r].grad for r in graph.receivers]).numpy()
        change = torch.stack([corrupt.written[s] - clean.written[s] for s in graph.senders]).detach().numpy()
        within += np.einsum("std,rtd,pt->psr", change, slopes, INSIDE) / 5
        for layer, head in np.ndindex(2, heads):
            names = [f"a{layer}.h{head}<q>"]
            names += [f"a{layer}.{f'g{head // 2}' if heads == 4 else f'h{head}'}<{port}>" for port in "kv"]
            ys, refs = ([run.computed[name].detach().numpy() for name in names] for run in (clean, corrupt))
            g = slopes[graph.valid[graph.sender_index(f"a{layer}.h{head}")]].sum(0)
            output = np.asarray(model.blocks.attention.output[layer, head])
            pairs = by_pairs(g, ys, refs, output)
            crossing[layer, head] += np.einsum("aj,pji,bi->pab", INSIDE, pairs, INSIDE) / 5
    return within * graph.valid, crossing


@pytest.mark.mission
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_the_formulas(family, x64):
    objective, (within, crossing) = divided(family), by_hand(family)
    found = jc.peap(objective)
    graph = objective_of(family).graph
    for span, row in np.ndindex(3, graph.shape[0]):
        own = found.within.values[objective.graph.sender_index(f"{graph.senders[row]}@{NAMES[span]}")]
        assert np.abs(own - within[span, row]).max() < 1e-9 * np.abs(within).max()
    assert np.abs(found.crossing - crossing).max() < 1e-9 * np.abs(crossing).max()
    assert (np.abs(found.crossing).max((0, 1, 3, 4)) > 1e-3 * np.abs(crossing).max()).all()
    assert found.spans == NAMES and found.last == ("rest",)
    assert found.of("a1.h1@0:2->a1.h1@rest<k>") == found.crossing[1, 1, 1, 0, 2]
    assert found.of("m0@rest->m1") == found.within.of("m0@rest->m1") != 0


@pytest.mark.mission
def test_scores_through_values_add_up_to_those_of_nodes(x64):
    """Over all spans, and the heads of a group, they are attribution patching of the group's values."""
    objective = divided("llama")
    found = jc.peap(objective)
    nodes = jc.node_attribution(objective).run["nodes"]
    for layer, group in np.ndindex(2, 2):
        total = found.crossing[layer, 2 * group : 2 * group + 2, 2].sum()
        assert abs(total - nodes[f"a{layer}.g{group}<v>"]) < 1e-9 * np.abs(found.crossing).max()


@pytest.fixture(scope="module")
def scores():
    return jc.peap(jc.Objective(jc.with_units(micro_model("gpt2"), spans=SPANS), micro_pairs(), "logit_diff"))


def best_first(scores, edges):
    """By going through all edges again for each one that is taken."""
    graph, inside, taken = scores.graph, ["logits@rest"], []
    candidates = []
    for row, column in graph.edges:
        span = graph.senders[row].split("@")[1]
        for owner in graph.owners(column):
            node = f"{owner.split('@')[0]}@{span}"
            edge = scores.within.values[row, column], graph.edge_name(row, column), graph.senders[row], node
            candidates += [edge] if edge not in candidates else []
    for layer, head, port, a, b in np.ndindex(scores.crossing.shape):
        if a != b:
            sender, reader = (f"a{layer}.h{head}@{NAMES[span]}" for span in (a, b))
            score = scores.crossing[layer, head, port, a, b]
            candidates.append((score, f"{sender}->{reader}<{'qkv'[port]}>", sender, reader))
    while len(taken) < edges:
        best = max((c for c in candidates if c[3] in inside and c[1] not in taken), key=lambda c: c[0])
        taken.append(best[1])
        inside += [best[2]] if best[2] not in inside else []
    return taken, inside


@pytest.mark.parametrize("edges", [5, 25])
def test_sizes_choose_the_largest_whatever_their_sign(scores, edges):
    sizes = dataclasses.replace(scores.within, values=np.abs(scores.within.values))
    as_sizes = dataclasses.replace(scores, within=sizes, crossing=np.abs(scores.crossing))
    found, expected = scores.circuit(edges, rank="absolute"), as_sizes.circuit(edges)
    assert found.nodes == expected.nodes and found.within.edges == expected.within.edges
    assert set(found.crossing) == set(expected.crossing)
    assert min(scores.within.values[found.within.mask], default=0) < 0


def test_the_circuit_is_the_best_edges_into_what_is_in(scores):
    found, (taken, inside) = scores.circuit(25), best_first(scores, 25)
    assert {*found.within.edges, *found.crossing} == set(taken) and found.nodes == tuple(inside)
    assert found.crossing and found.within.run["selection"] == {
        "edges": 25,
        "rank": "signed",
        "greedy": True,
        "crossing": len(found.crossing),
    }
    everything = scores.circuit(10**6, rank="absolute")
    assert {"input@0:2", "input@2:5", "input@rest"} <= set(everything.nodes)
    ends = [edge.split("->")[1].split("<")[0] for edge in everything.crossing]
    assert len(set(everything.crossing)) == len(everything.crossing) and set(ends) <= set(everything.nodes)


def test_its_file_holds_all_of_it(scores, tmp_path):
    scores.save(tmp_path / "peap.json")
    again = jc.Peap.load(tmp_path / "peap.json")
    np.testing.assert_array_equal(again.within.values, scores.within.values)
    np.testing.assert_array_equal(again.crossing, scores.crossing)
    assert again.last == scores.last and again.graph == scores.graph and again.run["method"] == "peap"
    assert again.circuit(9).nodes == scores.circuit(9).nodes
    value = json.loads((tmp_path / "peap.json").read_text())
    for change, said in (
        ({"format": "jaxcircuits/1"}, "format 'jaxcircuits-peap/1'"),
        ({"crossing": value["crossing"][:1]}, r"shape \(2, 2, 3, 3, 3\)"),
        ({"crossing": [[1.0]]}, "lists of equal lists"),
        ({"last": "0:2"}, "last: expected a list of names"),
        ({"last": ["elsewhere"]}, "some of the spans 0:2, 2:5, rest"),
        ({"within": {}}, "expected a circuit"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=f"bad.json: .*{said}"):
            jc.Peap.load(tmp_path / "bad.json")


@pytest.mark.mission
def test_spans_that_lie_elsewhere_in_each_prompt(x64):
    """At the same positions in all prompts they give what spans of positions give."""
    pairs = micro_pairs()
    named = dict(zip(("one", "other"), (np.tile(span, (5, 1)) for span in SPANS), strict=True))
    pairs = jc.PromptPairs(**{**vars(pairs), "spans": named})
    model = FAMILIES["gpt2"]()
    found = jc.peap(jc.Objective(jc.with_units(model, spans=["one", "other"]), pairs, "logit_diff"))
    expected = jc.peap(jc.Objective(jc.with_units(model, spans=SPANS), pairs, "logit_diff"))
    np.testing.assert_allclose(found.crossing, expected.crossing, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.within.values, expected.within.values, rtol=0, atol=1e-12)
    assert found.last == ("rest",)


def refused(model, said, **options):
    spanned = jc.with_units(model, spans=SPANS, **options)
    with pytest.raises(ValueError, match=said):
        jc.Peap(
            jc.Scores(spanned.graph, np.zeros(spanned.graph.shape), True, "peap", {}), np.zeros((1,) * 5), ("rest",)
        )


def test_what_is_refused(scores):
    graph = micro_model("gpt2").graph
    with pytest.raises(ValueError, match="peap: expected a model that is divided at spans"):
        jc.Peap(jc.Scores(graph, np.zeros(graph.shape), True, "peap", {}), np.zeros((1,) * 5), ("rest",))
    refused(micro_model("gpt2"), "choose units split or ungrouped", units="unsplit")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=11, head_dim=4, intermediate_size=4, **sizes)
    gemma = eqx.filter_eval_shape(Gemma.random, config, jax.random.key(0))
    refused(gemma, "peap: expected heads that write alone")
    with pytest.raises(ValueError, match="expected a number of edges and one of signed, absolute, got -1"):
        scores.circuit(-1)
