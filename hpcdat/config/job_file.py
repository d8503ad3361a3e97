"""Read a job: from YAML text and ``key=value`` settings to a :class:`~hpcdat.config.job.Job`.

All mistakes are reported together, each with file, line, key, what was expected and, for an unknown key, the
nearest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hpcdat.config.job import Job
from hpcdat.errors import InputError, shorten

Key = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


class JobError(InputError):
    """An invalid job; the message is written for its author."""


def read_job(path: Path, settings: Sequence[str] = ()) -> Job:
    """Read, validate and complete a job.

    With ``like: OTHER.yaml`` (a path relative to its own folder), a job takes from that one the settings that
    it does not set itself.

    Args:
        path: the YAML file.
        settings: ``key=value`` texts that replace settings of the file, such as ``attack.eps=4/255``.

    Returns:
        The job with all settings filled in.

    Raises:
        JobError: the file cannot be read, is not YAML, or holds a wrong or unknown setting.
    """
    return parse_job(_text_of(path), str(path), settings)


def parse_job(text: str, name: str, settings: Sequence[str] = ()) -> Job:
    """Like :func:`read_job`, from YAML text; ``name`` is the file's name in messages."""
    values, places = _parse_job(text, name)
    for setting in settings:
        _override(values, places, setting)
    return _validated(Job, values, places, name, lambda values: Job.model_validate(values).resolved())


def read_settings(path: Path, model: type[M]) -> M:
    """Read and validate settings that are not a job's.

    Args:
        path: the YAML file.
        model: type of the settings.

    Raises:
        JobError: as :func:`read_job`.
    """
    values, places = _parse_yaml(_text_of(path), str(path))
    return _validated(model, values, places, str(path), model.model_validate)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _validated(
    model: type[BaseModel],
    values: dict[str, Any],
    places: dict[Key, str],
    name: str,
    validate: Callable[[dict[str, Any]], M],
) -> M:
    try:
        return validate(values)
    except ValidationError as error:
        complaints = [_complaint(e, places, name, model) for e in error.errors(include_url=False)]
        raise JobError("\n".join(complaints)) from None


def write_job(job: Job) -> str:
    """The job as YAML, from which :func:`parse_job` reads an equal job."""
    return yaml.safe_dump(job.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _parse_job(text: str, name: str, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Key, str]]:
    """A job's values and places, including those of the job named by its ``like``."""
    values, places = _parse_yaml(text, name)
    if "like" not in values:
        return values, places
    other, place = values.pop("like"), places.pop(("like",))
    if not isinstance(other, str):
        raise JobError(f"{place}: like: expected the path of another job, not {shorten(repr(other))}")
    path = Path(name).parent / other
    above = (*above, Path(name).resolve())
    if path.resolve() in above:
        raise JobError(f"{place}: like: {path} refers to itself")
    try:
        inherited, its_places = _parse_job(_text_of(path), str(path), above)
    except JobError as error:
        raise JobError(f"{place}: like: {error}") from None
    return _laid_over(inherited, values), its_places | places


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    laid = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(laid.get(key), dict)
        laid[key] = _laid_over(laid[key], value) if both else value
    return laid


def _parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[Key, str]]:
    """The document as plain values, and the place (``file:line``) of each key."""
    places: dict[Key, str] = {(): name}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        for key, line in _lines(node, (), set()):
            if key in places:
                raise JobError(f"{name}:{line}: {_dotted(key)}: duplicate key")
            places[key] = f"{name}:{line}"
        values = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise JobError(f"{name}{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise JobError(f"{name}: a value cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise JobError(f"{name}: expected a mapping of keys to values, this is a {type(values).__name__}")
    return values, places


def _lines(node: yaml.Node | None, key: Key, above: set[int]) -> Iterator[tuple[Key, int]]:
    if id(node) in above:
        raise ValueError("an alias holds itself")
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, str(name.value) if isinstance(name, yaml.ScalarNode) else "?")
            yield child, name.start_mark.line + 1
            yield from _lines(value, child, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _lines(value, (*key, index), above | {id(node)})


def _override(values: dict[str, Any], places: dict[Key, str], setting: str) -> None:
    place = f"--set {shorten(setting)}"
    name, equals, text = setting.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise JobError(f"{place}: expected key=value, as in --set attack.eps=4/255")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{place}: the value is not YAML: {error}") from None
    for depth in range(1, len(key)):
        inner = values.get(key[depth - 1])
        if not isinstance(inner, dict):
            inner = values[key[depth - 1]] = {}
        else:
            inner = values[key[depth - 1]] = dict(inner)
        values = inner
        places.setdefault(key[:depth], place)
    values[key[-1]] = value
    for known in [k for k in places if k[: len(key)] == key]:
        del places[known]
    places[key] = place


def _complaint(error: Any, places: dict[Key, str], name: str, root: type[BaseModel]) -> str:
    key: Key = tuple(error["loc"])
    if error["type"] == "job":
        key = tuple(error["ctx"]["key"].split("."))
    place = next(places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in places)
    if place == name:
        place = f"{name}:1"
    model = _model_at(key[:-1], root)
    if error["type"] == "extra_forbidden":
        known = _names(model)
        near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{place}: {_dotted(key)}: unknown key{hint} (known here: {', '.join(known)})"
    field = model.model_fields.get(str(key[-1])) if key and model else None
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if error["type"] == "missing":
        return f"{place}: {_dotted(key)}: missing{meaning}"
    if error["type"] == "job":
        return f"{place}: {_dotted(key)}: {error['ctx']['message']}"
    expected = error["msg"].removeprefix("Value error, ")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        choices = _choices(field)
        near = difflib.get_close_matches(error["input"], choices, n=1, cutoff=0.5)
        expected = f"expected one of {', '.join(choices)}" + (f"; did you mean '{near[0]}'?" if near else "")
    return f"{place}: {_dotted(key)}: {shorten(repr(error['input']))}: {expected}{meaning}"


def _model_at(key: Key, root: type[BaseModel]) -> type[BaseModel] | None:
    """The class of the settings that hold this key."""
    model: type[BaseModel] | None = root
    for part in key:
        field = model.model_fields.get(str(part)) if model else None
        annotation = field.annotation if field else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return model


def _names(model: type[BaseModel] | None) -> list[str]:
    return [f.alias or name for name, f in model.model_fields.items()] if model else []


def _choices(field: FieldInfo | None) -> list[str]:
    def literals(annotation: Any) -> Iterable[Any]:
        for argument in get_args(annotation):
            yield from literals(argument) if get_args(argument) else [argument]

    return [c for c in literals(field.annotation) if isinstance(c, str)] if field else []


def _dotted(key: Key) -> str:
    return shorten(".".join(str(part) for part in key)) or "the job"
