"""``hpcdat pack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from hpcdat.cli.options import WorkersOption, path
from hpcdat.cli.worker_process import as_worker, reported_once, start_locally
from hpcdat.distributed.stop_signals import StopRequest
from hpcdat.errors import InputError, shorten

if TYPE_CHECKING:
    from hpcdat.commands.pack import Packed
    from hpcdat.distributed.communicator import Communicator

SMALLEST_SHARD = 20_000
"""Bytes; a tar file takes 10,240 without any image."""


def pack(
    root: Annotated[
        Path,
        typer.Argument(
            metavar="ROOT",
            help="Holds train/CLASS/*.jpg and test/CLASS/*.jpg.",
            show_default=False,
            parser=path,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False, parser=path)
    ],
    splits: Annotated[
        str, typer.Option(metavar="NAME,...", help="Sub-folders of ROOT to pack, the first with all classes.")
    ] = "train,test",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest size of a shard: 500MB, 1GB, 1GiB.")
    ] = "1GB",
    corrupt: Annotated[
        Literal["stop", "skip"], typer.Option(help="Stop at an image that cannot be read, or leave it out.")
    ] = "stop",
    workers: WorkersOption = 1,
) -> None:
    """Pack folders of images into shards, a few large tar files with an index.

    \b
    Examples:
      hpcdat pack photos photos-packed -np 4
      hpcdat train JOB.yaml data.source=shards data.root=photos-packed

    Parallel file systems read a few large files faster than a million small ones. Training from shards gives
    the same weights, to the bit, as training from the folders. WebDataset reads the tar files too.
    Images are checked as they are packed. Shards that are complete are kept: after a stop or a failure the
    same command resumes, with any number of workers. The same images always give the same files.
    """
    names = splits.split(",")
    shard_bytes = reported_once(lambda: read_size(shard_size))
    if workers > 1:
        start_locally(workers, None)

    def work(workers: Communicator, stop: StopRequest) -> list[Packed]:
        from hpcdat.commands.pack import pack

        return pack(root, out, names, shard_bytes, corrupt, workers, stop)

    for one in as_worker(work, None) or []:
        held = f"{one.images:,} images in {one.shards:,} shards, {one.size / 1e6:,.1f} MB"
        left_out = f"; {one.left_out:,} images that cannot be read were left out" if one.left_out else ""
        print(f"{one.folder}: {held}{left_out}")


def read_size(text: str) -> int:
    """Read the size of a shard, bytes.

    Raises:
        InputError: it is no size, or too small.
    """
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < SMALLEST_SHARD:
        raise InputError(
            f"--shard-size {shorten(text)}: expected a size such as 500MB, 1GB or 1GiB, at least "
            f"{SMALLEST_SHARD // 1000}KB"
        )
    return size
