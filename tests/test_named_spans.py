"""Spans of positions that lie elsewhere in each prompt: `a0.h1@subject`, by columns of a task file."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import gpt2_tokenizer, letters_tokenizer, micro_model
from test_units import make

import jaxcircuits as jc
from jaxcircuits.evaluation.variation import _corrupted as with_corrupt_of
from jaxcircuits.named_spans import read_span
from jaxcircuits.texts import FIELDS

NAMES = ("subject", "verb")
APART = {"subject": [[0, 2], [1, 3], [4, 5]], "verb": [[3, 5], [0, 1], [1, 3]]}
ALIKE = {"subject": [[0, 2]] * 3, "verb": [[3, 5]] * 3}
LENGTH = np.array([6, 5, 5])
MISSION = pytest.mark.mission


def make_pairs(spans=APART, **changes):
    draws = np.random.default_rng(1)
    clean = draws.integers(0, 11, (3, 6))
    corrupt = (clean + draws.integers(1, 11, (3, 6))) % 11
    answers = {"answer": np.array([[7], [2], [5]]), "wrong": np.array([[3], [4], [1]])}
    given = {"clean": clean, "corrupt": corrupt, "length": LENGTH, "spans": spans, **answers}
    return jc.PromptPairs(**given | changes)


@functools.cache
def model_of(name, units, spans):
    return jc.with_units(micro_model(name, dtype=jnp.float64) if name == "gpt2" else make(name), units, spans)


def objective_of(name="gpt2", units="layers", spans=NAMES, where="apart", reference="resample"):
    return made(name, units, spans, where, reference)


@functools.cache
def made(name, units, spans, where, reference):
    pairs = make_pairs(APART if where == "apart" else ALIKE)
    return jc.Objective(model_of(name, units, spans), pairs, "logit_diff", reference)


def random_masks(objective, shares=(0.2, 0.6)):
    draws = np.random.default_rng(3)
    return np.stack([(draws.random(objective.graph.shape) < share) & objective.graph.valid for share in shares])


def by_hand(whole, mask, parts=3):
    """Each prompt's loss, from the model that is not divided: its own mask over edges and positions."""
    span_at = make_pairs().span_at(NAMES)
    losses = []
    for row in range(len(span_at)):
        at_positions = mask.reshape(-1, parts, mask.shape[1])[:, span_at[row]]  # [sender, position, receiver]
        losses.append(np.asarray(whole.per_example(np.moveaxis(at_positions, 1, 2).astype(float)))[row])
    return np.array(losses)


def test_which_span_each_position_is_in():
    np.testing.assert_array_equal(
        make_pairs().span_at(NAMES), [[0, 0, 2, 1, 1, 2], [1, 0, 0, 2, 2, 2], [2, 1, 1, 2, 0, 2]]
    )
    np.testing.assert_array_equal(make_pairs().span_at(("verb",))[0], [1, 1, 1, 0, 0, 1])
    assert make_pairs().span_at(()) is None


CASES = [("layers", "resample"), *(pytest.param("split", name, marks=MISSION) for name in ("mean", "zero"))]


@pytest.mark.parametrize("units, reference", CASES)
def test_an_edge_at_a_span_is_the_edge_at_its_tokens_in_each_prompt(units, reference, x64):
    """Against the model that is not divided, one prompt at a time."""
    whole, apart = (objective_of(units=units, spans=spans, reference=reference) for spans in (None, NAMES))
    masks = random_masks(apart)
    expected = np.stack([by_hand(whole, mask) for mask in masks])
    np.testing.assert_allclose(apart.per_example_many(masks, width=2), expected, atol=1e-10)


@MISSION
@pytest.mark.parametrize("name", ["gpt2", pytest.param("post-norm", marks=pytest.mark.slow)])
def test_small_circuits_by_their_live_nodes(name, x64):
    whole, apart = (objective_of(name, "split", spans) for spans in (None, NAMES))
    masks = random_masks(apart)
    expected = np.stack([by_hand(whole, mask) for mask in masks])
    np.testing.assert_allclose(jc.SparseEvaluator(apart).per_example_many(masks, width=2), expected, atol=1e-10)


