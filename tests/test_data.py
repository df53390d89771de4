"""What `PromptPairs` refuses, and that files and texts come back as they were meant."""

import json

import numpy as np
import pytest
from conftest import letters_tokenizer, micro_pairs
from hypothesis import given
from hypothesis import strategies as st

import jaxcircuits as jc
from jaxcircuits.texts import PADDING, pad

CLEAN = np.array([[1, 2, 3], [4, 5, 6]])
CORRUPT = CLEAN + 1
FIELDS = ("clean", "corrupt", "answer", "wrong", "length", "positions", "year", "digits", "target")


def make(**fields):
    return jc.PromptPairs(**{"clean": CLEAN, "corrupt": CORRUPT, **fields})


def assert_equal_pairs(ours, theirs):
    for name in FIELDS:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


# --- the record ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"clean": None}, "need 'clean'"),
        ({"clean": [1, 2, 3]}, "got shape"),
        ({"clean": np.zeros((0, 3), int), "corrupt": np.zeros((0, 3), int)}, "got shape"),
        ({"corrupt": CORRUPT[:1]}, "prompt by prompt"),
        ({"corrupt": CORRUPT[:, :2]}, "token by token"),
        ({"clean": CLEAN.astype(float)}, "clean: expected whole numbers, got float64"),
        ({"answer": [True, False]}, "answer: expected whole numbers, got bool"),
        ({"positions": np.ones((2, 3), int)}, "positions: expected True and False, got int64"),
        ({"target": np.full((2, 4), "x")}, "target: expected real numbers"),
        ({"answer": [1, 2, 3]}, "answer: expected shape"),
        ({"answer": np.ones((2, 4, 1), int)}, "answer: expected shape"),
        ({"target": np.ones(2)}, "target: expected shape"),
        ({"digits": 3}, "digits: expected shape"),
        ({"length": [3, 4]}, "from 1 to 3, got 3..4"),
        ({"length": [0, 3]}, "from 1 to 3, got 0..3"),
        ({"positions": [[True, False, False], [False, False, False]]}, "prompt 1 has no scored"),
        ({"positions": [[True, False, False], [False, False, True]], "length": [3, 2]}, "in the padding"),
        ({"answer": [[1, 2], [-1, -1]]}, "answer: prompt 1 has none"),
        ({"answer": [[1, 2], [3, -1]], "wrong": [[3, -1], [4, 3]]}, "prompt 1: token 3 is both"),
        (
            {"answer": [[[0], [1], [2]]] * 2, "positions": [[True] * 3, [True] * 3], "wrong": [[[9], [9], [2]]] * 2},
            "both",
        ),
        ({"answer": [[[-1], [1], [2]]] * 2, "positions": [[False, True, True], [True] * 3]}, "prompt 1 has none"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_padding_is_no_answer():
    """-1 in both lists is no overlap, and positions that are not scored need no answers."""
    assert make(answer=[[1, -1], [2, 3]], wrong=[[4, -1], [5, -1]]).answer.shape == (2, 2)
    each = [[[-1], [1], [-1]], [[-1], [-1], [2]]]
    assert make(answer=each, length=[2, 3]).answer.shape == (2, 3, 1)
    assert make(answer=each, positions=np.array(each)[..., 0] >= 0).answer.shape == (2, 3, 1)


def test_one_answer_a_prompt_becomes_a_list_of_one():
    pairs = make(answer=np.array([7, 8], np.uint16), target=np.ones((2, 9), int))
    np.testing.assert_array_equal(pairs.answer, [[7], [8]])
    assert pairs.answer.dtype == np.int32 and pairs.target.dtype == np.float32


def test_token_ids_too_large_for_int32_do_not_wrap_around():
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        make(clean=CLEAN + 2**32).check_against(100, 3)


def test_prompts_that_are_not_corrupted_are_warned_about():
    """Also those that differ only in their padding."""
    corrupt = CLEAN + [[0, 0, 0], [0, 0, 1]]
    with pytest.warns(UserWarning, match=r"1 of 2 prompts do not differ.*rows 0"):
        make(corrupt=corrupt)
    with pytest.warns(UserWarning, match="2 of 2 prompts"):
        make(corrupt=corrupt, length=[3, 2])


def test_logits_are_read_at_the_last_token_by_default_and_at_the_own_length_if_given():
    for pairs, expected in ((make(), [[2], [2]]), (make(length=[3, 1]), [[2], [0]])):
        positions, counts = pairs.scored()
        np.testing.assert_array_equal(positions, expected)
        assert counts.all() and counts.shape == (2, 1)


def test_logits_are_read_at_the_chosen_positions():
    positions, counts = make(positions=[[True, False, True], [False, True, False]]).scored()
    np.testing.assert_array_equal(positions[0], [0, 2])
    assert positions[1, 0] == 1
    np.testing.assert_array_equal(counts, [[True, True], [True, False]])


def test_prompts_that_a_model_cannot_take_are_refused():
    pairs = make(answer=[7, -1 + 9], wrong=[[9, -1], [3, -1]])
    pairs.check_against(10, 3)
    with pytest.raises(ValueError, match="3 positions, the model has 2"):
        pairs.check_against(10, 2)
    with pytest.raises(ValueError, match="wrong has token id 9, outside the model's vocabulary of 9"):
        pairs.check_against(9, 3)
    with pytest.raises(ValueError, match="clean has token id -1"):
        make(clean=CLEAN - 2).check_against(9, 3)


@pytest.mark.parametrize("kind", ["last", "positions", "lengths"])
def test_a_split_keeps_every_row_and_every_label(kind):
    pairs = micro_pairs(kind=kind)
    first, rest = pairs.split(2)
    assert (len(first), len(rest)) == (2, 3)
    for name in FIELDS:
        whole = getattr(pairs, name)
        if whole is not None and name != "digits":
            np.testing.assert_array_equal(np.concatenate([getattr(first, name), getattr(rest, name)]), whole)
    np.testing.assert_array_equal(rest.digits, pairs.digits)
    np.testing.assert_array_equal(pairs[[3, 0]].clean, pairs.clean[[3, 0]])


@pytest.mark.parametrize("size", [0, 2])
def test_a_split_without_two_parts_is_refused(size):
    with pytest.raises(ValueError, match="between 1 and 1"):
        make().split(size)


# --- npz -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["last", "positions", "lengths"])
def test_saved_prompts_come_back(kind, tmp_path):
    pairs = micro_pairs(kind=kind)
    pairs.save(tmp_path / "task.npz")
    assert_equal_pairs(jc.PromptPairs.load(tmp_path / "task.npz"), pairs)


def test_an_npz_with_unknown_or_missing_arrays_is_refused(tmp_path):
    path = tmp_path / "task.npz"
    np.savez(path, clean=CLEAN, corrupt=CORRUPT, answers=[1, 2])
    with pytest.raises(ValueError, match=r"unknown arrays \['answers'\]"):
        jc.PromptPairs.load(path)
    np.savez(path, clean=CLEAN)
    with pytest.raises(ValueError, match=r"misses \['corrupt'\]"):
        jc.PromptPairs.load(path)


def test_an_npz_that_holds_a_pickle_is_refused(tmp_path):
    path = tmp_path / "task.npz"
    np.savez(path, clean=CLEAN, corrupt=np.array([[1, 2], [3]], object))
    with pytest.raises(ValueError, match="'corrupt.npy' holds object: expected numbers or truth values"):
        jc.PromptPairs.load(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "task.npz"
    micro_pairs().save(path)
    whole = path.read_bytes()
    with (tmp_path / "array.npy").open("wb") as file:
        np.save(file, CLEAN)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    for damaged in (whole[:-30], whole[:100], b"", b"clean", flipped, (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="task.npz is malformed: expected a task file, an .npz of plain arrays"):
            jc.PromptPairs.load(path)


# --- text ------------------------------------------------------------------------------------------


def load_text(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return jc.PromptPairs.load(path, letters_tokenizer())


def test_jsonl_and_csv_give_the_same_prompts(tmp_path):
    rows = [{"clean": "a b c", "corrupt": "a d c", "answer": "e", "wrong": "f"}]
    rows.append({"clean": "b", "corrupt": "c", "answer": "g", "wrong": "h"})
    ours = load_text(tmp_path / "task.jsonl", *rows)
    assert_equal_pairs(
        load_text(tmp_path / "task.csv", *[",".join(row) for row in [rows[0], *map(dict.values, rows)]]), ours
    )
    np.testing.assert_array_equal(ours.clean, [[1, 2, 3], [2, 0, 0]])
    np.testing.assert_array_equal(ours.corrupt, [[1, 4, 3], [3, 0, 0]])
    np.testing.assert_array_equal(ours.length, [3, 1])
    np.testing.assert_array_equal(ours.answer, [[5], [7]])
    np.testing.assert_array_equal(ours.scored()[0], [[2], [0]])


def test_lists_of_answers_are_padded(tmp_path):
    rows = [
        {"clean": "a", "corrupt": "b", "answer": ["c", "d"], "wrong": "e"},
        {"clean": "b", "corrupt": "a", "answer": "f", "wrong": "g"},
    ]
    pairs = load_text(tmp_path / "task.jsonl", *rows)
    np.testing.assert_array_equal(pairs.answer, [[3, 4], [6, PADDING]])
    np.testing.assert_array_equal(pairs.wrong, [[5], [7]])


def test_prompts_without_answers_are_read(tmp_path):
    assert load_text(tmp_path / "task.csv", "clean,corrupt", "a b,a c").answer is None


def test_an_unknown_token_that_is_written_out_is_meant(tmp_path):
    pairs = load_text(tmp_path / "task.csv", "clean,corrupt", "a [UNK],a c")
    np.testing.assert_array_equal(pairs.clean, [[1, 0]])


GOOD = {"clean": "a b", "corrupt": "a c"}


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"clean": "a b", "corrupt": "a"}, "row 1: clean has 2 tokens, corrupt 1"),
        ({"clean": "a zebra", "corrupt": "a b"}, "row 1: .* does not know 'zebra'"),
        ({**GOOD, "answer": "zebra"}, "row 1: .* does not know 'zebra'"),
        ({**GOOD, "answer": "a b"}, "row 1: expected one token, but 'a b' has 2"),
        ({**GOOD, "answer": ["c", "a b"]}, "row 1: expected one token"),
        ({**GOOD, "answer": 5}, "row 1: expected a text, got 5"),
        ({**GOOD, "answer": "c"}, "1 of 2 rows have 'answer'"),
        ({**GOOD, "answers": "c"}, r"row 1 has unknown fields \['answers'\]"),
        ({"clean": "a"}, r"row 1 misses \['corrupt'\]"),
        ({"clean": "", "corrupt": "a"}, "row 1: expected a text, got ''"),
        ({"clean": " ", "corrupt": " "}, "row 1: ' ' has no tokens"),
        ('{"clean": "a"', "malformed"),
        ("[1]", "task.jsonl is malformed: line 2 is no JSON object"),
        (
            '{"clean": "a", "clean": "b", "corrupt": "c"}',
            "line 2: expected each name once in an object, got 'clean' twice",
        ),
        ('{"clean": "\\ud800", "corrupt": "\\ud800"}', "line 2: corrupt: expected text, got half of a surrogate pair"),
        ('{"clean": ' + "[" * 100_000, "line 2: expected at most 100 lists and objects within each other"),
        ('{"clean": "a", "corrupt": 1e999}', "line 2: corrupt: expected a finite number, got inf"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(bad, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path / "task.jsonl", GOOD, bad)


@pytest.mark.parametrize(
    "rows, message",
    [
        (["clean,corrupt", "a,b", "a,b,c"], "row 1 has unknown fields"),
        (["clean,corrupt,answer", "a,b,c", "a,b,"], "row 1: expected a text, got ''"),
        (["clean,corrupt", "a,b", "a"], "row 1: expected a text, got None"),
        (["clean,corrupt", '"a,b'], "malformed"),
        (["clean,corrupt"], "no prompts"),
        (["clean,corrupt,clean", "a,b,c"], "task.csv is malformed: it has two columns 'clean'"),
    ],
)
def test_a_bad_csv_is_refused(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path / "task.csv", *rows)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "task.jsonl").write_bytes(b'{"clean": "\xff"}')
    with pytest.raises(ValueError, match="task.jsonl is malformed"):
        jc.PromptPairs.load(tmp_path / "task.jsonl", letters_tokenizer())


def test_texts_that_no_file_could_hold_are_refused():
    for row in ({**GOOD, "clean": "a \ud800"}, {**GOOD, "answer": "\udfff"}):
        with pytest.raises(ValueError, match=r"row 0: expected a text, got '(a )?\\ud"):
            jc.data.from_text([row], letters_tokenizer())


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "task.txt").write_text("a")
    (tmp_path / "task.csv").write_text("clean,corrupt\na,b")
    for name, message in (("no.npz", "no task file"), ("task.txt", "ending in"), ("task.csv", "needs the model's")):
        with pytest.raises(ValueError, match=message):
            jc.PromptPairs.load(tmp_path / name)


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=6))
def test_padding_loses_nothing(rows):
    padded = pad(rows, PADDING)
    assert [[value for value in row if value != PADDING] for row in padded.tolist()] == rows
    assert padded.shape == (len(rows), max(map(len, rows)))


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_large_numbers_of_groups_stay_apart(kind):
    large = np.array([4 * 10**9, 3 * 10**9, 3 * 10**9], kind)
    assert jc.PromptPairs(np.zeros((3, 1), int), np.ones((3, 1), int), group=large).group.tolist() == [1, 0, 0]
    small = np.array([7, 5, 5], kind)
    assert jc.PromptPairs(np.zeros((3, 1), int), np.ones((3, 1), int), group=small).group.tolist() == [7, 5, 5]


def test_a_token_beyond_64_bits_with_a_sign_is_no_padding():
    with pytest.raises(ValueError, match="answer has token id 2147483647, outside"):
        answer = np.array([2**64 - 1], np.uint64)
        jc.PromptPairs(np.zeros((1, 1), int), np.ones((1, 1), int), answer=answer).check_against(9, 9)
