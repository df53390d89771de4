"""What a scoring method says of itself, and its hyperparameters from texts."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

PYTHON_ONLY = ("positions", "progress", "checkpoint", "within")
"""Arguments that are no hyperparameters: which positions or edges are scored, and what does not change the result."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to score edges.

    - `run`: `run(objective, *, hyperparameters)`, to `Scores` or a `LearntMask`; of `PEAP` to a `Peap`.
    - `formula`: of the score of s->r. `cost`: in passes of the model.
    - `ranges`: what each hyperparameter may be; the defaults are those of `run`.
    - `refuses`: objectives that it raises ValueError for.
    """

    name: str
    run: Callable[..., Any]
    formula: str
    source: str
    cost: str
    ranges: dict[str, str] = dataclasses.field(default_factory=dict)
    refuses: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyperparameters and their defaults."""
        parameters = list(inspect.signature(self.run).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters if parameter.name not in PYTHON_ONLY}

    @property
    def takes_positions(self) -> bool:
        """Whether it can score edges at some token positions alone."""
        return takes(self.run, "positions")

    @property
    def takes_checkpoint(self) -> bool:
        """Whether it can take so long that how far it is may be kept."""
        return takes(self.run, "checkpoint")

    @property
    def takes_within(self) -> bool:
        """Whether it can learn some of the edges alone."""
        return takes(self.run, "within")

    def read(self, options: Sequence[str]) -> dict[str, Any]:
        """Hyperparameters from texts NAME=VALUE. Raises ValueError for an unknown name or a value of another type."""
        values = {}
        for option in options:
            name, equals, text = option.partition("=")
            if not equals:
                raise ValueError(f"{self.name}: expected hyperparameters as NAME=VALUE, got {option!r}")
            if name not in self.defaults:
                known = ", ".join(self.defaults) or "no hyperparameters"
                raise ValueError(f"{self.name}: unknown hyperparameter {name!r}; expected {known}")
            values[name] = _parse(name, text, get_type_hints(self.run)[name])
        return values


def takes(run: Callable[..., Any], name: str) -> bool:
    """Whether a method has an argument of this name."""
    return name in inspect.signature(run).parameters


def _parse(name: str, text: str, hint: Any) -> Any:
    """A text as the type of its parameter; `int | None` reads "none" too."""
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if kinds[0] is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}: expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kinds[0](text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[kinds[0]]
        raise ValueError(f"{name}: expected {kind}, got {text!r}") from None
