"""What stands around every prompt: the BOS token, and the turns of a chat."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from .arguments import checked

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
      and the answer is read at its end.

    Raises ValueError for a tokenizer without BOS token or chat template, for a clean prompt with BOS and a corrupt one
    without, and for prompts whose tokens are not the same inside the template.
    """
    head, tail = ([], []) if template is None else _turns(pairs, tokenizer, template)
    first = getattr(tokenizer, "bos_token_id", None)
    if bos and first is None:
        raise ValueError("bos: the model's tokenizer has no BOS token")
    begins = bool(head) and head[0] == first
    if bos is False and begins:
        head = head[1:]
    wanted = (template is None and begins_texts_with_bos(tokenizer)) if bos is None else bos
    heads = [head] * len(pairs)
    if wanted and first is not None and not begins:
        has_own = np.zeros(len(pairs), bool) if head else _begin_with(pairs, first)
        heads = [head if own else [first, *head] for own in has_own]
    return _around(pairs, heads, tail) if tail or any(heads) else pairs


def begins_texts_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS token in front of a text."""
    first = getattr(tokenizer, "bos_token_id", None)
    return first is not None and list(tokenizer.encode("a"))[:1] == [first]


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


def _turns(pairs: Any, tokenizer: Any, template: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the prompt in the chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("template: the model's tokenizer has no chat template")
    in_user_turn = PROMPT in template
    messages = [{"role": "user", "content": template.replace(PROMPT, MARK)}]
    if not in_user_turn:
        messages.append({"role": "assistant", "content": MARK})
    ends = {"add_generation_prompt": True} if in_user_turn else {"continue_final_message": True}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **ends)
    except Exception as error:  # a template is a program of the checkpoint's, which may raise anything
        raise ValueError(f"template: the tokenizer's chat template cannot be filled in: {error}") from None
    if text.count(MARK) != 1:
        raise ValueError(
            f"template: the tokenizer's chat template has the prompt {text.count(MARK)} times, expected one"
        )
    before, after = text.split(MARK)
    head, tail = (_ids(tokenizer, part) for part in (before, after))
    for name in ("clean", "corrupt"):
        for row, (ids, length) in enumerate(zip(getattr(pairs, name).tolist(), pairs.length, strict=True)):
            prompt = tokenizer.decode(ids[:length])
            if _ids(tokenizer, before + prompt + after) != [*head, *ids[:length], *tail]:
                raise ValueError(
                    f"template: the {name} prompt {row}, {prompt!r}, has other tokens in the chat template than alone; "
                    "is there a space before or after {prompt}, where a line break would do?"
                )
    return head, tail


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
