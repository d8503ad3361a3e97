"""The DALI pipeline: encoded files in, decoded and augmented pixels out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torch import Tensor

from hpcdat.data.augmentation import View, view_of
from hpcdat.data.batches import Indices
from hpcdat.data.images import DataError, Images
from hpcdat.data.pixels import empty_batch, to_pixels
from hpcdat.job import Data


class DaliLoader:
    """Reads with NVIDIA DALI: decoding on the GPU where the images go to one, else on the CPU.

    Args:
        images: what is read.
        settings: the job's ``data`` section.
        training: whether the training augmentation applies.
        batch_size: largest batch it will be asked for.
        device: where the images end up.
    """

    def __init__(
        self, images: Images, settings: Data, *, training: bool, batch_size: int, device: torch.device
    ) -> None:
        self.images = images
        self.settings = settings
        self.training = training
        self.batch_size = batch_size
        self.device = device
        self._pipeline = None
        self._wanted: Iterator[Indices] = iter(())
        self._seed = 0
        self._exhausted = False
        self._shapes: dict[int, tuple[int, int]] = {}

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded.
        """
        labels = torch.tensor(self.images.labels)
        self._wanted = iter([indices for indices in batches if len(indices)])
        self._seed = seed
        # A pipeline that was left in the middle of its batches has read ahead.
        if self._exhausted:
            self._pipeline.reset()
        else:
            self._pipeline = self._build()
        self._exhausted = False
        for indices in batches:
            if len(indices) == 0:
                yield empty_batch(self.settings, self.device)
                continue
            yield self._pixels(indices), labels[indices].to(self.device)
        self._exhausted = True

    def _pixels(self, indices: Indices) -> Tensor:
        try:
            (output,) = self._pipeline.run()
        except (RuntimeError, OSError) as error:
            raise DataError(self._culprit(indices) or f"DALI failed: {error}") from None
        return to_pixels(torch.from_dlpack(output.as_tensor()), self.device)

    def _source(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The files of the next batch as they are on disk, and the view of each."""
        indices = next(self._wanted)
        encoded = [np.fromfile(self.images.files[i], dtype=np.uint8) for i in indices]
        return encoded, [np.array(self._view(int(i)), dtype=np.int32) for i in indices]

    def _view(self, index: int) -> View:
        if index not in self._shapes:
            # Pillow reads the header alone.
            with Image.open(self.images.files[index]) as image:
                self._shapes[index] = (image.height, image.width)
        shape = self._shapes[index]
        return view_of(*shape, index, self.settings, training=self.training, seed=self._seed)

    def _build(self):  # noqa: ANN202  (DALI's Pipeline type is not public)
        on_gpu = self.device.type == "cuda"
        pipeline = _pipeline(
            source=self._source,
            size=self.settings.image_size,
            colour=types.GRAY if self.settings.channels == 1 else types.RGB,
            decoder="mixed" if on_gpu else "cpu",
            batch_size=self.batch_size,
            num_threads=self.settings.threads,
            device_id=self.device.index if on_gpu else None,
        )
        pipeline.build()
        return pipeline

    def _culprit(self, indices: Indices) -> str:
        """The file of the batch that does not decode, found with another decoder."""
        for index in indices:
            try:
                with Image.open(self.images.files[index]) as image:
                    image.load()
            except Exception as error:
                return f"{self.images.files[index]}: cannot be read as an image: {error}"
        return ""


@pipeline_def
def _pipeline(source, size, colour, decoder):  # noqa: ANN001, ANN202
    """Views of images, uint8 (size, size, C)."""
    encoded, view = fn.external_source(
        source=source, num_outputs=2, batch=True, dtype=[types.UINT8, types.INT32]
    )
    region = fn.decoders.image_slice(
        encoded,
        device=decoder,
        output_type=colour,
        # As PIL and torchvision: pixels as they are stored.
        adjust_orientation=False,
        start=view[0:2],
        shape=view[2:4],
        axes=[0, 1],
    )
    shape = fn.cast(view[4:6], dtype=types.FLOAT)
    resized = fn.resize(region, size=shape, interp_type=types.INTERP_LINEAR, antialias=True)
    seen = fn.slice(resized, view[6:8], [size, size], axes=[0, 1], out_of_bounds_policy="pad")
    return fn.flip(seen, horizontal=view[8])
