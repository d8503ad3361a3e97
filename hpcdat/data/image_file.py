"""Image files: what a file holds, decided by its content, and its pixels; the same for every loader.

Pillow decodes all files, with one exception: DALI decodes those that both libraries read alike
(:attr:`Contents.plain`). Whether a file is accepted never depends on its name, on the loader, or on the
region that a random crop takes: JPEG and PNG files are checked to their end markers before they are decoded.

Of several frames or pages the first is read. The orientation that cameras note in JPEG, PNG and WebP files is
ignored, as torchvision's ImageFolder does; that of TIFF files, which is part of the format, is applied.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hpcdat.errors import first_line

ACCEPTED = "JPEG, PNG, GIF, BMP, PNM, TIFF and WebP"
"""The formats that can be read, by their names in messages."""

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    **{b"P%d" % number: "PPM" for number in range(1, 7)},
}
"""First bytes of the accepted formats, with Pillow's names; WebP's follow a length."""

OTHERS = {
    b"<": "an HTML, XML or SVG page",
    b"version https://git-lfs": "a Git LFS pointer (`git lfs pull` fetches the image)",
    b"\0\0\0\x0cjP": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\0\0\0\x0cJXL": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\0\0\0\0\0\0\0\0": "zeros, as after a copy that was interrupted",
}
"""First bytes of what is often found instead of an image."""

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pixels of the largest image that is read: Pillow refuses more, which a small file may claim to hold."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
"""Chunks that determine the pixels. Others can be longer than a decoder allows, such as a text."""

JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker, other than the restarts and stuffed bytes within compressed pixels."""
SOI, EOI, SOS, APP14, TEM = 0xD8, 0xD9, 0xDA, 0xEE, 0x01
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG's start-of-frame markers; the first three are baseline, extended and progressive."""

# About metadata, such as a damaged EXIF block; pixels that cannot be read are errors.
warnings.filterwarnings("ignore", module="PIL")


class Unusable(ValueError):
    """A file is not an image that can be read; the message says what it is."""


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        format: Pillow's name of the format.
        encoded: the bytes to decode; of a PNG those that determine its pixels.
        plain: channels of an image that DALI and Pillow decode alike: 1 (grey) or 3 (colour), else 0. A PNG
            is decoded to the same pixels, a JPEG to within two levels of 255 (decoders round differently).
        height, width: as stored, pixels; 0 if not plain.
    """

    format: str
    encoded: bytes
    plain: int = 0
    height: int = 0
    width: int = 0


def read_bytes(file: str) -> bytes:
    """The content of a file, in as few calls of the system as there are.

    Raises:
        Unusable: it cannot be read.
    """
    try:
        with Path(file).open("rb", buffering=0) as opened:
            return opened.readall()
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from None


def inspect(data: bytes) -> Contents:
    """Check the content of a file as far as possible without decoding.

    This takes a hundredth (JPEG) to a seventh (PNG) of the time of decoding.

    Raises:
        Unusable: it is no accepted format; or a JPEG or PNG that is incomplete, has a wrong checksum or is
            too large. Damage in files of other formats is found by :func:`decode`.
    """
    kind = next((name for start, name in SIGNATURES.items() if data.startswith(start)), None)
    if kind == "JPEG":
        return _inspect_jpeg(data)
    if kind == "PNG":
        return _inspect_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None:
        raise Unusable(f"found {_describe_other(data)}; accepted are {ACCEPTED}")
    return Contents(kind, data)


def decode(contents: Contents, channels: int) -> NDArray[np.uint8]:
    """Decode an image with Pillow: (H, W, channels), uint8.

    Grey is made of colour with the weights of ITU-R 601-2; of 16 bits the upper eight are taken.

    Args:
        contents: from :func:`inspect`.
        channels: 1 for grey, 3 for colour.

    Raises:
        Unusable: it is damaged, or has pixels other than unsigned integers of up to 16 bits.
    """
    try:
        with Image.open(io.BytesIO(contents.encoded), formats=[contents.format]) as image:
            return pixels_of(image, channels)
    except (Unusable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unusable(f"found a damaged {contents.format} file") from None
    except Exception as error:
        # A damaged file can fail in any way.
        raise Unusable(f"found a damaged {contents.format} file ({first_line(error)})") from None


def pixels_of(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """The pixels of Pillow's image as :func:`decode` gives them: (H, W, channels), uint8.

    Raises:
        Unusable: it has pixels other than unsigned integers of up to 16 bits.
        Exception: of any kind, if it is still to be read, and damaged.
    """
    image.load()
    return np.atleast_3d(np.array(_in_eight_bits(image).convert("L" if channels == 1 else "RGB")))


def find_fault(data: bytes, channels: int, *, decoded: bool) -> str | None:
    """Why an encoded image cannot be used, or None.

    Args:
        data: all of it.
        channels: as for :func:`decode`.
        decoded: decode every image, not only those of which :func:`inspect` finds no damage.
    """
    try:
        contents = inspect(data)
        if decoded or not contents.plain:
            decode(contents, channels)
    except Unusable as error:
        return str(error)
    return None


def as_pnm(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (H, W, 1 or 3) as a file of the simplest format, which every decoder reads alike: (bytes,)."""
    height, width, channels = pixels.shape
    header = b"P%d\n%d %d\n255\n" % (5 if channels == 1 else 6, width, height)
    return np.concatenate([np.frombuffer(header, np.uint8), pixels.ravel()])


