"""Judge one encoded picture by its bytes, without decoding a pixel.

What passes here is what TensorFlow's decoders read, in training and in serving: JPEG, PNG and GIF
with three channels asked for, BMP with as many as it has (each case tried with TensorFlow 2.16).
Damage inside a JPEG's scan, or inside a GIF's, shows only when it is decoded: see `inspect`.
"""

import io
import struct
import warnings
from dataclasses import dataclass, replace

from PIL import Image

from ...trainer.images import MAX_PIXELS
from . import containers
from .containers import Damaged

MAX_SIDE = 65_500  # libjpeg's
PALETTE = "with a palette"  # PNG; read as RGB, harmless

# What a picture is taken with as it is, and what to do about it; nothing where it is harmless.
NOTES = {
    PALETTE: "",
    "with several frames": "Only the first frame is read.",
    "turned by its EXIF orientation": "TensorFlow reads it as it is stored, in training and in "
    "serving: turn the files upright (mogrify -auto-orient FILES), and upright ones at serving.",
}
_, ANIMATED, TURNED = NOTES
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_COPY = "Copy it anew."
_CONVERT = "Convert it to JPEG or PNG."


@dataclass(frozen=True)
class Inspection:
    """What a picture's bytes say.

    Attributes:
        fault: why TensorFlow cannot use it, in a few words; empty if it can.
        detail: what of this picture to add to it, such as its size.
        advice: what to do about the fault.
        notes: keys of NOTES.
        width, height: in pixels; 0 if not known.
        grey: whether it is stored with one channel (and perhaps alpha).
        format: JPEG, PNG, GIF or BMP; empty for anything else.
        bytes: the file's size.
    """

    fault: str = ""
    detail: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()
    width: int = 0
    height: int = 0
    grey: bool = False
    format: str = ""
    bytes: int = 0

    @property
    def reason(self) -> str:
        """The fault with its detail."""
        return self.fault + self.detail


class _Bad(Exception):
    """Carries (fault, advice, detail)."""

    def __init__(self, fault: str, advice: str, detail: str = "") -> None:
        super().__init__(fault, advice, detail)


def inspect(data: bytes) -> Inspection:
    """Look at the headers and the structure, to the end of the file.

    Finds what is no picture, cut short, of a kind that TensorFlow reads wrongly or not at all, or
    too large. Does not find wrong pixels between sound markers: of a JPEG damaged there TensorFlow
    decodes what it can and says nothing, or, seldom, refuses it.
    """
    try:
        kind = containers.kind_of(data)
        if kind not in _LOOKS:
            raise _Bad(*_not_a_picture(data, kind))
        return replace(_LOOKS[kind](data), format=kind, bytes=len(data))
    except _Bad as bad:
        fault, advice, detail = bad.args
        return Inspection(fault=fault, advice=advice, detail=detail)
    except Damaged as damage:
        return Inspection(
            fault="damaged or cut short", detail=f" ({damage})", advice=_COPY, format=kind
        )


def _not_a_picture(data: bytes, kind: str) -> tuple[str, str]:
    if not data:
        return "an empty file", _COPY
    advice = _CONVERT if kind in containers.PICTURES else "Take it out."
    found = f"{kind}, " if kind else ""
    return f"{found}not a JPEG, PNG, GIF or BMP", advice


def _size(width: int, height: int) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise _Bad("a picture without pixels", "Take it out.", f": {width:,} x {height:,}")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _Bad(
            f"more than {MAX_PIXELS:,} pixels, or than {MAX_SIDE:,} on a side",
            "Make it smaller, or cut it into pieces.",
            f": {width:,} x {height:,}",
        )
    return width, height


def _jpeg(data: bytes) -> Inspection:
    frame = containers.jpeg_frame(data)
    width, height = _size(frame.width, frame.height)
    if frame.channels == 4:
        raise _Bad("a CMYK JPEG", "Convert it to RGB (mogrify -colorspace sRGB FILE).")
    if frame.kind not in (0xC0, 0xC1, 0xC2) or frame.bits != 8 or frame.channels not in (1, 3):
        what = f": {frame.bits} bits, {frame.channels} channels, frame type 0x{frame.kind:02X}"
        raise _Bad("a JPEG of a kind that TensorFlow does not read", _CONVERT, what)
    notes = (TURNED,) if _orientation(data) not in (0, 1) else ()
    return Inspection("", "", "", notes, width, height, frame.channels == 1)


def _png(data: bytes) -> Inspection:
    head = containers.png_header(data)
    width, height = _size(head.width, head.height)
    if head.bits == 16:
        raise _Bad(
            "a PNG of 16 bits a channel, of which TensorFlow would keep the high byte only",
            "Convert it to 8 bits, by the range of values that you mean (mogrify -depth 8 FILE "
            "keeps the high byte, too).",
        )
    notes = [PALETTE] if head.palette else []
    notes += [ANIMATED] if head.animated else []
    notes += [TURNED] if _orientation(data) not in (0, 1) else []
    return Inspection("", "", "", tuple(notes), width, height, head.grey)


def _gif(data: bytes) -> Inspection:
    frames = containers.gif_frames(data)
    width, height = _size(*struct.unpack_from("<HH", data, 6))
    return Inspection("", "", "", (ANIMATED,) if frames > 1 else (), width, height, False)


def _bmp(data: bytes) -> Inspection:
    head = containers.bmp_header(data)
    width, height = _size(head.width, abs(head.height))
    if head.bits not in (8, 24, 32) or not head.plain:
        raise _Bad(
            "a BMP of a kind that TensorFlow does not read",
            "Convert it to PNG.",
            f": {head.bits} bits a pixel{'' if head.plain else ', packed'}",
        )
    if head.bits == 8 and _mode(data) != "L":
        raise _Bad(
            "a palette BMP, whose colours TensorFlow would take for shades of grey",
            "Convert it to PNG.",
        )
    expected = head.offset + -(-width * head.bits // 32) * 4 * abs(head.height)
    if len(data) < expected:
        raise Damaged(f"{len(data):,} of {expected:,} bytes")
    if len(data) > expected:
        raise _Bad(
            "a BMP with bytes behind its pixels, which TensorFlow refuses",
            "Convert it to PNG.",
            f": {len(data) - expected:,} of them",
        )
    return Inspection("", "", "", (), width, height, head.bits == 8)


_LOOKS = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "BMP": _bmp}


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 0 where there is none."""
    if b"Exif" not in data[:65_536] and b"eXIf" not in data:
        return 0
    try:
        with _open(data) as image:
            # Of a PNG, what lies behind the pixels is of no matter: Pillow would decode them.
            value = image.getexif().get(_ORIENTATION, 0) if "exif" in image.info else 0
    except (Damaged, OSError, SyntaxError, ValueError, struct.error):
        return 0  # damaged EXIF turns nothing, and the pixels may be sound
    return value if isinstance(value, int) else 0


def _mode(data: bytes) -> str:
    with _open(data) as image:
        return str(image.mode)


def _open(data: bytes) -> Image.Image:
    """The picture's header as Pillow reads it; its own limit of pixels is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data))
        except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise Damaged(str(error)) from None
