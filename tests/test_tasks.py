"""The built-in tasks' prompts, token by token, with GPT-2's own tokenizer."""

import functools
import json
import re

import numpy as np
import pytest
from conftest import GOLDEN, gpt2_tokenizer, letters_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.tasks import induction_text, ioi, words
from jaxcircuits.tasks.task import known_words

WORDS = {name: value for name, value in vars(words).items() if name.isupper()}
LENGTHS = {
    "ioi": 15, "greater_than": 10, "docstring": 53, "induction": 12, "induction_text": 300, "gendered_pronoun": 10,
}  # fmt: skip
PLACES = {"ioi": [2, 4, 10], "greater_than": [7], "induction": [3], "gendered_pronoun": [1]}
GRAPHS = {
    "ioi": jc.Graph.transformer(12, 12),
    "greater_than": jc.Graph.transformer(12, 12),
    "docstring": jc.Graph.transformer(4, 8, mlps=False),
}

gpt2 = functools.cache(gpt2_tokenizer)


def generate(task, **options):
    return jc.tasks.TASKS[task].generate(gpt2(), **{"size": 20, **options})


def texts(ids):
    return [gpt2().decode(row) for row in ids]


def word(ids):
    return [gpt2().decode([int(one)]).strip() for one in np.ravel(ids)]


@pytest.mark.parametrize("name", WORDS)
def test_every_word_is_one_token_of_gpt2(name):
    assert len(known_words(gpt2(), WORDS[name], 1)) == len(WORDS[name])
    assert len(set(WORDS[name])) == len(WORDS[name])


@pytest.mark.parametrize("task", LENGTHS)
def test_prompts_have_the_same_length_and_no_bos(task):
    pairs = generate(task)
    assert pairs.clean.shape == (20, LENGTHS[task])
    assert (pairs.length == LENGTHS[task]).all()
    inside = [pairs.clean[:, 1:], pairs.corrupt[:, 1:]] if task == "docstring" else [pairs.clean, pairs.corrupt]
    assert not np.isin(gpt2().bos_token_id, inside)


def test_every_task_is_tested():
    elsewhere = {"tracr_reverse", "tracr_proportion", "logic_gates"}  # test_compiled_tasks.py, test_gates.py
    assert LENGTHS.keys() | elsewhere == jc.tasks.TASKS.keys()


