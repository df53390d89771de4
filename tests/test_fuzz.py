"""Damaged and odd files of every kind are read or refused with ValueError, at once: nothing else leaves a reader.

`pytest tests/test_fuzz.py --fuzz 100000` makes so many inputs of each reader.
"""

import json
import resource
import signal
import sys
import warnings

import flax.serialization
import numpy as np
import pytest
from conftest import letters_tokenizer, micro_model, micro_pairs
from fuzzing import changed_archive, changed_bytes, changed_header, changed_json, changed_lines, inputs
from safetensors.numpy import load_file

import jaxcircuits as jc
from jaxcircuits.cli.lists import print_circuit, print_peap, print_peap_circuit
from jaxcircuits.cli.options import recorded
from jaxcircuits.files import parse_json, read_json
from jaxcircuits.formats import read_format
from jaxcircuits.mib import check_result
from jaxcircuits.npz import read_arrays, write_arrays
from jaxcircuits.report.judged import judged
from jaxcircuits.tokenizer import load_tokenizer
from jaxcircuits.yaml_file import read_yaml

SECONDS, BYTES = 20, 1 << 30
"""That one input may take, on a busy machine."""

RUN = {
    **{"task": "ioi", "model": "tiny-gpt2", "method": "acdc", "metric": "kl", "reference": "resample", "seed": 0},
    **{"threshold": 0.1, "prompts": 4, "dtype": "float32", "average": "together", "metric_full": 0.0, "groups": True},
    **{"metric_final": 0.5, "evaluations": 5, "evaluations_wasted": 1, "device_calls": 3, "seconds": 1.5},
    **{"seconds_compiling": 0.5, "selection": {"edges": 3, "rank": "signed"}, "groups_kept": 1},
    **{
        "source": {"task": "ioi", "model": "tiny-gpt2", "seed": 0, "digest_of_pairs": "x"},
        "config": {"command": "discover"},
    },
}


def circuit(graph, folder):
    scores = np.where(graph.valid, np.random.default_rng(0).normal(size=graph.shape).round(3), 0)
    jc.Circuit(graph, graph.valid & (scores > 0), scores, RUN, 8).save(folder / "c.json")
    return (folder / "c.json").read_bytes()


def read_circuit(path):
    """What is read can be shown, written and read again, and says what it was made of."""
    read = jc.Circuit.load(path)
    print_circuit(read)
    jc.report.to_markdown(read)
    jc.report.to_dot(read)
    read.save(path)
    assert (jc.Circuit.load(path).mask == read.mask).all()
    recorded(read.run)


def read_peap(path):
    """What is read has circuits."""
    read = jc.Peap.load(path)
    print_peap(read)
    read.circuit(10, rank="absolute")
    read.save(path)


def read_peap_circuit(path):
    """What is read can be shown, and written."""
    read = jc.PeapCircuit.load(path)
    print_peap_circuit(read)
    read.save(path)


def read_record(path):
    judged([jc.read_record(path)])


def grouped():
    from jaxcircuits import layout

    moments = (layout.heads(4, 2), layout.mlp())
    return jc.Graph(layout.Layout(("input",), (layout.Stack(1, moments),)))


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Of each: the file's name, a valid file, what changes it, and what reads it."""
    folder = tmp_path_factory.mktemp("valid")
    graph = jc.Graph.transformer(1, 2)
    found = {
        "circuit": ("c.json", circuit(graph, folder), changed_json, read_circuit),
        "circuit of groups": ("c.json", circuit(grouped(), folder), changed_json, read_circuit),
        "circuit of units": ("c.json", circuit(jc.gate("adder").graph, folder), changed_json, read_circuit),
        "AutoCircuit": (
            "a.json",
            json.dumps(jc.to_autocircuit(jc.Circuit(graph, graph.valid, np.zeros(graph.shape), {}))).encode(),
            changed_json,
            lambda path: jc.from_autocircuit(graph, read_json(path)),
        ),
        "JSON": ("x.json", json.dumps(RUN).encode(), changed_bytes, lambda path: parse_json(path.read_text())),
    }
    rows = [{"clean": "a b c", "corrupt": "a d c", "answer": ["e", "f"], "wrong": "g"}, {"clean": "b", "corrupt": "c"}]
    rows[1] |= {"answer": "g", "wrong": ["h"]}
    rows = [rows[0] | {"subject": "b c"}, rows[1] | {"subject": [0, 1]}]
    lines, letters = "\n".join(map(json.dumps, rows)).encode(), letters_tokenizer()
    found["rows"] = ("t.jsonl", lines, changed_lines, lambda path: jc.PromptPairs.load(path, letters))
    table = b"clean,corrupt,answer\na b,a c,d\nb c,b d,e\n"
    found["table"] = ("t.csv", table, changed_bytes, lambda path: jc.PromptPairs.load(path, letters))
    micro_pairs().save(folder / "t.npz")
    found["prompts"] = ("t.npz", (folder / "t.npz").read_bytes(), changed_archive, jc.PromptPairs.load)
    write_arrays(folder / "x.npz", {"a": np.arange(6, dtype="<i4").reshape(2, 3), "b": np.ones(3, "<f4")})
    found["arrays"] = ("x.npz", (folder / "x.npz").read_bytes(), changed_archive, read_arrays)
    found["MIB"] = ("importances.json", ranked(folder), changed_json, lambda path: check_result(path.parent))
    options = b"metric: kl\nthresholds: [1, 0.1]\noptions: {steps: 5, signed: true}\nhead-order: ascending\n"
    found["YAML"] = ("x.yaml", options, changed_bytes, read_yaml)
    return found | evaluations(folder) | checkpoints(folder)


