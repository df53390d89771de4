import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import letters_tokenizer, micro_model, micro_pairs, random_mask

import jaxcircuits as jc


@pytest.fixture(scope="module")
def inspected():
    model = micro_model("gpt2")
    objective = jc.Objective(model, micro_pairs(kind="lengths"), "logit_diff")
    circuit = jc.Circuit(model.graph, random_mask(model.graph, 1, 0.3), np.zeros(model.graph.shape), {})
    return objective, circuit, jc.inspect_circuit(objective, circuit, letters_tokenizer(), prompts=3)


def test_it_is_what_single_evaluations_give(inspected):
    objective, circuit, inspection = inspected
    first = objective.take(np.arange(3))
    for name, mask in (("full", circuit.graph.valid), ("circuit", circuit.mask), ("empty", 0 * circuit.mask)):
        np.testing.assert_allclose(getattr(inspection, f"loss_{name}"), first.per_example(mask), rtol=1e-5, atol=1e-6)
    assert inspection.edges == circuit.edges
    for edge, effects in list(zip(inspection.edges, inspection.effects, strict=True))[::7]:
        without = circuit.mask & ~circuit.graph.mask_of([edge])
        change = first.per_example(without) - first.per_example(circuit.mask)
        np.testing.assert_allclose(effects, change, rtol=1e-4, atol=1e-5)


def test_a_prompts_loss_is_its_own_whatever_its_share_of_the_mean():
    pairs, model = micro_pairs(kind="positions"), micro_model("gpt2")
    assert np.ptp(pairs.scored()[1].sum(1)) > 0
    circuit = jc.Circuit(model.graph, random_mask(model.graph, 1, 0.6), np.zeros(model.graph.shape), {})
    alone = [jc.Objective(model, pairs[[row]], "logit_diff")(circuit.mask) for row in range(3)]
    for prompts in (1, 3):
        shown = jc.inspect_circuit(jc.Objective(model, pairs, "logit_diff"), circuit, prompts=prompts)
        np.testing.assert_allclose(shown.loss_circuit, alone[:prompts], rtol=1e-5, atol=1e-6)


def test_patterns_are_those_of_the_clean_run(inspected):
    """What a head writes is its pattern times its values."""
    objective, circuit, inspection = inspected
    assert inspection.heads == tuple(name for name in circuit.nodes if ".h" in name)
    model, tokens = objective.model, objective.clean[0]
    streams, written = model.receiver_streams(tokens), model.sender_values(tokens)
    for number, head in enumerate(inspection.heads):
        layer, index = (jnp.asarray(int(part)) for part in head[1:].split(".h"))
        value = model.read("v", layer, index, streams[2 * layer], jnp.arange(streams.shape[1]))
        length = len(inspection.tokens[0])
        output = inspection.patterns[0][number] @ value[:length] @ model.blocks.attention.output[layer, index]
        row = circuit.graph.sender_index(head)
        np.testing.assert_allclose(output, written[row, :length], rtol=1e-4, atol=1e-5)


def test_prompts_end_where_they_are_scored(inspected):
    objective, _, inspection = inspected
    pairs, letters = micro_pairs(kind="lengths"), letters_tokenizer()
    for row in range(3):
        ids = pairs.clean[row, : pairs.length[row]]
        assert "".join(inspection.tokens[row]).split() == [letters.decode([token]) for token in ids]
        assert inspection.answers[row] == tuple(letters.decode([token]) for token in pairs.answer[row])
    assert len(inspection.wrong[0]) == 1 and len(inspection.wrong[1]) == 2  # padding is no answer


def test_ids_stand_for_texts_without_a_tokenizer_and_edges_may_be_left_alone(inspected):
    objective, circuit, inspection = inspected
    bare = jc.inspect_circuit(objective, circuit, prompts=3, effects=False)
    assert bare.edges == () and bare.effects.shape == (0, 3) and bare.heads == inspection.heads
    assert bare.tokens[0] == tuple(map(str, objective.clean[0].tolist()))[: len(bare.tokens[0])]


def test_files_are_read_as_they_were_written(inspected, tmp_path):
    *_, inspection = inspected
    path = tmp_path / "inspection.json"
    inspection.save(path)
    again = jc.Inspection.load(path)
    for field in dataclasses.fields(jc.Inspection):
        before, after = (jax.tree.leaves(getattr(record, field.name)) for record in (inspection, again))
        for one, other in zip(before, after, strict=True):
            if isinstance(one, str):
                assert one == other
            else:
                np.testing.assert_allclose(one, other, atol=1e-4 if field.name == "patterns" else 0)


def test_what_is_refused(inspected, tmp_path):
    objective, circuit, inspection = inspected
    with pytest.raises(ValueError, match="at least 1"):
        jc.inspect_circuit(objective, circuit, prompts=0)
    other = jc.Graph.transformer(3, 2)
    with pytest.raises(ValueError, match="graph"):
        jc.inspect_circuit(objective, jc.Circuit(other, other.valid, np.zeros(other.shape), {}))
    with pytest.raises(ValueError, match="effects: expected shape"):
        dataclasses.replace(inspection, effects=inspection.effects[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        dataclasses.replace(inspection, loss_full=inspection.loss_full * np.nan)
    path = tmp_path / "inspection.json"
    with pytest.raises(ValueError, match="no inspection file"):
        jc.Inspection.load(path)
    inspection.save(path)
    value = json.loads(path.read_text())
    for change in ({"format": "other/1"}, {"effects": [[1]]}, {"tokens": 3}, {"patterns": []}, {"extra": 1}):
        path.write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=r"inspection\.json"):
            jc.Inspection.load(path)
