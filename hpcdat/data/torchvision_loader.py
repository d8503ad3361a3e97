"""The alternative to DALI: Pillow's decoders and torchvision's transforms in torch's DataLoader."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import POLICY_FILL, policy_seed, view_of
from hpcdat.data.corrupt_images import Unreadable, complaint_about
from hpcdat.data.image_file import Unusable, decode, read_file
from hpcdat.data.images import Images
from hpcdat.data.pixels import apply_view, empty_batch, to_pixels
from hpcdat.data.sampler import Indices
from hpcdat.distributed.stop_signals import StopRequest


class TorchvisionLoader:
    """Reads with torchvision, in ``threads`` processes of torch's DataLoader.

    Args:
        images: what is read.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        device: where the images end up.
    """

    def __init__(self, images: Images, settings: Data, *, training: bool, device: torch.device) -> None:
        self.images = images
        self.settings = settings
        self.device = device
        self.unreadable = Unreadable(settings.corrupt)
        self._sampler = _Sampler()
        _start_fork_server()
        # MPI forbids forking; a fork server starts clean processes and runs for all epochs.
        self._loader = DataLoader(
            _Decoded(images, settings, training),
            batch_sampler=self._sampler,
            num_workers=settings.threads,
            persistent_workers=True,
            multiprocessing_context="forkserver",
            generator=torch.Generator(),
            collate_fn=_stack,
            worker_init_fn=partial(_end_with, os.getpid()),
        )

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded, and the job does not say to skip it.
        """
        labels = torch.tensor(self.images.labels)
        self._sampler.batches = [[(int(i), seed) for i in indices] for indices in batches if len(indices)]
        decoded = iter(self._loader)
        for indices in batches:
            pixels, complaints = next(decoded) if len(indices) else (None, {})
            for index, complaint in complaints.items():
                self.unreadable.add(index, complaint)
            if pixels is None:
                yield empty_batch(self.settings, self.device)
                continue
            read = [int(i) for i in indices if int(i) not in complaints]
            yield to_pixels(pixels, self.device), labels[read].to(self.device)


def _start_fork_server() -> None:
    """Start the fork server with signals to stop blocked, so that only the trainer handles them.

    A terminal, mpirun and Slurm send them to all processes of a worker; the trainer then finishes its step.
    The server imports once what all processes of all loaders need.
    """
    forkserver.set_forkserver_preload([__name__])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
    try:
        with _quiet():
            resource_tracker.ensure_running()
        # The resource tracker has unblocked some of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the resource tracker's warning when it cleans up after a trainer that was killed."""
    before = os.environ.get("PYTHONWARNINGS")
    mine = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{before},{mine}" if before else mine
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _end_with(trainer: int, _: int) -> None:
    """End a process of the loader when the trainer ends in any way, or asks it to end.

    By default it checks whether its parent is alive, which is the fork server. SIGTERM, which the trainer
    sends to end it, is blocked, since others send it too.
    """

    def wait() -> None:
        with suppress(ProcessLookupError):
            trains = os.pidfd_open(trainer)
            while not select.select([trains], [], [], 0)[0]:
                received = signal.sigtimedwait([signal.SIGTERM], 0.5)
                if received and received.si_pid == trainer:
                    break
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _stack(images: list[tuple[int, Tensor | str]]) -> tuple[Tensor | None, dict[int, str]]:
    """One batch (N, H, W, C) of those that were read, or None, and an error message for each other one."""
    pixels = [image for _, image in images if isinstance(image, Tensor)]
    complaints = {index: image for index, image in images if isinstance(image, str)}
    return torch.stack(pixels) if pixels else None, complaints


class _Sampler:
    """The batches of the current epoch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Decoded(Dataset[tuple[int, Tensor | str]]):
    """From (position, seed) to position and uint8 pixels (H, W, C), or why the file cannot be read."""

    def __init__(self, images: Images, settings: Data, training: bool) -> None:
        self.images = images
        self.settings = settings
        self.training = training
        self.policy = None
        if training and settings.policy == "autoaugment":
            self.policy = v2.AutoAugment(
                v2.AutoAugmentPolicy.IMAGENET, v2.InterpolationMode.BILINEAR, fill=POLICY_FILL
            )

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Tensor | str]:
        index, seed = place
        if self.images.pixels is not None:
            stored = self.images.pixels[index]
        else:
            file = self.images.files[index]
            try:
                stored = decode(read_file(file), self.settings.channels)
            except Unusable as reason:
                return index, complaint_about(file, reason)
        pixels = torch.from_numpy(stored).permute(2, 0, 1)
        _, height, width = pixels.shape
        view = view_of(height, width, index, self.settings, training=self.training, seed=seed)
        seen = apply_view(pixels, view, self.settings.image_size)
        if self.policy is not None:
            # It draws from torch's global generator.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(policy_seed(index, seed))
                seen = self.policy(seen)
        return index, seen.permute(1, 2, 0)
