"""A user's rows as a pushed version takes them: checked against it, then as raw tf.Examples.

The checks read the rows as the pre-flight check does and import no TensorFlow.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..components.faults import Faults, counted, listed
from ..components.image_example_gen.listing import list_pictures
from ..components.image_example_gen.sample import Picture, look, read
from ..errors import DataError
from . import preflight
from .csv_rows import CsvFile
from .image_rows import check_images
from .sources import SUFFIXES, find_files

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: where a person finds it.
        digest: SHA-256 (hex) of what the model reads of it, not of its label: copies of a text
            or a picture fall to the same side of a split.
        example: makes the serialized raw tf.Example, as the run that trained the model wrote it.
    """

    place: str
    digest: str
    example: Callable[[], bytes]


@dataclass(frozen=True)
class Rows:
    """All rows of a source.

    Attributes:
        fingerprint: SHA-256 (hex) of their content.
        read: gives them, one by one, when called with the transform graph's raw_feature_spec().
    """

    fingerprint: str
    read: Callable[[Mapping[str, Any]], Iterator[Row]]


def find_rows(data: str, facts: Mapping[str, Any], on_bad_image: str = "fail") -> Rows:
    """Look at the rows for a version of a model.

    Args:
        data: for texts a CSV file, a folder of them or a glob; for pictures what `images:` takes.
        facts: the version's description.
        on_bad_image: see `data.on_bad_image`.

    Raises:
        DataError: the rows cannot be used, lack the model's columns or have labels that it does
            not know; says every fault.
    """
    if facts["kind"] == "image":
        return _pictures(data, facts, on_bad_image)
    files = find_files(data, SUFFIXES["csv"])
    report = preflight.check_csv({"all": files}, facts["inputs"], facts["label_column"])
    _check_labels(files, facts)
    return Rows(report.fingerprint, lambda spec: _texts(files, facts, spec))


# --- texts --------------------------------------------------------------------------------------


def _cells(file: Path, facts: Mapping[str, Any]) -> Iterator[tuple[int, list[str], str]]:
    """(line, the inputs, the label) of each row of a file that was checked."""
    with CsvFile(file, Faults("line")) as table:
        places = [table.columns.index(name) for name in facts["inputs"]]
        label = table.columns.index(facts["label_column"])
        for line, row in table.rows():
            yield line, [row[place] for place in places], row[label]


def _known(cell: str, labels: Sequence[str]) -> str | None:
    """The model's label that a cell names: `01` is 1 to a model of whole numbers."""
    if cell in labels:
        return cell
    try:
        return found if (found := str(int(cell))) in labels else None
    except ValueError:
        return None


def _check_labels(files: Iterable[Path], facts: Mapping[str, Any]) -> None:
    faults, labels = Faults("line"), facts["labels"]
    for file in files:
        for line, _, cell in _cells(file, facts):
            if _known(cell, labels) is None:
                what = f"the label {cell!r}, which the model does not know"
                faults.add(file, line, what, _advice(cell, labels))
    faults.raise_if_any()


def _advice(label: str, labels: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, labels, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Its labels are: {listed(labels)}. Mend the rows or take them out."


def _texts(
    files: Iterable[Path], facts: Mapping[str, Any], spec: Mapping[str, Any]
) -> Iterator[Row]:
    names = [*facts["inputs"], facts["label_column"]]
    for file in files:
        for line, texts, cell in _cells(file, facts):
            values = [*texts, str(_known(cell, facts["labels"]))]
            digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
            cells = dict(zip(names, values, strict=True))
            yield Row(f"{file}:{line}", digest, partial(_example, cells, spec))


def _example(cells: Mapping[str, str], spec: Mapping[str, Any]) -> bytes:
    import tensorflow as tf

    features = {name: _feature(cell, spec[name].dtype) for name, cell in cells.items()}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString())


def _feature(cell: str, dtype: "tf.DType") -> "tf.train.Feature":
    """A cell in the type that its column had in training."""
    import tensorflow as tf

    if dtype == tf.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(cell)]))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[cell.encode()]))


# --- pictures -----------------------------------------------------------------------------------


def _pictures(data: str, facts: Mapping[str, Any], on_bad_image: str) -> Rows:
    label, multi_label = facts["label_column"], facts["multi_label"]
    report = check_images(
        {"all": data}, label=label, multi_label=multi_label, on_bad_image=on_bad_image
    )
    found = {name for labels in report.labels.values() for name in labels}
    if unknown := sorted(found - set(facts["labels"])):
        count = sum(labels.get(name, 0) for labels in report.labels.values() for name in unknown)
        raise DataError(
            f"{data}: {counted(count, 'picture')} with the label {listed(unknown[:5])}, which the "
            f"model does not know. {_advice(unknown[0], facts['labels'])}"
        )
    listing = list_pictures(
        {"all": data}, label=label, multi_label=multi_label, skip_missing=on_bad_image == "skip",
        faults=Faults(), warnings=[],
    )  # fmt: skip
    pictures = [picture for split in listing.values() for picture in split]
    return Rows(report.fingerprint, lambda spec: _picture_rows(pictures, label))


def _picture_rows(pictures: Iterable[Picture], label: str) -> Iterator[Row]:
    from ..components.image_example_gen.ingest import to_example

    def example(picture: Picture) -> bytes:
        try:
            return bytes(to_example(picture, read(picture), label).SerializeToString())
        except OSError as error:
            raise DataError(f"{picture.place}: cannot be read: {error.strerror}.") from None

    for picture in pictures:
        seen, digest = look(picture)
        if not seen.fault:
            yield Row(picture.place, digest, partial(example, picture))
