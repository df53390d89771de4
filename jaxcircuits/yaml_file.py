"""YAML files of plain values: no aliases, so that nothing is larger than its text, and no name twice."""

import os
from typing import Any

from .files import read_text

LARGEST, DEEPEST = 1 << 16, 20
"""Bytes of the largest file, and lists and tables within each other, at most."""


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

    return Plain
