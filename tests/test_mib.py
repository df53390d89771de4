"""MIB's submissions: read as EAP-IG reads them, every rule broken once, and the score against brute force."""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from conftest import drawn, letters_tokenizer, micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits import mib, mib_data

GRAPH = jc.Graph.transformer(2, 2)
SIZES = ["--size", "12", "--held-out", "8", "--method", "eap"]


def scored(seed=0, graph=GRAPH):
    values = np.random.default_rng(seed).normal(size=graph.shape) * graph.valid
    return jc.Circuit(graph, graph.valid, values, {"method": "eap"}, d_model=8)


# --- EAP-IG's loader on its own: what hannamw/EAP-IG (commit 795f560), src/eap/graph.py, makes of a file ----------


def eap_ig(file):
    """Edges and scores, in the order of its matrix, of the graph that `cfg` alone states; and those in the graph."""
    value = json.loads(file.read_text())
    cfg = value["cfg"]
    heads, layers = range(cfg["n_heads"]), range(cfg["n_layers"])
    assert not cfg["parallel_attn_mlp"] and cfg["d_model"] >= 0
    forward, edges = ["input"], []
    for layer in layers:
        inputs = [f"a{layer}.h{head}<{letter}>" for letter in "qkv" for head in heads]
        edges += [(sender, receiver) for sender in forward for receiver in inputs]
        forward += [f"a{layer}.h{head}" for head in heads]
        edges += [(sender, f"m{layer}") for sender in forward]
        forward += [f"m{layer}"]
    edges += [(sender, "logits") for sender in forward]
    columns = [f"a{layer}.h{h}<{letter}>" for layer in layers for letter in "qkv" for h in heads]
    place = {name: number for number, name in enumerate(columns)}
    for layer in layers:  # a layer's MLP comes after its heads' inputs
        place[f"m{layer}"] = (layer + 1) * 3 * len(heads) - 0.5
    place["logits"] = len(columns)
    edges.sort(key=lambda edge: (forward.index(edge[0]), place[edge[1]]))
    names = [f"{sender}->{receiver}" for sender, receiver in edges]
    assert value["edges"].keys() <= set(names) and value["nodes"].keys() == {*forward, "logits"}
    scores = {name: float(np.float32(value["edges"].get(name, {"score": 0.0})["score"])) for name in names}
    return scores, {name for name, edge in value["edges"].items() if edge["in_graph"]}


def pruned(edges):
    """Repeatedly without nodes that nothing feeds or nothing reads; the input is fed, the logits are read."""
    while True:
        read = {edge.split("->")[0] for edge in edges}
        fed = {edge.split("->")[1].split("<")[0] for edge in edges} & read | {"input"} & read
        heard = fed | {"logits"}
        ends = ((edge, *edge.split("->")) for edge in edges)
        kept = {edge for edge, sender, receiver in ends if sender in fed and receiver.split("<")[0] in heard}
        if kept == edges:
            return kept
        edges = kept


def best(scores, count, absolute):
    ranked = sorted(scores, key=lambda name: -(abs(scores[name]) if absolute else scores[name]))
    return pruned(set(ranked[:count]))


def areas(values):
    """MIB's loop over neighbouring sizes: under F, and under |1 - F|."""
    under = beside = 0.0
    for first in range(9):
        width = jc.MIB_SHARES[first + 1] - jc.MIB_SHARES[first]
        under += width * (values[first] + values[first + 1]) / 2
        beside += width * (abs(1 - values[first]) + abs(1 - values[first + 1])) / 2
    return under, beside


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """The bundled model's scores as a submission, and what the command printed."""
    from typer.testing import CliRunner

    from jaxcircuits.cli import app

    folder = tmp_path_factory.mktemp("mib") / "submission"
    result = CliRunner().invoke(app, ["mib", "ioi", *SIZES, "--out", str(folder)])
    assert result.exit_code == 0, result
    return folder, result.stdout


