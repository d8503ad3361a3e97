"""Command lines of the benchmarks: types of arguments, the device, errors in one line with exit code 2."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
import typer

from hpcdat.cli.worker_process import refuse
from hpcdat.config.paths import expand
from hpcdat.config.scalars import number
from hpcdat.distributed.communicator import Communicator
from hpcdat.distributed.device import device_for
from hpcdat.distributed.launcher import check_launcher, launched
from hpcdat.emulation.cluster import BoxError, bytes_per_second
from hpcdat.errors import HpcdatError, InputError, shorten
from hpcdat.storage.atomic_files import check_writable

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser of a benchmark's command line.

    Args:
        description: what the benchmark measures, in a line.
        alone: why a launcher must not start it, as in "it starts workers itself"; None: one may.
    """

    def __init__(self, description: str, *, alone: str | None = None) -> None:
        super().__init__(description=description, allow_abbrev=False)
        self.alone = alone

    def error(self, message: str) -> NoReturn:
        """End with a line on stderr and exit code 2; of several workers, rank 0 reports it."""
        leave(InputError(f"{self.prog}: {message}"))

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse, and check the variables of the launcher.

        Raises:
            LauncherError: the variables of launchers contradict each other.
        """
        found = super().parse_args(args, namespace)
        if check_launcher().size > 1 and self.alone:
            self.refuse_launcher(self.alone)
        return found

    def refuse_launcher(self, reason: str) -> NoReturn:
        """End because a launcher has started this process."""
        self.error(f"start it as a single process, not with {launched().launcher}: {reason}")

    def add_json(self) -> None:
        """Add ``--json``."""
        self.add_argument(
            "--json", type=file_to_write, metavar="PATH", help="write environment, measurements and ratios"
        )

    def add_device(self) -> None:
        """Add ``--device``."""
        self.add_argument(
            "--device",
            type=device,
            default="auto",
            metavar="{auto,cpu,cuda}",
            help="what computes; auto: a GPU for each worker if there are any (default: %(default)s)",
        )

    def add_rounds(self, default: int | None, by_default: str = "%(default)s") -> None:
        """Add ``--rounds``."""
        self.add_argument(
            "--rounds",
            type=whole(1),
            default=default,
            metavar="N",
            help=f"repetitions after a warm-up (default: {by_default})",
        )

    def add_settings(self, of: str) -> None:
        """Add ``--set``."""
        self.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=f"settings of {of}")

    def add_cifar(self, **given: Any) -> None:
        """Add ``--cifar``."""
        self.add_argument(
            "--cifar", type=cifar_root, metavar="ROOT", help="folder that holds cifar-10-batches-py", **given
        )


def errors_in_one_line(main: Callable[[], None]) -> Callable[[], None]:
    """Let an entry point report the errors of hpcdat without a traceback, and exit with their code."""

    @functools.wraps(main)
    def run() -> None:
        # torch.compile looks for CUDA's compiler on CPUs, too, and warns that there is no GPU for it.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            main()
        except HpcdatError as error:
            leave(error)

    return run


def environment_in_a_box() -> dict[str, str]:
    """Variables of workers on emulated nodes.

    Their addresses have no host names, about which torch.distributed would warn at every connection.
    """
    return {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}


def leave(error: HpcdatError) -> NoReturn:
    """Report an error, of several workers' once, and end this process with the error's exit code."""
    try:
        refuse(error)
    except typer.Exit as leaving:
        if launched().size == 1:
            raise SystemExit(int(leaving.exit_code)) from None
        # Disconnecting would wait for workers that wait for this one.
        sys.stdout.flush()
        os._exit(leaving.exit_code)


def own_device(setting: Literal["auto", "cpu", "cuda"], workers: Communicator) -> torch.device:
    """The device of this worker: a GPU of its own, or the CPU with its share of the cores.

    Raises:
        InputError: there are fewer GPUs than workers.
    """
    found = device_for(setting, workers)
    if found.type == "cuda" and workers.local_size > torch.cuda.device_count():
        raise InputError(
            f"{workers.local_size} workers on {workers.host}, which has {torch.cuda.device_count()} GPUs: "
            "start one worker for each GPU, or use --device cpu"
        )
    return found


def whole(least: int) -> Callable[[str], int]:
    """The type of whole numbers from a smallest one."""

    def read(text: str) -> int:
        value = number(text.strip())
        if not isinstance(value, int) or value < least:
            raise ArgumentTypeError(f"{_quoted(text)}: expected a whole number, {least} or larger")
        return value

    return read


def positive(text: str) -> float:
    """The type of positive numbers."""
    value = number(text.strip())
    if value is None or not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{_quoted(text)}: expected a positive number")
    return float(value)


def positive_text(text: str) -> str:
    """The type of positive numbers that are passed on as they are written."""
    positive(text)
    return text.strip()


def listed(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """The type of values separated by commas; each is kept once."""

    def read(text: str) -> list[T]:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    return read


def one_of(*names: str) -> Callable[[str], str]:
    """The type of names, of which these are known."""

    def read(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"{_quoted(text)}: expected {' or '.join(names)}")
        return text

    return read


def link_rate(text: str) -> str:
    """The type of rates of links, such as ``100mbit``."""
    try:
        bytes_per_second(text)
    except BoxError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def shape(text: str) -> tuple[int, int]:
    """The type of numbers of nodes and of workers on each, such as ``3x2``."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise ArgumentTypeError(f"{_quoted(text)}: expected nodes x workers a node, such as 3x2")
    p, q = text.split("x")
    return int(p), int(q)


def device(text: str) -> str:
    """The type of ``--device``: ``auto``, ``cpu``, or ``cuda`` where torch finds a GPU."""
    one_of("auto", "cpu", "cuda")(text)
    if text == "cuda" and not torch.cuda.is_available():
        raise ArgumentTypeError("cuda: torch finds no usable GPU; hpcdat doctor says what there is")
    return text


def path(text: str) -> Path:
    """The type of paths, with ``~`` and variables expanded."""
    try:
        return Path(expand(text))
    except ValueError as error:
        raise ArgumentTypeError(f"{_quoted(text)}: {error}") from None


def existing_file(text: str) -> Path:
    """The type of files that are read."""
    found = path(text)
    try:
        with found.open("rb"):
            return found
    except OSError as error:
        raise ArgumentTypeError(f"{found} cannot be read: {error.strerror}") from None


def file_to_write(text: str) -> Path:
    """The type of files that are written at the end, in a folder that exists."""
    return _writable(path(text))


def folder_to_write(text: str) -> Path:
    """The type of folders that are made where they do not exist."""
    found = path(text)
    nearest = next(place for place in (found, *found.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ArgumentTypeError(f"{nearest} is not a folder")
    _writable(nearest / "file")
    return found


def image_root(text: str) -> Path:
    """The type of folders with photographs in ``train/CLASS``."""
    found = path(text)
    if not (found / "train").is_dir():
        raise ArgumentTypeError(f"{found}: there is no folder train in it, with one folder a class")
    return found


def cifar_root(text: str) -> Path:
    """The type of folders that hold CIFAR-10's official batches."""
    found = path(text)
    if not (found / "cifar-10-batches-py").is_dir():
        raise ArgumentTypeError(f"{found}: there is no folder cifar-10-batches-py in it")
    return found


def _writable(file: Path) -> Path:
    try:
        check_writable(file)
    except OSError as error:
        raise ArgumentTypeError(f"{error.filename} cannot be written: {error.strerror}") from None
    return file


def _quoted(text: str) -> str:
    return shorten(repr(text))