@MISSION
def test_an_array_counts_inside_of_a_span_alone(x64):
    """As references of the whole model, whose rows it has for each part."""
    model, divided, pairs = model_of("gpt2", "split", None), model_of("gpt2", "split", NAMES), make_pairs()
    values = np.random.default_rng(5).normal(size=(len(model.graph.senders), 3, 6, 8))
    whole = jc.Objective(model, pairs, "logit_diff", values)
    apart = jc.Objective(divided, pairs, "logit_diff", np.repeat(values, 3, 0))
    mask = random_masks(apart)[1]
    np.testing.assert_allclose(apart.per_example(mask), by_hand(whole, mask), atol=1e-10)


@MISSION
@pytest.mark.parametrize("chunk", [2, pytest.param(1, marks=MISSION)])
def test_prompts_take_their_spans_with_them(chunk, x64):
    """Chosen, in chunks, with the corrupt version of others, and in the run that starts from the corrupt prompts."""
    apart, whole, pairs = objective_of(), objective_of(spans=None), make_pairs()
    mask = random_masks(apart)[1]
    expected = by_hand(whole, mask)
    some = jc.Objective(apart.model, pairs[[2, 0]], "logit_diff", microbatch=chunk)
    np.testing.assert_allclose(some.per_example(mask), expected[[2, 0]], atol=1e-10)
    np.testing.assert_allclose(apart.take(np.array([1])).per_example(mask), expected[[1]], atol=1e-10)
    if chunk == 2:
        order = np.array([1, 2, 0])
        others = by_hand(with_corrupt_of(whole, order), mask)
        np.testing.assert_allclose(with_corrupt_of(apart, order).per_example(mask), others, atol=1e-10)
        assert (np.abs(others - expected) > 1e-4).all()
        with pytest.raises(ValueError, match="restoring needs the prompts that the objective was made of"):
            apart.restoring(make_pairs(ALIKE))
    if chunk == 1:
        back = by_hand(whole.restoring(pairs), mask)
        np.testing.assert_allclose(apart.restoring(pairs).per_example(mask), back, atol=1e-10)


def decisions(objective, threshold, evaluator):
    found = jc.acdc(objective, threshold, evaluator=evaluator, groups=False, width=8)
    return found, [(d.removed, d.after) for d in found.decisions]


def middle(objective, share=0.4):
    return float(np.quantile(np.abs(jc.eap(objective).values[objective.graph.valid]), share))


ENGINES = [("gpt2", "layers")]
ENGINES += [pytest.param("gpt2", "split", marks=MISSION)]
ENGINES += [pytest.param(*case, marks=pytest.mark.slow) for case in (("grouped", "split"), ("post-norm", "split"))]


@MISSION
@pytest.mark.parametrize("name, units", ENGINES)
def test_live_decides_as_whole_masks_and_as_masks_over_positions(name, units, x64):
    apart, whole = objective_of(name, units), objective_of(name, units, None)
    threshold = middle(apart)
    live, taken = decisions(apart, threshold, jc.LiveEvaluator)
    _, dense = decisions(apart, threshold, jc.DenseEvaluator)
    np.testing.assert_allclose(taken, dense, atol=1e-10)
    graph, mask, before = apart.graph, apart.graph.valid.copy(), by_hand(whole, apart.graph.valid).mean()
    for decision in live.decisions:
        edge = graph.edge_index(decision.name)
        mask[edge] = False
        after = by_hand(whole, mask).mean()
        np.testing.assert_allclose(decision.after, after, atol=1e-10)
        assert decision.removed == (after - before < threshold)
        mask[edge], before = not decision.removed, after if decision.removed else before
    assert 0 < live.mask.sum() < graph.num_edges and (live.mask <= mask).all()


METHODS = [("eap", {}, "layers")]
OTHERS = [("eap_ig_inputs", {"steps": 2}), ("exact", {}), ("atp_star", {}), ("information_flow_routes", {})]
METHODS += [pytest.param(*method, "split", marks=MISSION) for method in OTHERS]


