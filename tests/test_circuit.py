"""The circuit's file: what it holds, what it reads of others, and what it refuses."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_mask

import jaxcircuits as jc
from jaxcircuits import layout

GRAPHS = {
    "gpt2": jc.Graph.transformer(2, 2),
    "attention-only": jc.Graph.transformer(2, 3, mlps=False),
    "one-mlp": jc.Graph.transformer(3, 1, mlps=(False, True, False)),
    "compiled": jc.Graph.transformer(1, 1, embeddings=("tok", "pos")),
    "units": jc.gate("adder").graph,
}


def random_circuit(graph, seed=0, **run):
    scores = np.random.default_rng(seed).normal(size=graph.shape) * graph.valid
    return jc.Circuit(graph, random_mask(graph, seed), scores, run, d_model=16)


def eap_ig_json():
    """As EAP-IG's `Graph.to_json` writes it: no format, no run, scores in single precision as Python floats."""
    graph = jc.Graph.transformer(1, 2)
    kept = {"input->a0.h1<v>", "a0.h1->logits", "input->m0", "m0->logits"}
    names = [graph.edge_name(*edge) for edge in graph.edges]
    return {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16},
        "nodes": {name: {"in_graph": name != "a0.h0"} for name in graph.nodes},
        "edges": {name: {"score": 0.5 * i, "in_graph": name in kept} for i, name in enumerate(names)},
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_a_saved_circuit_comes_back(name, tmp_path):
    circuit = random_circuit(GRAPHS[name], method="acdc", threshold=0.1, decisions=[{"edge": "m0", "delta": 1e-9}])
    circuit.save(tmp_path / "circuit.json")
    loaded = jc.Circuit.load(tmp_path / "circuit.json")
    assert (loaded.graph, loaded.run, loaded.d_model) == (circuit.graph, circuit.run, 16)
    np.testing.assert_array_equal(loaded.mask, circuit.mask)
    np.testing.assert_array_equal(loaded.scores, circuit.scores)


