"""A params file with other values: its comments and lines stay where they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from stages.errors import UserError


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text with other values, by dotted key.

    Raises:
        UserError: a key leads into a value that has no keys.
    """
    for key, value in values.items():
        text = _with_value(text, key, value)
    return text


def _with_value(text: str, key: str, value: Any) -> str:
    node = yaml.compose(text)
    names = key.split(".")
    for depth, name in enumerate(names):
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"{key} can't be set: {'.'.join(names[:depth])} holds a value, not further keys.\n"
                "  Set that one as a whole."
            )
        inner = next((inner for outer, inner in node.value if outer.value == name), None)
        if inner is None:  # not written: what would hold it is written anew
            added = _nested(names[depth + 1 :], value)
            if depth == 0:
                return f"{text.rstrip()}\n{name}: {flow(added)}\n"
            section: Any = yaml.safe_load(text)
            for outer in names[:depth]:
                section = section[outer]
            return _replaced(text, node, {**section, name: added})
        node = inner
    return _replaced(text, node, value)


def _nested(names: Sequence[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


def _replaced(text: str, node: Any, value: Any) -> str:
    start = node.start_mark.index
    space = " " if text[start - 1] == ":" else ""  # nothing was written after the key
    return f"{text[:start]}{space}{flow(value)}{text[_end_of(node) :]}"


def _end_of(node: Any) -> int:
    """Where the last character of a value is; a block's own end is past comments below it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node.end_mark.index


def flow(value: Any) -> str:
    """A value as YAML writes it on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**6)[1:-2]
