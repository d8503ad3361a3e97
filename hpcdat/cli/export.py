"""``hpcdat export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcdat.cli.options import RunArgument, path
from hpcdat.cli.worker_process import reported_once


def export(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File: .safetensors, .pth or .onnx.", show_default=False, parser=path
        ),
    ],
    averaged: Annotated[
        bool, typer.Option("--averaged", help="Write the averaged weights (EMA, SWA).")
    ] = False,
    from_pixels: Annotated[
        bool,
        typer.Option("--from-pixels", help="ONNX: with the normalisation in front, for pixels in [0, 1]."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the card, such as apache-2.0.")
    ] = None,
) -> None:
    """Write the network of a finished run for use without hpcdat.

    \b
    Examples:
      hpcdat export runs/demo demo.safetensors
      hpcdat export runs/demo demo.onnx --from-pixels

    The file has the names of torchvision, timm or the user's module: no prefixes, no normalisation layer, and
    of split batch norm the layers for clean images. It takes normalised images, (pixels - mean) / std. ONNX
    takes batches of any size, and is compared with torch before it is written. A model card beside it, OUT
    with the suffix .md, has accuracies, recipe, normalisation, class names, and how to load the file. With
    early stopping the best weights are written, otherwise the last ones.
    """

    def write() -> list[Path]:
        from hpcdat.commands.export import export

        return export(
            run,
            out,
            averaged=averaged,
            from_pixels=from_pixels,
            overwrite=overwrite,
            license_id=license_id,
        )

    for file in reported_once(write):
        print(f"written: {file}")