@pytest.mark.parametrize("task", LENGTHS)
def test_a_seed_is_one_set_of_prompts(task):
    one, same, other = (generate(task, seed=seed) for seed in (3, 3, 4))
    for name in ("clean", "corrupt", "answer", "wrong", "positions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.clean != other.clean).any()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(PLACES)))
def test_clean_and_corrupt_differ_at_the_same_few_places(seed, task):
    pairs = generate(task, seed=seed, size=5)
    for differs in pairs.clean != pairs.corrupt:
        assert np.flatnonzero(differs).tolist() == PLACES[task]


@pytest.mark.parametrize("task", LENGTHS)
def test_prompts_are_the_golden_ones(task):
    """A changed list, template or order of draws changes what every number was measured on."""
    record = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
    golden, pairs = record["tasks"][task], generate(task, seed=record["seed"], size=record["size"])
    rows = len(golden["clean"])
    assert texts(pairs.clean[:rows]) == golden["clean"]
    for name, ours in (("clean_ids", "clean"), ("corrupt_ids", "corrupt"), ("wrong", "wrong"), ("positions",) * 2):
        values = getattr(pairs, ours)
        assert golden[name] == (None if values is None else values[:rows].astype(int).tolist()), name
    if pairs.positions is None:
        assert golden["answer"] == pairs.answer[:rows].tolist()


@pytest.mark.parametrize("task", LENGTHS)
def test_no_prompt_is_in_training_and_test(task):
    train, test = jc.tasks.TASKS[task].train_and_test(gpt2(), seed=1, size=40)
    assert len(train) == len(test) == 40
    every = {bytes(row) for row in [*train.clean, *test.clean]}
    assert len(every) == 80
    np.testing.assert_array_equal(train.clean, generate(task, seed=1, size=40).clean)
    if task == "induction_text":  # nor is the corrupt version of a training prompt a test prompt
        assert {bytes(row) for row in train.corrupt} == {bytes(row) for row in train.clean}


def test_prompts_repeat_only_if_asked_to():
    with pytest.raises(ValueError, match="size: only 104 different prompts were found, 200 asked for; ask for fewer"):
        generate("gendered_pronoun", size=200)
    pairs = generate("greater_than", size=3000, repeats=True)
    assert len({bytes(row) for row in pairs.clean}) < 3000
    assert len({bytes(row) for row in generate("greater_than", size=3000).clean}) == 3000


# --- known circuits --------------------------------------------------------------------------------


COUNTS = {"ioi": (963, 78, 26, 12), "greater_than": (235, 27, 9, 12), "docstring": (24, 13, 6, 0)}


@pytest.mark.parametrize("task", COUNTS)
def test_known_circuits_have_the_published_number_of_edges(task):
    """ACDC (2304.14997), appendix: edges without and with those from a head's inputs to the head."""
    graph = GRAPHS[task]
    names = jc.tasks.TASKS[task].circuit(graph)
    edges, internal, heads, mlps = COUNTS[task]
    assert len(set(names)) == len(names) == edges
    assert names == graph.names_of(graph.mask_of(names))
    assert len(jc.tasks.internal_edges(names)) == internal
    nodes = {graph.nodes[i] for i in np.flatnonzero(graph.edges_to_nodes(graph.mask_of(names)))}
    assert len({node for node in nodes if ".h" in node}) == heads
    assert len({node for node in nodes if node.startswith("m")}) == mlps
    np.testing.assert_array_equal(graph.drop_dead_ends(graph.mask_of(names)), graph.mask_of(names))


def test_internal_edges_are_inputs_that_are_fed_of_heads_that_send():
    names = ("input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->m0", "input->a1.h1<v>", "m0->a1.h0<q>", "a1.h0->logits")
    assert jc.tasks.internal_edges(names) == ("a0.h0<q>", "a0.h0<k>", "a1.h0<q>")


@pytest.mark.parametrize("task", COUNTS)
def test_a_known_circuit_is_of_one_model(task):
    with pytest.raises(ValueError, match="known for .* layers.* got a graph with 2 layers"):
        jc.tasks.TASKS[task].circuit(jc.Graph.transformer(2, 4))


# --- ioi -------------------------------------------------------------------------------------------


IOI = re.compile(r"Then, (\w+) and (\w+) went to the (\w+)\. (\w+) gave a (\w+) to")


def test_ioi_prompts_are_the_papers_template_in_the_order_abba():
    pairs = generate("ioi")
    for text, answer, wrong in zip(texts(pairs.clean), word(pairs.answer), word(pairs.wrong), strict=True):
        first, second, place, giver, item = IOI.fullmatch(text).groups()
        assert (first, second, giver) == (answer, wrong, wrong)
        assert {first, second} < set(words.NAMES) and place in words.PLACES and item in words.OBJECTS
    assert gpt2().decode(pairs.answer[0]).startswith(" ")


def test_corrupt_ioi_prompts_have_three_other_names():
    pairs = generate("ioi")
    for clean, corrupt in zip(texts(pairs.clean), texts(pairs.corrupt), strict=True):
        names = [IOI.fullmatch(text).group(1, 2, 4) for text in (clean, corrupt)]
        assert len(set(names[0])) == 2 and len({*names[0], *names[1]}) == 5


@pytest.mark.parametrize("order, firsts", [("BABA", {True}), ("mixed", {True, False})])
def test_the_giver_is_named_first_in_the_order_baba(order, firsts):
    pairs = generate("ioi", order=order)
    assert {IOI.fullmatch(text).group(1) == IOI.fullmatch(text).group(4) for text in texts(pairs.clean)} == firsts


@pytest.mark.parametrize("order", ["ABBA", "BABA", "mixed"])
def test_more_templates_give_prompts_of_several_lengths(order):
    pairs = generate("ioi", templates=15, size=150, order=order)
    assert len(set(pairs.length.tolist())) > 1
    for row, other, length in zip(pairs.clean, pairs.corrupt, pairs.length, strict=True):
        assert gpt2().decode(row[length - 1]) == " to" and (row != other)[:length].sum() == 3


def test_every_template_is_drawn():
    blank = dict.fromkeys(("first", "second", "giver", "place", "object"), "WORD")
    shapes = [re.escape(template.format(**blank)).replace("WORD", r"\w+") for template in ioi.TEMPLATES]
    prompts = [text.rstrip("!") for text in texts(generate("ioi", templates=15, size=200).clean)]
    assert all(any(re.fullmatch(shape, prompt) for prompt in prompts) for shape in shapes) and len(set(shapes)) == 15


# --- greater_than ----------------------------------------------------------------------------------


def test_greater_than_asks_for_a_later_year_of_the_same_century():
    pairs = generate("greater_than")
    for text, year in zip(texts(pairs.clean), pairs.year, strict=True):
        noun, century, start, again = re.fullmatch(
            r"The (\w+) lasted from the year (1[1-7])(\d\d) to (1[1-7])", text
        ).groups()
        assert noun in words.EVENTS and century == again and int(start) == year
    assert word(pairs.corrupt[:, 7]) == ["01"] * 20
    starts = [re.sub(r"(from the year 1[1-7])\d\d", r"\g<1>01", text) for text in texts(pairs.clean)]
    assert texts(pairs.corrupt) == starts


def test_the_answers_of_greater_than_are_the_years_above():
    pairs = generate("greater_than")
    assert word(pairs.digits) == [f"{year:02d}" for year in range(100)]
    for year, answer, wrong in zip(pairs.year, pairs.answer, pairs.wrong, strict=True):
        assert word(answer[answer >= 0]) == [f"{later:02d}" for later in range(year + 1, 100)]
        assert word(wrong[wrong >= 0]) == [f"{before:02d}" for before in range(year + 1)]


def test_start_years_split_in_two_and_are_neither_first_nor_last():
    pairs = generate("greater_than", size=400)
    seen = {(word([row[6]])[0], int(year)) for row, year in zip(pairs.clean, pairs.year, strict=True)}
    for century in range(11, 18):
        split = [y for y in range(2, 99) if word(gpt2().encode(f" {century}{y:02d}")) == [str(century), f"{y:02d}"]]
        drawn = {year for name, year in seen if name == str(century)}
        assert drawn and drawn <= set(split[1:-1])


def test_years_that_do_not_split_are_said():
    left_out = jc.tasks.TASKS["greater_than"].left_out(gpt2())
    assert left_out.keys() == {"years"} and "1200" not in left_out["years"]  # no start year anyway
    for year in (f"{century}{year:02d}" for century in range(11, 18) for year in range(2, 99)):
        splits = word(gpt2().encode(f" {year}")) == [year[:2], year[2:]]
        assert splits != (year in left_out["years"])


# --- docstring ------------------------------------------------------------------------------------


DOCSTRING = re.compile(
    r"""
def (\w+)\(self, (\w+), (\w+), (\w+), (\w+), (\w+), (\w+)\):
    \"""(\w+ \w+ \w+)

    :param (\w+): (\w+ \w+)
    :param (\w+): (\w+ \w+)
    :param"""
)


def parsed(text):
    """Method, arguments of the def, listed arguments, description."""
    method, *rest = DOCSTRING.fullmatch(text.removeprefix("<|endoftext|>")).groups()
    return method, rest[:6], [rest[7], rest[9]], [rest[6], rest[8], rest[10]]


def test_docstrings_list_the_arguments_and_ask_for_the_next():
    pairs = generate("docstring")
    assert (pairs.clean[:, 0] == gpt2().bos_token_id).all()
    for clean, corrupt, answer, wrong in zip(texts(pairs.clean), texts(pairs.corrupt), *answers(pairs), strict=True):
        method, arguments, listed, described = parsed(clean)
        assert arguments[2:4] == listed and [arguments[4]] == answer
        assert len({method, *arguments}) == 7 and {method, *arguments} <= set(words.ARGUMENTS)
        assert len(set(" ".join(described).split())) == 7
        other_method, others, other_listed, same = parsed(corrupt)
        assert (other_method, others[:2], others[5], same) == (method, arguments[:2], arguments[5], described)
        assert len({*arguments, *others[2:5], *other_listed}) == 6 + 3 + 2
        assert set(wrong) > {*arguments, *others, *other_listed} - set(answer) and not set(wrong) & set(answer)
        assert len(wrong) == len(set(wrong)) == 13


def answers(pairs):
    return [word(row) for row in pairs.answer], [word(row) for row in pairs.wrong]


def test_docstrings_are_41_tokens_where_indentation_is_one():
    """Attn-only-4l's tokenizer joins a line break and all but the last space of the indentation, GPT-2's does not."""
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens(["\n   ", "\n\n   "])
    pairs = jc.tasks.TASKS["docstring"].generate(tokenizer)
    assert pairs.clean.shape == (32, 41) and (pairs.length == 41).all()


def test_docstrings_without_bos_and_with_other_arguments():
    pairs = generate("docstring", bos=False, before=1, after=0)
    assert re.match(r"\ndef \w+\(self, \w+, \w+, \w+, \w+\):\n", texts(pairs.clean)[0])


@pytest.mark.mission
def test_the_bundled_model_completes_docstrings():
    loaded = jc.load("tiny-gpt2")
    pairs = jc.tasks.TASKS["docstring"].generate(loaded.tokenizer, bos=False, before=1)
    assert jc.Objective(loaded.model, pairs, "accuracy")(loaded.graph.valid) < -0.75


# --- gendered pronouns ----------------------------------------------------------------------------


def test_the_corrupt_prompt_is_about_the_other_gender():
    pairs = generate("gendered_pronoun", templates=4, size=100)
    assert len(set(pairs.length.tolist())) > 1
    for clean, corrupt, right, wrong in zip(pairs.clean, pairs.corrupt, pairs.answer, pairs.wrong, strict=True):
        place = np.flatnonzero(clean != corrupt)
        name, other = word(clean[place]), word(corrupt[place])
        genders = {"she": words.WOMEN, "he": words.MEN}
        assert name[0] in genders[word(right)[0]] and other[0] in genders[word(wrong)[0]] and len(name) == 1
    assert not set(words.WOMEN) & set(words.MEN)


# --- induction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence, repeated", [(8, 4), (5, 1), (6, 4)])
def test_the_answer_followed_the_repeated_words_first_occurrence(sequence, repeated):
    pairs = generate("induction", sequence=sequence, repeated=repeated)
    assert pairs.clean.shape == (20, sequence + repeated)
    for clean, corrupt, answer, wrong in zip(pairs.clean, pairs.corrupt, pairs.answer, pairs.wrong, strict=True):
        first, again = np.flatnonzero(clean == clean[-1])
        assert again == sequence + repeated - 1
        assert (clean[first + 1], clean[first + 2]) == (answer, wrong)
        assert np.flatnonzero(clean != corrupt).tolist() == [first]
        assert corrupt[first] not in clean and len(set(clean[:sequence])) == sequence


# --- induction in text ----------------------------------------------------------------------------


def test_text_is_scored_where_the_next_token_followed_before():
    pairs = generate("induction_text", size=12)
    for clean, answer, scored in zip(pairs.clean, pairs.answer[:, :, 0], pairs.positions, strict=True):
        np.testing.assert_array_equal(answer[:-1], clean[1:])
        assert scored.sum() > 20
        for t in np.flatnonzero(scored):
            before = clean[:t] == clean[t]
            assert (answer[:t][before] == answer[t]).any()


def test_common_and_new_bigrams_are_not_scored():
    tokens = np.array([[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 5, 6, 1, 2, 5, 6]])
    expected = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1]]  # 1 2 is in both rows
    np.testing.assert_array_equal(induction_text.repeated_bigrams(tokens), np.array(expected, bool))


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_corrupt_text_is_another_prompt(size):
    pairs = generate("induction_text", size=size, tokens=120)
    assert sorted(map(bytes, pairs.clean)) == sorted(map(bytes, pairs.corrupt))
    assert (pairs.clean != pairs.corrupt).any(1).all() and pairs.clean.shape == (size, 120)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, options, message",
    [
        *((task, {"size": 0}, "size: expected at least 1 prompt, got 0") for task in LENGTHS),
        ("docstring", {"before": 0, "after": 0}, "before, after: expected whole numbers, one of them above 0"),
        ("docstring", {"before": -1}, "before, after: expected whole numbers"),
        ("gendered_pronoun", {"templates": 5}, "templates: expected 1 to 4, got 5"),
        ("induction_text", {"size": 1}, "size: expected at least 2 prompts"),
        ("induction_text", {"tokens": 20}, "tokens: expected at least 100"),
        ("ioi", {"order": "AABB"}, "order: expected ABBA, BABA or mixed, got 'AABB'"),
        ("ioi", {"templates": 0}, "templates: expected 1 to 15, got 0"),
        ("ioi", {"templates": 16}, "templates: expected 1 to 15, got 16"),
        ("induction", {"repeated": 7}, "expected 1 to sequence - 2 = 6, got 7"),
        ("induction", {"repeated": 0}, "repeated: expected 1 to"),
        ("induction", {"sequence": 500}, "needs 501 of its words"),
    ],
)
def test_options_that_make_no_sense_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        generate(task, **options)


