"""A checkpoint's tokenizer: transformers' own for a folder, one built from the tokens of a GGUF file."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import check_regular, read_json
from .formats import read_format
from .gguf_file import GGUF
from .gguf_names import is_gguf
from .gguf_tokenizer import read_tokenizer

FILES = ("tokenizer_config.json", "tokenizer.json")
BYTE_PAIRS = ("vocab.json", "merges.txt")
"""Which are a tokenizer without any other file in some families; elsewhere they do not say how texts are cut."""

OTHERS = ("config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "chat_template.jinja")

SETTINGS = (FILES[0], *OTHERS[:2])
"""What gives transformers a tokenizer's arguments."""

OWN_FILES = ("tokenizer_file", "vocab_file", "merges_file")
"""Settings whose files are in the folder under names of their own."""

NAMES_OF_FILES = re.compile(r"(?!special_tokens_map_file$)(.*(_file|_files|_spm|_kwargs)|vocab|merges|init_inputs)")
"""Arguments whose texts may be opened as files, wherever these lie; the one left out is written and never read."""


def has_tokenizer(files: Path) -> bool:
    """Whether a model's folder or GGUF file has a tokenizer."""
    return is_gguf(files) or any((files / name).is_file() for name in FILES) or _has_byte_pairs(files)


def _has_byte_pairs(files: Path) -> bool:
    """Whether it has nothing else that says how to read text, and needs nothing else."""
    if any((files / name).is_file() for name in FILES) or not all((files / name).is_file() for name in BYTE_PAIRS):
        return False
    return read_format(files / "config.json").family.has_byte_pairs


def load_tokenizer(files: Path) -> Any:
    """The tokenizer of a model's folder or GGUF file; code of a checkpoint is never run.

    Raises ValueError if there is none, or none that can be read.
    """
    if is_gguf(files):
        try:
            with _quiet_about_torch(), _panics_as_errors():
                return read_tokenizer(GGUF(files).metadata)
        except ValueError as error:
            raise ValueError(f"{files}: {error}") from None
    if not has_tokenizer(files):
        named = read_format(files / "config.json").tokenizer_name
        remedy = f", or save the tokenizer {named!r} into {files}" if named else ""
        raise ValueError(f"{files} has no {' or '.join(FILES)}: it cannot read text; use an .npz task file{remedy}")
    for name in (*FILES, *BYTE_PAIRS, *OTHERS):
        if (files / name).exists():
            check_regular(files / name, "part of a tokenizer")
    try:
        with _quiet_about_torch(), _panics_as_errors():
            import transformers

            _check_settings(files)
            settings = files / FILES[0]
            named = read_json(settings, "tokenizer's settings") if settings.is_file() else {}
            loader: Any = transformers.AutoTokenizer
            if not _has_byte_pairs(files) and named.get("tokenizer_class", "TokenizersBackend") == "TokenizersBackend":
                loader = transformers.PreTrainedTokenizerFast
            # the folder's own files before those that its settings name, which transformers 5.0 takes first
            own = dict.fromkeys(set(OWN_FILES) & named.keys())
            loaded = loader.from_pretrained(files, **own, local_files_only=True, trust_remote_code=False)
            loaded("")  # settings of another kind than they should be are seen when it is used
            return loaded
    except Exception as error:  # transformers and tokenizers raise many unrelated types for malformed files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{files}: its tokenizer cannot be read: {reason}") from None


def _check_settings(files: Path) -> None:
    """Raises ValueError, naming the key, for settings that lead to a file that is not in the folder, or hold tokens
    that would stand for those of its files.

    Paths of another machine, where nothing is here, are often left over in a checkpoint, and lead nowhere.
    """
    for path in (files / name for name in SETTINGS if (files / name).is_file()):
        settings = read_json(path, "tokenizer's settings")
        for key in ("vocab", "merges"):
            if isinstance(settings.get(key), dict | list):
                raise ValueError(f"{path.name}: {key}: expected tokens in their own files, got {settings[key]!r:.60}")
        for key in filter(NAMES_OF_FILES.fullmatch, settings):
            for text in _texts(settings[key]):
                place = Path(os.path.abspath(files / text))  # a link is a file of the folder, as in the hub's cache
                is_here = place.is_relative_to(os.path.abspath(files))
                if not is_here and any(os.path.exists(one) and not os.path.isdir(one) for one in (place, text)):
                    raise ValueError(f"{path.name}: {key}: expected no file elsewhere, got {text!r:.60}")
                if is_here and os.path.exists(place) and not place.is_dir():
                    check_regular(place, "part of a tokenizer")


def _texts(value: Any) -> Iterator[str]:
    """All that are in a value."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic of the tokenizers' Rust code is no `Exception`: here it is a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizers panicked: {error}") from None


@contextlib.contextmanager
def _quiet_about_torch() -> Iterator[None]:
    """Transformers says that PyTorch is missing when it is first imported, which no tokenizer needs."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_not_about_torch)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_about_torch)


def _is_not_about_torch(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage() and "None of PyTorch" not in record.getMessage()