@pytest.mark.mission
def test_the_bundled_model_rehearses(submission):
    folder, printed = submission
    assert "a rehearsal, no submission: MIB has no model tiny-gpt2" in printed
    assert "this library's, not MIB's data" in printed and "12 scored, 8 others judged" in printed
    assert sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*.json")) == [
        "submission/ioi_tiny-gpt2.evaluation.json",
        "submission/ioi_tiny-gpt2/importances.json",
    ]
    found = jc.check_mib(folder)
    assert found.folders == ("ioi_tiny-gpt2",)
    [problem], [note] = found.problems, found.notes
    assert "expected gpt2 or qwen2.5 or gemma2 or llama3 as the model of ioi, got 'tiny-gpt2'" in problem
    assert "at least 2 tasks and 2 models" in note


@pytest.mark.mission
def test_the_score_is_that_of_evaluate(submission):
    """On the prompts that judge, which are others than those that scored."""
    folder, printed = submission
    record = json.loads((folder / "ioi_tiny-gpt2.evaluation.json").read_text())
    circuit = jc.Circuit.load(folder / "ioi_tiny-gpt2" / "importances.json")
    loaded = jc.load("tiny-gpt2")
    fit, judge = mib_data.generated(loaded.tokenizer, 20, 0).split(12)
    assert not {tuple(ids) for ids in fit.clean} & {tuple(ids) for ids in judge.clean}
    objective = jc.Objective(loaded.model, judge, "logit_diff")
    curve = jc.evaluate(objective, circuit, random=0).curve
    assert abs(record["cpr"] - curve.cpr) < 1e-6 and abs(record["cmd"] - curve.cmd) < 1e-6
    assert f"CPR {curve.cpr:.4f}" in printed and record["run"]["prompts"] == 8
    assert circuit.run["prompts"] == 12 and circuit.run["data"] == record["run"]["data"]


@pytest.mark.mission
def test_eap_ig_reads_the_same_edges_at_every_size(submission):
    file = submission[0] / "ioi_tiny-gpt2" / "importances.json"
    scores, _ = eap_ig(file)
    [circuit] = mib.read_result(file.parent)
    assert list(scores) == [circuit.graph.edge_name(*edge) for edge in circuit.graph.edges]  # ties go the same way
    for rank in ("signed", "absolute"):
        for share in jc.MIB_SHARES:
            count = int(share * len(scores))
            ours = jc.Circuit.select(circuit, edges=count, rank=rank)
            assert best(scores, count, rank == "absolute") == set(ours.edges)


def test_the_reference_is_mibs_counterfactual(submission):
    """The giver is exchanged for the receiver, and nothing else; a BOS token stands in front."""
    tokenizer = jc.load("tiny-gpt2").tokenizer
    pairs = mib_data.generated(tokenizer, 16, 3)
    assert (pairs.clean[:, 0] == tokenizer.bos_token_id).all() and (pairs.length == 16).all()
    for row in range(16):
        [place] = np.flatnonzero(pairs.clean[row] != pairs.corrupt[row])
        assert pairs.clean[row, place] == pairs.wrong[row, 0] and pairs.corrupt[row, place] == pairs.answer[row, 0]
        assert list(pairs.clean[row, :place]).count(pairs.wrong[row, 0]) == 1


# --- a grouped model, and rows of MIB's -----------------------------------------------------------

WORDS = "the cat sat on a mat and then it went home with her dog who was not at all happy about that".split()


def ioi_row(receiver, giver, other, *, flipped=None):
    text = "{} and {} went home then {} sat with"
    return {
        "prompt": text.format(receiver, giver, giver),
        "metadata": {"indirect_object": receiver, "subject": giver, "random_c": other},
        "s2_io_flip_counterfactual": {"prompt": flipped or text.format(receiver, giver, receiver)},
    }


ROWS = [ioi_row(*names) for names in (("cat", "dog", "mat"), ("dog", "cat", "mat"), ("mat", "cat", "dog"))]
ROWS += [ioi_row(*names) for names in (("mat", "dog", "cat"), ("her", "it", "cat"), ("it", "mat", "her"))]


