"""The DALI pipeline: encoded files in, decoded and augmented pixels out."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor

from hpcdat.config.sections import Data
from hpcdat.data.augmentation import View, views_of
from hpcdat.data.corrupt_images import Unreadable, complaint_about
from hpcdat.data.dali_autoaugment import AutoAugment
from hpcdat.data.image_file import Unusable
from hpcdat.data.image_waits import ImageWaits
from hpcdat.data.images import DataError, Images
from hpcdat.data.item_reader import ItemReader, Stored, as_file, in_form_of_file
from hpcdat.data.pixels import apply_view, empty_batch, to_pixels
from hpcdat.data.read_ahead import Read, ReadAhead, contents_of
from hpcdat.data.sampler import Indices


class DaliLoader:
    """Reads with NVIDIA DALI, on the GPU if the images go to one.

    On the CPU DALI decodes and torch resizes in threads, in a third of DALI's time. Files that DALI and
    Pillow do not decode alike are decoded by Pillow in those threads, so that all loaders agree on every
    file: other formats than JPEG and PNG, 16 bits, palettes, CMYK, colour that is to become grey. Items of
    data sets are read in ``threads`` processes.

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
        self._read_ahead = ReadAhead()
        self._decoders = ThreadPoolExecutor(settings.threads)
        self._resizers = ThreadPoolExecutor(settings.threads)
        self._items = ItemReader(images, settings, as_file) if images.items is not None else None
        self._requested: Iterator[tuple[Indices, list[Stored | str]]] = iter(())
        self._prepared: deque[Indices] = deque()
        self._output: Any = None
        self._with_pillow: set[int] = set()
        self._waits = ImageWaits("image files to be read")
        self._seed = 0

    def read(self, batches: list[Indices], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), float32 in [0, 1], and labels (N,) on the device.

        Raises:
            DataError: a file cannot be read or decoded, and the job does not say to skip it.
            Stopped: a stop was requested, and no images have come since.
        """
        labels = torch.from_numpy(self.images.labels)
        self._seed = seed
        self._begin(batches)
        for number in range(len(batches)):
            indices, output = self._next(batches, number)
            if output is None:
                yield empty_batch(self.settings, self.device)
                continue
            pixels = torch.utils.dlpack.from_dlpack(output.as_tensor())
            yield to_pixels(pixels, self.device), labels[indices].to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the pipeline and its threads.

        DALI holds the loader's methods where Python's garbage collector does not see them, so that a loader
        that is not closed stays in memory for ever.
        """
        if self._pipeline is not None and self._drain():
            self._pipeline = None
        if self._items is not None:
            self._items.close()
        self._resizers.shutdown()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._read_ahead.close()

    def _next(self, batches: list[Indices], number: int) -> tuple[Indices, Any]:
        """The readable images of a batch, and DALI's output for them; None if there are none.

        Args:
            batches: all of the epoch.
            number: of the next one.
        """
        # Batches are prepared in order, and those without readable images are not given to DALI.
        while not self._prepared or (len(self._prepared[0]) and self._output is None):
            try:
                (self._output,) = self._pipeline.run(**self._stream())
            except StopIteration:
                break
            except RuntimeError as error:
                self._decode_with_pillow(error)
                self._begin(batches[number:])
        indices, output = self._prepared.popleft(), None
        if len(indices):
            output, self._output = self._output, None
        return indices, output

    def _stream(self) -> dict[str, torch.cuda.Stream]:
        """The stream that uses the images, so that their memory is not reused before."""
        return {"cuda_stream": torch.cuda.current_stream(self.device)} if self.device.type == "cuda" else {}

    def _begin(self, batches: list[Indices]) -> None:
        """Have the pipeline read these batches next."""
        reusable = self._pipeline is not None and self._drain()
        self._requested = self._stored(batches)
        if reusable:
            self._pipeline.reset()
        else:
            self._pipeline = self._build()

    def _drain(self) -> bool:
        """Let the pipeline end what it has begun: batches that were read ahead when an epoch was left.

        DALI's threads call Python, so that a pipeline must not be destroyed or reset while they work.

        Returns:
            Whether it can be used again; not after a failure of DALI.
        """
        self._requested = iter(())
        try:
            while True:
                self._pipeline.run(**self._stream())
        except StopIteration:
            return True
        except RuntimeError:
            return False
        finally:
            self._prepared.clear()
            self._output = None

    def _decode_with_pillow(self, error: RuntimeError) -> None:
        """After a failure of DALI, leave the images in flight to Pillow, which decides about them.

        Raises:
            DataError: Pillow had decoded all of them already.
        """
        suspects = {int(i) for indices in self._prepared for i in indices} - self._with_pillow
        if self.images.pixels is not None or not suspects:
            raise DataError(f"DALI failed: {textwrap.shorten(str(error), 300)}") from None
        self._with_pillow |= suspects

    def _source(self) -> tuple[list[np.ndarray], ...]:
        """The images of the next batch that has any, the view of each, and a policy's choices."""
        for requested, read in self._requested:
            indices, stored = self._readable(requested, read)
            self._prepared.append(indices)
            if not len(indices):
                continue
            images, heights, widths = zip(*stored, strict=True)
            shown = views_of(
                np.array(heights),
                np.array(widths),
                indices,
                self.settings,
                training=self.training,
                seed=self._seed,
            )
            views = list(np.stack(shown, axis=1).astype(np.int32))
            if self._policy is None:
                return list(images), views
            return list(images), views, [self._policy.choices(int(i), self._seed) for i in indices]
        raise StopIteration

    def _stored(self, batches: list[Indices]) -> Iterator[tuple[Indices, list[Stored | str]]]:
        """Batches with what is stored for each of their images, or why it cannot be read."""
        wanted = [self.unreadable.without(indices) for indices in batches]
        if self._items is not None:
            yield from zip(wanted, self._items.read(wanted, self._seed, self._with_pillow), strict=True)
            return
        if self.images.encoded is None:
            assert self.images.pixels is not None
            height, width = self.images.pixels.shape[1:3]
            for indices in wanted:
                yield indices, [(pixels, height, width) for pixels in self.images.pixels[indices]]
            return
        reading = self._read_ahead.read(self.images.encoded, wanted)
        for indices, of_batch in zip(wanted, reading, strict=True):
            self._waits.until_done(of_batch)
            read = [future.result() for future in of_batch]
            yield indices, list(self._decoders.map(self._as_file, indices.tolist(), read))

    def _as_file(self, index: int, read: Read) -> Stored | str:
        """An encoded image in a form that DALI decodes as Pillow does, or why it cannot be read."""
        try:
            with_pillow = index in self._with_pillow
            return in_form_of_file(contents_of(read), self.settings.channels, with_pillow=with_pillow)
        except Unusable as reason:
            return complaint_about(self.images.files[index], reason)

    def _readable(self, indices: Indices, read: list[Stored | str]) -> tuple[Indices, list[Stored]]:
        """The images that can be read, and what is stored for each."""
        for index, stored in zip(indices.tolist(), read, strict=True):
            if isinstance(stored, str):
                self.unreadable.add(index, stored)
        readable = [not isinstance(stored, str) for stored in read]
        return indices[readable], [stored for stored in read if not isinstance(stored, str)]

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

        return list(self._resizers.map(seen, regions, views))


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
            # nvJPEG would repeat the nearest colour in place of interpolating.
            jpeg_fancy_upsampling=on_gpu,
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
