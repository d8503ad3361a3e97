"""The meaning of YAML's scalars: text, until the type of a setting says what it should be.

YAML 1.1, which PyYAML reads, takes ``12:00:00`` for 43200, ``010`` for 8 and ``no`` for false. Here a number
is one in decimal digits, as in the core schema of YAML 1.2, and what the two versions read differently is an
error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic_core import PydanticCustomError

from hpcdat.errors import shorten

NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""A number in decimal digits, without leading zeros."""
SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
"""YAML's infinity and not-a-number."""
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""The booleans of YAML 1.1; where a boolean is expected, they all have only one meaning."""


def number(text: str) -> int | float | None:
    """The number that a text is in decimal digits, such as ``3``, ``1e-3`` or ``.inf``; or None."""
    if SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    if NUMBER.fullmatch(text) is None:
        return None
    with contextlib.suppress(ValueError):  # a fraction, an exponent, or thousands of digits
        return int(text)
    return float(text)


def fraction(text: str) -> float:
    """The value of a number or of a fraction such as ``8/255``.

    Raises:
        ValueError: it is neither, or divides by zero.
    """
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or not all(NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"expected a number, or a fraction such as 8/255, not {shorten(repr(text))}")
    numerator, denominator = (*map(float, parts), 1.0)[:2]
    if denominator == 0:
        raise ValueError("division by zero")
    return numerator / denominator


def as_written(value: Any, annotation: Any) -> Any:
    """Read the scalars in a value as the type of their setting asks for; other values are left to pydantic.

    Args:
        value: of a setting, from YAML: text, None, or lists and dictionaries of them.
        annotation: the setting's type.

    Raises:
        PydanticCustomError: of type ``written``: a text that is not of the type, or a boolean for a number.
    """
    members = list(_members(annotation))
    if isinstance(value, list):
        inner = next((get_args(member)[0] for member in members if get_origin(member) is list), Any)
        return [as_written(element, inner) for element in value]
    if isinstance(value, dict):
        inner = next((get_args(member)[1] for member in members if get_origin(member) is dict), Any)
        return {key: as_written(element, inner) for key, element in value.items()}
    if isinstance(value, str | bool):
        types = {member for member in members if isinstance(member, type)}
        choices = [choice for m in members if get_origin(m) is Literal for choice in get_args(m)]
        return _scalar(value, types, choices)
    return value


def as_plain(value: Any) -> Any:
    """Read the scalars in a value without the type of a setting: numbers, ``true``, ``false``, else text."""
    if isinstance(value, list):
        return [as_plain(element) for element in value]
    if isinstance(value, dict):
        return {key: as_plain(element) for key, element in value.items()}
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    read = number(value)
    return value if read is None else read


def describe(value: Any) -> str:
    """A value of a YAML file for a message: numbers as they are written, other text in quotes."""
    if value is None:
        return "null"
    plain = isinstance(value, str) and number(value) is not None
    return shorten(value if plain else repr(value))


def _members(annotation: Any) -> Iterator[Any]:
    """The types of a union, or the only one, without what ``Annotated`` adds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _scalar(value: str | bool, types: set[type], choices: Sequence[Any]) -> Any:
    scalars = types & {int, float, bool}
    if isinstance(value, bool):
        if scalars and bool not in scalars:
            raise _unfit(str(value).lower(), scalars, choices)
        return value
    if types & {str, Path} or value in choices:
        return value
    if bool in scalars and value.lower() in BOOLEANS:
        return BOOLEANS[value.lower()]
    if float in scalars and value.count("/") == 1:
        return fraction(value)
    read = number(value)
    if read is not None:
        if float in scalars:
            return read if isinstance(read, float) else float(value)
        if isinstance(read, float) and read.is_integer():
            read = int(read)
        if isinstance(read, int) and (int in scalars or read in choices):
            return read
    if scalars:
        raise _unfit(value, scalars, choices)
    return value


def _unfit(text: str, scalars: set[type], choices: Sequence[Any]) -> PydanticCustomError:
    names = {float: "a number", int: "a whole number", bool: "true or false"}
    accepted = [names[each] for each in (float, int, bool) if each in scalars]
    expected = " or ".join([*accepted, *map(str, choices)])
    if text.lower() in BOOLEANS:
        expected += f", not the boolean {text}"
    elif (read := _as_yaml_1_1(text)) is not None:
        expected += (
            f" in decimal digits; YAML 1.1 reads {shorten(text)} as {shorten(read)}, YAML 1.2 does not"
        )
    elif re.fullmatch(r"[-+]?0[0-9.]+", text):
        expected += " without leading zeros"
    return PydanticCustomError(
        "written", "{found}: expected {expected}", {"found": describe(text), "expected": expected}
    )


def _as_yaml_1_1(text: str) -> int | float | None:
    """The number that YAML 1.1 reads in a text that is none in decimal digits."""
    if number(text) is not None:
        return None
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        read = yaml.safe_load(text)
        if isinstance(read, int | float):
            return read
    return None