@pytest.fixture
def grouped(tmp_path):
    """A folder of a model with two heads a key, and one of MIB's rows."""
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": len(WORDS) + 1, "num_key_value_heads": 2, "max_position_embeddings": 12}
    config = jc.models.LlamaConfig(**sizes)
    skeleton = eqx.filter_eval_shape(jc.models.Llama.random, config, jax.random.key(0), np.float32)
    jc.save(drawn(skeleton, 0), tmp_path / "grouped", letters_tokenizer(tuple(dict.fromkeys(WORDS))))
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS[:3]), ("validation", ROWS[3:])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.mission
def test_nine_circuits_of_a_grouped_model_in_ungrouped_names(run, grouped, monkeypatch):
    monkeypatch.chdir(grouped)
    before = set(grouped.rglob("*"))
    command = ["mib", "ioi", "--model", "grouped", "--data", "data", "--nine", "--method", "random", "--out", "out"]
    code, printed, error = run(*command)
    assert code == 0, error
    assert "data, train scored, validation judged; 3 scored, 3 others judged" in printed
    place = grouped / "out" / "ioi_grouped"
    record = grouped / "out" / "ioi_grouped.evaluation.json"
    assert set(grouped.rglob("*")) - before == {grouped / "out", place, *place.iterdir(), record}
    circuits = mib.read_result(place)
    total = jc.Graph.transformer(2, 4).num_edges
    for percent, circuit in zip((0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), circuits, strict=True):
        assert circuit.graph == jc.Graph.transformer(2, 4) and circuit.num_edges <= percent / 100 * total
        file = place / f"{str(float(percent)).replace('.', '_')}.json"
        scores, edges = eap_ig(file)
        assert edges == set(circuit.edges) == best(scores, int(percent / 100 * total), False)
    assert circuits[-1].num_edges > 0
    code, printed, _ = run("mib", "--check", "out")
    assert code == 1 and "got 'grouped': MIB has no other" in printed
    code, _, error = run(*command)
    assert code == 1 and "expected a folder without a result of ioi_grouped" in error and "would be lost" in error


@pytest.mark.mission
def test_given_scores_are_submitted_and_a_file_holds_both_sets_of_prompts(run, grouped):
    given = jc.Circuit.of(scored(2, jc.Graph.transformer(2, 4)))
    given.save(grouped / "given.json")
    (grouped / "rows.json").write_text(json.dumps(ROWS))
    command = ["mib", "ioi", "--model", grouped / "grouped", "--data", grouped / "rows.json", "--size", 3]
    code, printed, error = run(*command, "--scores", grouped / "given.json", "--out", grouped / "out")
    assert code == 0, error
    assert "rows.json, its first rows scored; 3 scored, 3 others judged" in printed
    scores, _ = eap_ig(grouped / "out" / "ioi_grouped" / "importances.json")
    assert scores == {given.graph.edge_name(*e): float(np.float32(given.scores[tuple(e)])) for e in given.graph.edges}
    scored(2).save(grouped / "other.json")
    code, _, error = run(*command, "--scores", grouped / "other.json", "--out", grouped / "again")
    assert code == 1 and "--scores: expected scores of this model, --units ungrouped" in error
    assert not (grouped / "again").exists()


@pytest.mark.parametrize("ties", [False, True])
def test_nine_circuits_score_as_mib_sums_them(ties, x64):
    objective = jc.Objective(micro_model("gpt2", dtype=jax.numpy.float64), micro_pairs(), "kl")
    graph = objective.graph
    sizes = [0, 0, 1, 3, 3, 8, 12, 20, 30] if ties else [0, 1, 2, 4, 6, 8, 12, 20, 30]
    circuits = []
    for seed, size in enumerate(sizes):
        rows, columns = np.random.default_rng(seed).permutation(graph.edges)[:size].T
        mask = np.zeros(graph.shape, bool)
        mask[rows, columns] = True
        circuits.append(jc.Circuit(graph, mask, np.zeros(graph.shape), {}))
    curve = jc.mib_curve(objective, circuits)
    empty, full = float(objective(0.0 * graph.valid)), float(objective(graph.valid))
    values = [(float(objective(circuit)) - empty) / (full - empty) for circuit in circuits]
    ordered = [value for _, value in sorted(zip(sizes, values, strict=True))]
    under, beside = areas([*ordered, 1.0])
    np.testing.assert_allclose([curve.cpr, curve.cmd], [under, beside], rtol=1e-9)
    assert curve.chosen == (*sizes, graph.num_edges)
    one = jc.mib_curve(objective, [scored(1, graph)])
    assert one.cpr == jc.faithfulness_curve(objective, scored(1, graph)).cpr
    with pytest.raises(ValueError, match="one circuit with scores or 9 circuits, got 2"):
        jc.mib_curve(objective, circuits[:2])


