"""Tokenizers of GGUF files: ids as transformers' own give them, on odd texts."""

import json
import re

import pytest
from conftest import gpt2_tokenizer
from gguf_writing import real_model, write

from jaxcircuits.gguf_file import GGUF
from jaxcircuits.gguf_tokenizer import PATTERNS, SPACE, read_tokenizer
from jaxcircuits.tokenizer import load_tokenizer

TEXTS = (
    "Then, Mary and John went to the store. John gave a drink to",
    " Mary",
    "Mary  went   to    the store",
    "The war lasted from the year 1732 to 17",
    "  12  3   4567 x12y3.5e-10 ٣٤ ½ Ⅳ",
    "I'm she'll THEY'RE don't 'tis l'été",
    "tab\there\n\nnew lines\r\n \n\t end  ",
    "日本語のテキスト 한국어 العربية Ελληνικά ﬁ",
    "🙂👩‍👩‍👧 e\u0301 é \u200b \u00a0 \ufeff",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "<|im_start|>user\nhi<|im_end|><bos><eos><table> <unused7>",
    "a" * 50 + " " * 20 + "!?" * 10,
    SPACE + "x " + SPACE * 3,
    "\x00\x01 \x7f",
)


def assert_same_ids(ours, theirs, texts=TEXTS):
    for text in texts:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text


def byte_level(pre, **values):
    """Metadata with GPT-2's tokens and merges."""
    stored = json.loads(gpt2_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]]
    given = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, **values}
    return {f"tokenizer.ggml.{key}": value for key, value in given.items()}


# --- byte-level BPE --------------------------------------------------------------------------------


def test_gpt_2s_tokens_are_those_of_gpt_2():
    ours = read_tokenizer(byte_level("gpt-2", bos_token_id=50256, eos_token_id=50256))
    assert_same_ids(ours, gpt2_tokenizer())
    assert ours.bos_token == "<|endoftext|>" and ours.decode(ours.encode(TEXTS[7])) == TEXTS[7]


def test_qwens_tokens_are_those_of_its_own_tokenizer():
    """With NFC, which transformers' reader of GGUF files leaves out."""
    from transformers import Qwen2Tokenizer

    metadata = byte_level("qwen2")
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    assert_same_ids(read_tokenizer(metadata), theirs, TEXTS[:10] + TEXTS[11:])


def test_llama_3_cuts_by_its_pattern_and_takes_whole_tokens_first():
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    assert {name: GGUF_PRE_TOKENIZER_SPLITS[name] for name in PATTERNS} == PATTERNS
    metadata = byte_level("llama-bpe", bos_token_id=50256)
    metadata["tokenizer.ggml.merges"].remove("Ġthe n")
    whole = read_tokenizer(metadata)
    assert whole.encode(" then", add_special_tokens=False) == gpt2_tokenizer().encode(" then")
    assert whole.encode("x")[0] == 50256
    assert whole.tokenize("1234 5") == ["123", "4", "Ġ", "5"]


def test_smollm_cuts_out_each_digit_first():
    """As if GPT-2's tokenizer were given the digits and what is between them one by one."""
    ours, gpt2 = read_tokenizer(byte_level("smollm")), gpt2_tokenizer()
    for text in TEXTS:
        pieces = [piece for piece in re.split(r"([\d½Ⅳ])", text) if piece]
        expected = [index for piece in pieces for index in gpt2.encode(piece)]
        assert ours.encode(text) == expected, text


# --- SentencePiece ---------------------------------------------------------------------------------


def sentencepiece(**values):
    """Metadata of a small vocabulary: control tokens, a user's, bytes, then merges in their order."""
    pieces = ["th", SPACE + "th", SPACE + "the", "in", "ing", SPACE + "M", "ar", "ary", SPACE + "Mary", "er", "ll"]
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyzMJ.,"]
    special, own = ["<pad>", "<eos>", "<bos>", "<unk>"], ["\n\n", "<table>", "  ", "   "]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *own, *raw, *pieces, *letters]
    kinds = [3] * 4 + [4] * 4 + [6] * 256 + [1] * (len(pieces) + len(letters))
    scores = [-1000.0] * 8 + [0.0] * 256 + [-float(rank) for rank in range(len(pieces) + len(letters))]
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    given = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": kinds, **ids}
    return {f"tokenizer.ggml.{key}": value for key, value in {**given, **values}.items()}


def transformers_tokenizer(path):
    pytest.importorskip("torch")
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("arch, prefix", [("gemma3", False), ("llama", True)])
def test_sentencepieces_tokens_are_those_of_transformers(arch, prefix, tmp_path):
    values = sentencepiece(add_space_prefix=prefix, add_bos_token=True)
    path = write(tmp_path / "model.gguf", arch, values=values)
    theirs = transformers_tokenizer(path)
    texts = [text for text in TEXTS if not (prefix and re.search(rf"^[\s<{SPACE}]|  ", text))]  # see below
    assert_same_ids(load_tokenizer(path), theirs, texts)