@MISSION
@pytest.mark.parametrize("method, options, units", METHODS)
def test_scores_of_columns_at_the_same_tokens_of_every_prompt_are_those_of_spans(method, options, units, x64):
    named, fixed = (objective_of(units=units, spans=spans, where="alike") for spans in (NAMES, "0:2,3:5"))
    each = [getattr(jc, method)(objective, **options).values for objective in (named, fixed)]
    np.testing.assert_allclose(*each, atol=1e-12)


@MISSION
def test_node_masks_and_means_of_columns_at_the_same_tokens_are_those_of_spans_by_position(x64):
    """Padding included."""
    named, fixed = (objective_of("gpt2", "split", spans, where="alike") for spans in (NAMES, "0:2,3:5"))
    nodes = [np.asarray(jc.NodeObjective(o, "edges").value_and_gradient(np.full(14, 0.7))[1]) for o in (named, fixed)]
    np.testing.assert_allclose(*nodes, atol=1e-12)
    means = [objective_of(spans=spans, where="alike", reference="mean").reference for spans in (NAMES, "0:2,3:5")]
    np.testing.assert_allclose(*means, atol=1e-12)


@MISSION
@pytest.mark.parametrize("units", ["layers", pytest.param("split", marks=MISSION)])
def test_columns_at_the_same_tokens_of_every_prompt_decide_as_spans_by_position(units, x64):
    """Live and by whole masks."""
    named, fixed = (objective_of(units=units, spans=spans, where="alike") for spans in (NAMES, "0:2,3:5"))
    threshold = middle(named)
    each = [decisions(objective, threshold, jc.LiveEvaluator)[1] for objective in (named, fixed)]
    np.testing.assert_allclose(*each, atol=1e-12)
    np.testing.assert_allclose(decisions(named, threshold, jc.DenseEvaluator)[1], each[0], atol=1e-10)


@MISSION
@pytest.mark.parametrize(
    "coarse, fine, reference",
    [
        (("layers", None), ("layers", NAMES), "mean"),
        pytest.param(("split", None), ("split", NAMES), "resample", marks=MISSION),
        pytest.param(("layers", NAMES), ("split", NAMES), "resample", marks=MISSION),
        pytest.param(("layers", None), ("layers", ("verb",)), "mean", marks=MISSION),
    ],
)
def test_a_circuit_of_whole_nodes_is_one_of_their_spans(coarse, fine, reference, x64):
    each = [objective_of("gpt2", *units, reference=reference) for units in (coarse, fine)]
    masks = random_masks(each[0], (0.0, 0.3, 0.7, 1.0))
    expanded = np.stack([jc.expand(mask, each[0].graph, each[1].graph) for mask in masks])
    np.testing.assert_allclose(each[0].many(masks), each[1].many(expanded), atol=1e-10)


def test_scores_of_the_spans_sum_to_the_edges(x64):
    whole, apart = objective_of(spans=None), objective_of()
    each = jc.eap(apart).values.reshape(-1, 3, apart.graph.shape[1])
    np.testing.assert_allclose(each.sum(1), jc.eap(whole).values, atol=1e-12)
    assert (np.abs(each) > 1e-6).any((0, 2)).all()


@MISSION
def test_eap_is_minus_the_gradient(x64):
    apart = objective_of(units="split")
    valid = apart.graph.valid
    gradient = np.asarray(jax.grad(apart)(np.where(valid, 1.0, 0.0)))
    np.testing.assert_allclose(jc.eap(apart).values[valid], -gradient[valid], atol=1e-10)


@MISSION
@pytest.mark.parametrize("spans", [NAMES, "0:2,3:5"])
def test_an_array_of_whole_nodes_is_divided_at_the_spans(spans, x64):
    """Also at spans that are the same positions of every prompt."""
    values = np.random.default_rng(0).normal(size=(5, 3, 6, 8))
    apart = jc.Objective(model_of("gpt2", "layers", spans), make_pairs(ALIKE), "logit_diff", np.repeat(values, 3, 0))
    whole = jc.Objective(model_of("gpt2", "layers", None), make_pairs(), "logit_diff", values)
    masks = random_masks(whole)
    finer = np.array([jc.expand(mask, whole.graph, apart.graph) for mask in masks])
    np.testing.assert_allclose(apart.many(finer), whole.many(masks), atol=1e-12)


