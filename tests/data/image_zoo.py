"""Image files of many kinds, each with the pixels that are right for it."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

HEIGHT, WIDTH = 41, 54

ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
COLOUR = np.stack([COLUMNS * 4, ROWS * 6, (COLUMNS + ROWS) * 2], -1).astype(np.uint8)
GREY = (COLUMNS * 3 + ROWS * 2).astype(np.uint8)
DEEP = np.linspace(0, 65535, GREY.size).reshape(GREY.shape).astype(np.uint16)
DEEP_COLOUR = (COLOUR.astype(np.uint16) << 8) + 77
ALPHA = (COLUMNS * 4).astype(np.uint8)
BITS = (COLUMNS + ROWS) % 3 == 0
PALETTE = Image.fromarray(COLOUR).quantize(48)
OF_PALETTE = np.array(PALETTE.getpalette(), np.uint8).reshape(-1, 3)[np.array(PALETTE)]

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What the eight orientations of TIFF do to the stored pixels."""


class Specimen(NamedTuple):
    """A file.

    Attributes:
        name: of the specimen.
        content: its bytes.
        pixels: (H, W) or (H, W, 3), uint8; None if it is refused.
        lossy: whether decoders may round its pixels differently.
    """

    name: str
    content: bytes
    pixels: np.ndarray | None
    lossy: bool = False


def encode(pixels, kind, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels, colour, depth, *chunks, size=None):
    """A PNG file with these pixels, row by row, and other chunks in front of them."""
    height, width = size or pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


def tiff(pixels, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.pop("numbered", {}).items():
        info[number] = value
    return encode(pixels, "TIFF", tiffinfo=info, **tags)


def decoded(content, mode):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert(mode))


def lossy(name, content, mode="RGB"):
    return Specimen(name, content, decoded(content, mode), lossy=True)


def grey_of(pixels):
    """ITU-R 601-2, in the integers of Pillow."""
    if pixels.ndim == 2:
        return pixels
    red, green, blue = pixels.astype(np.int64).transpose(2, 0, 1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).astype(np.uint8)


def whole_jpegs():
    thumbnail = encode(COLOUR[:16, :16], "JPEG")
    tags = b"Exif\0\0" + thumbnail
    plain = encode(COLOUR, "JPEG", quality=90)
    yield lossy("jpeg", plain)
    yield lossy("jpeg grey", encode(GREY, "JPEG"), "L")
    yield lossy("jpeg full chroma", encode(COLOUR, "JPEG", subsampling=0))
    yield lossy("jpeg progressive", encode(COLOUR, "JPEG", progressive=True))
    yield lossy("jpeg restarts", encode(COLOUR, "JPEG", restart_marker_blocks=2))
    yield lossy("jpeg turned", encode(COLOUR, "JPEG", exif=exif(6)))
    yield lossy("jpeg rgb", encode(COLOUR, "JPEG", keep_rgb=True, subsampling=0))
    yield lossy("jpeg cmyk", encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"))
    yield lossy(
        "jpeg thumbnail", plain[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + plain[2:]
    )
    yield lossy("jpeg trailer", plain + b"\0trailer \xff\xd8")
    frames = {"save_all": True, "append_images": [Image.fromarray(COLOUR[::-1].copy())]}
    yield lossy("mpo", encode(COLOUR, "MPO", **frames))


def whole_pngs():
    text = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 3_000_000))
    others = [chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"eXIf", exif(6)[6:]), text]
    yield Specimen("png", png(COLOUR, 2, 8), COLOUR)
    yield Specimen("png grey", png(GREY, 0, 8), GREY)
    yield Specimen("png by Pillow", encode(COLOUR, "PNG"), COLOUR)
    yield Specimen("png metadata", png(COLOUR, 2, 8, *others), COLOUR)
    yield Specimen("png grey metadata", png(GREY, 0, 8, *others), GREY)
    yield Specimen("png alpha", png(np.dstack([COLOUR, ALPHA]), 6, 8), COLOUR)
    yield Specimen("png grey alpha", png(np.dstack([GREY, ALPHA]), 4, 8), GREY)
    yield Specimen("png transparent", png(COLOUR, 2, 8, chunk(b"tRNS", bytes(6))), COLOUR)
    yield Specimen("png grey 16", png(DEEP, 0, 16), (DEEP >> 8).astype(np.uint8))
    yield Specimen("png grey alpha 16", png(np.dstack([DEEP, DEEP]), 4, 16), (DEEP >> 8).astype(np.uint8))
    yield Specimen("png 16", png(DEEP_COLOUR, 2, 16), COLOUR)
    yield Specimen("png alpha 16", png(np.dstack([DEEP_COLOUR, DEEP]), 6, 16), COLOUR)
    yield Specimen("png palette", encode(PALETTE, "PNG"), OF_PALETTE)
    yield Specimen("png palette alpha", encode(PALETTE, "PNG", transparency=bytes(range(48))), OF_PALETTE)
    yield Specimen("png bits", encode(BITS, "PNG"), BITS * np.uint8(255))


