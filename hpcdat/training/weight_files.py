"""Reading files of weights: hpcdat's checkpoints, and what ``torch.save`` has written elsewhere."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcdat.errors import InputError, first_few, shorten
from hpcdat.storage.checkpoint_format import is_checkpoint, load_checkpoint
from hpcdat.storage.run_folder import RunFolder

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
"""Entries of a file that hold the state dictionary, next to an optimiser's state and other things."""
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""Prefixes of all names of a state dictionary: of DataParallel, torch.compile, and of an outer module."""
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
"""How a file that can be read is written."""
OTHER_FORMATS = {
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself, with `git lfs pull`"),
    b"<": ("an HTML or XML page", "download the weights again"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it first"),
    b"\x89HDF": ("in HDF5 format", f"save it with {SAVE}"),
}
"""By the first bytes of a file: its format, and what to do."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a file.

    Attributes:
        tensors: by name, without wrappers and prefixes.
        classes: names of the classes of its model, in the order of the logits; None if they are unknown.
        found_in: where in the file they are, for the user; empty for a plain state dictionary.
    """

    tensors: dict[str, Tensor]
    classes: list[str] | None = None
    found_in: str = ""


def read_weights(path: Path) -> Weights:
    """Read a run's folder, a checkpoint of hpcdat, or a file of ``torch.save``; no code in it is executed.

    Raises:
        InputError: it cannot be read, or holds something else; the message says what to do.
    """
    try:
        if path.is_dir():
            run = RunFolder(path)
            checkpoint = run.checkpoint_of_result(run.read_job([]))
            return Weights(_of_our_model(checkpoint.model), checkpoint.classes)
        if is_checkpoint(path):
            checkpoint = load_checkpoint(path)
            return Weights(_of_our_model(checkpoint.model), checkpoint.classes)
        return _unwrapped(_load(path))
    except FileNotFoundError:
        raise InputError(f"model.pretrained: {path}: there is no such file or folder") from None
    except OSError as error:
        raise InputError(f"model.pretrained: {path}: cannot be read: {error.strerror or error}") from None
    except InputError as error:
        text = str(error)
        raise InputError(
            f"model.pretrained: {text if text.startswith(str(path)) else f'{path}: {text}'}"
        ) from None


def plain_name(name: str) -> str:
    """A tensor's name without normalisation layer, split batch norm and compiled submodules."""
    name = name.removeprefix("1.").replace("_orig_mod.", "")
    return name.replace(".main.", ".").replace(".auxiliary.", ".")


def _of_our_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model that normalises pixels first; of split batch norm, those for clean images."""
    named = {name: t for name, t in state.items() if name.startswith("1.") and ".auxiliary." not in name}
    return {plain_name(name): t for name, t in named.items()}


def _load(path: Path) -> Any:
    """What ``torch.save`` has written to a file."""
    with path.open("rb") as file:
        start = file.read(64)
    if problem := _other_format(path, start):
        raise InputError(problem)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # Also an OSError, if a part is missing. torch's own message has many lines and advises executing the
        # code in the file.
        if others := _other_objects(path):
            named = first_few([_printable(name) for name in others], 3)
            raise InputError(
                f"holds other objects than tensors ({named}), which hpcdat does not load, as that may run "
                f"code of the file: save the weights alone, with {SAVE}"
            ) from None
        raise InputError(
            "incomplete, damaged, or not written by torch.save: copy or download it again, or write it with "
            f"{SAVE}"
        ) from None


def _other_format(path: Path, start: bytes) -> str | None:
    """Why a file cannot be one of ``torch.save``, from its first bytes and name."""
    if not start:
        return f"empty: write it with {SAVE}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, (kind, advice) in OTHER_FORMATS.items():
        if text.startswith(beginning):
            return f"{kind}, not a file of weights: {advice}"
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return (
            "in safetensors format, which hpcdat does not read: convert it with "
            f"torch.save(safetensors.torch.load_file({path.name!r}), 'weights.pth')"
        )
    # Files of torch.save are zip archives or, before 2020, pickles.
    if start[:2] == b"PK":
        return _other_archive(path)
    if start[:1] == b"\x80":
        return None
    return f"neither a checkpoint of hpcdat nor a file of torch.save: write it with {SAVE}"


def _other_archive(path: Path) -> str | None:
    """Why a zip archive cannot be one of ``torch.save``."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        # It lacks its end: torch refuses it.
        return None
    if any("/code/" in name for name in names):
        return f"a TorchScript program: load it with torch.jit.load and write {SAVE}"
    if not any(Path(name).name == "data.pkl" for name in names):
        contents = first_few([_printable(name) for name in sorted(names)], 2)
        return f"a zip archive of something else ({contents}): unpack it"
    return None


def _other_objects(path: Path) -> list[str]:
    """Classes and functions in a file that are not allowed, as far as torch can list them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        return []


def _unwrapped(value: Any) -> Weights:
    """The state dictionary in what a file holds.

    Raises:
        InputError: there is none.
    """
    place = []
    while isinstance(value, Mapping) and not _is_state(value):
        key = next((key for key in WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if key is None:
            break
        place.append(key)
        value = value[key]
    if not (isinstance(value, Mapping) and _is_state(value)):
        raise InputError(f"expected tensors by name, found {_describe(value)}: write the file with {SAVE}")
    tensors, stripped = dict(value), ""
    while common := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(common): t for name, t in tensors.items()}
        stripped += common
    if all(name.startswith(("0.", "1.")) for name in tensors):
        tensors = _of_our_model(tensors)
    # Of submodules that were compiled.
    tensors = {name.replace("_orig_mod.", ""): t for name, t in tensors.items()}
    parts = [*(f"in {key!r}" for key in place), *([f"without {stripped!r}"] if stripped else [])]
    return Weights(tensors, found_in=", ".join(parts))


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(_is_named_tensor(name, entry) for name, entry in value.items())


def _is_named_tensor(name: Any, entry: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and isinstance(entry, Tensor)


def _describe(value: Any) -> str:
    """What a file holds instead of a state dictionary."""
    if not isinstance(value, Mapping):
        return f"an object of type {type(value).__name__}"
    if not value:
        return "none"
    others = [
        f"{_printable(key)}: {type(entry).__name__}"
        for key, entry in value.items()
        if not _is_named_tensor(key, entry)
    ]
    return f"other entries ({first_few(others, 3)})"


def _printable(name: Any) -> str:
    """A name out of a file for a message: short, and without control characters."""
    text = str(name)
    return shorten(text if text.isprintable() else repr(text))