def test_the_file_is_a_superset_of_the_public_format(tmp_path):
    graph = GRAPHS["gpt2"]
    mask = graph.mask_of(["input->a0.h1<q>", "a0.h1->m1", "m1->logits"])
    circuit = dataclasses.replace(random_circuit(graph, method="eap"), mask=mask)
    circuit.save(tmp_path / "circuit.json")
    value = json.loads((tmp_path / "circuit.json").read_text())
    assert value.keys() == {"format", "cfg", "nodes", "edges", "run"} and value["format"] == "jaxcircuits/1"
    assert value["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert value["nodes"].keys() == set(circuit.graph.nodes) and len(value["edges"]) == circuit.graph.num_edges
    assert tuple(name for name, edge in value["edges"].items() if edge["in_graph"]) == circuit.edges
    assert value["edges"]["m0->a1.h1<k>"]["score"] == circuit.scores[circuit.graph.edge_index("m0->a1.h1<k>")]
    assert {name for name, node in value["nodes"].items() if node["in_graph"]} == {"input", "a0.h1", "m1", "logits"}
    assert value["run"] == {"method": "eap"}


def test_edges_that_do_not_exist_are_in_no_circuit():
    circuit = jc.Circuit(GRAPHS["gpt2"], np.ones(GRAPHS["gpt2"].shape, bool), np.zeros(GRAPHS["gpt2"].shape), {})
    assert circuit.num_edges == circuit.graph.num_edges == len(circuit.edges)


def test_values_of_numpy_and_jax_in_the_record_are_saved(tmp_path):
    run = {
        "threshold": np.float32(0.5),
        "counts": np.arange(3),
        "loss": jnp.float32(2),
        "margin": float("inf"),
        "steps": ({"flag": np.bool_(True), 7: np.array([np.nan])}, None),
    }
    random_circuit(GRAPHS["gpt2"], **run).save(tmp_path / "circuit.json")
    assert jc.Circuit.load(tmp_path / "circuit.json").run == {
        "threshold": 0.5,
        "counts": [0, 1, 2],
        "loss": 2.0,
        "margin": "inf",
        "steps": [{"flag": True, "7": ["nan"]}, None],
    }


def test_a_circuit_of_eap_ig_is_read(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(eap_ig_json()))
    circuit = jc.Circuit.load(path)
    assert (circuit.graph, circuit.run, circuit.d_model) == (jc.Graph.transformer(1, 2), {}, 16)
    assert set(circuit.edges) == {"input->a0.h1<v>", "a0.h1->logits", "input->m0", "m0->logits"}
    assert circuit.nodes == ("input", "a0.h1", "m0", "logits")
    np.testing.assert_array_equal(circuit.scores[circuit.graph.valid], 0.5 * np.arange(circuit.graph.num_edges))


def damaged(*path, to=None):
    """EAP-IG's file with one value replaced, or removed."""
    value = inner = eap_ig_json()
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    if to is None:
        del inner[path[-1]]
    return json.dumps(value)


FIRST = "input->a0.h0<q>"


@pytest.mark.parametrize(
    "text, message",
    [
        (damaged("edges", "input->m7", to={"score": 1, "in_graph": True}), "unknown receiver 'm7'"),
        (damaged("edges", "m0->a0.h0<q>", to={"score": 1, "in_graph": True}), "is no edge of this graph"),
        (damaged("edges", FIRST, "in_graph"), f"edge {FIRST}: expected an object with 'in_graph'"),
        (damaged("edges", FIRST, "in_graph", to=1), f"edge {FIRST}: expected an object with 'in_graph'"),
        (damaged("edges", FIRST, to=True), f"edge {FIRST}: expected an object"),
        (damaged("edges", FIRST, "score", to=float("nan")), f"edges {FIRST} score: expected a finite number, got nan"),
        (
            damaged("edges", FIRST, "score", to=10**400),
            f"{FIRST} score: expected a finite number, got one of 401",
        ),
        (damaged("edges", FIRST, "score", to="1"), f"edge {FIRST}: expected a finite number .* got '1'"),
        (damaged("edges", FIRST, "score"), f"edge {FIRST}: expected a score, as other edges have one"),
        (damaged("nodes", "logits", to={"in_graph": "no"}), "node logits: expected an object with 'in_graph'"),
        (damaged("nodes", "logits", to={"in_graph": 0}), "node logits: expected an object with 'in_graph'"),
        (damaged("edges"), "expected a circuit: a JSON object with 'cfg' and 'edges'"),
        (damaged("cfg", "n_layers"), "cfg: expected whole numbers n_layers"),
        (damaged("cfg", "n_heads", to=0), "cfg: expected whole numbers n_layers, n_heads"),
        (damaged("cfg", "n_heads", to="2"), "cfg: expected whole numbers"),
        (damaged("cfg", "n_heads", to=1), "nodes: expected the 4 nodes that cfg states, got more or less: 'a0.h1'"),
        (damaged("cfg", "parallel_attn_mlp", to=True), "parallel attention and MLP are not supported"),
        (damaged("cfg", "mlps", to=[True, True]), "expected one bool or 1"),
        (damaged("cfg", "mlps", to="yes"), "mlps: expected a list of true and false"),
        (damaged("cfg", "embeddings", to="tok"), "embeddings: expected a list of the names"),
        (damaged("cfg", "units", to=["x0"]), "units: expected a list of layers"),
        (damaged("run", to=[1]), "run: expected a JSON object"),
        (damaged("format", to="jaxcircuits/2"), "format 'jaxcircuits/2' is not known"),
        (damaged("nodes", "a0.h1"), "nodes: expected the 5 nodes that cfg states, got more or less: 'a0.h1'"),
        (damaged("nodes", "m0", to=[True]), "node m0: expected an object"),
        (damaged("nodes", "m0", to={"in_graph": True, "neurons": [True, False]}), "m0 has 'neurons': .*single neurons"),
        (damaged("nodes", "m0", to={"in_graph": True, "neurons_scores": [0.5]}), "m0 has 'neurons_scores': .*single"),
        (damaged("nodes", "m0", to={"in_graph": True, "neurons": []}), "m0 has 'neurons': .*single neurons"),
        (damaged("neurons", to=[[True]]), "'neurons': a circuit of single neurons cannot be read"),
        (
            damaged("edges", FIRST, to={"in_graph": True, "neurons": [True, False]}),
            f"edge {FIRST} has 'neurons': a circuit of single neurons",
        ),
        (
            damaged("nodes", "a0.h1", to={"in_graph": False}),
            "nodes: a0.h1 is not in the circuit, but edge .*a0.h1.* is",
        ),
        (damaged("nodes", to=["m0"]), "nodes: expected a JSON object"),
        (damaged("cfg", "n_heads", to=2147483648), "as many heads as the file lists, got 1 x 2147483648 with 5 nodes"),
        (damaged("cfg", "n_layers", to=10**30), "expected whole numbers n_layers"),
        (damaged("cfg", "embeddings", to=["\x1b[2J"]), "embeddings: expected a list of the names"),
        (damaged("cfg", "units", to=[[str(i) for i in range(20_000)]] * 2), "at most 134,217,728 entries, got 40000"),
        (json.dumps(eap_ig_json()).replace('"m0": {', '"logits": {}, "m0": {', 1), "expected each name once"),
        ("[" * 100_000, "at most 100 lists and objects within each other"),
        ("[1, 2]", "expected a circuit"),
        ('{"cfg": {', "is malformed: expected a circuit file in JSON"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name(text, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        jc.Circuit.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"threshold": [0.1]}, "run: threshold: expected a number, got \\[0.1\\]"),
        ({"metric_final": None}, "run: metric_final: expected a number, got None"),
        ({"seed": -1}, "run: seed: expected a whole number, 0 or more, got -1"),
        ({"seed": 2**63}, "run: seed: expected a whole number"),
        ({"prompts": True}, "run: prompts: expected a whole number"),
        ({"task": {"a": 1}}, "run: task: expected a text"),
        ({"groups": "yes"}, "run: groups: expected true or false"),
        ({"config": [1]}, "run: config: expected a JSON object"),
        ({"config": {"model": 3}}, "run: config: model: expected a text"),
        ({"config": {"size": 1.5}}, "run: config: size: expected a whole number"),
        ({"selection": {"rank": []}}, "run: selection: rank: expected a text"),
        ({"model": "\ud800"}, "run model: expected text, got half of a surrogate pair"),
    ],
)
def test_a_record_with_odd_entries_is_refused_by_their_names(entry, message, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**eap_ig_json(), "run": entry}))
    with pytest.raises(ValueError, match=message) as error:
        jc.Circuit.load(path)
    assert str(path) in str(error.value)


