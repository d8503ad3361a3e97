"""A table with a row of bytes for every worker, in a separate file: written in blocks, read row by row.

Data of each worker, such as running statistics, takes M times the memory of one model's. To avoid holding all
of it, worker 0 writes a block of columns at a time, and every worker reads its own row. In the file the
blocks follow one another, each with its (M, columns) bytes in the order of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Annotated

import pydantic
import torch
from torch import Tensor

from hpcdat.storage.atomic_files import write_atomically

BYTES_PER_READ = 2**20
"""Bytes read at once to compute the checksum of the file."""


@pydantic.dataclasses.dataclass(frozen=True, config={"strict": True, "extra": "forbid"})
class WorkerRows:
    """Where the rows of all workers are, and how to read one.

    Attributes:
        file: name of the file, without a folder.
        sha256: of its contents, hexadecimal.
        workers: number of rows M.
        row_bytes: length of a row.
        columns: of a block, in bytes; the last one may have fewer.
    """

    file: Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    sha256: str
    workers: Annotated[int, pydantic.Field(ge=1)]
    row_bytes: Annotated[int, pydantic.Field(ge=1)]
    columns: Annotated[int, pydantic.Field(ge=1)]


def write_rows(path: Path, blocks: Iterator[Tensor]) -> WorkerRows | None:
    """Write the rows of all workers, atomically, holding one block at a time.

    Args:
        path: of the file.
        blocks: (M, columns) uint8.

    Returns:
        How to read them; None if there is no block.

    Raises:
        OSError: the file could not be written; blocks may be left.
    """
    waiting = list(islice(blocks, 1))
    if not waiting:
        return None
    workers, columns = waiting[0].shape
    checksum, row_bytes = hashlib.sha256(), 0

    def write(file: IO[bytes]) -> None:
        nonlocal row_bytes
        block: Tensor | None = waiting.pop()
        while block is not None:
            data = block.contiguous().numpy().data.cast("B")
            file.write(data)
            checksum.update(data)
            row_bytes += block.shape[1]
            # Freed before the next one arrives.
            del data, block
            block = next(blocks, None)

    write_atomically(path, write)
    return WorkerRows(path.name, checksum.hexdigest(), workers, row_bytes, columns)


def check_rows(folder: Path, rows: WorkerRows) -> None:
    """Verify the checksum of the whole file, a piece at a time.

    Raises:
        OSError: it cannot be read.
        ValueError: it does not hold what was written.
    """
    checksum = hashlib.sha256()
    with (folder / rows.file).open("rb") as file:
        while data := file.read(BYTES_PER_READ):
            checksum.update(data)
    if checksum.hexdigest() != rows.sha256:
        raise ValueError("its contents do not have the checksum it was written with")


def read_row(folder: Path, rows: WorkerRows, rank: int) -> Tensor:
    """Read the row of one worker, and nothing else: (row_bytes,) uint8.

    Raises:
        OSError: it cannot be read.
        ValueError: the file is too short.
    """
    row = bytearray()
    with (folder / rows.file).open("rb") as file:
        for start in range(0, rows.row_bytes, rows.columns):
            columns = min(rows.columns, rows.row_bytes - start)
            file.seek(rows.workers * start + rank * columns)
            row += file.read(columns)
    if len(row) != rows.row_bytes:
        raise ValueError(f"{folder / rows.file}: too short for {rows.workers} rows of {rows.row_bytes} bytes")
    return torch.frombuffer(row, dtype=torch.uint8)