def whole_tiffs():
    yield Specimen("tiff", tiff(COLOUR), COLOUR)
    for number, turn in TURNS.items():
        yield Specimen(f"tiff turned {number}", tiff(COLOUR, numbered={274: number}), turn(COLOUR))
    yield Specimen("tiff grey turned", tiff(GREY, numbered={274: 6}), TURNS[6](GREY))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        yield Specimen(f"tiff {compression}", tiff(COLOUR, compression=compression), COLOUR)
    yield Specimen("tiff alpha", tiff(np.dstack([COLOUR, ALPHA])), COLOUR)
    yield Specimen("tiff palette", tiff(PALETTE), OF_PALETTE)
    yield Specimen("tiff bits", tiff(BITS), BITS * np.uint8(255))
    yield Specimen("tiff grey 16", tiff(DEEP), (DEEP >> 8).astype(np.uint8))
    yield Specimen(
        "tiff grey 16 turned", tiff(DEEP, numbered={274: 8}), TURNS[8]((DEEP >> 8).astype(np.uint8))
    )
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes())
    yield Specimen("tiff grey 16 big endian", encode(big_endian, "TIFF"), (DEEP >> 8).astype(np.uint8))
    black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    yield Specimen("tiff white is zero", tiff(DEEP).replace(black_is_zero, white_is_zero), None)
    yield Specimen("tiff float", tiff(GREY.astype(np.float32) / 255), None)
    yield Specimen("tiff int", tiff(DEEP.astype(np.int32)), None)


def whole_others():
    moving = {"save_all": True, "append_images": [Image.fromarray(COLOUR[::-1].copy()).quantize(48)]}
    yield Specimen("gif", encode(PALETTE, "GIF"), OF_PALETTE)
    yield Specimen("gif grey", encode(GREY, "GIF"), GREY)
    yield Specimen("gif moving", encode(PALETTE, "GIF", **moving), OF_PALETTE)
    yield Specimen("bmp", encode(COLOUR, "BMP"), COLOUR)
    yield Specimen("bmp grey", encode(GREY, "BMP"), GREY)
    yield Specimen("bmp palette", encode(PALETTE, "BMP"), OF_PALETTE)
    yield Specimen("bmp bits", encode(BITS, "BMP"), BITS * np.uint8(255))
    yield Specimen("ppm", encode(COLOUR, "PPM"), COLOUR)
    yield Specimen("pgm", encode(GREY, "PPM"), GREY)
    deep = b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + DEEP.astype(">u2").tobytes()
    yield Specimen("pgm 16", deep, (DEEP >> 8).astype(np.uint8))
    yield Specimen("pbm", encode(BITS, "PPM"), BITS * np.uint8(255))
    yield Specimen("webp lossless", encode(COLOUR, "WEBP", lossless=True), COLOUR)
    rgba = np.dstack([COLOUR, ALPHA])
    yield Specimen("webp alpha", encode(rgba, "WEBP", lossless=True, exact=True), COLOUR)
    yield Specimen("webp turned", encode(COLOUR, "WEBP", lossless=True, exif=exif(6)), COLOUR)
    lossy_webp = encode(COLOUR, "WEBP")
    yield Specimen("webp", lossy_webp, decoded(lossy_webp, "RGB"))


def damaged(specimen):
    """The same with damage that hides the pixels of the last rows, or all."""
    content, size = specimen.content, len(specimen.content)
    for share in (5, 50, 97):
        yield specimen._replace(
            name=f"{specimen.name} cut at {share} %", content=content[: size * share // 100], pixels=None
        )
    yield specimen._replace(name=f"{specimen.name} without its end", content=content[:-2], pixels=None)
    zeros = content[: size * 7 // 10] + bytes(size - size * 7 // 10)
    yield specimen._replace(name=f"{specimen.name} that ends in zeros", content=zeros, pixels=None)


def damaged_inside(specimen):
    """The same with other bytes in the middle: what a decoder makes of them is its own affair."""
    content, middle = bytearray(specimen.content), len(specimen.content) // 2
    content[middle : middle + 8] = bytes(byte ^ 0x55 for byte in content[middle : middle + 8])
    return specimen._replace(name=f"{specimen.name} damaged inside", content=bytes(content), pixels=None)


def no_images():
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    for name, content in {
        "nothing": b"",
        "html": b"<html>404</html>",
        "heic": heic,
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "jpeg 2000": encode(COLOUR, "JPEG2000"),
        "signature of jpeg": b"\xff\xd8 not a picture",
        "signature of png": b"\x89PNG torn",
        "huge png": png(GREY, 0, 8, size=(65_535, 65_535)),
        "huge jpeg": encode(GREY, "JPEG").replace(struct.pack(">HH", HEIGHT, WIDTH), b"\xff\xfe\xff\xfe", 1),
    }.items():
        yield Specimen(name, content, None)
