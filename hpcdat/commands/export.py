"""Write the network of a run to a file that other programs read, with a model card beside it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import IO

import safetensors.torch
import torch
from torch import Tensor, nn

from hpcdat.commands.onnx_export import to_onnx
from hpcdat.commands.trained_model import load_trained
from hpcdat.config.job import Job
from hpcdat.distributed.single_process import SingleProcess
from hpcdat.errors import InputError, shorten
from hpcdat.models.fingerprint import fingerprint
from hpcdat.models.networks import first_convolution
from hpcdat.models.split_batch_norm import merge_batch_norm
from hpcdat.report.model_card import Exported, model_card
from hpcdat.storage.atomic_files import check_writable, write_atomically
from hpcdat.storage.run_folder import RunFolder
from hpcdat.training.weight_files import METADATA

SUFFIXES = (".safetensors", ".pth", ".onnx")
"""Suffixes of the files that can be written."""


def export(
    run_dir: Path,
    out: Path,
    *,
    averaged: bool = False,
    from_pixels: bool = False,
    overwrite: bool = False,
    license_id: str | None = None,
) -> list[Path]:
    """Write the network of a finished run, and its model card.

    The network has the names that its library or module gives its tensors: it has no normalisation layer, and
    of split batch norm the layers for clean images, as evaluations use them.

    Args:
        run_dir: the run's folder; its latest weights are used, with early stopping its best ones.
        out: the file, of one of :data:`SUFFIXES`; the card gets the suffix .md.
        averaged: write the averaged weights.
        from_pixels: ONNX with the normalisation in front, so that it takes pixels in [0, 1].
        overwrite: replace existing files.
        license_id: for the card, such as ``apache-2.0``.

    Returns:
        The files written.

    Raises:
        InputError: the run cannot be used or has not ended, the file cannot be written or exists, or ONNX
            cannot express the network.
    """
    card = out.with_suffix(".md")
    _check_files(out, card, overwrite=overwrite, from_pixels=from_pixels)
    folder = RunFolder(run_dir)
    job = folder.read_job(["device=cpu"])
    _check_finished(folder, job)
    trained = load_trained(folder, job, SingleProcess(), averaged=averaged)
    weights = fingerprint(trained.model)
    merge_batch_norm(trained.model)
    normalization, network = trained.model.children()
    exported = Exported(
        file=out,
        classes=trained.classes,
        weights=weights,
        averaged=averaged,
        takes_pixels=from_pixels,
        first_convolution=_adapted_convolution(job, network),
        license=license_id,
    )
    text = model_card(folder, folder.read_job([]), exported)
    _write(out, _contents(exported, job, normalization, network))
    _write(card, text.encode())
    return [out, card]


def _contents(
    exported: Exported, job: Job, normalization: nn.Module, network: nn.Module
) -> bytes | OrderedDict[str, Tensor]:
    """What the file holds, with classes and normalisation in its metadata if its format has any."""
    described = json.dumps({"classes": exported.classes, "mean": job.model.mean, "std": job.model.std})
    if exported.file.suffix == ".onnx":
        whole = nn.Sequential(normalization, network) if exported.takes_pixels else network
        size = job.data.image_size
        return to_onnx(job.model.name, whole, (job.data.channels, size, size), {METADATA: described})
    state = _tensors(job, network)
    if exported.file.suffix == ".pth":
        return state
    return safetensors.torch.save(state, {"format": "pt", METADATA: described})


def _check_files(out: Path, card: Path, *, overwrite: bool, from_pixels: bool) -> None:
    """Check the files to write, before anything that takes long."""
    if out.suffix not in SUFFIXES:
        raise InputError(f"{shorten(out)}: expected a file name that ends in {', '.join(SUFFIXES)}")
    if from_pixels and out.suffix != ".onnx":
        raise InputError(
            f"--from-pixels: only with .onnx: a {out.suffix} file has the network's weights alone"
        )
    for file in (out, card):
        if file.is_file() and not overwrite:
            raise InputError(f"{file}: exists: choose another name, or replace it with --overwrite")
        try:
            check_writable(file)
        except OSError as error:
            raise InputError(
                f"{file}: cannot be written ({error.strerror}): choose a file in an existing, writable folder"
            ) from None


def _check_finished(folder: RunFolder, job: Job) -> None:
    if not folder.metrics("finished"):
        epochs = folder.metrics("epoch")
        done = epochs[-1]["epoch"] if epochs else 0
        raise InputError(
            f"{folder.path}: the training has not ended: epoch {done} of {job.total_epochs} is done; "
            f"`hpcdat train {folder.job_file}` resumes it"
        )


def _adapted_convolution(job: Job, network: nn.Module) -> str | None:
    """The first convolution of a network of torchvision, if it was adapted to another number of channels."""
    if job.data.channels == 3 or job.model.name.partition(":")[0] not in ("torchvision", "resnet50"):
        return None
    return first_convolution(network)


def _tensors(job: Job, network: nn.Module) -> OrderedDict[str, Tensor]:
    """The state of a network; tensors that several layers share are there under each name."""
    state = OrderedDict()
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{job.model.name}: {name} of its state is of type {type(tensor).__name__}: only tensors can "
                "be exported"
            )
        state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return state


def _write(out: Path, contents: bytes | OrderedDict[str, Tensor]) -> None:
    """Write bytes, or tensors by ``torch.save``."""

    def write(file: IO[bytes]) -> None:
        if isinstance(contents, bytes):
            file.write(contents)
        else:
            torch.save(contents, file)

    try:
        write_atomically(out, write)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