def test_a_file_of_the_circuits_own_edges_has_the_graph_of_its_nodes(tmp_path):
    """With an MLP that no edge leaves: by the edges alone it would be another graph."""
    value = eap_ig_json()
    value["edges"] = {name: value["edges"][name] for name in ("input->a0.h1<v>", "a0.h1->logits")}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(value))
    assert jc.Circuit.load(path).graph == jc.Graph.transformer(1, 2)
    assert jc.Circuit.load(path).edges == ("input->a0.h1<v>", "a0.h1->logits")
    del value["nodes"]
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="expected 'nodes', or all edges of the graph"):
        jc.Circuit.load(path)
    path.write_text(json.dumps({**eap_ig_json(), "nodes": None}))
    assert jc.Circuit.load(path).graph == jc.Graph.transformer(1, 2)


@pytest.mark.parametrize("own", [True, False])
def test_a_file_that_lost_edges_is_refused(own, tmp_path):
    path = tmp_path / "circuit.json"
    circuit = random_circuit(GRAPHS["gpt2"]).drop_dead_ends()
    circuit.save(path)
    value = json.loads(path.read_text())
    del value["edges"][circuit.edges[0]]
    if not own:
        del value["format"]
    path.write_text(json.dumps(value))
    lost = circuit.num_edges - 1
    with pytest.raises(ValueError, match=f"edges: expected all 46 .*run kept {lost + 1}; the file lists 45, {lost} of"):
        jc.Circuit.load(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no circuit file .*nothing.json"):
        jc.Circuit.load(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.json is malformed"):
        jc.Circuit.load(tmp_path / "binary.json")


def test_dropped_dead_ends_are_counted():
    graph = GRAPHS["gpt2"]
    mask = graph.mask_of(["input->a0.h0<q>", "a0.h0->m1", "m1->logits", "m0->logits", "input->a1.h0<k>"])
    circuit = jc.Circuit(graph, mask, np.zeros(graph.shape), {"method": "acdc"})
    kept = circuit.drop_dead_ends()
    assert kept.edges == ("input->a0.h0<q>", "a0.h0->m1", "m1->logits")
    assert kept.run == {"method": "acdc", "edges_with_dead_ends": 5, "edges_kept": 3}
    assert circuit.num_edges == 5 and circuit.run == {"method": "acdc"}


def test_scores_that_are_no_numbers_and_wrong_shapes_are_refused():
    graph = GRAPHS["gpt2"]
    mask, scores = np.ones(graph.shape, bool), np.zeros(graph.shape)
    scores[0, 0] = np.nan
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        jc.Circuit(graph, mask, scores, {})
    with pytest.raises(ValueError, match=r"mask: expected shape \(7, 15\), got \(6, 15\)"):
        jc.Circuit(graph, mask[1:], scores[1:], {})


LAYOUTS = {
    "grouped": layout.transformer(2, 4, 2),
    "parallel": layout.Layout(("input",), (layout.Stack(2, (layout.parallel(layout.heads(2), layout.mlp()),)),)),
    "joint": layout.Layout(("input",), (layout.Stack(2, (layout.heads(2, 1, is_joint=True), layout.mlp())),)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_holds_any_layout(name, tmp_path):
    circuit = random_circuit(jc.Graph(LAYOUTS[name]))
    circuit.save(tmp_path / "circuit.json")
    again = jc.Circuit.load(tmp_path / "circuit.json")
    assert again.graph == circuit.graph and again.graph.valid.shape == circuit.mask.shape
    assert (again.mask == circuit.mask).all() and (again.scores == circuit.scores).all()


@pytest.mark.parametrize(
    "path, value, said",
    [
        (("stacks", 0, "layers"), 2147483648, "count from 1 to"),
        (("stacks", 0, "layers"), 100000, "at most .* senders and receivers"),
        (("stacks", 0, "moments", 0, "ports", 0, "names"), "{layer.__class__}", "pattern with"),
        (("stacks", 0, "moments", 0, "ports", 0, "names"), "{index}" * 40, "a name of at most 256 letters"),
        (("stacks", 0, "moments", 0, "nodes", 0, "spans"), ["s" * 257], "a name of at most 256 letters"),
        (("stacks", 0, "moments", 0, "nodes", 0, "inputs"), [["q", [0]]] * 17, "at most 16 inputs of a node"),
        (("stacks", 0, "moments", 0, "nodes", 0, "inputs", 0, 1), [0, 9, 0, 0], "one receiver of q for each node"),
        (("embeddings",), "input", "a list of names"),
        (("stacks",), None, "expected embeddings and stacks"),
    ],
)
def test_a_layout_that_is_none_is_refused(path, value, said, tmp_path):
    file = tmp_path / "circuit.json"
    random_circuit(jc.Graph(LAYOUTS["grouped"])).save(file)
    record = json.loads(file.read_text())
    *way, last = path
    part = record["cfg"]["layout"]
    for key in way:
        part = part[key]
    part[last] = value
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"circuit.json: layout: .*{said}"):
        jc.Circuit.load(file)


def test_many_joint_nodes_of_a_file_share_what_reads_together():
    """Of 11,000 nodes, which a file may have, each own list of readers would be 121 million numbers."""
    count, inputs = 1000, (("x", tuple(range(1000))),)
    port, nodes = layout.Port("x", count, True, "n{index}"), layout.Nodes("x", count, inputs, "n{index}", is_joint=True)
    table = jc.Graph(layout.Layout(("input",), (layout.Stack(1, (layout.Moment((port,), (nodes,)),)),))).receiver_table
    assert len({id(receiver.readers) for receiver in table[:-1]}) == 1
    assert table[7].readers == tuple(range(1, 1001)) and table[7].owners == (8,)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "circuit.json"
    random_circuit(GRAPHS["gpt2"]).save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        random_circuit(GRAPHS["gpt2"], model=object()).save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["circuit.json"]


def some_scores(seed=0, graph=None, ties=False):
    graph = graph or jc.Graph.transformer(2, 2)
    values = np.random.default_rng(seed).normal(size=graph.shape)
    return jc.Scores(graph, np.round(values) if ties else values, True, "made up", {"metric": "kl"})


def by_hand(scores, edges, threshold, rank, greedy):
    """Names of the selected edges before dead ends are dropped: every step looks through all edges."""
    graph = scores.graph
    names = [graph.edge_name(*edge) for edge in graph.edges]
    strength = {name: abs(scores.of(name)) if rank == "absolute" else scores.of(name) for name in names}
    chosen, nodes = [], {"logits"}
    while edges is None or len(chosen) < edges:
        rest = [name for name in names if name not in chosen]
        if greedy:
            rest = [name for name in rest if name.split("->")[1].split("<")[0] in nodes]
        if not rest or (threshold is not None and max(map(strength.get, rest)) < threshold):
            break
        chosen.append(max(rest, key=strength.get))  # the first of equals: names are in edge order
        nodes.add(chosen[-1].split("->")[0])
    return chosen


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rank", ["signed", "absolute"])
@pytest.mark.parametrize(
    "choice", [{"edges": 0}, {"edges": 12}, {"edges": 46}, {"threshold": 0.4}, {"threshold": -9.0}]
)
@pytest.mark.parametrize("ties", [False, True])
def test_select_is_a_search_through_all_edges(choice, rank, greedy, ties):
    scores = some_scores(1, ties=ties)
    expected = by_hand(scores, choice.get("edges"), choice.get("threshold"), rank, greedy)
    circuit = jc.Circuit.select(scores, rank=rank, greedy=greedy, **choice)
    graph = scores.graph
    np.testing.assert_array_equal(circuit.mask, graph.drop_dead_ends(graph.mask_of(expected)))
    assert circuit.run["edges_with_dead_ends"] == len(expected)
    assert circuit.run["edges_kept"] == circuit.num_edges <= len(expected)
    assert circuit.run["selection"] == {"rank": rank, "greedy": greedy, **choice}
    np.testing.assert_array_equal(circuit.scores, scores.values)


def test_a_saved_circuit_can_be_selected_from(tmp_path):
    scores = some_scores(2)
    jc.Circuit.of(scores, d_model=8).save(tmp_path / "scores.json")
    circuit = jc.Circuit.select(jc.Circuit.load(tmp_path / "scores.json"), edges=9)
    assert circuit.edges == jc.Circuit.select(scores, edges=9).edges and circuit.d_model == 8
    assert circuit.run["method"] == "made up"


def test_whole_neurons_are_the_node(tmp_path):
    """As EAP-IG writes them where it chose edges: none, or all of them."""
    value = eap_ig_json()
    (tmp_path / "c.json").write_text(json.dumps(value))
    plain = jc.Circuit.load(tmp_path / "c.json")
    for neurons in (None, [True, True]):
        for node in value["nodes"].values():
            node |= {"neurons": neurons, "neurons_scores": None}
        (tmp_path / "c.json").write_text(json.dumps(value))
        read = jc.Circuit.load(tmp_path / "c.json")
        assert read.graph == plain.graph and (read.mask == plain.mask).all() and (read.scores == plain.scores).all()


def test_what_select_refuses():
    scores = some_scores()
    with pytest.raises(ValueError, match="one of a number of edges, a threshold and a share"):
        jc.Circuit.select(scores)
    with pytest.raises(ValueError, match="one of a number of edges, a threshold and a share"):
        jc.Circuit.select(scores, edges=1, threshold=0.1)
    with pytest.raises(ValueError, match="signed, absolute"):
        jc.Circuit.select(scores, edges=1, rank="size")
    with pytest.raises(ValueError, match=f"0 to {scores.graph.num_edges}, got 900"):
        jc.Circuit.select(scores, edges=900)
    with pytest.raises(ValueError, match="threshold: expected a finite number or None, got nan"):
        jc.Circuit.select(scores, threshold=float("nan"))