# --- every rule, broken once ----------------------------------------------------------------------


@pytest.fixture
def good(tmp_path, monkeypatch):
    """A submission that keeps all rules: of a benchmark whose models are all small."""
    for name, model in mib.MODELS.items():
        monkeypatch.setitem(mib.MODELS, name, mib.MibModel(model.hub, 2, 2, 8))
    nine = jc.mib_circuits(scored(1))
    jc.write_mib({("ioi", "gpt2"): scored(), ("mcqa", "qwen2.5"): nine}, tmp_path / "good")
    assert jc.check_mib(tmp_path / "good") == mib.Checked(("ioi_gpt2", "mcqa_qwen2.5"), (), ())
    return tmp_path / "good"


def change(path, entry, value):
    """Another value at `cfg.d_model`, or without the entry where it is None."""
    whole = json.loads(path.read_text())
    *names, last = entry.split(".")
    at = whole
    for name in names:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    path.write_text(json.dumps(whole))


SCORES, FIRST = "ioi_gpt2/importances.json", "mcqa_qwen2.5/0_1.json"
BROKEN = {
    "no such task": (lambda folder: (folder / "ioi_gpt2").rename(folder / "iio_gpt2"), "expected one of ioi, mcqa"),
    "no such pair": (lambda folder: (folder / "ioi_gpt2").rename(folder / "mcqa_gpt2"), "expected qwen2.5 or gemma2"),
    "a file too many": (lambda folder: (folder / "ioi_gpt2" / ".DS_Store").touch(), "nothing else, got 2 files"),
    "a file too few": (lambda folder: (folder / FIRST).unlink(), "one file of scores or 9 circuits, and nothing else"),
    "a pickle": (lambda folder: (folder / SCORES).rename(folder / "ioi_gpt2" / "a.pt"), "a .pt is a pickle"),
    "no JSON": (lambda folder: (folder / SCORES).write_text("{"), "importances.json is malformed"),
    "no nodes": (lambda folder: change(folder / SCORES, "nodes", None), "got no nodes"),
    "no parallel": (
        lambda folder: change(folder / SCORES, "cfg.parallel_attn_mlp", None),
        "expected parallel_attn_mlp",
    ),
    "no width": (lambda folder: change(folder / SCORES, "cfg.d_model", None), "expected d_model, which EAP-IG"),
    "another width": (lambda folder: change(folder / SCORES, "cfg.d_model", 12), "expected the sizes of gpt2, {"),
    "an edge left out": (lambda folder: save(folder, without="m0->m1"), "expected all 46, got 45"),
    "an edge that is none": (lambda folder: change(folder / SCORES, "edges.m1->m0", {}), "'m1->m0' is no edge"),
    "a score left out": (
        lambda folder: change(folder / SCORES, "edges.m0->m1.score", None),
        "edge m0->m1: expected a score",
    ),
    "no number": (lambda folder: change(folder / SCORES, "edges.m0->m1.score", "1"), "a finite number as score"),
    "beyond float32": (lambda folder: change(folder / SCORES, "edges.m0->m1.score", 1e39), "that float32 can hold"),
    "equal scores": (lambda folder: save(folder, scores=0.5), "expected scores that differ, got 0.5 of every edge"),
    "shared keys": (lambda folder: save(folder, graph=jc.Graph.transformer(2, 2, 1)), "its own query, key and value"),
    "no MLP": (lambda folder: save(folder, graph=jc.Graph.transformer(2, 2, mlps=False)), "an MLP in every layer"),
    "another model": (lambda folder: save(folder, graph=jc.Graph.transformer(3, 2)), "is it another model's?"),
    "too large": (lambda folder: scored().save(folder / FIRST), "expected at most 50.0 % of 46 edges (23), got 46"),
}


