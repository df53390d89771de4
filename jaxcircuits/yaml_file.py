"""YAML files of plain values: no aliases, so that nothing is larger than its text, and no name twice.

Numbers are those of JSON; of YAML's other values, such as 3:07 (in sixties), 010 (in eights), yes, and dates, the text
is the value.
"""

import os
import re
from typing import Any, ClassVar

from .files import read_text

LARGEST, DEEPEST = 1 << 16, 20
"""Bytes of the largest file, and lists and tables within each other, at most."""

WORDS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+", list("-+.0123456789")),
)
"""What is no text: a kind, its form, and what it begins with; the first that fits."""


def read_yaml(path: str | os.PathLike, what: str = "file") -> Any:
    """The value in a YAML file, of which JSON is a part.

    Raises ValueError, naming the file, for what is not YAML or too large, for aliases (`*name`), for tags of anything
    but plain values, and for a name twice in one table.
    """
    import yaml

    text = read_text(path, what, most=LARGEST)
    try:
        return _loader(yaml)(text).get_single_data()
    except RecursionError:
        raise ValueError(
            f"{path} is malformed: expected at most {DEEPEST} lists and tables within each other"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is malformed: expected a {what} in YAML; {error}") from None


def _loader(yaml: Any) -> Any:
    class Plain(yaml.SafeLoader):
        depth = 0
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"expected values, got the alias *{self.peek_event().anchor}: write it out")
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError(f"expected at most {DEEPEST} lists and tables within each other")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            value = super().construct_mapping(node, deep=deep)
            if len(value) < len(names):
                raise ValueError(f"expected each name once, got one of {sorted(map(str, value))} twice")
            return value

    for kind, form, first in WORDS:
        Plain.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{form})$"), first)
    return Plain