def _inspect_jpeg(data: bytes) -> Contents:
    at, frame, kind, transform, scanned = 2, b"", 0, -1, False
    while marker := JPEG_MARKER.search(data, at):
        at, code = marker.end(), data[marker.end() - 1]
        if code in (SOI, TEM):
            continue
        if code == EOI:
            if not scanned:
                raise Unusable("found a JPEG file without pixels")
            return _plain_jpeg(data, frame, kind, transform)
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        segment = data[at + 2 : at + length]
        if code in FRAMES:
            frame, kind = segment, code
        elif code == APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            transform = segment[11]
        elif code == SOS:
            scanned = bool(frame)
        at += length
    raise Unusable("found a JPEG file without its end, as after a copy or download that was interrupted")


def _plain_jpeg(data: bytes, frame: bytes, kind: int, transform: int) -> Contents:
    """A complete JPEG file; plain if it is of 8 bits, and grey or YCbCr.

    Args:
        data: all of it.
        frame: the segment of its start-of-frame marker.
        kind: the code of that marker.
        transform: of Adobe's segment, 0 for RGB; -1 if there is none.
    """
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise Unusable("found a damaged JPEG file (its frame header)")
    height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (1, 3))
    _check_size(height, width)
    bits, channels = frame[0], frame[5]
    is_rgb = transform == 0 or frame[6::3][:3] == b"RGB"
    alike = kind in (0xC0, 0xC1, 0xC2) and bits == 8 and (channels == 1 or (channels == 3 and not is_rgb))
    if not (alike and height and width):
        return Contents("JPEG", data)
    return Contents("JPEG", data, channels, height, width)


def _inspect_png(data: bytes) -> Contents:
    if not data.startswith(PNG_SIGNATURE):
        raise Unusable("found a damaged PNG file (its first bytes, as after a transfer as text)")
    at, kept = len(PNG_SIGNATURE), [PNG_SIGNATURE]
    while len(data) >= (start := at + 8):
        name, end = data[at + 4 : start], start + int.from_bytes(data[at : at + 4], "big")
        if len(data) < end + 4:
            break
        if name in PNG_CHUNKS:
            if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise Unusable(f"found a damaged PNG file (checksum of its chunk {name.decode()})")
            kept.append(data[at : end + 4])
        if name == b"IEND":
            return _plain_png(b"".join(kept))
        at = end + 4
    raise Unusable("found a PNG file without its end, as after a copy or download that was interrupted")


def _plain_png(data: bytes) -> Contents:
    """A complete PNG file; plain if it is of 8 bits, grey or RGB, and not interlaced."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise Unusable("found a damaged PNG file (its header)")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    bits, colour, _, _, interlaced = data[24:29]
    _check_size(height, width)
    channels = {0: 1, 2: 3}.get(colour, 0)
    if bits != 8 or not channels or interlaced:
        return Contents("PNG", data)
    return Contents("PNG", data, channels, height, width)


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise Unusable(
            f"found an image of {height} x {width} pixels; accepted are up to {MOST_PIXELS // 10**6} million"
        )


def _describe_other(data: bytes) -> str:
    """What the first bytes of a file look like."""
    if not data:
        return "an empty file"
    if data[4:8] == b"ftyp":
        return f"an HEIC, AVIF or video file (brand {data[8:12].decode('ascii', 'replace').strip()!r})"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    known = (name for first, name in OTHERS.items() if data.startswith(first) or start.startswith(first))
    return next(known, "no known image format")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """An image in a mode that converts to 8 bits with black as 0 and white as 255.

    Pillow's own conversion cuts larger values off.
    """
    # Of PNG and PNM files Pillow scales white to 65535.
    is_scaled = image.format in ("PNG", "PPM")
    if image.mode.startswith("I;16") or (image.mode == "I" and is_scaled):
        tags = getattr(image, "tag_v2", {})
        if is_scaled or (tags.get(258) == (16,) and tags.get(262) == 1):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        kind = image.format or "PIL"
        raise Unusable(
            f"found a {kind} image with pixels of another type (Pillow's mode {image.mode}), in "
            "which no white is defined; accepted are unsigned integers of 8 and 16 bits"
        )
    # Transparency is dropped; Pillow warns about some forms of it.
    image.info.pop("transparency", None)
    return image