def ranked(folder):
    """A model's scores of a submission, in MIB's format."""
    graph = jc.Graph.transformer(2, 2)
    scores = np.where(graph.valid, np.random.default_rng(0).normal(size=graph.shape).round(3), 0)
    jc.Circuit(graph, graph.valid, scores, {}, 8).save(folder / "importances.json")
    return (folder / "importances.json").read_bytes()


def evaluations(folder):
    pairs = jc.tasks.TASKS["logic_gates"].generate(gate="adder")[1:]  # 0 + 0 + 0 is what no edge gives too
    gate = jc.Objective(jc.gate("adder"), pairs, "l2", "zero")
    chosen = jc.Circuit.select(jc.random_scores(gate), edges=12)
    jc.evaluate(gate, chosen, random=2, rediscovered=jc.exact).save(folder / "e.json")
    objective = jc.Objective(micro_model("one-head"), micro_pairs(), "logit_diff")
    chosen = jc.Circuit.select(jc.random_scores(objective), edges=4)
    jc.inspect_circuit(objective, chosen, prompts=2).save(folder / "i.json")
    divided = jc.Objective(jc.with_units(micro_model("one-head"), spans=[(0, 2)]), micro_pairs(), "logit_diff")
    jc.peap(divided).save(folder / "p.json")
    jc.peap(divided).circuit(9).save(folder / "pc.json")
    return {
        "PEAP": ("p.json", (folder / "p.json").read_bytes(), changed_json, read_peap),
        "PEAP's circuit": ("pc.json", (folder / "pc.json").read_bytes(), changed_json, read_peap_circuit),
        "evaluation": ("e.json", (folder / "e.json").read_bytes(), changed_json, read_record),
        "inspection": ("i.json", (folder / "i.json").read_bytes(), changed_json, jc.Inspection.load),
    }


def checkpoints(folder):
    """The files of a model's folder, each changed alone."""
    jc.save(micro_model("one-head"), folder / "model")
    weights, config = folder / "model" / "model.safetensors", folder / "model" / "config.json"
    tensors = load_file(weights)
    names = dict.fromkeys(tensors, "part.safetensors")
    tree = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}

    def loads(path):
        for name, data in {"config.json": config.read_bytes(), "part.safetensors": weights.read_bytes()}.items():
            if path.name != name and not (path.parent / name).exists():
                (path.parent / name).write_bytes(data)
        jc.load(path.parent)

    small = letters_tokenizer().backend_tokenizer.to_str().encode()
    settings = b'{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "a", "model_max_length": 10}'
    found = {
        "config": ("config.json", config.read_bytes(), changed_json, read_format),
        "weights": ("model.safetensors", weights.read_bytes(), changed_header, loads),
        "index": ("model.safetensors.index.json", json.dumps({"weight_map": names}).encode(), changed_json, loads),
        "flax": ("flax_model.msgpack", flax.serialization.msgpack_serialize(tree), changed_bytes, loads),
        "tokenizer": ("tokenizer.json", small, changed_json, lambda path: load_tokenizer(path.parent)),
        "settings": ("tokenizer_config.json", settings, changed_json, beside("tokenizer.json", small)),
    }
    words = {word: number for number, word in enumerate(["a", "b", "c", "d", "ab", "cd", "<|endoftext|>"])}
    pairs = b"#version: 0.2\na b\nc d\n"
    gpt2 = {"config.json": b'{"model_type": "gpt2"}'}
    found["vocabulary"] = ("vocab.json", json.dumps(words).encode(), changed_json, beside("merges.txt", pairs, **gpt2))
    found["merges"] = ("merges.txt", pairs, changed_bytes, beside("vocab.json", json.dumps(words).encode(), **gpt2))
    jc.save(jc.load("tracr-reverse").model, folder / "tracr")
    found["config of tracr"] = ("config.json", (folder / "tracr/config.json").read_bytes(), changed_json, read_format)
    found["config of TransformerLens"] = ("config.json", json.dumps(LENS).encode(), changed_json, read_format)
    for kind, values in FAMILY_CONFIGS.items():
        whole = json.dumps({"model_type": kind, **values}).encode()
        found[f"config of {kind}"] = ("config.json", whole, changed_json, read_format)
    return found | {"GGUF": gguf_reader(folder)}


