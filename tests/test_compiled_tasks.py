"""Prompts of the compiled programs' tasks, token by token, with the bundled models' tokenizers."""

import functools
import itertools

import numpy as np
import pytest
from conftest import letters_tokenizer

import jaxcircuits as jc
from jaxcircuits.tasks.compiled import derangement

TASKS = {"tracr_reverse": "tracr-reverse", "tracr_proportion": "tracr-proportion"}


@functools.cache
def tokenizer(name):
    return jc.load(TASKS[name]).tokenizer


def generate(name, **options):
    return jc.tasks.TASKS[name].generate(tokenizer(name), **options)


def texts(name, ids):
    return [tokenizer(name).decode(row) for row in ids]


def test_reverse_prompts_are_all_orders_of_three_tokens():
    pairs = generate("tracr_reverse")
    assert texts("tracr_reverse", pairs.clean) == [f"BOS {' '.join(row)}" for row in itertools.permutations("123")]
    assert sorted(texts("tracr_reverse", pairs.corrupt)) == texts("tracr_reverse", pairs.clean)
    assert (pairs.clean != pairs.corrupt).any(1).all()
    np.testing.assert_array_equal(pairs.positions, np.tile([False, True, True, True], (6, 1)))


def test_proportion_prompts_are_different_strings_of_letters():
    pairs = generate("tracr_proportion", size=256)
    strings = {f"BOS {' '.join(row)}" for row in itertools.product("wxyz", repeat=4)}
    assert set(texts("tracr_proportion", pairs.clean)) == set(texts("tracr_proportion", pairs.corrupt)) == strings
    assert (pairs.clean != pairs.corrupt).any(1).all()
    assert not pairs.positions[:, 0].any() and pairs.positions[:, 1:].all()


@pytest.mark.filterwarnings("ignore:.*prompts do not differ")
def test_the_original_convention_is_token_ids_without_bos():
    pairs = generate("tracr_proportion", size=100, convention="original")
    assert pairs.clean.shape == (100, 4) and set(np.unique(pairs.clean)) == {0, 1, 2, 3}
    assert tokenizer("tracr_proportion").convert_ids_to_tokens([0, 1, 2, 3]) == ["BOS", "compiler_pad", "w", "x"]
    rows = sorted(map(tuple, pairs.clean))
    assert len(set(rows)) == 100 and sorted(map(tuple, pairs.corrupt)) == rows


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_one_set_of_prompts(name):
    one, same, other = (generate(name, seed=seed) for seed in (3, 3, 4))
    for field in ("clean", "corrupt"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert (one.corrupt != other.corrupt).any()


@pytest.mark.parametrize("size", [2, 3, 50])
def test_a_derangement_leaves_no_row_in_its_place(size):
    for seed in range(20):
        order = derangement(np.random.default_rng(seed), size)
        assert sorted(order) == list(range(size)) and (order != np.arange(size)).all()
    with pytest.raises(ValueError, match="at least 2 prompts"):
        derangement(np.random.default_rng(0), 1)


def test_circuits_are_of_their_own_graphs():
    for name, model in TASKS.items():
        circuit = jc.tasks.TASKS[name].circuit
        graph = jc.load(model).graph
        assert len(circuit(graph)) == {"tracr_reverse": 11, "tracr_proportion": 5}[name]
        with pytest.raises(ValueError, match="unknown sender 'tok'"):
            circuit(jc.Graph.transformer(4, 1))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tracr_reverse", {"size": 7}, "three tokens have 6 orders, got 7"),
        ("tracr_reverse", {"size": 0}, "at least 1 prompt"),
        ("tracr_proportion", {"size": 257}, "there are 256 strings"),
        ("tracr_proportion", {"convention": "ids"}, "convention: expected 'letters' or 'original', got 'ids'"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        generate(name, **options)


@pytest.mark.parametrize("name", TASKS)
def test_another_models_tokenizer_is_refused(name):
    with pytest.raises(ValueError, match=f"needs the bundled model '{TASKS[name]}'"):
        jc.tasks.TASKS[name].generate(letters_tokenizer(("a", "b")))
