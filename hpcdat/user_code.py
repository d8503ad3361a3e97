"""Networks and data sets that users bring: ``MODULE:CALLABLE``, from beside their job or on Python's path."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hpcdat.errors import HpcdatError, InputError, first_line, shorten


def load_callable(
    key: str, reference: str, folders: Sequence[Path], *, libraries: Sequence[str] = ()
) -> Callable[..., Any]:
    """Import what ``MODULE:CALLABLE`` names.

    The module is looked for in the folders, then on Python's path. What it imports from beside itself is
    found as well, after Python's path, so that no file there can replace a module of a package.

    Args:
        key: the setting, for messages.
        reference: module and callable; both may have dots.
        folders: see ``module_path`` of a job.
        libraries: what the setting takes before a colon besides modules, in case one is misspelt.

    Raises:
        InputError: there is no such module or callable, or the module cannot be imported; the message has
            the line of the user's file.
    """
    module_name, _, name = reference.partition(":")
    try:
        found: Any = _import(key, module_name, folders)
    except HpcdatError:
        raise
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise InputError(f"{key}: {_no_module(missing, folders, libraries)}") from None
        raise InputError(
            f"{key}: module {module_name} cannot be imported: {describe_failure(error)}"
        ) from None
    module = found
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{key}: {_no_name(name, part, module, found)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{key}: {reference} is of type {type(found).__name__}: expected a function or class"
        )
    return found  # type: ignore[no-any-return]


def call(key: str, reference: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call what :func:`load_callable` has returned.

    Raises:
        InputError: it raises an exception; the message has the line of the user's file.
    """
    try:
        return function(*args, **kwargs)
    except HpcdatError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{key}: {reference} failed: {describe_failure(error)}") from None


def code_fingerprint(reference: str, folders: Sequence[Path]) -> str:
    """A hash of the source of a callable's module, and of the modules imported from the same folders.

    Args:
        reference, folders: of :func:`load_callable`, which has been called.
    """
    named = sys.modules.get(reference.partition(":")[0])
    loaded = [(module, getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    files = {
        Path(file)
        for module, file in loaded
        if file
        and (
            module is named
            or (not _is_installed(file) and any(Path(file).is_relative_to(folder) for folder in folders))
        )
    }
    # By contents alone: a moved folder has the same code.
    hashes = sorted(hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() for file in files)
    return hashlib.blake2b("".join(hashes).encode(), digest_size=8).hexdigest()


def describe_failure(error: BaseException) -> str:
    """An exception of a user's code in one line, with the line of the code that raised it."""
    text = f"{type(error).__name__}: {shorten(first_line(error))}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {shorten(error.msg)}"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not _is_installed(frame.filename)
    ]
    return f"{own[-1].filename}:{own[-1].lineno}: {text}" if own else text


def _is_installed(file: str) -> bool:
    """Whether a file is of hpcdat, of Python or of an installed package."""
    here = str(Path(__file__).parent)
    return file.startswith((f"{here}/", f"{sys.base_prefix}/lib/")) or "/site-packages/" in file


def _import(key: str, name: str, folders: Sequence[Path]) -> ModuleType:
    importlib.invalidate_caches()
    top = name.partition(".")[0]
    spec = PathFinder.find_spec(top, [str(folder) for folder in folders])
    if spec is None:
        return importlib.import_module(name)
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    if top in sys.modules:
        taken = getattr(sys.modules[top], "__file__", None)
        if spec.origin is not None and taken != spec.origin:
            raise InputError(
                f"{key}: {spec.origin} has the name of another module, {taken or top}: rename the file"
            )
    else:
        _execute(top, spec)
    return importlib.import_module(name)


def _execute(name: str, spec: ModuleSpec) -> None:
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _no_module(name: str, folders: Sequence[Path], libraries: Sequence[str] = ()) -> str:
    places = [str(folder) for folder in folders]
    files = [file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.py")]
    near = difflib.get_close_matches(name, [*files, *libraries], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no module {name} in {' or '.join([*places, '']) or ''}on Python's path{hint}"


def _no_name(name: str, part: str, module: ModuleType, found: Any) -> str:
    place = getattr(module, "__file__", None) or module.__name__
    members = vars(found).items() if hasattr(found, "__dict__") else ()
    own = [each for each, value in members if callable(value) and not each.startswith("_")]
    near = difflib.get_close_matches(part, own, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no {name} in {place}{hint}"
