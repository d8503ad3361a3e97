"""YAML whose scalars stay text, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from hpcdat.errors import first_line, shorten

Key = tuple[str | int, ...]
TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"~|null|Null|NULL|")


class TextLoader(yaml.SafeLoader):
    """PyYAML's loader without its guesses: a scalar is null or text, and explicit types are errors."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (declared like this by PyYAML)
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (*(TAG + t for t in ("null", "str", "seq", "map")), None)
    }


TextLoader.add_implicit_resolver(TAG + "null", re.compile(f"^(?:{NULL.pattern})$"), ["~", "n", "N", ""])
TextLoader.add_implicit_resolver(TAG + "merge", re.compile("^<<$"), ["<"])


class YamlError(ValueError):
    """A text is not YAML.

    Args:
        message: what is wrong.
        line: in which line, from 1; None if unknown.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def load(text: str) -> tuple[Any, dict[Key, int]]:
    """The document as text, None, lists and dictionaries, and the line of each of its keys, from 1.

    Raises:
        YamlError: it is not YAML, a key is there twice, or an alias holds itself.
    """
    try:
        loader = TextLoader(text)
        node = loader.get_single_node()
        lines: dict[Key, int] = {}
        for key, line in _lines(node, (), set()):
            if key in lines:
                raise YamlError(f"{dotted(key)}: duplicate key", line)
            lines[key] = line
        return loader.construct_document(node) if node is not None else None, lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = shorten(getattr(error, "problem", None) or first_line(error))
        raise YamlError(f"not YAML: {problem}", mark.line + 1 if mark else None) from None
    except YamlError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise YamlError(f"a value cannot be read: {shorten(first_line(error))}", None) from None


def dotted(key: Key) -> str:
    """A key as a user writes it: ``attack.eps``."""
    return shorten(".".join(str(part) for part in key))


def _lines(node: yaml.Node | None, key: Key, above: set[int]) -> Iterator[tuple[Key, int]]:
    if id(node) in above:
        raise YamlError("a value cannot be read: an alias holds itself", None)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode) and name.tag == TAG + "null":
                name.tag = TAG + "str"
            child = (*key, str(name.value) if isinstance(name, yaml.ScalarNode) else "?")
            yield child, name.start_mark.line + 1
            yield from _lines(value, child, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _lines(value, (*key, index), above | {id(node)})