@pytest.mark.parametrize("task", LENGTHS)
def test_a_tokenizer_that_does_not_know_the_words_is_refused(task):
    options = {"bos": False} if task == "docstring" else {}
    with pytest.raises(ValueError, match="the model's tokenizer has 0 of"):
        jc.tasks.TASKS[task].generate(letters_tokenizer(), **options)


def test_docstrings_need_a_bos_token_or_none():
    with pytest.raises(ValueError, match="begin with a BOS token.*pass bos=False"):
        jc.tasks.TASKS["docstring"].generate(letters_tokenizer())


def test_a_test_set_of_no_prompts_is_refused():
    with pytest.raises(ValueError, match="at least 1 prompt, got 0"):
        jc.tasks.TASKS["ioi"].train_and_test(gpt2(), size=0)


def test_a_tokenizer_that_does_not_split_years_is_refused():
    years = [f"{year:02d}" for year in range(100)]
    with pytest.raises(ValueError, match="splits years such as 1732"):
        jc.tasks.TASKS["greater_than"].generate(letters_tokenizer(["war", *years]))


def test_an_unknown_task_is_refused():
    assert jc.tasks.by_name("ioi").name == "ioi"
    with pytest.raises(ValueError, match="unknown task 'docstrin': expected one of ioi"):
        jc.tasks.by_name("docstrin")