@MISSION
def test_learnt_constants_count_inside_of_a_span_alone(x64):
    apart = objective_of(units="split")
    learnt = jc.optimal_ablation(apart, steps=2)
    again = jc.Objective(apart.model, make_pairs(), "logit_diff", learnt.array(3, 6))
    masks = apart.graph.valid[None] & ~np.eye(apart.graph.shape[0], dtype=bool)[:, :, None]
    np.testing.assert_allclose(again.many(masks), learnt.losses, atol=1e-10)
    outside = np.moveaxis(np.asarray(again.reference).reshape(-1, 3, 3, 6, 8), 1, 0)  # of each part
    for number in range(3):
        assert (outside[number][:, make_pairs().span_at(NAMES) != number] == 0).all()


@MISSION
@pytest.mark.parametrize("own_positions", [False, True])
def test_learnt_constants_begin_at_the_means_inside_of_a_span(own_positions, x64):
    apart = objective_of(units="split")
    learnt = jc.optimal_ablation(apart, steps=1, rate=1e-15, own_positions=own_positions)
    values, at = np.asarray(apart.reference), make_pairs().span_at(NAMES)
    for row, name in enumerate(apart.graph.senders):
        span = [*NAMES, "rest"].index(name.partition("@")[2])
        for position in range(6):
            inside = (at == span) & make_pairs().inside()
            inside = inside & (np.arange(6) == position) if own_positions else inside
            if inside[:, position].any():
                np.testing.assert_allclose(learnt.values[row, position * own_positions], values[row][inside].mean(0))


def test_names_of_edges_and_files(x64, tmp_path):
    graph = model_of("gpt2", "split", NAMES).graph
    assert graph.senders[:4] == ("input@subject", "input@verb", "input@rest", "a0.h0@subject")
    assert jc.with_units(micro_model("gpt2"), spans="subject,verb").graph == graph
    circuit = jc.Circuit(graph, graph.valid, np.where(graph.valid, 1.0, 0.0), {"spans": "subject,verb"}, 8)
    circuit.save(tmp_path / "c.json")
    read = jc.Circuit.load(tmp_path / "c.json")
    assert read.graph == graph and read.run["spans"] == "subject,verb"
    saved = json.loads((tmp_path / "c.json").read_text())
    text = json.dumps(saved).replace('"verb"', '"rest"')
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match="expected the name of a span, got 'rest'"):
        jc.Circuit.load(tmp_path / "d.json")


# --- the data --------------------------------------------------------------------------------------


def test_the_fields_that_columns_are_told_from_are_those_of_the_prompts():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(jc.PromptPairs)}


def test_spans_are_saved_framed_and_chosen_with_their_prompts(tmp_path):
    pairs = make_pairs()
    pairs.save(tmp_path / "t.npz")
    read = jc.PromptPairs.load(tmp_path / "t.npz")
    assert read.spans.keys() == APART.keys()
    for name in NAMES:
        np.testing.assert_array_equal(read.spans[name], APART[name])
        np.testing.assert_array_equal(pairs[1:].spans[name], APART[name][1:])
    framed = jc.data.framed(pairs, type("T", (), {"bos_token_id": 11})(), bos=True)
    np.testing.assert_array_equal(framed.spans["verb"], np.array(APART["verb"]) + 1)
    np.testing.assert_array_equal(framed.span_at(NAMES)[:, 1:], pairs.span_at(NAMES))


@pytest.mark.parametrize(
    "spans, said",
    [
        ({"a": [[0, 7], [0, 1], [0, 1]]}, r"spans: a: prompt 0: .* from 0 to 6, got \[0, 7\]"),
        ({"a": [[0, 6], [0, 6], [0, 1]]}, r"spans: a: prompt 1: .* from 0 to 5, got \[0, 6\]"),
        ({"a": [[0, 1], [0, 1], [2, 2]]}, r"spans: a: prompt 2: .* got \[2, 2\]"),
        ({"a": [[0, 1], [-1, 1], [2, 3]]}, r"spans: a: prompt 1: .* got \[-1, 1\]"),
        ({"a": [[0, 2], [0, 2], [0, 2]], "b": [[2, 3], [1, 3], [2, 3]]}, "prompt 1: a and b share a token"),
        ({"a": [[0, 1]]}, r"spans: a: expected whole numbers \(3, 2\)"),
        ({"a": [[0.5, 1]] * 3}, "spans: a: expected whole numbers"),
        ({"rest": [[0, 1]] * 3}, "spans: expected ends by name"),
        ({"a b": [[0, 1]] * 3}, "spans: expected ends by name"),
        ([[0, 1]] * 3, "spans: expected ends by name"),
    ],
)
def test_spans_that_are_none_are_refused(spans, said):
    with pytest.raises(ValueError, match=said):
        make_pairs(spans)


