"""The DALI pipeline: encoded files in, decoded and augmented pixels out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torch import Tensor

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import View, views_of
from hpcdat.data.corrupt_images import Unreadable, complaint_about
from hpcdat.data.dali_autoaugment import AutoAugment
from hpcdat.data.images import DataError, Images
from hpcdat.data.pixels import apply_view, empty_batch, to_pixels
from hpcdat.data.sampler import Indices

BATCHES_SEARCHED = 4
"""Batches searched for an unreadable image after DALI fails; DALI prefetches two."""


class DaliLoader:
    """Reads with NVIDIA DALI, on the GPU if the images go to one.

    On the CPU DALI decodes and torch resizes in threads, in a third of DALI's time.

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
        self.unreadable = Unreadable(settings.corrupt)
        self._policy = AutoAugment() if training and settings.policy == "autoaugment" else None
        self._pipeline: Any = None
        self._threads = ThreadPoolExecutor(settings.threads)
        self._requested: Iterator[Indices] = iter(())
        self._seed = 0
        self._exhausted = False
        self._shapes: dict[int, tuple[int, int]] = {}

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded, and the job does not say to skip it.
        """
        labels = torch.tensor(self.images.labels)
        self._seed = seed
        self._begin(batches)
        for number, batch in enumerate(batches):
            while len(indices := self.unreadable.without(batch)):
                try:
                    (output,) = self._pipeline.run(**self._stream())
                except (RuntimeError, OSError) as error:
                    self._blame(batches[number : number + BATCHES_SEARCHED], error)
                    self._begin(batches[number:])
                    continue
                pixels = torch.utils.dlpack.from_dlpack(output.as_tensor())
                yield to_pixels(pixels, self.device), labels[indices].to(self.device)
                break
            else:
                yield empty_batch(self.settings, self.device)
        self._exhausted = True

    def _stream(self) -> dict[str, torch.cuda.Stream]:
        """The stream that uses the images, so that their memory is not reused before."""
        return {"cuda_stream": torch.cuda.current_stream(self.device)} if self.device.type == "cuda" else {}

    def _begin(self, batches: list[Indices]) -> None:
        """Have the pipeline read these batches next."""
        readable = [self.unreadable.without(indices) for indices in batches]
        self._requested = iter([indices for indices in readable if len(indices)])
        # A pipeline that was interrupted has read ahead.
        if self._exhausted:
            self._pipeline.reset()
        else:
            self._pipeline = self._build()
        self._exhausted = False

    def _blame(self, batches: list[Indices], error: Exception) -> None:
        """Find the images that do not decode, with another decoder."""
        found = False
        for index in np.concatenate(batches).tolist() if self.images.pixels is None else ():
            try:
                with Image.open(self.images.files[index]) as image:
                    image.load()
            except Exception as reason:
                found = True
                self.unreadable.add(index, complaint_about(self.images.files[index], reason))
        if not found:
            raise DataError(f"DALI failed: {error}") from None

    def _source(self) -> tuple[list[np.ndarray], ...]:
        """The images of the next batch as they are stored, the view of each, and a policy's choices."""
        indices = next(self._requested)
        if self.images.pixels is not None:
            stored = list(self.images.pixels[indices])
        else:
            stored = [np.fromfile(self.images.files[i], dtype=np.uint8) for i in indices]
        views = list(np.stack(self._views(indices), axis=1).astype(np.int32))
        if self._policy is None:
            return stored, views
        return stored, views, [self._policy.choices(int(i), self._seed) for i in indices]

    def _views(self, indices: Indices) -> View:
        height, width = np.array([self._shape(int(i)) for i in indices]).T
        return views_of(height, width, indices, self.settings, training=self.training, seed=self._seed)

    def _shape(self, index: int) -> tuple[int, int]:
        """Height and width of an image as it is stored."""
        if self.images.pixels is not None:
            return self.images.pixels.shape[1:3]
        if index not in self._shapes:
            # Pillow reads only the header.
            with Image.open(self.images.files[index]) as image:
                self._shapes[index] = (image.height, image.width)
        return self._shapes[index]

    def _build(self) -> Any:  # DALI's types are not public
        on_gpu = self.device.type == "cuda"
        pipeline = _pipeline(
            source=self._source,
            resize=self._apply_views,
            size=self.settings.image_size,
            colour=types.GRAY if self.settings.channels == 1 else types.RGB,
            encoded=self.images.pixels is None,
            # The window of a random resized crop is all of it.
            windowed=not (self.training and self.settings.augmentation == "crop-flip"),
            policy=self._policy,
            on_gpu=on_gpu,
            enable_conditionals=self._policy is not None,
            batch_size=self.batch_size,
            num_threads=self.settings.threads,
            device_id=self.device.index if on_gpu else None,
        )
        pipeline.build()
        return pipeline

    def _apply_views(self, regions: list[np.ndarray], views: list[np.ndarray]) -> list[np.ndarray]:
        """Each region (H, W, C), already cut out, as its view shows it: (size, size, C)."""

        def seen(region: np.ndarray, view: np.ndarray) -> np.ndarray:
            pixels = torch.from_numpy(region).permute(2, 0, 1)
            rest = View(*view.tolist())._replace(top=0, left=0)
            return apply_view(pixels, rest, self.settings.image_size).permute(1, 2, 0).numpy()

        return list(self._threads.map(seen, regions, views))


@pipeline_def  # type: ignore[untyped-decorator]  # DALI's decorator has no types
def _pipeline(
    source: Callable[..., Sequence[Any]],
    resize: Callable[..., object],
    size: int,
    colour: Any,
    encoded: bool,
    windowed: bool,
    policy: AutoAugment | None,
    on_gpu: bool,
) -> Any:
    """Views of images, with a policy applied if there is one: uint8, (size, size, C).

    torch makes floats of them, as for the other loader: a quarter of the bytes go to the device.
    """
    kinds = [types.UINT8, types.INT32] if policy is None else [types.UINT8, types.INT32, types.INT32]
    stored, view, *choices = fn.external_source(
        source=source, num_outputs=len(kinds), batch=True, dtype=kinds
    )
    image = _seen(stored, view, resize, size, colour, encoded, windowed, on_gpu)
    return image if policy is None else policy.apply(image, *choices)


def _seen(
    stored: Any,
    view: Any,
    resize: Callable[..., object],
    size: int,
    colour: Any,
    encoded: bool,
    windowed: bool,
    on_gpu: bool,
) -> Any:
    """Images as they are stored, each as its view shows it."""
    if encoded:
        region = fn.decoders.image_slice(
            stored,
            device="mixed" if on_gpu else "cpu",
            output_type=colour,
            # As PIL and torchvision: pixels as they are stored.
            adjust_orientation=False,
            start=view[0:2],
            shape=view[2:4],
            axes=[0, 1],
        )
    else:
        region = fn.slice(stored.gpu() if on_gpu else stored, view[0:2], view[2:4], axes=[0, 1])
    if not on_gpu:
        return fn.python_function(region, view, function=resize, batch_processing=True)
    shape = fn.cast(view[4:6], dtype=types.FLOAT)
    resized = fn.resize(region, size=shape, interp_type=types.INTERP_LINEAR, antialias=True)
    if windowed:
        resized = fn.slice(resized, view[6:8], [size, size], axes=[0, 1], out_of_bounds_policy="pad")
    return fn.flip(resized, horizontal=view[8])
