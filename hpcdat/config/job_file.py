"""Read a job: from YAML text and ``key=value`` settings to a :class:`~hpcdat.config.job.Job`.

All mistakes are reported together, each with file, line, key, what was expected and, for an unknown key, the
nearest valid name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hpcdat.config.complaints import describe_errors
from hpcdat.config.evaluation_job import EvaluationJob
from hpcdat.config.job import Job
from hpcdat.config.paths import expand
from hpcdat.config.settings import Settings
from hpcdat.config.yaml_text import Key, YamlError, load
from hpcdat.errors import InputError, shorten

M = TypeVar("M", bound=Settings)


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
    values, places, folders = _values_of(text, name, settings)
    return _validated(Job, values, places, name, lambda values: Job.model_validate(values).resolved(folders))


def read_evaluation_job(path: Path, settings: Sequence[str] = ()) -> EvaluationJob:
    """Read the job of an evaluation: the settings of a training are needed only if there is a ``method``.

    Args:
        path, settings: as for :func:`read_job`.

    Returns:
        A training job if there is a ``method``, otherwise one without training; with all settings filled in.

    Raises:
        JobError: as :func:`read_job`, or there are settings of a training but no ``method``.
    """
    return parse_evaluation_job(_text_of(path), str(path), settings)


def parse_evaluation_job(text: str, name: str, settings: Sequence[str] = ()) -> EvaluationJob:
    """Like :func:`read_evaluation_job`, from YAML text; ``name`` is the file's name in messages."""
    values, places, folders = _values_of(text, name, settings)
    model = Job if "method" in values else EvaluationJob
    if extra := [key for key in values if key in Job.model_fields and key not in model.model_fields]:
        lines = [f"{places.get((key,), name)}: {key}: {_of_training(key)}" for key in extra]
        raise JobError("\n".join(lines))
    return _validated(
        model, values, places, name, lambda values: model.model_validate(values).resolved(folders)
    )


def _of_training(key: str) -> str:
    """Why an evaluation without training refuses a setting."""
    other = "; evaluation.norm and evaluation.eps are the ball of an evaluation" if key == "attack" else ""
    return f"not allowed without method: an evaluation trains nothing{other}"


def _values_of(
    text: str, name: str, settings: Sequence[str]
) -> tuple[dict[str, Any], dict[Key, str], list[Path]]:
    """A job's values and places, replaced ones included, and the folders of its files."""
    values, places = _parse_job(text, name)
    files = dict.fromkeys(place.rpartition(":")[0] for key, place in places.items() if key)
    folders = list(dict.fromkeys(Path(file).resolve().parent for file in [name, *files]))
    _check_names([(setting.partition("=")[0].strip(), f"--set {shorten(setting)}") for setting in settings])
    for setting in settings:
        _override(values, places, setting)
    return values, places, folders


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
    model: type[Settings],
    values: dict[str, Any],
    places: dict[Key, str],
    name: str,
    validate: Callable[[dict[str, Any]], M],
) -> M:
    try:
        return validate(values)
    except ValidationError as error:
        raise JobError(describe_errors(error, model, values, places, name)) from None


def write_job(job: EvaluationJob) -> str:
    """The job as YAML, from which the functions of this module read an equal job."""
    return yaml.safe_dump(job.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _parse_job(text: str, name: str, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Key, str]]:
    """A job's values and places, including those of the job named by its ``like``."""
    values, places = _parse_yaml(text, name)
    _check_names([(str(key), places[key,]) for key in values])
    values = {Job.other_names.get(key, key): value for key, value in values.items()}
    places = {_own_name(key): place for key, place in places.items()}
    if "like" not in values:
        return values, places
    other, place = values.pop("like"), places.pop(("like",))
    if not isinstance(other, str):
        raise JobError(f"{place}: like: expected the path of another job, not {shorten(repr(other))}")
    try:
        path = Path(name).parent / expand(other)
    except ValueError as error:
        raise JobError(f"{place}: like: {shorten(repr(other))}: {error}") from None
    above = (*above, Path(name).resolve())
    if path.resolve() in above:
        raise JobError(f"{place}: like: {path} refers to itself")
    try:
        inherited, its_places = _parse_job(_text_of(path), str(path), above)
    except JobError as error:
        raise JobError(f"{place}: like: {error}") from None
    return _laid_over(inherited, values), its_places | places


def _check_names(given: Sequence[tuple[str, str]]) -> None:
    """Check that no setting of a job is given under two names at the same place, which would be ambiguous."""
    places = dict(given)
    for other, own in Job.other_names.items():
        if other in places and own in places:
            raise JobError(f"{places[other]}: {other}: is {own}, which is also set ({places[own]}): keep one")


def _own_name(key: Key) -> Key:
    """A key of a job under the setting's own name."""
    return (Job.other_names.get(str(key[0]), key[0]), *key[1:]) if key else key


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    laid = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(laid.get(key), dict)
        laid[key] = _laid_over(laid[key], value) if both else value
    return laid


def _parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[Key, str]]:
    """The document as plain values, and the place (``file:line``) of each key."""
    try:
        values, lines = load(text)
    except YamlError as error:
        place = f"{name}:{error.line}" if error.line else name
        raise JobError(f"{place}: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise JobError(f"{name}: expected a mapping of keys to values, this is {kind}")
    return values, {(): name} | {key: f"{name}:{line}" for key, line in lines.items()}


def _override(values: dict[str, Any], places: dict[Key, str], setting: str) -> None:
    place = f"--set {shorten(setting)}"
    name, equals, text = setting.partition("=")
    first, *rest = name.strip().split(".")
    key = (Job.other_names.get(first, first), *rest)
    if not equals or not all(key):
        raise JobError(f"{place}: expected key=value, as in --set attack.eps=4/255")
    try:
        value, _ = load(text)
    except YamlError as error:
        raise JobError(f"{place}: the value is {error}") from None
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