def save(folder, *, graph=GRAPH, scores=None, without=None):
    circuit = scored(0, graph)
    if scores is not None:
        circuit = jc.Circuit(graph, graph.valid, np.full(graph.shape, scores), {}, 8)
    circuit.save(folder / SCORES)
    if without is not None:
        change(folder / SCORES, "format", None)
        change(folder / SCORES, f"edges.{without}", None)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_said(rule, good, run):
    breaks, message = BROKEN[rule]
    breaks(good)
    [problem] = jc.check_mib(good).problems
    assert message in problem
    code, printed, error = run("mib", "--check", good)
    assert code == 1 and problem in printed and "1 of MIB's rules are broken" in error


def test_a_folder_that_keeps_the_rules(good, run, tmp_path):
    code, printed, error = run("mib", "--check", good)
    assert (code, error) == (0, "") and "as MIB's rules say" in printed
    (good / "abs_True").mkdir()
    (good / "ioi_gpt2").rename(good / "abs_True" / "ioi_gpt2")  # circuits of one ranking, where there are two
    assert jc.check_mib(good).problems == () and jc.check_mib(good).folders[0] == "ioi_gpt2"
    (tmp_path / "empty").mkdir()
    assert "expected folders 'task_model', got none" in jc.check_mib(tmp_path / "empty").problems[0]
    with pytest.raises(ValueError, match="expected a submission"):
        jc.check_mib(tmp_path / "nowhere")


def test_scores_that_are_one_in_float32_tie(good):
    """EAP-IG ranks the rounded scores; so does the evaluation here, and a tie at a cut is said."""
    values = scored().scores + 1e9 * GRAPH.valid
    jc.Circuit(GRAPH, GRAPH.valid, values, {}, 8).save(good / SCORES)
    change(good / SCORES, "edges.m1->logits.score", 2e9)
    [read] = mib.read_result(good / "ioi_gpt2")
    assert len(set(read.scores[GRAPH.valid])) == 2
    [note] = jc.check_mib(good).notes
    assert "edges of equal scores at the cut of 5 %, 10 %, 20 %, 50 %" in note  # 2 % of 46 edges are none


def test_graphs_of_mibs_models_have_its_numbers_of_edges():
    """EDGE_COUNTS of mttk/MIB-circuit-track-autoeval (commit b48d9ba)."""
    counts = {name: jc.Graph.transformer(model.layers, model.heads).num_edges for name, model in mib.MODELS.items()}
    assert counts == {"gpt2": 32491, "qwen2.5": 179749, "gemma2": 74218, "llama3": 1592881}


# --- MIB's rows -----------------------------------------------------------------------------------


def choice_row(right, wrong, *, key=1):
    labels = ["x", right, wrong, "y"]
    other = {"prompt": f"q {wrong} {right} ?", "choices": {"label": labels}, "answerKey": 2}
    return {
        "prompt": f"q {right} {wrong} ?",
        "choices": {"label": labels},
        "answerKey": key,
        "symbol_counterfactual": other,
    }


def sum_row(label, other, operator="+"):
    counterfactual = None if other is None else {"prompt": f"c {other} =", "label": other}
    return {"prompt": f"p {label} =", "label": label, "operator": operator, "random_counterfactual": counterfactual}


LETTERS = letters_tokenizer((*"abcdefghpqxyz?=0123456789", "37"))


def text_of(ids):
    return LETTERS.decode(ids)