LENS = {
    **{"model_name": "attn-only-1l", "d_model": 8, "d_head": 4, "n_heads": 2, "n_layers": 1, "n_ctx": 16},
    **{"d_vocab": 11, "act_fn": None, "attn_only": True, "normalization_type": "LN", "eps": 1e-5},
    **{"use_attn_scale": True, "positional_embedding_type": "standard", "seed": 1},
    **{"tokenizer_name": "EleutherAI/gpt-neox-20b"},
}
FAMILY_CONFIGS = {
    "llama": {"num_hidden_layers": 2, "rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": 8},
    "gpt_neox": {"num_hidden_layers": 2, "rotary_pct": 0.25, "use_parallel_residual": True},
    "gemma3_text": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 4, "head_dim": None, "rope_theta": 1e6},
    "qwen3": {"num_hidden_layers": 2, "head_dim": 128, "attention_bias": False, "tie_word_embeddings": True},
    "olmo2": {"num_hidden_layers": 2, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
    "gemma2": {"num_hidden_layers": 2, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 224, "head_dim": 8},
    "qwen2": {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}


def beside(name, data, **others):
    """Reads the tokenizer of a folder that has these files too."""

    def read(path):
        for file, content in {name: data, **others}.items():
            (path.parent / file).write_bytes(content)
        load_tokenizer(path.parent)

    return read


def gguf_reader(folder):
    pytest.importorskip("gguf")
    from gguf_writing import write

    from jaxcircuits.formats import format_of
    from jaxcircuits.gguf_file import GGUF
    from jaxcircuits.gguf_names import GGUFTensors
    from jaxcircuits.gguf_tokenizer import read_tokenizer

    values = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab"]}
    values |= {"tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.bos_token_id": 0}
    whole = write(folder / "m.gguf", "llama", values=values).read_bytes()
    head = whole.index(b"output_norm") + 400

    def change(whole, draw):
        return changed_bytes(whole[:head], draw) + whole[head:]

    def read(path):
        read_tokenizer(GGUF(path).metadata)
        tensors = GGUFTensors(path)
        format_of(tensors.values, "x")
        tensors.read("model.norm.weight", (64,))

    return "m.gguf", whole, change, read


class TooLong(BaseException):
    """No reader may take it for an error of the file."""


def stop(*_):
    raise TooLong


QUICK = {
    **{"circuit": 600, "circuit of groups": 200, "circuit of units": 200, "AutoCircuit": 300, "JSON": 1000},
    **{"rows": 300, "table": 300, "prompts": 300, "arrays": 1000, "YAML": 500, "evaluation": 300},
    "PEAP": 200,
    "PEAP's circuit": 200,
    **{"inspection": 300, "config": 500, "weights": 30, "index": 30, "flax": 30, "tokenizer": 20, "settings": 10},
    **{"vocabulary": 20, "merges": 20, "config of tracr": 500, "config of TransformerLens": 500, "MIB": 100},
    **{f"config of {kind}": 500 for kind in FAMILY_CONFIGS},
    "GGUF": 100,
}
"""Inputs of each reader in the tests that always run: some are slow."""


def fuzz(name, readers, folder, count, seed=0):
    """Reads so many inputs; returns how many were refused. Raises what else leaves the reader, with its input."""
    file, whole, change, read = readers[name]
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    known = signal.signal(signal.SIGALRM, stop)
    try:
        read_alone(folder / "valid", file, whole, read)
        for number, data in enumerate(inputs(whole, change, f"{name} {seed}", count)):
            try:
                signal.alarm(SECONDS)
                read_alone(folder / str(number % 8), file, data, read)
            except (ValueError, OSError) as error:
                refused += 1
                assert str(error).strip(), f"{name} {number}: refused without a word"
            except BaseException as error:
                kept = folder / f"broken-{file}"
                kept.write_bytes(data)
                raise AssertionError(f"{name} {number}: {type(error).__name__}: {error!s:.300}; {kept}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, known)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < BYTES
    return refused


def read_alone(folder, file, data, read):
    """Reads a file that is in a folder of its own."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / file).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(folder / file)


@pytest.mark.parametrize("name", QUICK)
def test_nothing_but_a_refusal_leaves_a_reader(name, readers, tmp_path, pytestconfig, capsys):
    count = pytestconfig.getoption("--fuzz") or QUICK[name]
    refused = fuzz(name, readers, tmp_path, count)
    assert count / 20 < refused <= count


@pytest.mark.mission
@pytest.mark.parametrize("name", QUICK)
def test_nothing_but_a_refusal_leaves_a_reader_of_more_inputs(name, readers, tmp_path, capsys):
    refused = fuzz(name, readers, tmp_path, 2000, seed=1)
    assert 100 < refused <= 2000
