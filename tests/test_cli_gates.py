"""Networks of units on the command line and as bundled models: as any model, or refused with one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_page import data_of

import jaxcircuits as jc

ARGUMENTS = "--metric", "l2", "--reference", "zero", "--batch", 4


def test_a_gate_is_a_bundled_model(x64):
    loaded = jc.load("gate-adder", dtype="float64")
    assert loaded.source == "bundled gate-adder" and loaded.files is None and loaded.model.dtype == np.float64
    assert loaded.graph == jc.gate("adder").graph and "gate-adder" in jc.bundled()
    np.testing.assert_array_equal(loaded.model.weights, jc.gate("adder").weights)
    with pytest.raises(ValueError, match="neither layer norms nor value biases"):
        jc.load("gate-xor", fold_layer_norms=True)


def test_a_word_is_what_the_inputs_are():
    tokenizer, model = jc.load("gate-adder").tokenizer, jc.gate("adder")
    assert len(tokenizer) == model.vocab_size == 8
    assert tokenizer.encode("100 011", add_special_tokens=False) == [1, 6] and tokenizer.decode([1, 6]) == "100 011"
    np.testing.assert_array_equal(model.sender_values(jnp.array([1]))[:3, 0].any(-1), [True, False, False])
    assert tokenizer.encode("10 Mary 012") == [tokenizer.unk_token_id] * 3 and tokenizer.decode([8]) == "?"
    pairs = jc.tasks.by_name("logic_gates").generate(tokenizer)
    assert pairs.clean[:, 0].tolist() == list(range(8))


def test_a_gates_circuit_is_found_saved_and_drawn(run, tmp_path):
    out, page = tmp_path / "circuit.json", tmp_path / "page.html"
    command = "discover", "logic_gates", "--model", "gate-xor", "--threshold", 0.01, *ARGUMENTS
    code, printed, error = run(*command, "--out", out, "--report", page)
    circuit = jc.Circuit.load(out)
    assert code == 0 and not error and "7 of 7 edges" in printed
    assert circuit.graph == jc.gate("xor").graph and circuit.edges == jc.tasks.TASKS["logic_gates"].circuit(
        circuit.graph
    )
    assert circuit.d_model == 4 and circuit.run["model"] == "bundled gate-xor"
    data = data_of(page.read_text())
    assert data["graph"]["rows"] == [["or", "and"], ["xor"]] and data["graph"]["embeddings"] == ["x0", "x1"]
    assert [prompt["tokens"] for prompt in data["prompts"]] == [["00"], ["10"], ["01"], ["11"]]
    assert run("show", out)[0] == 0
    for ending, said in ((".md", "| `xor` | `logits` |"), (".dot", '{ rank=same; "or"; "and"; }')):
        text = tmp_path / f"circuit{ending}"
        assert run("report", out, "--out", text)[0] == 0 and said in text.read_text()


def test_prompts_are_shown_and_checked(run):
    code, printed, _ = run("tasks", "logic_gates", "--show", 4, "--model", "gate-adder")
    assert code == 0 and printed.count("clean    '") == 4 and "clean    '110'" in printed
    code, printed, _ = run("tasks", "logic_gates", "--model", "gate-xor")
    assert code == 0 and printed.count("clean    '") == 4
    code, printed, _ = run("tasks", "check", "logic_gates", "--model", "gate-xor")
    assert code == 0 and "4 prompts, 4 of them different" in printed
    code, printed, _ = run("models")
    assert code == 0 and "gate-majority     1 layers, 3 inputs, 1 units, 4 edges, 8 tokens" in printed


@pytest.mark.parametrize(
    "task, model, said",
    [
        ("logic_gates", "tiny-gpt2", "expected the tokens of a network of units.*got 340 tokens.*such as gate-xor"),
        *((task, "gate-xor", "tokeni[sz]er|BOS|needs") for task in sorted(jc.tasks.TASKS.keys() - {"logic_gates"})),
    ],
)
def test_a_task_of_another_model_is_refused(task, model, said):
    with pytest.raises(ValueError, match=said):
        jc.tasks.by_name(task).generate(jc.load(model).tokenizer)


def test_wrong_use_ends_with_one_line(run):
    for arguments, said in (
        (["discover", "logic_gates", "--model", "gate-xor"], "choose l2"),
        (["score", "logic_gates", "--model", "gate-xor", "--metric", "l2"], "eap: expected a model with gradients"),
        (["discover", "logic_gates", "--model", "gate-nand"], "gate-adder"),
        (["tasks", "logic_gates", "--model", "gate-xor", "--show", 5], "the gate has 4 inputs"),
    ):
        code, _, error = run(*arguments)
        assert code == 1 and said in error and error.count("\n") == 1, error
    with pytest.raises(ValueError, match="known for built-in gates"):
        jc.tasks.TASKS["logic_gates"].circuit(jc.Graph.transformer(2, 2))


@pytest.mark.slow
def test_a_gates_circuit_is_judged(run, tmp_path):
    out, scores = tmp_path / "circuit.json", tmp_path / "scores.json"
    command = "logic_gates", "--model", "gate-adder", *ARGUMENTS[:4]
    assert run("sweep", *command, "--batch", 4, "--thresholds", "0.1,0.01", "--out", tmp_path / "sweep")[0] == 0
    assert run("discover", *command, "--batch", 4, "--threshold", 0.01, "--out", out)[0] == 0
    code, printed, error = run("evaluate", out, "--random", 3)
    assert code == 0 and not error and "on a reset network" in printed
    assert "faithfulness 1.0000 (1.000 to 1.000), 15 edges" in printed
    code, printed, _ = run("test", out, "--random", 3)
    assert code == 0 and "circuits evaluated" in printed
    assert run("compare", out, tmp_path / "sweep" / "circuit-0.01.json")[0] == 0
    assert run("score", *command, "--method", "exact", "--out", scores)[0] == 0
    code, printed, _ = run("prune", scores, "--edges", 15, "--out", tmp_path / "pruned.json")
    assert code == 0 and jc.Circuit.load(tmp_path / "pruned.json").edges == jc.Circuit.load(out).edges
    assert run("report", out, "--out", tmp_path / "page.html")[0] == 0


@pytest.mark.slow
def test_without_a_reset_network_a_circuit_is_judged_all_the_same(run, tmp_path):
    out = tmp_path / "circuit.json"
    assert (
        run("discover", "logic_gates", "--model", "gate-majority", "--threshold", 0.01, *ARGUMENTS, "--out", out)[0]
        == 0
    )
    code, printed, error = run("evaluate", out, "--random", 3)
    assert code == 0 and "nothing to permute: no such control" in error and "on a reset network" not in printed
