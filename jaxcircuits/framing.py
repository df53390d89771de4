"""What stands around every prompt: the BOS token, and the turns of a chat."""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from .arguments import checked
from .texts import encode_after

Pairs = TypeVar("Pairs")
PROMPT = "{prompt}"
MARK = "\u2042PROMPT\u2042"
"""What stands for the prompt while the chat template is filled in."""


@checked
def framed(pairs: Pairs, tokenizer: Any, *, bos: bool | None = None, template: str | None = None) -> Pairs:
    """`PromptPairs` with token ids put in front of every prompt and behind it; answers and positions move along.

    - `bos`: whether prompts begin with the tokenizer's BOS token; None: as the tokenizer itself, or the chat template,
      begins a text. A prompt that begins with it already gets no second one.
    - `template`: what the user says in the tokenizer's chat template. With `{prompt}` in it the prompt is part of that
      turn, and the answer is read where the assistant's turn begins; without, the prompt begins the assistant's turn,
      and the answer is read at its end. Answers that begin the assistant's turn lose their leading space, unless the
      chat template has one there.

    Raises ValueError for a tokenizer without BOS token or chat template, for a clean prompt with BOS and a corrupt one
    without, for prompts with BOS inside a template, and for prompts that have other tokens there, but for a space that
    begins the first.
    Warns where answers keep their space, since without it they are not one token each.
    """
    prompts: Any = pairs
    head, tail = [], []
    if template is not None:
        before, after = _turns(tokenizer, template)
        prompts, head, tail = _in_turns(prompts, tokenizer, before, after)
        if PROMPT in template and prompts.positions is None and not _goes_on_with_space(tokenizer, template, after):
            prompts = _without_space(prompts, tokenizer)
    first = bos_of(tokenizer)
    if bos and first is None:
        raise ValueError("bos: the model's tokenizer has no BOS token")
    if template is not None and first in {*prompts.clean[:, 0].tolist(), *prompts.corrupt[:, 0].tolist()}:
        raise ValueError("template: expected prompts without BOS, which would be within a turn; leave it out of them")
    begins = bool(head) and head[0] == first
    if bos is False and begins:
        head = head[1:]
    wanted = (template is None and begins_texts_with_bos(tokenizer)) if bos is None else bos
    heads = [head] * len(prompts)
    if wanted and first is not None and not begins:
        has_own = np.zeros(len(prompts), bool) if head else _begin_with(prompts, first)
        heads = [head if own else [first, *head] for own in has_own]
    return _around(prompts, heads, tail) if tail or any(heads) else prompts


def begins_texts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS token in front of a text."""
    first = bos_of(tokenizer)
    return first is not None and list(tokenizer.encode("a"))[:1] == [first]


def bos_of(tokenizer: Any) -> int | None:
    """The BOS token that a tokenizer names, or else the one token that it puts in front of a text."""
    named = getattr(tokenizer, "bos_token_id", None)
    if named is not None or not tokenizer.encode(""):  # which would be what it puts around a text
        return named
    whole, alone = list(tokenizer.encode("a")), list(tokenizer.encode("a", add_special_tokens=False))
    return whole[0] if whole[1 : 1 + len(alone)] == alone and whole != alone else None


def _begin_with(pairs: Any, token: int) -> np.ndarray:
    """Which prompts begin with BOS. Raises ValueError where only one of a clean and its corrupt prompt does."""
    clean, corrupt = pairs.clean[:, 0] == token, pairs.corrupt[:, 0] == token
    if (clean != corrupt).any():
        row = int(np.flatnonzero(clean != corrupt)[0])
        raise ValueError(
            f"bos: of prompt {row} only the {'clean' if clean[row] else 'corrupt'} version begins with BOS: expected "
            "both or neither; change one, or pass bos=False to take the prompts as they are"
        )
    return clean


def _turns(tokenizer: Any, template: str) -> tuple[str, str]:
    """The text before and after the prompt in the chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("template: the model's tokenizer has no chat template")
    messages = [{"role": "user", "content": template.replace(PROMPT, MARK)}]
    if PROMPT in template:
        return _filled(tokenizer, messages, add_generation_prompt=True)
    return _filled(tokenizer, [*messages, {"role": "assistant", "content": MARK}], continue_final_message=True)


