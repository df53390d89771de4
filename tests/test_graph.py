import dataclasses
import itertools
import json

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits import layout, models

SIZES = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from([("input",), ("tok", "pos")]),
)


def make(sizes):
    layers, heads, mlps, embeddings = sizes
    return jc.Graph.transformer(layers, heads, mlps=tuple(mlps[:layers]), embeddings=embeddings)


@pytest.mark.parametrize(
    "layers, heads, mlps, edges", [(12, 12, True, 32491), (4, 8, False, 1281), (2, 8, False, 257), (4, 8, True, 1519)]
)
def test_edge_counts(layers, heads, mlps, edges):
    graph = jc.Graph.transformer(layers, heads, mlps=mlps)
    assert graph.num_edges == len(graph.edges) == graph.valid.sum() == edges


def test_gpt2_small_has_157_senders_and_445_receivers():
    assert jc.Graph.transformer(12, 12).shape == (157, 445)


def test_names_are_those_of_the_public_format():
    graph = jc.Graph.transformer(2, 2)
    assert graph.senders == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.receivers[:4] == ("a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>")
    assert graph.receivers[-2:] == ("m1", "logits")
    assert graph.nodes == (*graph.senders, "logits")


@given(SIZES)
def test_names_and_indices_agree(sizes):
    graph = make(sizes)
    for sender, receiver in graph.edges:
        assert graph.edge_index(graph.edge_name(sender, receiver)) == (sender, receiver)
    assert graph.names_of(graph.mask_of(graph.names_of(graph.valid))) == graph.names_of(graph.valid)


@given(SIZES)
def test_an_edge_exists_exactly_where_the_sender_is_computed_first(sizes):
    """Against a second statement of the order of computation."""
    graph = make(sizes)

    def time(node):
        if node == "logits":
            return 2 * graph.num_layers
        if node in graph.embeddings:
            return -1
        return 2 * int(node[1:].split(".")[0]) + (node[0] == "m")

    for (s, sender), (r, receiver) in itertools.product(enumerate(graph.senders), enumerate(graph.receivers)):
        assert graph.valid[s, r] == (time(sender) < time(receiver.split("<")[0]))


def test_equal_and_hashable_by_value():
    assert jc.Graph.transformer(2, 2) == jc.Graph.transformer(2, 2, mlps=(True, True)) and hash(
        jc.Graph.transformer(2, 2)
    ) == hash(jc.Graph.transformer(2, 2))
    assert jc.Graph.transformer(2, 2) != jc.Graph.transformer(2, 2, mlps=False)


def test_grouped_keys_and_values():
    graph = jc.Graph.transformer(1, 4, groups=2)
    assert graph.receivers[:8] == tuple(
        f"a0.{name}{index}<{kind}>"
        for kind, name, count in (("q", "h", 4), ("k", "g", 2), ("v", "g", 2))
        for index in range(count)
    )
    third = graph.senders.index("a0.h2")
    assert third in graph.readers(graph.receiver_index("a0.g1<k>"))
    assert third not in graph.readers(graph.receiver_index("a0.g0<k>"))


def test_two_embedding_senders():
    graph = jc.Graph.transformer(1, 1, embeddings=("tok", "pos"))
    assert graph.senders == ("tok", "pos", "a0.h0", "m0")
    assert graph.edge_index("pos->a0.h0<k>") == (1, 1)


def brute_force_alive(graph, mask):
    """Edges on a path from an embedding to logits, by following every path."""
    inputs = {node: set(graph.inputs(node)) for node in graph.nodes}
    edges = [(graph.senders[s], r) for s, r in np.argwhere(mask & graph.valid)]
    alive = np.zeros(graph.shape, bool)

    def follow(node, path):
        if node == "logits":
            for s, r in path:
                alive[graph.senders.index(s), r] = True
        for s, r in edges:
            if s == node:
                for reader in (other for other in graph.nodes if r in inputs[other]):
                    follow(reader, [*path, (s, r)])

    for embedding in graph.embeddings:
        follow(embedding, [])
    return alive


@given(SIZES, st.integers(0, 2**32 - 1), st.floats(0.05, 0.5))
def test_dead_ends_are_dropped_to_a_fix_point(sizes, seed, share):
    graph = make((min(sizes[0], 2), min(sizes[1], 2), *sizes[2:]))
    mask = np.random.default_rng(seed).random(graph.shape) < share
    np.testing.assert_array_equal(graph.drop_dead_ends(mask), brute_force_alive(graph, mask))


def test_nodes_and_edges_map_onto_each_other():
    graph = jc.Graph.transformer(2, 2)
    everything = np.ones(len(graph.nodes), bool)
    np.testing.assert_array_equal(graph.nodes_to_edges(everything), graph.valid)
    np.testing.assert_array_equal(graph.edges_to_nodes(graph.valid), everything)
    without = everything.copy()
    without[graph.nodes.index("a0.h1")] = False
    names = graph.names_of(graph.nodes_to_edges(without))
    assert len(names) < graph.num_edges and not any("a0.h1" in name for name in names)
    one = graph.edges_to_nodes(graph.mask_of(["m0->a1.h0<q>"]))
    assert [name for name, kept in zip(graph.nodes, one, strict=True) if kept] == ["m0", "a1.h0"]