def test_rows_of_each_task_are_mibs_prompts():
    rows = [{**ioi_row("a", "b", "c"), "prompt": "a p b q b", "s2_io_flip_counterfactual": {"prompt": "a p b q a"}}]
    cases = (
        ("ioi", rows, ("a p b q b", "a p b q a", "a", "b")),
        ("mcqa", [choice_row("c", "d")], ("q c d ?", "q d c ?", "c", "d")),
        ("arc-easy", [choice_row("e", "f")], ("q e f ?", "q f e ?", "e", "f")),
        ("arithmetic-addition", [sum_row(3, 37, "-"), sum_row(7, 37)], ("p 7 =", "c 37 =", "7", "37")),
        ("arithmetic-subtraction", [sum_row(3, 37, "-"), sum_row(7, 37)], ("p 3 =", "c 37 =", "3", "37")),
    )
    for task, given, expected in cases:
        pairs, left_out = mib_data.prompts_of_rows(task, given, LETTERS)
        assert len(pairs) == 1 and left_out == {}
        assert (text_of(pairs.clean[0]), text_of(pairs.corrupt[0])) == expected[:2]
        assert (text_of(pairs.answer[0]), text_of(pairs.wrong[0])) == expected[2:]


def test_rows_that_do_not_count_are_left_out_and_said():
    """MIB's own code passes over some, by their answers' tokens; two kinds more cannot be patched, or say nothing."""
    rows = [sum_row(7, None), sum_row("1 2", 3), sum_row(1, "2 3"), sum_row(4, 5), sum_row(6, 6), sum_row(8, 9)]
    rows[3]["prompt"] += " x"
    pairs, left_out = mib_data.prompts_of_rows("arithmetic-addition", rows, LETTERS)
    assert text_of(pairs.clean[0]) == "p 8 =" and len(pairs) == 1
    assert left_out == {mib_data.OTHER_LENGTH: 1, mib_data.SAME_TOKEN: 1}
    with pytest.raises(ValueError, match="can read, got {'clean and corrupt prompts of different lengths': 1"):
        mib_data.prompts_of_rows("arithmetic-addition", rows, LETTERS, 2)  # the first two of those that MIB counts
    names = [ioi_row("a", "b", "c d"), ioi_row("a b", "b", "c")]
    assert [mib_data._example("ioi", row, lambda text: len(text.split())) for row in names] == [None, None]
    uneven = choice_row("a b", "c")
    assert mib_data._example("mcqa", uneven, lambda text: len(text.split())) is None


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a"}, "row 0 of ioi: expected MIB's columns, got no metadata"),
        ({**ioi_row("a", "b", "c"), "s2_io_flip_counterfactual": "a"}, "got no s2_io_flip_counterfactual.prompt"),
        ({**ioi_row("a", "b", "c"), "prompt": 3}, "expected a text as prompt, got 3"),
        ({**ioi_row("a", "b", "c"), "prompt": "a strange b"}, "does not know 'strange'"),
    ],
)
def test_other_rows_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        mib_data.prompts_of_rows("ioi", [row], LETTERS)
    with pytest.raises(ValueError, match="answerKey to be the number of one of the labels, got 7"):
        mib_data.prompts_of_rows("mcqa", [choice_row("a", "b", key=7)], LETTERS)


def test_prompts_begin_as_transformerlens_has_them():
    class Begun:
        bos_token_id, eos_token_id = 9, 8

    assert mib_data.begin_of(Begun()) == [9] and mib_data.begin_of(LETTERS) == []
    Begun.bos_token_id = None
    assert mib_data.begin_of(Begun()) == [8]


