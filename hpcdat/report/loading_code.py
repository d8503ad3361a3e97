"""The lines of Python that load an exported network without its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hpcdat.config.job import Job


class Construction(NamedTuple):
    """How a network is built before its weights are loaded.

    Attributes:
        imported: the import.
        expression: builds the network.
        needs: what must be installed or at hand besides torch, for the user.
    """

    imported: str
    expression: str
    needs: str


def construction(job: Job, classes: int) -> Construction:
    """How the network of a job is built.

    Args:
        job: resolved.
        classes: number of logits.
    """
    library, _, name = job.model.name.partition(":")
    channels = job.data.channels
    if library in ("torchvision", "resnet50"):
        arguments = _arguments(repr(name or library), weights=None, num_classes=classes, **job.model.options)
        return Construction(
            "from torchvision.models import get_model", f"get_model({arguments})", "torchvision"
        )
    if library == "timm":
        arguments = _arguments(repr(name), num_classes=classes, in_chans=channels, **job.model.options)
        return Construction("import timm", f"timm.create_model({arguments})", "timm")
    if name:
        arguments = _arguments(num_classes=classes, in_channels=channels, **job.model.options)
        needs = f"the module {library} on Python's path: its {name} makes the network"
        return Construction(f"import {library}", f"{library}.{name}({arguments})", needs)
    width = {} if job.model.width == 1 else {"width": job.model.width}
    arguments = _arguments(str(channels), str(classes), **width)
    needs = f"hpcdat: the network is its own {library}, defined in hpcdat/models"
    return Construction("from hpcdat.models import MODELS", f"MODELS[{library!r}]({arguments})", needs)


def loading_code(job: Job, classes: int, file: str, first_convolution: str | None) -> str:
    """Python that loads an exported file into the variable ``model``, or for ONNX ``session``.

    Args:
        job, classes: see :func:`construction`.
        file: name of the file, with one of the suffixes of ``hpcdat export``.
        first_convolution: the network's first convolution, where it takes another number of channels than
            the library builds; otherwise None.
    """
    if file.endswith(".onnx"):
        return "\n".join(
            [
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({file!r})",
                "# images: float32 array (N, C, H, W)",
                '# logits = session.run(None, {"images": images})[0]',
            ]
        )
    built = construction(job, classes)
    is_pickle = file.endswith(".pth")
    imports = [built.imported]
    if is_pickle or first_convolution:
        imports.append("import torch")
    if not is_pickle:
        imports.append("from safetensors.torch import load_file")
    load = f"torch.load({file!r}, weights_only=True)" if is_pickle else f"load_file({file!r})"
    lines = [*imports, f"model = {built.expression}"]
    if first_convolution:
        channels = job.data.channels
        lines += [
            f"first = model.get_submodule({first_convolution!r})",
            f"first.in_channels, first.weight = {channels}, torch.nn.Parameter(first.weight[:, :{channels}])",
        ]
    return "\n".join([*lines, f"model.load_state_dict({load})", "model.eval()"])


def _arguments(*positional: str, **named: Any) -> str:
    named_texts: Sequence[str] = [f"{key}={value!r}" for key, value in named.items()]
    return ", ".join([*positional, *named_texts])
