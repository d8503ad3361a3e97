"""What is wrong with settings, for their author: file, line, key, what was found and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hpcdat.config.library_networks import in_torchvision
from hpcdat.config.scalars import describe
from hpcdat.config.sections import UserCode
from hpcdat.config.settings import Settings
from hpcdat.config.yaml_text import Key, dotted
from hpcdat.errors import shorten

EXPECTED = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list, as in [A, B]",
    "dict_type": "a mapping, as in {{NAME: VALUE}}",
    "model_type": "settings, as in {{KEY: VALUE}}",
    "too_short": "a list of {min_length} or more",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""What a type of pydantic's errors means."""


def describe_errors(
    error: ValidationError, root: type[Settings], values: Any, places: Mapping[Key, str], name: str
) -> str:
    """A line for every key that is wrong.

    Args:
        error: pydantic's.
        root: the type of the settings.
        values: as they were read.
        places: file and line, or option, of each key; that of the whole is its file.
        name: the file.
    """
    lines: dict[Key, str] = {}
    for each in error.errors(include_url=False):
        key = tuple(each["ctx"]["key"].split(".")) if each["type"] == "job" else tuple(each["loc"])
        if each["type"] != "missing":
            key = _without_union(key, root, places)
        # Of the members of a union the first one is meant.
        lines.setdefault(key, _describe(each, key, root, values, places, name))
    return "\n".join(lines.values())


def _describe(
    error: Any, key: Key, root: type[Settings], values: Any, places: Mapping[Key, str], name: str
) -> str:
    place = next(places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in places)
    subject = f"{name + ':1' if place == name else place}: {dotted(key) or 'the job'}"
    model, kind = _model_at(key[:-1], root), error["type"]
    field = _fields(model).get(str(key[-1])) if key else None
    # Descriptions have lines of their own.
    meaning = f" ({' '.join(field.description.split())})" if field is not None and field.description else ""
    if kind == "extra_forbidden":
        known = [*_fields(model), *(model.other_names if model is not None else ())]
        return f"{subject}: unknown key{_hint(str(key[-1]), root, known)}"
    if kind == "missing":
        return f"{subject}: missing{meaning}"
    given, found = _value_at(key, values)
    if kind == "job":
        # With --set, the place holds the value.
        shown = "" if not given or place.startswith("--set") or isinstance(found, dict) else describe(found)
        return f"{subject}: {error['ctx']['message']}" + (f" (found {shown})" if shown else "")
    if kind == "written":
        return f"{subject}: {error['msg']}{meaning}"
    # An error in a key of a mapping, such as the name of a variable, ends in [key].
    shown = describe(found if given and error["loc"][-1:] != ("[key]",) else error["input"])
    if kind == "literal_error":
        return f"{subject}: {shown}: {_choice(str(error['input']), field, root)}{meaning}"
    if kind not in EXPECTED:
        return f"{subject}: {shown}: {error['msg'].removeprefix('Value error, ')}{meaning}"
    context = {k: f"{v:g}" if isinstance(v, float) else v for k, v in (error.get("ctx") or {}).items()}
    expected = EXPECTED[kind].format_map(context)
    return f"{subject}: {shown}: expected {expected}{meaning}"


def _choice(found: str, field: FieldInfo | None, root: type[Settings]) -> str:
    """The accepted values, with the nearest one, or the other settings that have this value."""
    choices = [str(choice) for choice in _choices(field)]
    near = difflib.get_close_matches(found, choices, n=1, cutoff=0.5)
    others = [name for name, other in _all_fields(root) if found in _choices(other)]
    hint = f"; did you mean '{near[0]}'?" if near and not others else ""
    if UserCode in get_args(field.annotation if field else None) and in_torchvision(found):
        hint = f"; did you mean 'torchvision:{found}'?"
    elif others:
        hint = f"; {shorten(found)} is a value of {' and '.join(others)}"
    return f"expected one of {', '.join(choices)}{hint}"


def _hint(found: str, root: type[Settings], known: Sequence[str]) -> str:
    """Which key may be meant instead of an unknown one: of another section, or the nearest one here."""
    names = [*(name for name, _ in _all_fields(root)), *root.other_names]
    same = [name for name in names if name.rpartition(".")[2] == found]
    near = same or difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    meant = " or ".join(f"'{name}'" for name in near)
    return (f"; did you mean {meant}?" if near else "") + f" (known here: {', '.join(known)})"


def _without_union(key: Key, root: type[Settings], places: Mapping[Key, str]) -> Key:
    """A key without the members of a union, and the parts of a mapping's keys, that pydantic adds."""
    while len(key) > 1 and key not in places and _model_at(key[:-1], root) is None:
        key = key[:-1]
    return key


def _value_at(key: Key, values: Any) -> tuple[bool, Any]:
    """Whether a key was given, and its value."""
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return False, None
    return True, values


def _model_at(key: Key, root: type[Settings]) -> type[Settings] | None:
    """The class of the settings that hold this key."""
    model: type[Settings] | None = root
    for part in key:
        field = _fields(model).get(str(part))
        model = _section(field) if field else None
    return model


def _section(field: FieldInfo) -> type[Settings] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _fields(model: type[Settings] | None) -> dict[str, FieldInfo]:
    """Settings by the names that users write."""
    return {f.alias or name: f for name, f in model.model_fields.items()} if model else {}


def setting_names(root: type[Settings]) -> list[str]:
    """The dotted names of all settings, without those of sections."""
    return [name for name, field in _all_fields(root) if not _section(field)]


def _all_fields(root: type[Settings], prefix: str = "") -> Iterable[tuple[str, FieldInfo]]:
    for name, field in _fields(root).items():
        yield prefix + name, field
        if section := _section(field):
            yield from _all_fields(section, f"{prefix}{name}.")


def _choices(field: FieldInfo | None) -> list[Any]:
    def literals(annotation: Any) -> Iterable[Any]:
        for argument in get_args(annotation):
            yield from literals(argument) if get_args(argument) else [argument]

    return [c for c in literals(field.annotation) if isinstance(c, str | int)] if field else []