def test_what_has_the_higher_score_is_merged_first():
    """As llama.cpp does, whatever the order in the file."""
    kinds = {"tokens": ["<unk>", "a", "b", "c", "ab", "bc"], "token_type": [2, 1, 1, 1, 1, 1]}
    metadata = {"model": "llama", **kinds, "unknown_token_id": 0, "add_space_prefix": False}
    for scores, expected in (([0.0, -3.0, -4.0, -5.0, -1.0, -2.0], ["ab", "c"]), ([0.0] * 5 + [1.0], ["a", "bc"])):
        given = {f"tokenizer.ggml.{key}": value for key, value in {**metadata, "scores": scores}.items()}
        assert read_tokenizer(given).tokenize("abc") == expected
    for scores, message in (([0.0], "expected 6 finite numbers, got 1"), ([float("nan")] * 6, "6 finite numbers")):
        with pytest.raises(ValueError, match=f"scores: .*{message}"):
            read_tokenizer({**given, "tokenizer.ggml.scores": scores})


def test_a_space_in_front_is_kept_beside_the_one_that_is_put_there():
    """As SentencePiece and llama.cpp do."""
    ours = read_tokenizer(sentencepiece())
    assert ours.tokenize(" Mary") == [SPACE * 2, "M", "ary"] and ours.tokenize("Mary") == [f"{SPACE}Mary"]
    assert ours.decode(ours.encode("Mary the", add_special_tokens=False)) == "Mary the"


def test_bytes_stand_for_letters_that_are_no_token():
    ours = read_tokenizer(sentencepiece(add_space_prefix=False))
    assert ours.tokenize("é") == ["<0xC3>", "<0xA9>"] and ours.decode(ours.encode("é")) == "<bos>é"


# --- what every kind has ---------------------------------------------------------------------------


@pytest.mark.parametrize("add, begins", [(True, True), (False, False), (None, True)])
def test_bos_is_put_in_front_where_the_file_says_so(add, begins):
    ours = read_tokenizer(sentencepiece(**({} if add is None else {"add_bos_token": add})))
    assert (ours.encode("Mary")[0] == 2) == begins and 2 not in ours.encode("Mary", add_special_tokens=False)
    assert [ours.bos_token, ours.eos_token, ours.unk_token, ours.pad_token] == ["<bos>", "<eos>", "<unk>", "<pad>"]


def test_the_files_chat_template_is_the_tokenizers():
    metadata = sentencepiece() | {"tokenizer.chat_template": "{% for m in messages %}<{{ m.content }}>{% endfor %}"}
    ours = read_tokenizer(metadata)
    assert ours.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == "<the>"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "bert"}, "tokenizer.ggml.model = 'bert' is not supported; expected 'gpt2' or 'llama'"),
        ({"tokens": None}, "tokenizer.ggml.tokens: expected a list of texts, got NoneType"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "tokenizer.ggml.tokens: expected different tokens"),
        ({"token_type": [1]}, "tokenizer.ggml.tokens: expected different tokens, each with a kind"),
        ({"token_type": ["x"]}, "tokenizer.ggml.token_type: expected a list of whole numbers"),
        ({"bos_token_id": 999}, "tokenizer.ggml.bos_token_id = 999: expected the number of one of"),
        ({"model": "gpt2", "pre": "falcon", "merges": ["t h"]}, "tokenizer.ggml.pre = 'falcon' is not supported"),
        ({"model": "gpt2", "pre": "qwen2", "merges": ["t h i"]}, "tokenizer.ggml.merges: expected pairs of tokens"),
        ({"model": "gpt2", "pre": "qwen2", "merges": ["x y"]}, "tokenizer.ggml.merges: expected pairs of tokens"),
        ({"model": "gpt2", "pre": "qwen2"}, "tokenizer.ggml.merges: expected a list of texts"),
    ],
)
def test_malformed_tokenizers_are_refused_by_key(values, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(sentencepiece(**values))


@pytest.mark.slow
def test_gemma_3s_tokens_are_those_of_transformers(tmp_path):
    path = real_model("gemma3", tmp_path)
    assert_same_ids(load_tokenizer(path), transformers_tokenizer(path))


@pytest.mark.slow
def test_smollm_2s_tokens_are_those_of_transformers_once_digits_are_cut_out(tmp_path):
    """Which transformers' reader of GGUF files does not do for this file's pattern."""
    import tokenizers

    path = real_model("smollm2", tmp_path)
    ours, theirs = load_tokenizer(path), transformers_tokenizer(path)
    cut = tokenizers.pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = cut.Sequence(
        [cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)]
    )
    assert_same_ids(ours, theirs)
    assert (ours.bos_token, ours.eos_token, ours.encode("x")) == ("<|im_start|>", "<|im_end|>", [104])
    tokens = GGUF(path).metadata["tokenizer.ggml.tokens"]
    assert ours.convert_tokens_to_ids(tokens) == list(range(len(tokens)))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"pre": ["gpt-2"]}, r"tokenizer.ggml.pre: expected a text, got \['gpt-2'\]"),
        ({"model": 3}, "tokenizer.ggml.model: expected a text, got 3"),
        ({"tokens": ["a", "b" * 2000]}, "expected tokens of at most 1024 letters, got one of 2000"),
    ],
)
def test_metadata_of_another_kind_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(byte_level(**{"pre": "gpt-2", **values}))
