"""The structure of JPEG, PNG, GIF and BMP files, read from end to end without decoding pixels.

Walking the blocks is what tells a whole file from one that was cut: the last bytes alone do not (a
JPEG's thumbnail ends as the JPEG does), and no decoder is fast enough to be asked twice.
"""

import re
import struct
import zlib
from typing import NamedTuple

# How files begin that are taken for pictures, and what they are.
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"\0\0\x01\0": "icon",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"BM": "BMP",
}
_BRANDS = {b"avi": "AVIF", b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC"}  # of ISO media files
PICTURES = {"TIFF", "WebP", "HEIC", "AVIF", "JPEG 2000", "JPEG XL", "Photoshop", "icon", "DICOM"}

# In a JPEG's scan: a marker that is neither a stuffed byte nor a restart nor fill.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers; the three are tables
_END, _SCAN = 0xD9, 0xDA
_KNOWN = {*_FRAMES, 0xC4, 0xCC, *range(0xD9, 0xDE), *range(0xE0, 0xF0), 0xFE}


class Damaged(Exception):
    """The file's structure breaks off; says where."""


class JpegFrame(NamedTuple):
    """A JPEG's frame header; `kind` is its marker: 0xC0 baseline, 0xC2 progressive."""

    kind: int
    bits: int
    height: int
    width: int
    channels: int


class PngHeader(NamedTuple):
    """What a PNG's chunks say."""

    width: int
    height: int
    bits: int
    grey: bool
    palette: bool
    animated: bool


class BmpHeader(NamedTuple):
    """A BMP's header; `plain`: neither packed nor with channels in an order of its own."""

    offset: int
    width: int
    height: int
    bits: int
    plain: bool


def kind_of(data: bytes) -> str:
    """What a file is by its first bytes; empty if that cannot be told."""
    for start, kind in _STARTS.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:11], "video")
    if data[128:132] == b"DICM":
        return "DICOM"
    return _kind_of_text(data[:512])


def _kind_of_text(start: bytes) -> str:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not just a character cut in two
            return ""
        text = start[: error.start].decode("utf-8")
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return ""
    low = text.lower()
    return "SVG" if "<svg" in low else "HTML" if "<html" in low or "<!doc" in low else "text"


def jpeg_frame(data: bytes) -> JpegFrame:
    """Walk the segments and scans to the end marker; return the frame's header.

    Raises:
        Damaged: there is no way to the end.
    """
    frame, scanned, place = None, False, 2
    while True:
        marker = _MARKER.search(data, place)
        if not marker:
            raise Damaged("no end marker")
        if not scanned and data[place : marker.start()].strip(b"\xff"):
            raise Damaged(f"no marker at byte {place:,}")  # between segments there is only fill
        code, place = data[marker.end() - 1], marker.end()
        if code not in _KNOWN:
            raise Damaged(f"unknown marker 0x{code:02X} at byte {marker.start():,}")
        if code == _END:
            if frame is None or not scanned:
                raise Damaged("no pixels")
            return frame
        if place + 2 > len(data):
            raise Damaged("no end marker")
        (length,) = struct.unpack_from(">H", data, place)
        if code in _FRAMES and place + 8 <= len(data):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 2)
            frame = frame or JpegFrame(code, bits, height, width, channels)
        scanned = scanned or code == _SCAN
        place += length


def png_header(data: bytes) -> PngHeader:
    """Check every chunk's length and checksum, to the last one; return what they say.

    Raises:
        Damaged: a chunk is cut short, or its checksum is wrong.
    """
    head, place, animated, pixels, colours = b"", 8, False, False, False
    while True:
        if place + 12 > len(data):
            raise Damaged("no end chunk")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise Damaged("no end chunk")
        body = memoryview(data)[place + 4 : end - 4]
        if zlib.crc32(body) != struct.unpack_from(">I", data, end - 4)[0]:
            raise Damaged(f"wrong checksum at byte {place:,}")
        if name == b"IHDR" and length == 13:
            head = bytes(body[4:])
        animated |= name == b"acTL"
        pixels |= name == b"IDAT"
        colours |= name == b"PLTE"
        place = end
        if name == b"IEND":
            break
    if not head or not pixels:
        raise Damaged("no pixels")
    width, height, bits, colour = struct.unpack_from(">IIBB", head)
    if colour == 3 and not colours:
        raise Damaged("no palette")
    return PngHeader(width, height, bits, colour in (0, 4), colour == 3, animated)


def gif_frames(data: bytes) -> int:
    """Walk the blocks to the trailer; return how many frames there are.

    Raises:
        Damaged: a block is cut short, the trailer is missing, or the first frame has no colours.
    """
    if len(data) < 13:
        raise Damaged("no header")
    frames, colours, place = 0, _colours(data[10]), 13
    place += colours
    while True:
        block = data[place : place + 1]
        if block == b"\x3b":
            break
        if block == b"\x21":
            place += 2
        elif block == b"\x2c" and place + 11 <= len(data):
            own = _colours(data[place + 9])
            if not frames and not colours and not own:
                raise Damaged("no colours")
            frames += 1
            place += 10 + own + 1
        else:
            raise Damaged("no end marker" if not block else f"unknown block at byte {place:,}")
        place = _past_sub_blocks(data, place)
    if not frames:
        raise Damaged("no pixels")
    return frames


def _colours(flags: int) -> int:
    """The bytes of the colour table that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _past_sub_blocks(data: bytes, place: int) -> int:
    while place < len(data):
        length = data[place]
        place += 1 + length
        if not length:
            return place
    raise Damaged("no end marker")


def bmp_header(data: bytes) -> BmpHeader:
    """Read the header as TensorFlow does.

    Raises:
        Damaged: it is cut short.
    """
    if len(data) < 54:
        raise Damaged("no header")
    offset, size, width, height = struct.unpack_from("<IIii", data, 10)
    bits, packing = struct.unpack_from("<HI", data, 28)
    if packing == 3 and bits == 32 and len(data) >= 66:  # says where in a pixel its channels lie
        plain = struct.unpack_from("<III", data, 54) == (0xFF0000, 0xFF00, 0xFF)
    else:
        plain = packing == 0
    return BmpHeader(offset, width, height, bits, plain and size >= 40)
