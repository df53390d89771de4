"""Names and files of MIB and AutoCircuit, both ways."""

import json

import numpy as np
import pytest
from conftest import random_mask

import jaxcircuits as jc

GRAPH = jc.Graph.transformer(3, 4)


def scored(seed=0, mask=None):
    scores = np.random.default_rng(seed).normal(size=GRAPH.shape) * GRAPH.valid
    return jc.Circuit(GRAPH, random_mask(GRAPH, seed) if mask is None else mask, scores, {"method": "eap"}, d_model=8)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("a0.h3->m2", "A0.3->MLP 2"),
        ("input->a2.h1<q>", "Resid Start->A2.1.Q"),
        ("m1->a2.h0<k>", "MLP 1->A2.0.K"),
        ("a1.h2->a2.h3<v>", "A1.2->A2.3.V"),
        ("m2->logits", "MLP 2->Resid End"),
        ("input->logits", "Resid Start->Resid End"),
    ],
)
def test_autocircuit_calls_it_so(ours, theirs):
    assert jc.autocircuit_name(ours) == theirs and jc.from_autocircuit_name(theirs) == ours


def test_every_edge_has_a_name_there_and_comes_back():
    names = [GRAPH.edge_name(*edge) for edge in GRAPH.edges]
    theirs = [jc.autocircuit_name(name) for name in names]
    assert len(set(theirs)) == GRAPH.num_edges
    assert [jc.from_autocircuit_name(name) for name in theirs] == names


def test_a_circuit_of_autocircuit_comes_back():
    circuit = scored()
    back = jc.from_autocircuit(GRAPH, jc.to_autocircuit(circuit))
    np.testing.assert_array_equal(back.mask, circuit.mask)
    np.testing.assert_array_equal(back.scores, circuit.scores * circuit.mask)
    unscored = jc.from_autocircuit(GRAPH, list(jc.to_autocircuit(circuit)))
    np.testing.assert_array_equal(unscored.mask, circuit.mask)


def test_a_submission_of_scores_is_read_back(tmp_path):
    files = jc.write_mib({("ioi", "gpt2"): scored(0), ("arc_easy", "llama3"): scored(1)}, tmp_path / "eap")
    assert {str(file.relative_to(tmp_path)) for file in files} == {
        "eap/ioi_gpt2/importances.json",
        "eap/arc-easy_llama3/importances.json",
    }
    value = json.loads(files[0].read_text())  # what EAP-IG's loader looks at
    assert value["cfg"] == {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 8}
    assert len(value["edges"]) == GRAPH.num_edges and value["edges"]["input->m0"].keys() == {"score", "in_graph"}
    read = jc.read_mib(tmp_path / "eap")
    assert read.keys() == {("ioi", "gpt2"), ("arc-easy", "llama3")}
    [circuit] = read["ioi", "gpt2"]
    np.testing.assert_array_equal(circuit.scores, scored(0).scores)


def test_a_submission_of_nine_circuits_is_read_back(tmp_path):
    circuits = jc.mib_circuits(scored(mask=GRAPH.valid))
    assert len(circuits) == 9
    for percent, circuit in zip((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), circuits, strict=True):
        assert circuit.num_edges <= percent / 100 * GRAPH.num_edges
    files = jc.write_mib({("ioi", "gpt2"): circuits}, tmp_path)
    assert len(set(files)) == 9 and files[0].name == "0_1.json"
    read = jc.read_mib(tmp_path)["ioi", "gpt2"]
    assert [circuit.num_edges for circuit in read] == sorted(circuit.num_edges for circuit in circuits)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a0.x' has no name in AutoCircuit"):
        jc.autocircuit_name("a0.x->m1")
    with pytest.raises(ValueError, match="'A0' is no node of AutoCircuit"):
        jc.from_autocircuit_name("A0->MLP 1")
    with pytest.raises(ValueError, match="sender->receiver"):
        jc.from_autocircuit_name("A0.1")
    with pytest.raises(ValueError, match="unknown receiver"):
        jc.from_autocircuit(GRAPH, ["A0.1->MLP 7"])
    with pytest.raises(ValueError, match="finite"):
        jc.from_autocircuit(GRAPH, {"A0.1->MLP 1": float("nan")})
    for task in ("../x", "a/b", "/tmp", "..", "a\\b", "\x1b[2J"):
        with pytest.raises(ValueError, match="MIB: expected the name of a folder"):
            jc.write_mib({(task, "gpt2"): scored()}, tmp_path / "mib")
        with pytest.raises(ValueError, match="MIB: expected the name of a folder"):
            jc.write_mib({("ioi", task): scored()}, tmp_path / "mib")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="without underscore"):
        jc.mib_name("ioi", "my_gpt2")
    with pytest.raises(ValueError, match="expected 9 circuits"):
        jc.write_mib({("ioi", "gpt2"): [scored()]}, tmp_path)
    with pytest.raises(ValueError, match="at most 0.1 %"):
        jc.write_mib({("ioi", "gpt2"): [scored()] * 9}, tmp_path)
    with pytest.raises(ValueError, match="holds no folder"):
        jc.read_mib(tmp_path)