def test_copies_of_a_data_set(tmp_path, monkeypatch):
    inside = tmp_path / "copy" / "4_answer_choices"
    inside.mkdir(parents=True)
    (tmp_path / "copy" / "2_answer_choices").mkdir()
    (tmp_path / "copy" / "2_answer_choices" / "train.jsonl").write_text('{"of": "another"}')
    (inside / "train.jsonl").write_text('{"n": 1}\n{"n": 2}')
    (inside / "validation.json").write_text('[{"n": 3}]')
    read = mib_data.rows_of
    assert (
        [row["n"] for row in read("mcqa", tmp_path / "copy", "train")]
        == [1, 2]
        == [row["n"] for row in read("mcqa", inside / "train.jsonl", "")]
    )
    assert read("mcqa", tmp_path / "copy", "validation") == [{"n": 3}]
    with pytest.raises(ValueError, match="expected files test.* in 4_answer_choices, as in the hub's mib-bench/copyc"):
        read("mcqa", tmp_path / "copy", "test")
    (inside / "test-0.json").write_text("[3]")
    with pytest.raises(ValueError, match="expected a list of JSON objects"):
        read("mcqa", tmp_path / "copy", "test")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (inside / "rows.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="needs pyarrow"):
        read("mcqa", inside / "rows.parquet", "")
    with pytest.raises(ValueError, match="a file that ends in .jsonl or .json or .parquet"):
        read("mcqa", Path(__file__), "")


def test_the_hub_is_asked_for_mibs_data(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, **options):
        asked.append((name, options))
        return str(tmp_path / "5f3e")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert mib_data.download("mcqa") == (tmp_path / "5f3e", "hub mib-bench/copycolors_mcqa at 5f3e")
    [(name, options)] = asked
    assert name == "mib-bench/copycolors_mcqa" and options["repo_type"] == "dataset"
    assert options["allow_patterns"][0] == "4_answer_choices/*.jsonl"

    def offline(name, **options):
        raise OSError("no way there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ValueError, match="the hub did not give mib-bench/ioi: no way there; give a copy by --data"):
        mib_data.download("ioi")


def test_what_the_command_refuses(run, grouped, monkeypatch):
    """All of it before anything is computed or written."""
    monkeypatch.chdir(grouped)
    (grouped / "full").mkdir()
    (grouped / "full" / "thesis.tex").touch()
    (grouped / "gpt2").mkdir()
    before = set(grouped.rglob("*"))
    out = ["--out", "out"]
    mine = ["--model", "grouped"]
    for wrong, message in (
        ([], "expected a task (ioi, mcqa,"),
        (["ioi"], "and --out FOLDER, or --check FOLDER"),
        (["ioi", "--check", "full"], "leave out the task and --out"),
        (["greater_than", *out], "expected one of ioi, mcqa"),
        (["mcqa", "--model", "gpt2", *out], "expected qwen2.5 or gemma2 or llama3 for mcqa, got gpt2"),
        (["ioi", "--model", "./gpt2", *out], "is ./gpt2 MIB's gpt2? Then give --as gpt2"),
        (["ioi", "--as", "gpt3", *out], "--as: expected one of gpt2, qwen2.5"),
        (["ioi", "--as", "gpt2", *out], "expected the sizes of gpt2, {'n_layers': 12"),
        (["ioi", "--out", "full"], "expected a new or empty folder, or a submission's, got full with thesis.tex"),
        (["ioi", "--rank", "absolute", *out], "--rank absolute: expected --nine besides"),
        (["ioi", "--rank", "best", *out], "--rank: expected one of signed, absolute, got 'best'"),
        (["ioi", "--scores", "nowhere.json", *out], "no circuit file nowhere.json"),
        (["ioi", "--scores", "x.json", "--method", "eap", *out], "--scores is a result: leave out --method"),
        (["ioi", "--method", "eap", "--checkpoint", "kept", *out], "eap has nothing to keep"),
        (["ioi", "--method", "eap", "--option", "steps=3", *out], "unknown hyperparameter 'steps'"),
        (["ioi", "--split", "train", *out], "--split: expected validation or test, got 'train'"),
        (["ioi", *mine, "--split", "test", *out], "--split: expected MIB's data set or a folder of it, got generator"),
        (["arc_easy", *mine, *out], "this library makes no prompts of arc-easy"),
        (["ioi", *mine, "--data", "nowhere", *out], "a folder or file of MIB's rows, got no such: nowhere"),
        (["ioi", *mine, "--data", "data/train.jsonl", *out], "expected fewer than the 3 prompts of data/train.jsonl"),
        (["ioi", "--model", "tracr-reverse", *out], "expected MIB's graph: heads, each with its own query"),
        (["ioi", "--model", "gate-xor", *out], "a network of units has no others than its own"),
    ):
        code, _, error = run("mib", *wrong)
        assert code == 1 and message in error, (wrong, error)
        assert set(grouped.rglob("*")) == before
