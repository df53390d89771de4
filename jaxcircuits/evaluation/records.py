"""What every evaluation leaves behind: frozen records that are saved as JSON and drawn without computing again."""

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..arguments import checked
from ..files import plain, read_json, write_json

FORMAT = "jaxcircuits-evaluation/1"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished evaluation; `kind` names which."""

    kind: ClassVar[str] = "record"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON's types: `format`, `kind` and every field; NaN and infinity by their names."""
        return {"format": FORMAT, "kind": self.kind, **plain(dataclasses.asdict(self))}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_json` to a file, whole or not at all."""
        write_json(path, self.to_json())


@checked
def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """A saved record as JSON's types. Raises ValueError for a file that holds none."""
    value = read_json(path, "record")
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("kind"), str):
        raise ValueError(f"{path}: expected a JSON object of format {FORMAT!r}, as `jaxcircuits evaluate` writes it")
    run = value.get("run", {})
    if not isinstance(run, dict) or not isinstance(run.get("config", {}), dict):
        raise ValueError(f"{path}: run: expected a JSON object, and one as its config")
    return value


@dataclasses.dataclass(frozen=True)
class Spread:
    """Some numbers, usually one a prompt: their mean and how they spread around it.

    - `std`: with n - 1 in the denominator, 0 for one number. `standard_error`: `std / sqrt(n)`.
    - `quantiles`: least, lower quartile, median, upper quartile, most.
    """

    mean: float
    std: float
    standard_error: float
    quantiles: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, " number"]) -> "Spread":
        """Of at least one number. Raises ValueError for none."""
        if not len(values):
            raise ValueError("spread: expected at least one number")
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        quantiles = tuple(float(value) for value in np.quantile(values, QUANTILES))
        return cls(float(np.mean(values)), std, std / float(np.sqrt(len(values))), quantiles, len(values))
