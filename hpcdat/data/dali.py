"""The DALI pipeline: encoded files in, decoded and augmented pixels out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from torch import Tensor

from hpcdat.data.batches import Indices
from hpcdat.data.images import DataError, Images
from hpcdat.data.pixels import centred, empty_batch, resized, shorter_side, to_pixels
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
        self._exhausted = False

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded.
        """
        labels = torch.tensor(self.images.labels)
        # A seed belongs to a pipeline for life, and one that was left in the middle of its batches
        # has read ahead; otherwise one pipeline serves for ever.
        if self._exhausted and not self._is_random:
            self._pipeline.reset()
        else:
            self._pipeline = self._build(seed)
        self._exhausted = False
        self._wanted = iter([indices for indices in batches if len(indices)])
        for indices in batches:
            if len(indices) == 0:
                yield empty_batch(self.settings, self.device)
                continue
            yield self._pixels(indices), labels[indices].to(self.device)
        self._exhausted = True

    @property
    def _is_random(self) -> bool:
        return self.training and self.settings.augmentation == "crop-flip"

    def _pixels(self, indices: Indices) -> Tensor:
        try:
            (output,) = self._pipeline.run()
        except RuntimeError as error:
            raise DataError(self._culprit(indices) or f"DALI failed: {error}") from None
        return to_pixels(torch.from_dlpack(output.as_tensor()), self.device)

    def _encoded(self) -> list[np.ndarray]:
        """The files of the next batch, as they are on disk."""
        return [np.fromfile(self.images.files[i], dtype=np.uint8) for i in next(self._wanted)]

    def _build(self, seed: int):  # noqa: ANN202  (DALI's Pipeline type is not public)
        on_gpu = self.device.type == "cuda"
        pipeline = _pipeline(
            source=self._encoded,
            size=self.settings.image_size,
            colour=types.GRAY if self.settings.channels == 1 else types.RGB,
            decoder="mixed" if on_gpu else "cpu",
            crop_flip=self._is_random,
            shorter=shorter_side(self.settings),
            batch_size=self.batch_size,
            num_threads=self.settings.threads,
            device_id=self.device.index if on_gpu else None,
            seed=seed % 2**31,
        )
        pipeline.build()
        return pipeline

    def _culprit(self, indices: Indices) -> str:
        """The file of the batch that does not decode, found with another decoder."""
        from PIL import Image

        for index in indices:
            try:
                with Image.open(self.images.files[index]) as image:
                    image.load()
            except Exception as error:
                return f"{self.images.files[index]}: cannot be read as an image: {error}"
        return ""


@pipeline_def
def _pipeline(source, size, colour, decoder, crop_flip, shorter):  # noqa: ANN001, ANN202
    """uint8 pixels (H, W, C) of one size."""
    encoded = fn.external_source(source=source, batch=True, dtype=types.UINT8)
    resize = {"interp_type": types.INTERP_LINEAR, "antialias": True}
    # As PIL and torchvision: pixels as they are stored.
    decode = {"device": decoder, "output_type": colour, "adjust_orientation": False}
    if crop_flip:
        pixels = fn.decoders.image_random_crop(
            encoded,
            **decode,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
            num_attempts=10,
        )
        pixels = fn.resize(pixels, resize_x=size, resize_y=size, **resize)
        return fn.flip(pixels, horizontal=fn.random.coin_flip())
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    shortest = math.min(shape[0], shape[1])
    height, width = (resized(side, shortest, shorter) for side in (shape[0], shape[1]))
    sides = fn.cast(fn.stack(height, width), dtype=types.FLOAT)
    pixels = fn.resize(fn.decoders.image(encoded, **decode), size=sides, **resize)
    corner = fn.cast(fn.stack(centred(height, size), centred(width, size)), dtype=types.INT32)
    return fn.slice(pixels, corner, [size, size], axes=[0, 1])
