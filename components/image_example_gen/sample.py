"""One picture: where it lies, what it is labelled, and its bytes."""

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..faults import Unreadable
from ..row_split.rule import Key, Rule, read_time
from . import idx
from .picture import Inspection, inspect

if TYPE_CHECKING:
    import numpy as np

FEATURES = ("image", "path")  # of the Examples: the encoded bytes, and Picture.path
MAX_BYTES = 1 << 28  # of a file; read whole into memory, and an Example holds less than 2 GB


@dataclass(frozen=True)
class Picture:
    """One picture of a data set.

    Attributes:
        path: relative to its source, as it is shown and stored: `cat/1.jpg`.
        file: where its bytes lie.
        index: its row, if that is an idx file.
        labels: one; of multi-label data any number.
        columns: a CSV's further cells, (column, value).
    """

    path: str
    file: str
    index: int | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> str:
        """For a message: where a person finds it."""
        return self.file if self.index is None else f"{self.file}#{self.index}"


def read(picture: Picture) -> bytes:
    """The picture, encoded: a file's bytes as they are, an idx row as a PNG.

    Raises:
        OSError: its file cannot be read.
    """
    if picture.index is not None:
        return idx.to_png(_row(picture.file, picture.index))
    with open(picture.file, "rb") as file:
        return file.read()


def look(picture: Picture) -> tuple[Inspection, str]:
    """(what is to be said of it, SHA-256 of its content: a file's bytes, or an idx row's pixels).

    A file that cannot be read is a fault of the picture, too; the digest is empty then.
    """
    try:
        if picture.index is not None:
            pixels = _row(picture.file, picture.index)
            height, width = pixels.shape[:2]
            seen = Inspection(
                width=width,
                height=height,
                grey=pixels.ndim == 2,
                format="PNG",
                bytes=pixels.nbytes,
            )
            return seen, hashlib.sha256(pixels.tobytes()).hexdigest()
        size = os.stat(picture.file).st_size
        if size > MAX_BYTES:
            fault = f"a file of more than {MAX_BYTES:,} bytes"
            return Inspection(fault, f": {size:,}", "Make the picture smaller."), ""
        data = read(picture)
    except OSError as error:
        return Inspection(f"cannot be read: {error.strerror}", "", "Check the file."), ""
    return inspect(data), hashlib.sha256(data).hexdigest()


def _row(file: str, index: int) -> "np.ndarray":
    try:
        return idx.row(file, index)
    except (Unreadable, IndexError):
        raise OSError(None, "the idx file was changed during the run") from None


def key_of(picture: Picture, digest: str, rule: Rule) -> Key:
    """What decides whether a picture is taken, and its split: its content, so that copies of one
    picture fall into one split; and its label or a CSV's column, if the rule is by that.

    Args:
        picture: as it was listed.
        digest: as `look` returns it.
        rule: how pictures fall to splits.

    Raises:
        ValueError: the rule is by time, and the picture has none.
    """
    cell = dict(picture.columns).get(rule.column, "")
    return rule.key(
        bytes.fromhex(digest),
        label=picture.labels[0] if rule.by == "label" else None,
        group=cell.encode(),
        time=read_time(cell) if rule.by == "time" else 0,
    )
