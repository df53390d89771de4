"""The built-in tasks' prompts, token by token, with GPT-2's own tokenizer."""

import functools
import re

import numpy as np
import pytest
from conftest import gpt2_tokenizer, letters_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.tasks import words
from jaxcircuits.tasks.task import known_words

WORDS = {name: getattr(words, name) for name in ("NAMES", "PLACES", "OBJECTS", "EVENTS")}
LENGTHS = {"ioi": 15, "greater_than": 10, "induction": 12}

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
    assert not np.isin(gpt2().bos_token_id, [pairs.clean, pairs.corrupt])


@pytest.mark.parametrize("task", LENGTHS)
def test_a_seed_is_one_set_of_prompts(task):
    one, same, other = (generate(task, seed=seed) for seed in (3, 3, 4))
    for name in ("clean", "corrupt", "answer", "wrong"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (one.clean != other.clean).any()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(LENGTHS)))
def test_clean_and_corrupt_differ_at_the_same_few_places(seed, task):
    pairs = generate(task, seed=seed, size=5)
    places = {"ioi": [2, 4, 10], "greater_than": [7], "induction": [3]}[task]
    for differs in pairs.clean != pairs.corrupt:
        assert np.flatnonzero(differs).tolist() == places


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


def test_more_templates_give_prompts_of_several_lengths():
    pairs = generate("ioi", templates=6, size=40)
    assert len(set(pairs.length.tolist())) > 1
    for row, other, length in zip(pairs.clean, pairs.corrupt, pairs.length, strict=True):
        assert gpt2().decode(row[length - 1]) == " to" and (row != other)[:length].sum() == 3


# --- greater_than ----------------------------------------------------------------------------------


def test_greater_than_asks_for_a_later_year_of_the_same_century():
    pairs = generate("greater_than")
    for text, year in zip(texts(pairs.clean), pairs.year, strict=True):
        noun, century, start, again = re.fullmatch(
            r"The (\w+) lasted from the year (1[1-7])(\d\d) to (1[1-7])", text
        ).groups()
        assert noun in words.EVENTS and century == again and int(start) == year
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


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, options, message",
    [
        *((task, {"size": 0}, "size: expected at least 1 prompt, got 0") for task in LENGTHS),
        ("ioi", {"order": "AABB"}, "order: expected ABBA, BABA or mixed, got 'AABB'"),
        ("ioi", {"templates": 0}, "templates: expected 1 to 6, got 0"),
        ("ioi", {"templates": 7}, "templates: expected 1 to 6, got 7"),
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
    with pytest.raises(ValueError, match="the model's tokenizer has 0 of"):
        jc.tasks.TASKS[task].generate(letters_tokenizer())


def test_a_tokenizer_that_does_not_split_years_is_refused():
    years = [f"{year:02d}" for year in range(100)]
    with pytest.raises(ValueError, match="splits years such as 1732"):
        jc.tasks.TASKS["greater_than"].generate(letters_tokenizer(["war", *years]))


def test_an_unknown_task_is_refused():
    assert jc.tasks.by_name("ioi").name == "ioi"
    with pytest.raises(ValueError, match="unknown task 'docstrin': expected one of ioi"):
        jc.tasks.by_name("docstrin")