def _filled(tokenizer: Any, messages: list[dict[str, str]], **ends: bool) -> tuple[str, str]:
    """What the chat template makes of messages, before and after the mark in one of them."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **ends)
    except Exception as error:  # a template is a program of the checkpoint's, which may raise anything
        raise ValueError(f"template: the tokenizer's chat template cannot be filled in: {error}") from None
    if text.count(MARK) != 1:
        raise ValueError(
            f"template: the tokenizer's chat template has the prompt {text.count(MARK)} times, expected one"
        )
    before, after = text.split(MARK)
    return before, after


def _in_turns(pairs: Any, tokenizer: Any, before: str, after: str) -> tuple[Any, list[int], list[int]]:
    """The prompts with the tokens that they have between these texts, and the tokens before and after all of them.

    Each whole text is cut into tokens at once: alone, its parts would begin with a space for some tokenizers, and a
    space before the prompt belongs to its first token. Only that token may differ, by such a space: positions stay.
    """
    alone, around = _ids(tokenizer, before), None
    changed = {name: getattr(pairs, name).copy() for name in ("clean", "corrupt")}
    for name, tokens in changed.items():
        for row, (ids, length) in enumerate(zip(tokens.tolist(), pairs.length.tolist(), strict=True)):
            prompt = tokenizer.decode(ids[:length])
            whole = _ids(tokenizer, before + prompt + after)
            start = _place(whole, ids[:length], alone, tokenizer)
            here = None if start is None else (whole[:start], whole[start + length :])
            around = around or here
            if start is None or here != around:
                raise ValueError(
                    f"template: the {name} prompt {row}, {prompt!r}, is cut into other tokens in the chat template "
                    "than alone, so that positions in it would be others: put a line break before and after {prompt}, "
                    "or a space where the tokenizer begins every text with one"
                )
            tokens[row, :length] = whole[start : start + length]
    assert around is not None
    return dataclasses.replace(pairs, **changed), *around


def _place(whole: list[int], ids: list[int], alone: list[int], tokenizer: Any) -> int | None:
    """Where a text has the tokens of a prompt, which stands behind tokens that alone are others at most at the end."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False))
    common = len(list(same))
    for start in (common, common - 1):
        own = whole[max(start, 0) :][: len(ids)]
        if len(own) == len(ids) and own[1:] == ids[1:] and _word(tokenizer, own[0]) == _word(tokenizer, ids[0]):
            return max(start, 0)
    return None


def _word(tokenizer: Any, token: int) -> str:
    """A token's text without spaces around it."""
    return tokenizer.decode([token]).strip()


def _goes_on_with_space(tokenizer: Any, template: str, after: str) -> bool:
    """Whether the chat template has a space between `after`, where the assistant's turn begins, and what it says."""
    messages = [{"role": "user", "content": template}, {"role": "assistant", "content": MARK}]
    try:
        before, _ = _filled(tokenizer, messages, continue_final_message=True)
    except ValueError:  # it knows the user's turns alone
        return not after[-1:].isspace()
    return before.endswith(" ") and not after.endswith(" ")


def _without_space(pairs: Any, tokenizer: Any) -> Any:
    """Prompts whose answers are the tokens of the same words without a space; unchanged where one is several tokens."""
    found = {name: getattr(pairs, name) for name in ("answer", "wrong")}
    answers = {name: ids for name, ids in found.items() if ids is not None and ids.ndim == 2}
    changed = {name: ids.copy() for name, ids in answers.items()}
    longer, given = [], np.unique([one for ids in answers.values() for one in ids[ids >= 0]]).tolist()
    for token in given:
        word = _word(tokenizer, token)
        if not word or encode_after(tokenizer, f" {word}") != [token]:
            continue
        alone = encode_after(tokenizer, word)
        if len(alone) != 1 or alone[0] in given:
            longer.append(word)
        for name, ids in answers.items():
            changed[name][ids == token] = alone[0]
    if longer:
        warnings.warn(
            f"template: the assistant's turn begins without a space, but {len(longer)} of the answers, such as "
            f"{longer[0]!r}, are not one token without theirs, or another answer's: all keep it, which a model hardly "
            "writes there",
            stacklevel=4,
        )
        return pairs
    return dataclasses.replace(pairs, **changed)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def _around(pairs: Any, heads: Sequence[list[int]], tail: list[int]) -> Any:
    """Prompts between tokens; what is said of positions moves by as many as there are in front."""
    starts = np.array([len(head) for head in heads], np.int32)
    ends = starts + pairs.length
    wider = int(ends.max()) + len(tail)

    def moved(values: np.ndarray, fill: Any) -> np.ndarray:
        result = np.full((len(values), wider, *values.shape[2:]), fill, values.dtype)
        for row, own, start, end in zip(result, values, starts, ends, strict=True):
            row[start:end] = own[: end - start]
        return result

    changed: dict[str, Any] = {"length": ends + len(tail)}
    if pairs.positions is not None:
        changed["positions"] = moved(pairs.positions, False)
    if pairs.spans is not None:
        changed["spans"] = {name: places + starts[:, None] for name, places in pairs.spans.items()}
    for name in ("clean", "corrupt"):
        changed[name] = moved(getattr(pairs, name), 0)
        for row, head, end in zip(changed[name], heads, ends, strict=True):
            row[: len(head)] = head
            row[end : end + len(tail)] = tail
    for name, fill in (("answer", -1), ("wrong", -1), ("target", 0)):
        values = getattr(pairs, name)
        if values is not None and values.ndim == 3:
            changed[name] = moved(values, fill)
    return dataclasses.replace(pairs, **changed)
