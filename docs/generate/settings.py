"""The page of settings, from the classes that validate them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hpcdat.config.job import Job
from hpcdat.config.loaders import installed_loader
from hpcdat.config.sections import MAY_CHANGE, UserCode
from hpcdat.config.settings import Settings
from hpcdat.slurm.site import Site

HEAD = """# Settings

The settings of a job, with their unit, range and default. Command lines write them with their dots, as in
`attack.eps=4/255`; a job file writes them as sections:

```yaml
attack: {eps: 4/255}
```

Settings that are left out are filled in and written to `job.yaml` in the run's folder. **May change** marks
those that may have another value when a run resumes. **Applies to** names the values of other settings that
a setting goes with; elsewhere it is refused or has no effect.
"""
SITE_HEAD = """## Profiles of sites

The settings of a YAML file for `hpcdat submit --site` ([several nodes](../start/several-nodes.md)).
"""
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
NAMES = {bool: "`true` or `false`", int: "integer", float: "number", str: "text", Path: "path"}
PAGE = re.compile(r"docs/([\w/-]+\.md)")
SUBJECT = re.compile(r"((?:`[^`]+`(?:, | and )?)+): ")


def page() -> str:
    """The page, in Markdown."""
    top = {name: field for name, field in Job.model_fields.items() if _section(field) is None}
    parts = [HEAD, "## The whole job\n", *(_setting(name, field) for name, field in top.items())]
    for name, field in Job.model_fields.items():
        if section := _section(field):
            parts.append(f"## {name}\n\n{_sentences(section.__doc__ or '')}\n")
            parts += [_setting(f"{name}.{f.alias or key}", f) for key, f in section.model_fields.items()]
    parts += [SITE_HEAD, *(_setting(name, field) for name, field in Site.model_fields.items())]
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _setting(name: str, field: FieldInfo) -> str:
    description = " ".join((field.description or "").split())
    kind = "; ".join(_kind(field))
    # What stands before the only colon may be the value of another setting.
    subject = SUBJECT.match(description)
    if subject and (f"`{subject[1].split('`')[1]}`" in kind or len(SUBJECT.findall(description)) > 1):
        subject = None
    if subject:
        description = description[subject.end() :]
    lines = [f"```{{confval}} {name}", f":type: {kind}", f":default: {_default(field)}", ""]
    lines += [PAGE.sub(r"[\g<0>](../\1)", _sentences(description))]
    if subject:
        lines += ["", f"**Applies to** {subject[1]}."]
    if MAY_CHANGE in field.metadata:
        lines += ["", "**May change** when a run resumes."]
    return "\n".join([*lines, "```", ""])


def _kind(field: FieldInfo) -> Iterator[str]:
    """Type or allowed values, and the range."""
    yield _type(field.annotation)
    if bounds := ", ".join(_bounds(field.metadata)):
        yield bounds


def _type(annotation: Any) -> str:
    if annotation == UserCode:
        return "`MODULE:CALLABLE`"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_type(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return ", or ".join(_type(each) for each in arguments if each is not NoneType)
    if origin is list:
        return f"list of: {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    return NAMES[annotation]


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for each in metadata:
        for constraint in each.metadata if isinstance(each, FieldInfo) else [each]:
            for key, words in BOUNDS.items():
                if (bound := getattr(constraint, key, None)) is not None:
                    yield f"{words} {bound:,}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: has to be set"
    if field.default_factory is installed_loader:
        return "`dali` where it is installed, otherwise `torchvision`"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        is_255th = value < 1 and len(f"{value:.6g}") > 6 and (255 * value).is_integer()
        return f"`{255 * value:g}/255`" if is_255th else f"`{value:.6g}`"
    return f"`{value}`"


def _sentences(text: str) -> str:
    """The text with a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
