"""A command's options from a file, and all of them as its record states them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..yaml_file import read_yaml

if TYPE_CHECKING:
    from typer import Context
else:
    Context = typer.Context.__base__  # what commands are given; typer may bring its own copy of click


def read_config(ctx: Context, path: Path | None) -> Path | None:
    """Takes the values of a YAML or JSON file as defaults of this command; what is typed goes first.

    Raises ValueError for a file that is no table of this command's arguments and options.
    """
    if path is None:
        return None
    try:
        values = read_yaml(path, "table of options")
    except ValueError as error:
        raise ValueError(f"--config: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config: expected {path} to hold names and values, as 'metric: kl'")
    names = {spelt: str(param.name) for param in ctx.command.params for spelt in _spellings(param)}
    if unknown := [str(name) for name in values if str(name).replace("-", "_") not in names]:
        known = ", ".join(sorted(name for name in names if name not in ("config", "help")))
        raise ValueError(f"--config: {path} has unknown names {', '.join(unknown)}; expected some of {known}")
    several = {param.name for param in ctx.command.params if getattr(param, "multiple", False) or param.nargs == -1}
    named = {names[str(name).replace("-", "_")]: value for name, value in values.items()}
    ctx.default_map = {name: _as_typed(value, name in several) for name, value in named.items()}
    return path


def _spellings(param: Any) -> set[str]:
    """How a parameter may be called in a file: as its option, without dashes in front, or as its argument."""
    options = {option.lstrip("-").replace("-", "_") for option in param.opts if len(option.lstrip("-")) > 1}
    return options or {str(param.name)}


def _as_typed(value: Any, several: bool) -> Any:
    """A value as it would be typed: lists joined by commas, or `several` values; a table as NAME=VALUE."""
    if isinstance(value, dict):
        return [f"{name}={_typed(entry)}" for name, entry in value.items()]
    if isinstance(value, list):
        return [_typed(entry) for entry in value] if several else ",".join(map(_typed, value))
    if value is None:
        return None
    return [_typed(value)] if several else _typed(value)


def _typed(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def config_of(ctx: Context) -> dict[str, Any]:
    """Every argument and option of the command that runs, for the record of its result."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in ctx.params.items()}
    return {"command": ctx.info_name, **{name: value for name, value in values.items() if name != "config"}}
