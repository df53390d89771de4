"""What a table is computed with, and the circuits found so far, kept in files."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import checkpoints
from ..arguments import check_count, check_number
from ..circuit import Circuit
from ..data import PromptPairs
from ..files import plain, write_text
from ..objective import Objective
from ..savepoint import differences
from ..tasks import by_name
from .table import Curve, Row, Table

PAPER = "Conmy et al. 2023 (2304.14997)"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices that a table's user has.

    - `folder`: where circuits are kept and the table is written. `model`: None takes the paper's.
    - `task`: of `roc`. `size`: prompts; None takes the paper's number. `thresholds`: of ACDC; None: the paper's.
    - `strengths`, `steps`: of Subnetwork Probing's penalty (None: the paper's range) and training.
    - `config`: what was asked for, for the record. `on_step`: told what is done next.

    Raises ValueError for numbers that no search takes.
    """

    folder: Path
    model: str | None = None
    task: str | None = None
    size: int | None = None
    thresholds: tuple[float, ...] | None = None
    strengths: tuple[float, ...] | None = None
    steps: int = 3000
    seed: int = 0
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_step: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        for threshold in self.thresholds or ():
            check_number("thresholds", threshold)
        for strength in self.strengths or ():
            check_number("strengths", strength, 0.0)
        for name, least in (("steps", 1), ("seed", 0), ("size", 1)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)

    def load(self, paper: str) -> checkpoints.Checkpoint:
        """The model; `paper`: the name of the paper's, taken by default.

        Raises ValueError that says what is needed where the weights are absent.
        """
        name = self.model or paper
        try:
            return checkpoints.load(name, dtype="float64" if jax.config.read("jax_enable_x64") else "float32")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"this table needs the weights of {name}: {error}. Give a folder that has them by --model, or rehearse "
                "on a bundled model by --model tiny-gpt2"
            ) from None

    @property
    def is_rehearsal(self) -> bool:
        """Whether the model is a bundled one."""
        return self.model in checkpoints.bundled()

    @property
    def stem(self) -> str:
        """The model in the names of files."""
        return "paper" if self.model is None else Path(self.model).name

    def objective(self, model: checkpoints.Checkpoint, task: str, metric: str, size: int, **options: Any) -> Objective:
        """A task's objective on training prompts of the paper's number, or the user's."""
        return Objective(model.model, self.prompts(model, task, size), metric, **options)

    def prompts(self, model: checkpoints.Checkpoint, task: str, size: int, *, other: bool = False) -> PromptPairs:
        """A task's prompts, `size` is the paper's number; or as many others."""
        first, second = by_name(task).train_and_test(model.tokenizer, seed=self.seed, size=self.size or size)
        return second if other else first

    def kept(self, name: str, find: Callable[[], Any], **config: Any) -> Circuit:
        """A circuit from its file, or found and written there.

        - `find`: a search, to a result. `config`: what determines it, besides the settings.

        Raises ValueError for a file that was made with another configuration, and for one that is damaged.
        """
        config = plain({"search": name, "model": self.model, "seed": self.seed, **config})
        path = self.folder / "circuits" / f"{name}.json"
        checksum = path.with_name(f"{name}.sha256")
        if path.exists():
            is_whole = checksum.exists()  # else its writer was killed just before that
            if is_whole and checksum.read_bytes() != _checksum(path):
                raise ValueError(f"{path} is damaged: it is not what was written; remove it to search again")
            circuit = Circuit.load(path)
            if told := differences(circuit.run.get("config", {}), config):
                raise ValueError(f"{path} is of another run: {told}; take another --out")
            if is_whole:
                return circuit
        self.on_step(name)
        circuit = Circuit.of(find(), config=config)
        path.parent.mkdir(parents=True, exist_ok=True)
        circuit.save(path)
        write_text(checksum, _checksum(path).decode())
        shutil.rmtree(self.part(name), ignore_errors=True)
        return circuit

    def part(self, name: str) -> Path:
        """The folder that keeps how far a search is, until its circuit is kept."""
        return self.folder / "circuits" / f"{name}.part"

    def table(
        self,
        name: str,
        rows: Sequence[Row],
        curves: Sequence[Curve],
        *,
        title: str,
        source: str,
        axes: tuple[str, str],
        **run: Any,
    ) -> Table:
        """The finished table.

        - `source`: where the published numbers stand. `run`: what of its making the settings do not say.
        """
        run = {"settings": self.describe(), **run}
        return Table(name, title, source, tuple(rows), tuple(curves), axes, run)

    def describe(self) -> dict[str, Any]:
        """The settings, for the record."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["on_step"]
        return {**values, "folder": str(self.folder)}


def _checksum(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"\n"


def powers(low: int, high: int, count: int) -> tuple[float, ...]:
    """`count` thresholds from 10^low to 10^high, even in their logarithm, as the paper states them."""
    return tuple(float(f"{threshold:.4g}") for threshold in np.logspace(low, high, count))
