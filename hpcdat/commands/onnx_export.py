"""A network as ONNX, compared with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hpcdat.errors import InputError, first_line, shorten

TOLERANCE = 1e-4
"""Largest difference between logits of ONNX Runtime and torch, relative to the largest logit, at least 1."""
BATCHES = (1, 2, 5)
"""Sizes of the batches that are compared."""


def to_onnx(
    name: str, network: nn.Module, shape: tuple[int, int, int], described: Mapping[str, str]
) -> bytes:
    """Convert a network to ONNX with any number of images in a batch, and compare its logits with torch's.

    Args:
        name: of the network, for messages.
        network: in evaluation mode, on the CPU.
        shape: of an image, (C, H, W).
        described: entries of the file's metadata.

    Raises:
        InputError: a package is missing, ONNX cannot express the network, or the logits differ by more than
            :data:`TOLERANCE`.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f".onnx needs the package {error.name}: pip install onnx onnxruntime onnxscript"
        ) from None
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, *shape, generator=generator) for count in BATCHES]
    try:
        model = _convert(network, batches[1])
        for key, value in described.items():
            model.metadata_props.add(key=key, value=value)
        contents: bytes = model.SerializeToString()
        session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
        theirs = [torch.from_numpy(session.run(None, {"images": x.numpy()})[0]) for x in batches]
    except Exception as error:
        # The exporter and the runtime raise many kinds, over many lines.
        raise InputError(
            f"{name} cannot be written as ONNX: {shorten(first_line(error))}: export it as .safetensors"
        ) from None
    with torch.no_grad():
        ours = [network(x) for x in batches]
    for expected, found in zip(ours, theirs, strict=True):
        difference, largest = float((expected - found).abs().max()), max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE * largest:
            raise InputError(
                f"{name}: as ONNX its logits differ from torch's by {difference:.1e}, by more than "
                f"{TOLERANCE:g} of the largest one: export it as .safetensors"
            )
    return contents


def _convert(network: nn.Module, images: torch.Tensor) -> Any:
    """The network as an ONNX model, without the exporter's messages."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    return program.model_proto
