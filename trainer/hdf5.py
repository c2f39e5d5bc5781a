"""HDF5 files of strangers: only what lies in the file itself is read, and no more than it holds.

The format can name other files as the place of a group or of an array's bytes (external links,
external storage, virtual datasets), and a file of 2 kB can announce an array of a terabyte.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_DENSEST = 20  # how many times larger an array may be than what is stored of it


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
    """The names in an attribute of a group, as Keras writes them: strings of one fixed length.

    Raises KeyError: there is none. Raises ValueError: it holds anything else. Strings of any length
    lie in a heap of the file, and one that is damaged keeps HDF5 1.14 busy for ever.
    """
    if attribute not in group.attrs:
        raise KeyError(f"{attribute} is missing")
    kind = group.attrs.get_id(attribute).dtype
    if kind.kind != "S" and group.attrs.get_id(attribute).shape != (0,):
        raise ValueError(f"{attribute} holds {kind}, and names of a fixed length were expected")
    return [bytes(name).decode("utf-8") for name in group.attrs[attribute]]
