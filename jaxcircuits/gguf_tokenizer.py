"""The tokenizer that a GGUF file describes by its tokens and merges.

Two kinds: byte-level BPE ("gpt2"), whose pieces of text are cut by a pattern that the file names, and SentencePiece's
BPE ("llama"), which falls back to bytes and whose merges are in the order of its tokens' scores.
Source: llama.cpp's llama-vocab.cpp; the patterns are those of the models' own tokenizer.json.
"""

from typing import Any

import numpy as np

# The kinds of tokens that a text is cut at before anything else.
CONTROL, USER_DEFINED = 3, 4
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SPACE = "\u2581"
"""SentencePiece's."""

LONGEST = 1024
"""Letters of the longest token: the merges of SentencePiece's are looked for at every place in each."""

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama-bpe": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}",
}
GPT2S, DIGIT_BY_DIGIT = ("gpt-2", "gpt2"), ("smollm", "starcoder")
"""What cuts by GPT-2's pattern; after each digit was cut out, or before."""


def read_tokenizer(metadata: dict[str, Any]) -> Any:
    """The tokenizer, one of transformers', of a GGUF file's metadata.

    Raises ValueError, naming the key, for a file without tokens, with malformed ones, or with a kind that is not known.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int) if "tokenizer.ggml.token_type" in metadata else [1] * len(tokens)
    if (longest := max(map(len, tokens))) > LONGEST:
        raise ValueError(f"tokenizer.ggml.tokens: expected tokens of at most {LONGEST} letters, got one of {longest}")
    if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError(f"tokenizer.ggml.tokens: expected different tokens, each with a kind, got {len(tokens)}")
    model, pre = (_text(metadata, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if model not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model = {model!r} is not supported; expected 'gpt2' or 'llama'")
    names = {name: _token(metadata, f"{key}_token_id", tokens) for name, key in SPECIAL.items()}
    if model == "gpt2":
        built = _byte_level(metadata, tokens)
    else:
        built = _sentencepiece(metadata, tokens, kinds, names["unk_token"])
    _add_tokens(built, tokens, kinds)
    if metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or pre == "llama-bpe") and names["bos_token"]:
        _begin_with(built, names["bos_token"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built, clean_up_tokenization_spaces=False, **{k: v for k, v in names.items() if v is not None}
    )
    tokenizer.chat_template = _text(metadata, "tokenizer.chat_template")
    return tokenizer


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    known = all(len(merge) == 2 and {*merge, "".join(merge)} <= vocabulary.keys() for merge in merges)
    if not known:
        raise ValueError("tokenizer.ggml.merges: expected pairs of tokens that together are a token")
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre in PATTERNS:
        cut = pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated")
        pieces = [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif pre in GPT2S:
        pieces = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre in DIGIT_BY_DIGIT:
        pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        known = ", ".join([*PATTERNS, *GPT2S, *DIGIT_BY_DIGIT])
        raise ValueError(f"tokenizer.ggml.pre = {pre!r} is not supported; expected one of {known}")
    if pre == "qwen2":
        built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], kinds: list[int], unknown: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in _by_score(metadata, tokens, kinds)
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    built = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    text: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        text.append(decoders.Strip(" ", 1, 0))
    built.normalizer = normalizers.Sequence(spaces)
    built.decoder = decoders.Sequence(text)
    return built


def _by_score(metadata: dict[str, Any], tokens: list[str], kinds: list[int]) -> list[str]:
    """Tokens in the order in which they are merged: first the user's, which a text is cut at before anything else, then
    by falling score, of equal ones as they are listed.
    """
    if "tokenizer.ggml.scores" not in metadata:
        return tokens
    scores = _list(metadata, "scores", float)
    if len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise ValueError(f"tokenizer.ggml.scores: expected {len(tokens)} finite numbers, got {len(scores)} values")
    order = np.lexsort((-np.array(scores), np.array(kinds) != USER_DEFINED))
    return [tokens[index] for index in order]


def _add_tokens(built: Any, tokens: list[str], kinds: list[int]) -> None:
    """Tokens that a text is cut at, under the ids that they have."""
    from tokenizers import AddedToken

    vocabulary = built.get_vocab()
    for kind, is_special in ((CONTROL, True), (USER_DEFINED, False)):
        own = [token for token, its in zip(tokens, kinds, strict=True) if its == kind and token in vocabulary]
        built.add_tokens([AddedToken(token, normalized=False, special=is_special) for token in own])


def _begin_with(built: Any, token: str) -> None:
    from tokenizers import processors

    ids = [(token, built.token_to_id(token))]
    built.post_processor = processors.TemplateProcessing(single=[f"{token}:0", "$A:0"], special_tokens=ids)


def _list(metadata: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values or not all(type(value) is kind for value in values):
        wanted = {str: "texts", int: "whole numbers", float: "numbers"}[kind]
        raise ValueError(f"tokenizer.ggml.{name}: expected a list of {wanted}, got {type(values).__name__}")
    return values


def _text(metadata: dict[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if not isinstance(value, str | None):
        raise ValueError(f"{key}: expected a text, got {value!r:.60}")
    return value


def _token(metadata: dict[str, Any], name: str, tokens: list[str]) -> str | None:
    index = metadata.get(f"tokenizer.ggml.{name}")
    if index is not None and not (type(index) is int and 0 <= index < len(tokens)):
        raise ValueError(f"tokenizer.ggml.{name} = {index!r}: expected the number of one of {len(tokens)} tokens")
    return None if index is None else tokens[index]
