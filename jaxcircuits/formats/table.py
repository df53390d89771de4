"""What a table of tensors is made of, and how the values of a config are checked."""

import dataclasses
import math
import types
import typing
from typing import Any

import numpy as np

MOST, MOST_LAYERS = 1 << 31, 1 << 14
"""The largest whole number of a config, and number of layers."""

LAYERS = ("n_layer", "n_layers", "num_hidden_layers")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint: `tensor.reshape(split).transpose(order)` holds the model's fields.

    `fields`: where in the model; with three, the leading axis is q, k, v. `{}` in the name: one tensor a layer.
    """

    name: str
    shape: tuple[int, ...]
    fields: tuple[str, ...]
    split: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    def to_fields(self, tensor: np.ndarray) -> list[np.ndarray]:
        tensor = tensor.reshape(self.split or self.shape)
        tensor = tensor if self.order is None else tensor.transpose(self.order)
        return [tensor] if len(self.fields) == 1 else list(tensor)

    def from_fields(self, fields: list[np.ndarray]) -> np.ndarray:
        tensor = fields[0] if len(fields) == 1 else np.stack(fields)
        tensor = tensor if self.order is None else tensor.transpose(np.argsort(self.order))
        return np.ascontiguousarray(tensor.reshape(self.shape))


def fill(config: type, values: dict[str, Any]) -> Any:
    """A config of those values that are its fields; the others have been checked.

    Raises ValueError, naming the key, for a value of another type than its field's.
    """
    kinds, fields = typing.get_type_hints(config), dataclasses.fields(config)
    values = {field.name: values[field.name] for field in fields if field.name in values}
    for field in fields:
        value, wanted = values.get(field.name, field.default), kinds[field.name]
        if value is dataclasses.MISSING:
            raise ValueError(f"misses {field.name}, which has no default")
        if field.name in values and not is_like(value, wanted):
            default = "" if field.default is dataclasses.MISSING else f" like {field.default!r}"
            raise ValueError(f"{field.name} = {value!r} is not supported; expected a value{default}")
        if type(value) is int and not is_int(wanted):
            values[field.name] = float(value)
        elif type(value) is int:
            check_size(field.name, value)
    return config(**values)


def check_size(name: str, value: int) -> None:
    """Raises ValueError for a size beyond what any checkpoint has, before something of that size is made."""
    most = MOST_LAYERS if name in LAYERS else MOST
    if abs(value) > most:
        raise ValueError(f"{name} = {value} is not supported; expected at most {most:,}")


SHARES = ("partial_rotary_factor",)
"""Numbers of a config that are at most 1."""


def check_positive(config: type, values: dict[str, Any]) -> None:
    """Raises ValueError for a number that is none of a model: not above 0, or of `SHARES` above 1."""
    for name, kind in typing.get_type_hints(config).items():
        value: Any = values.get(name)
        if float in (kind, *typing.get_args(kind)) and type(value) in (int, float):
            most = 1 if name in SHARES else math.inf
            if not 0 < value <= most:
                expected = "a number above 0" + (f", at most {most}" if name in SHARES else "")
                raise ValueError(f"{name} = {value!r} is not supported; expected {expected}")


def is_int(wanted: Any) -> bool:
    """Whether a field holds whole numbers."""
    return int in (wanted, *typing.get_args(wanted))


def is_like(value: Any, wanted: Any) -> bool:
    """Whether a value has a field's type; a float may be whole."""
    if isinstance(wanted, types.UnionType):
        return any(is_like(value, kind) for kind in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    return type(value) is wanted or (wanted is float and type(value) is int)


def check_fixed(values: dict[str, Any], fixed: dict[str, tuple[Any, ...]]) -> None:
    """Raises ValueError for a key that is supported at other values only."""
    for key, allowed in fixed.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} = {values[key]!r} is not supported; expected {allowed[0]!r}")
