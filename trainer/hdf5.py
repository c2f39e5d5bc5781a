"""HDF5 files: strangers' are read with care, and ours are written without harm on a full disk.

Only what lies in the file itself is read, and no more than it holds: the format can name other
files as the place of a group or of an array's bytes (external links, external storage, virtual
datasets), and a file of 2 kB can announce an array of a terabyte.
"""

import io
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

_HEAP = b"GCOL\1\0\0\0"  # how a global heap begins
_DENSEST = 20  # how many times larger an array may be than what is stored of it


def save_weights(model: "keras.Model", file: Path) -> None:
    """Write a model's weights as Keras's `save_weights` does, whole or not at all.

    HDF5 writes to memory here. Of a file it keeps what a full disk did not take, tries again at the
    process's end, and then crashes (2.0: SIGSEGV), whatever was caught before.
    """
    import h5py
    from tf_keras.src.saving.legacy import hdf5_format

    content = io.BytesIO()
    with h5py.File(content, "w") as opened:
        hdf5_format.save_weights_to_hdf5_group(opened, model)
    write_whole(file, content.getbuffer())


def member(group: Any, path: str) -> Any:
    """The group or dataset at a path below a group; None if there is none.

    Raises ValueError: a link leads there, and not the file's own tree.
    """
    import h5py

    for name in path.strip("/").split("/"):
        if not isinstance(group, h5py.Group):
            return None
        try:
            link = group.get(name, getlink=True)
        except KeyError:
            return None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path[:200]} is a link to {_target(link)[:200]}; links are not read")
        group = group[name]
    return group


def _target(link: Any) -> str:
    return f"{getattr(link, 'filename', '')} {getattr(link, 'path', '')}".strip() or "elsewhere"


def shape(dataset: Any, path: str) -> tuple[int, ...]:
    """The shape of an array of numbers whose bytes are in the file.

    Raises ValueError: it is none, or announces far more than the file holds.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{path[:200]} is no array")
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{path[:200]} holds {dataset.dtype}, and numbers were expected")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the numbers of {path[:200]} lie in another file, which is not read")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _DENSEST * stored:
        raise ValueError(
            f"{path[:200]} announces {dataset.nbytes:,} bytes, and the file holds {stored:,} of it"
        )
    return tuple(dataset.shape)


def array(group: Any, path: str) -> "np.ndarray":
    """The values of the array at a path below a group.

    Raises KeyError: there is none. Raises ValueError: see `member` and `shape`.
    """
    import numpy as np

    dataset = member(group, path)
    if dataset is None:
        raise KeyError(f"{path[:200]} is missing")
    shape(dataset, path)
    return np.asarray(dataset)


def names(group: Any, attribute: str) -> list[str]:
    """The names in an attribute of a group of a file that `check_heaps` has passed.

    Raises KeyError: there is none. Raises ValueError: it holds anything else.
    """
    import h5py

    if attribute not in group.attrs:
        raise KeyError(f"{attribute} is missing")
    found = group.attrs.get_id(attribute)
    if found.shape == (0,):
        return []
    if found.dtype.kind != "S" and not h5py.check_string_dtype(found.dtype):
        raise ValueError(f"{attribute} holds {found.dtype}, and names were expected")
    return [_text(name) for name in group.attrs[attribute]]


def _text(name: Any) -> str:
    return name.decode("utf-8") if isinstance(name, bytes) else str(name)


def check_heaps(file: Path) -> None:
    """See that the heaps of strings in a file have an end.

    HDF5 2.0 walks a heap by its objects' sizes, and one that says 0 keeps it busy for ever, deaf to
    Ctrl-C. Source: the format's specification, "Global Heap" (III.E).

    Raises ValueError: one has none. Raises OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = data.find(_HEAP)
            while place >= 0:
                _check_heap(data, place)
                place = data.find(_HEAP, place + 1)


def _check_heap(data: mmap.mmap, heap: int) -> None:
    if heap + 16 > len(data):
        return
    end = min(heap + struct.unpack_from("<Q", data, heap + 8)[0], len(data))
    place = heap + 16
    while place + 16 <= end:
        number, size = struct.unpack_from("<H6xQ", data, place)
        # Object 0 is what is free, its own head included.
        step = size if number == 0 else 16 + -(-size // 8) * 8
        if step < 16:
            raise ValueError(f"the heap at byte {heap:,} has an object of {size} bytes, and no end")
        place += step
