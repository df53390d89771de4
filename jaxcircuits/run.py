"""The record of a run, the `run` of a circuit's or scores' file: one writer and one reader of what it was made of."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SOURCE = "source"
"""The entry of a record that says where model and prompts are from. Earlier files say it in `config` and beside it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """What an objective was made of; None where a record does not say.

    - `model`: what `checkpoints.load` takes. `task`: a built-in one or a file. `prompts`, `seed`: their number, and the
      seed that they were drawn with (not the method's, which is `seed` of the record). `digest`: of the pairs
      (an earlier file's `digest` is of the clean prompts alone, and not looked at).
    - `metric`, `reference`, `average`: as `Objective` takes them. `dtype`, `precision`: the model's. `units`, `spans`:
      what its nodes are. `bos`, `template`: how texts were framed.
    """

    model: str | None = None
    task: str | None = None
    seed: int | None = None
    digest: str | None = None
    prompts: int | None = None
    metric: str | None = None
    reference: str | None = None
    average: str | None = None
    dtype: str | None = None
    precision: str | None = None
    bos: bool | None = None
    template: str | None = None
    units: str | None = None
    spans: str | None = None

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> "Source":
        """What a record says, which is one of a file that was checked, or that a method made."""
        said, typed = _table(run, SOURCE), _table(run, "config")
        found = {name: said.get(name, typed.get(name, run.get(name))) for name in ("model", "task")}
        found["seed"] = said.get("seed") if SOURCE in run else typed.get("seed", run.get("seed"))
        found["digest"] = said.get("digest_of_pairs")
        return cls(**found, **{field.name: run.get(field.name) for field in dataclasses.fields(cls)[len(found) :]})


def extended(run: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A record with more in it; `task`, `model` and `seed` among that are the prompts' and go to their own place."""
    typed = _table(more, "config")
    named = {name: typed.get(name, more[name]) for name in ("task", "model", "seed") if name in more}
    named |= _table(more, SOURCE)
    whole = {**run, **more}
    if not named:
        return whole
    if SOURCE in run or not run:
        before = _table(run, SOURCE)
    else:
        before = {name: getattr(Source.of(run), name) for name in ("task", "model", "seed")}
    whole[SOURCE] = {**before, **named}
    return whole | ({"seed": run["seed"]} if "seed" in run else {})


def digest(arrays: Iterable[Any]) -> str:
    """A short text that two lists of arrays share if they are equal in shape, type and every bit."""
    hashed = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        hashed.update(f"{array.dtype}{array.shape}".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()[:16]


def _table(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = run.get(name)
    return dict(value) if isinstance(value, Mapping) else {}