@pytest.mark.parametrize("spans", [["subject", (0, 4)], ["a", "a"], "subject,0:4", "rest", ["rest"], "a b", "a,,b"])
def test_names_of_spans_that_are_none_are_refused(spans):
    with pytest.raises(ValueError, match="spans: expected"):
        jc.with_units(micro_model("gpt2"), spans=spans)


def test_prompts_that_lack_a_span_and_a_model_of_no_prompt_are_refused():
    model = jc.with_units(micro_model("gpt2"), spans=["subject", "object"])
    said = "divided at subject, object: expected prompts that say where object is.* got those of subject, verb"
    with pytest.raises(ValueError, match=said):
        jc.Objective(model, make_pairs())
    with pytest.raises(ValueError, match="where subject, object is.* got prompts without spans"):
        jc.Objective(model, make_pairs(None))
    with pytest.raises(ValueError, match="lie elsewhere in each prompt: run its `of_prompt"):
        model(jnp.arange(3))
    with pytest.raises(ValueError, match="model with the same graph"):
        jc.Objective(jc.with_units(micro_model("gpt2"), spans=["subject"]), make_pairs(), "kl", model)


# --- texts -----------------------------------------------------------------------------------------

ROW = {"clean": "a b c d", "corrupt": "a e c d"}


def load(tmp_path, *rows, suffix="jsonl"):
    path = tmp_path / f"t.{suffix}"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return jc.PromptPairs.load(path, letters_tokenizer())


def test_columns_are_texts_or_positions(tmp_path):
    rows = [ROW | {"subject": "b c", "verb": [3, 4]}, {"clean": "f g", "corrupt": "f h", "subject": "f", "verb": " g"}]
    lines = ["clean,corrupt,subject,verb", 'a b c d,a e c d,b c,"[3, 4]"', "f g,f h,f, g"]
    for pairs in (load(tmp_path, *rows), load(tmp_path, *lines, suffix="csv")):
        np.testing.assert_array_equal(pairs.spans["subject"], [[1, 3], [0, 1]])
        np.testing.assert_array_equal(pairs.spans["verb"], [[3, 4], [1, 2]])


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"subject": "z"}, "row 1: subject: .* the clean prompt has once, got 'z', which it has 0 times"),
        ({"subject": " "}, "row 1: subject: .* which it has 0 times"),
        (
            {"clean": "a b a d", "corrupt": "a b c d", "subject": "a"},
            "row 1: subject: .* 2 times: take a longer one, or",
        ),
        (
            {"clean": "a b c d", "corrupt": "b a c d", "subject": "a"},
            r"at \[0, 1\] in the clean and at \[1, 2\] in the",
        ),
        ({"subject": [2, 5]}, r"row 1: subject: expected a span: \[first, end\] of the 4 .* got \[2, 5\]"),
        ({"subject": [2, 2]}, r"got \[2, 2\]"),
        ({"subject": [1]}, r"got \[1\]"),
        ({"subject": None}, "row 1: subject: expected a span"),
        ({"subject": True}, "row 1: subject: expected a span"),
        ({}, r"row 1 misses \['subject'\]"),
        ({"subject": "a", "verb": "d"}, r"row 1 has unknown fields \['verb'\]"),
    ],
)
def test_columns_that_are_no_spans_are_refused_by_row_and_column(bad, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load(tmp_path, ROW | {"subject": "a"}, ROW | bad)


@pytest.mark.parametrize("name", ["answers", "anwser", "positon", "a b", "rest", "1st", ""])
def test_a_column_that_is_almost_a_field_or_no_name_is_unknown(name, tmp_path):
    with pytest.raises(ValueError, match="row 0 has unknown fields"):
        load(tmp_path, ROW | {name: "a"})


def test_spans_that_share_a_token_are_refused_by_their_prompt(tmp_path):
    with pytest.raises(ValueError, match="spans: prompt 0: one and two share a token"):
        load(tmp_path, ROW | {"one": "b c", "two": "c d"})


@pytest.mark.parametrize("text", ["John", " John", "Anna and", "went", "Zürich", "ohn"])
def test_a_text_is_the_tokens_with_a_letter_of_it(text):
    tokenizer = gpt2_tokenizer()
    prompt = "When Anna and went to Zürich, John"
    ids = tokenizer.encode(prompt)
    first, end = read_span(text, prompt, prompt, len(ids), tokenizer)
    assert text.strip() in tokenizer.decode(ids[first:end])
    for shorter in (ids[first + 1 : end], ids[first : end - 1]):
        assert text.strip() not in tokenizer.decode(shorter)


def test_a_tokenizer_that_does_not_say_where_its_tokens_are_needs_positions():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"does not say where in a text its tokens are: give its token positions"):
        read_span("b", "a b", "a c", 2, Slow())
    assert read_span([1, 2], "a b", "a c", 2, Slow()) == (1, 2)