@pytest.mark.parametrize("name", ["m0", "a0.h0->m9", "x->m0", "m1->m0", "m0->a0.h0<q>"])
def test_a_wrong_edge_name_is_refused(name):
    with pytest.raises(ValueError, match="expected|no edge"):
        jc.Graph.transformer(2, 2).edge_index(name)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_an_empty_graph_is_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        jc.Graph.transformer(*sizes)


def test_a_wrong_number_of_mlps_is_refused():
    with pytest.raises(ValueError, match="one a layer"):
        jc.Graph.transformer(2, 2, mlps=(True,))


def one_layer(ports, nodes, embeddings=("input",), layers=1):
    stack = layout.Stack(layers, (layout.Moment(tuple(ports), tuple(nodes)),))
    return layout.Layout(embeddings, (stack,))


M, MLP = layout.Port("m", 1, True, "m{layer}"), layout.Nodes("mlp", 1, (("m", (0,)),), "m{layer}")
PAIR = layout.Nodes("mlp", 2, (("m", (0, 0)),), "m{layer}.{index}")
BROKEN = {
    "no layer": (layout.Layout(("input",), ()), "at least one embedding and one layer"),
    "no embedding": (one_layer([M], [MLP], ()), "at least one embedding"),
    "no moment": (layout.Layout(("input",), (layout.Stack(1, ()),)), "moment in a stack"),
    "no layers": (one_layer([M], [MLP], layers=0), "layer and moment in a stack"),
    "no nodes": (one_layer([M], []), "one port and one group"),
    "no inputs": (one_layer([M], [MLP, layout.Nodes("constant", 1, (), "c{layer}")]), "inputs of constant"),
    "port twice": (one_layer([M, M], [MLP]), "ports of different names"),
    "port of nobody": (one_layer([M, layout.Port("n", 1, True, "n")], [MLP]), "read by one group"),
    "port of two": (one_layer([M], [MLP, dataclasses.replace(MLP, kind="other", names="o")]), "read by one group"),
    "unknown port": (one_layer([M], [dataclasses.replace(MLP, inputs=(("x", (0,)),))]), "read by one group"),
    "receiver of nobody": (one_layer([dataclasses.replace(M, count=2)], [MLP]), "none left over"),
    "input out of range": (one_layer([M], [dataclasses.replace(MLP, inputs=(("m", (1,)),))]), "one receiver of m"),
    "too few inputs": (one_layer([M], [dataclasses.replace(PAIR, inputs=(("m", (0,)),))]), "for each node"),
    "list over layers": (one_layer([M], [dataclasses.replace(MLP, names=("m",))], layers=2), "of a single layer"),
    "short list": (one_layer([M], [dataclasses.replace(PAIR, names=("m",))]), "2 names"),
    "sender twice": (one_layer([M], [dataclasses.replace(MLP, names="m")], layers=2), "nodes of different names"),
    "embedding twice": (one_layer([M], [MLP], ("input", "input")), "'input' more than once"),
    "logits": (one_layer([M], [MLP], ("logits",)), "'logits' more than once"),
    "receiver twice": (
        one_layer([layout.Port("m", 2, True, "m{layer}")], [dataclasses.replace(PAIR, inputs=(("m", (0, 1)),))]),
        "receivers of different names",
    ),
    "receiver called logits": (one_layer([dataclasses.replace(M, names="logits")], [MLP]), "'logits' more than once"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_layout_is_refused(name):
    broken, said = BROKEN[name]
    with pytest.raises(ValueError, match=f"layout: expected .*{said}"):
        jc.Graph(broken)
    written = json.loads(json.dumps(layout.to_json(broken)))
    with pytest.raises(ValueError, match="layout: "):
        jc.Graph(layout.from_json(written))


def test_a_node_without_shared_inputs_is_a_graph():
    graph = jc.Graph(one_layer([M], [PAIR]))
    assert graph.senders == ("input", "m0.0", "m0.1") and graph.owners(0) == ("m0.0", "m0.1")


def test_a_graph_is_said_in_a_line():
    """Few nodes all, many by their ends."""
    small, large = (jc.Graph(layout.transformer(layers, 2, mlps=False)) for layers in (1, 4))
    assert str(small) == "9 edges between 4 nodes (input, a0.h0, a0.h1, logits)"
    assert str(large).endswith("edges between 10 nodes (input, a0.h0, a0.h1, ..., a3.h1, logits)")


@pytest.mark.parametrize("is_parallel", [False, True])
def test_alike_are_heads_of_a_layer_and_its_mlp_also_where_both_read_the_same(is_parallel, tmp_path):
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = models.NeoXConfig(**sizes, use_parallel_residual=is_parallel, partial_rotary_factor=0.5)
    graph = eqx.filter_eval_shape(models.NeoX.random, config, jax.random.key(0), np.float32).graph
    groups = [np.array(graph.senders)[group].tolist() for group in graph.sender_groups]
    assert groups == [["input"], ["a0.h0", "a0.h1"], ["m0"], ["a1.h0", "a1.h1"], ["m1"]]
    jc.Circuit(graph, graph.valid, np.zeros(graph.shape), {}).save(tmp_path / "circuit.json")
    assert json.loads((tmp_path / "circuit.json").read_text())["cfg"]["parallel_attn_mlp"] == is_parallel
    assert jc.Circuit.load(tmp_path / "circuit.json").graph == graph
