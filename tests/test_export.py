import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import report

GRAPH = jc.Graph.transformer(3, 2)
EDGES = ("input->a0.h1<q>", "input->a0.h1<v>", "a0.h1->m1", "m1->a2.h0<k>", "a2.h0->logits")


def circuit(edges=EDGES, **run):
    mask = GRAPH.mask_of(list(edges))
    scores = np.zeros(GRAPH.shape)
    scores[mask] = np.linspace(-1, 2, mask.sum())
    return jc.Circuit(GRAPH, mask, scores, run)


def test_dot_has_one_line_an_edge():
    text = report.to_dot(circuit())
    lines = re.findall(r'"(\S+)" -> "(\S+)" \[penwidth=([\d.]+), color="(#\w+)".*?(?:label="([qkv])".*)?\];', text)
    kinds = [(sender, f"{node}<{kind}>" if kind else node) for sender, node, _, _, kind in lines]
    assert tuple(f"{sender}->{receiver}" for sender, receiver in kinds) == circuit().edges
    widths = {line[:2]: float(line[2]) for line in lines}
    assert max(widths.values()) == 5.0 and len({line[3] for line in lines}) == 2  # both signs
    assert text.count("rank=same") == 5  # input, a0, m1, a2, logits


def test_networkx_keeps_queries_keys_and_values_apart():
    networkx = pytest.importorskip("networkx")
    network = report.to_networkx(circuit(task="ioi"))
    assert set(network.nodes) == set(circuit().nodes) and network.graph["run"] == {"task": "ioi"}
    assert set(network["input"]["a0.h1"]) == {"q", "v"}
    assert network["a2.h0"]["logits"][""]["score"] == circuit().scores[GRAPH.edge_index("a2.h0->logits")]
    assert networkx.is_directed_acyclic_graph(network)


def test_markdown_says_what_determined_the_result():
    text = report.to_markdown(circuit(task="a|b", model="<m>", metric="kl", metric_full=0.0, metric_final=0.25))
    assert "# a\\|b on &lt;m>" in text and "kl: 0 whole model, 0.25 circuit" in text
    assert f"5 of {GRAPH.num_edges} edges" in text
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| (\S+) \|$", text, re.MULTILINE)
    assert len(rows) == 5 and {f"{sender}->{receiver}" for sender, receiver, _ in rows} == set(EDGES)
    sizes = [abs(float(score)) for *_, score in rows]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("edges", [EDGES, ()], ids=["edges", "none"])
def test_the_figure_has_every_node_and_edge(edges, tmp_path):
    drawn = circuit(edges)
    figure = report.plot(drawn)
    [axes] = figure.axes
    assert len(axes.patches) == len(edges)
    assert {text.get_text() for text in axes.texts} == set(drawn.nodes)
    figure.savefig(tmp_path / "circuit.svg")
    assert ElementTree.parse(tmp_path / "circuit.svg").getroot().tag.endswith("svg")