# --- the command line ------------------------------------------------------------------------------

LINES = [
    {"clean": "Anna Paul Tom Anna", "corrupt": "Anna Paul Tom Kate", "answer": "Paul", "wrong": "Tom"},
    {"clean": "Mark Lucy Rose Mark", "corrupt": "Mark Lucy Rose Tom", "answer": "Lucy", "wrong": "Rose"},
]


@MISSION
@pytest.mark.parametrize("suffix", ["csv", pytest.param("jsonl", marks=MISSION)])
def test_a_circuit_by_columns_from_the_command_line_to_its_judgement(suffix, run, tmp_path):
    lines = [LINES[0] | {"io": "Paul", "last": [3, 4]}, LINES[1] | {"io": "Rose", "last": [3, 4]}]
    task, bare, file = tmp_path / f"t.{suffix}", tmp_path / f"bare.{suffix}", tmp_path / "c.json"
    for path, rows in ((task, lines), (bare, LINES)):
        header = [] if suffix == "jsonl" else [",".join(rows[0])]
        cells = lambda row: ",".join(f'"{value}"' for value in row.values())  # noqa: E731
        path.write_text("\n".join([*header, *(json.dumps(row) if suffix == "jsonl" else cells(row) for row in rows)]))
    few = ("--random", 2) if suffix == "jsonl" else ("--no-controls",)
    options = ("--metric", "logit_diff", "--threshold", 0.01, "--units", "layers")
    code, _, said = run("discover", task, "--spans", "io,last", *options, "--out", file)
    assert code == 0, said
    circuit = jc.Circuit.load(file)
    assert circuit.run["spans"] == "io,last" and "a0@io" in circuit.graph.senders and 0 < circuit.mask.sum()
    code, printed, _ = run("show", file)
    assert code == 0 and "@last" in printed
    code, printed, said = run("evaluate", file, *few)
    assert code == 0, said
    code, _, said = run("evaluate", file, "--task", bare, *few)
    assert code == 1 and "divided at io, last" in said and "prompts without spans" in said
    code, printed, _ = run("tasks", task, "--show", 2)
    assert code == 0 and "Rose" in printed and "at [2, 3]" in printed
    if suffix == "jsonl":
        assert run("report", file, "--out", tmp_path / "page.html")[0] == 0
        code, _, said = run("evaluate", file, "--spans", "0:1", *few)
        assert code == 1 and "graph" in said
        code, _, said = run("discover", "ioi", "--spans", "io", *options)
        assert code == 1 and "prompts without spans" in said
        assert run("discover", task, *options, "--out", tmp_path / "whole.json")[0] == 0
        lines[1]["io"] = [1, 2]
        task.write_text("\n".join(map(json.dumps, lines)))
        code, _, said = run("evaluate", file, *few)
        assert code == 1 and "are others than the record's" in said
