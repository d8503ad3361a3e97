"""Reading files of weights: hpcdat's checkpoints, safetensors, and what ``torch.save`` wrote elsewhere."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from hpcdat.errors import InputError, first_few, first_line, shorten
from hpcdat.storage.checkpoint_format import Checkpoint, is_checkpoint, load_checkpoint
from hpcdat.storage.run_folder import RunFolder

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
"""Entries of a file that hold the state dictionary, next to an optimiser's state and other things."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "averaged")
"""Entries that hold averaged weights: timm's, and those of other programs."""
METADATA = "hpcdat"
"""Entry of a safetensors file's metadata that ``hpcdat export`` writes: classes, mean and std, as JSON."""
_NUMBER = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((_NUMBER, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64)),
]
"""What other programs save next to weights, arguments and NumPy's numbers; loading it runs no code."""
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
"""How a file that can be read is written."""
NO_AVERAGE = "model.pretrained_averaged: there are no averaged weights"
SAFETENSORS = slice(8, 10), b'{"'
"""Where a safetensors file has its header, after the header's length, and how that starts."""
OTHER_FORMATS = {
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself, with `git lfs pull`"),
    b"<": ("an HTML or XML page", "download the weights again"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it first"),
    b"\x89HDF": ("in HDF5 format", f"save it with {SAVE}"),
    b"{": ("JSON", "give the weights themselves; those in several files must be joined first"),
}
"""By the first bytes of a file: its format, and what to do."""


class _Exported(TypedDict):
    classes: list[str]
    mean: list[float]
    std: list[float]


EXPORTED = TypeAdapter(_Exported)
"""Reads the metadata of :data:`METADATA`."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a file.

    Attributes:
        tensors: by the names that the file has.
        classes: names of the classes of its model, in the order of the logits; None if they are unknown.
        found_in: entries of the file that they are in, for the user; empty for a plain state dictionary.
        normalisation: mean and standard deviation of the pixels that they were trained with, one per channel;
            None if unknown, or if they are among the tensors.
        remark: what else the file has; may be empty.
    """

    tensors: dict[str, Tensor]
    classes: list[str] | None = None
    found_in: str = ""
    normalisation: tuple[list[float], list[float]] | None = None
    remark: str = ""


def read_weights(path: Path, *, averaged: bool = False) -> Weights:
    """Read a run's folder, a checkpoint of hpcdat, or a file of safetensors or ``torch.save``.

    No code in a file is executed.

    Args:
        path: the file or folder.
        averaged: read the averaged weights (EMA, SWA), which must be there.

    Raises:
        InputError: it cannot be read, or holds something else; the message says what to do.
    """
    try:
        if path.is_dir():
            run = RunFolder(path)
            return _of_run(run.checkpoint_of_result(run.read_job([])), averaged)
        if is_checkpoint(path):
            return _of_run(load_checkpoint(path), averaged)
        return _load(path, averaged)
    except FileNotFoundError:
        raise InputError(f"model.pretrained: {path}: there is no such file or folder") from None
    except OSError as error:
        raise InputError(f"model.pretrained: {path}: cannot be read: {error.strerror or error}") from None
    except InputError as error:
        text = str(error)
        raise InputError(
            f"model.pretrained: {text if text.startswith(str(path)) else f'{path}: {text}'}"
        ) from None


def _of_run(checkpoint: Checkpoint, averaged: bool) -> Weights:
    """The weights of a run: those that are trained, or their average."""
    state = checkpoint.averaged if averaged else checkpoint.model
    if state is None:
        raise InputError(f"{NO_AVERAGE}: the run has averaged none")
    return Weights(dict(state), checkpoint.classes, "averaged weights" if averaged else "")


def _load(path: Path, averaged: bool) -> Weights:
    """The weights in a file of another program, or of ``hpcdat export``."""
    with path.open("rb") as file:
        start = file.read(64)
    place, header = SAFETENSORS
    if start[place] != header and (problem := _other_format(path, start)):
        raise InputError(problem)
    if start[place] == header or path.suffix == ".safetensors":
        if averaged:
            raise InputError(f"{NO_AVERAGE}: a safetensors file has one set of weights")
        return _load_safetensors(path)
    return _unwrapped(_load_pickle(path), averaged)


def _load_safetensors(path: Path) -> Weights:
    """The tensors of a safetensors file, whose header and sizes its library verifies."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"an incomplete or damaged safetensors file ({shorten(first_line(error))}): copy or download it "
            "again"
        ) from None
    if not _is_state(tensors):
        raise InputError(f"expected tensors by name, found {_describe(tensors)}")
    classes, normalisation = _exported(metadata.get(METADATA))
    return Weights(tensors, classes, normalisation=normalisation)


def _exported(text: str | None) -> tuple[list[str] | None, tuple[list[float], list[float]] | None]:
    """Classes and normalisation that ``hpcdat export`` has written; None for what is missing or damaged."""
    try:
        fields = EXPORTED.validate_json(text or "")
    except ValidationError:
        return None, None
    return fields["classes"], (fields["mean"], fields["std"])


def _load_pickle(path: Path) -> Any:
    """What ``torch.save`` has written to a file."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
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
    if path.suffix == ".safetensors":
        return None
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


def _unwrapped(value: Any, averaged: bool) -> Weights:
    """The state dictionary in what a file holds.

    Raises:
        InputError: there is none.
    """
    place: list[str] = []
    others: list[str] = []
    while isinstance(value, Mapping) and not _is_state(value):
        averages = [key for key in AVERAGED if isinstance(value.get(key), Mapping)]
        others += averages
        trained = [key for key in WRAPPERS if isinstance(value.get(key), Mapping)]
        keys = (averages or trained) if averaged else (trained or averages)
        if not keys:
            break
        place.append(keys[0])
        value = value[keys[0]]
    if averaged and not set(place) & set(AVERAGED):
        raise InputError(f"{NO_AVERAGE} (entry {' or '.join(AVERAGED)})")
    if not (isinstance(value, Mapping) and _is_state(value)):
        raise InputError(f"expected tensors by name, found {_describe(value)}: write the file with {SAVE}")
    unused = [repr(key) for key in others if key not in place]
    remark = f"not used: averaged weights, in {' and '.join(unused)}; model.pretrained_averaged takes them"
    return Weights(
        dict(value), found_in=", ".join(f"in {key!r}" for key in place), remark=remark if unused else ""
    )


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
