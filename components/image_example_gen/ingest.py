"""Write pictures into TFRecord files of tf.train.Example, with Beam.

What passes between Beam's steps are paths, never pictures: its in-memory runner holds all that
passes, and TFX's own way (a Reshuffle of the Examples) would hold every picture at once. So a
picture is read twice, first to be judged and assigned to a split, then to be written.
"""

import itertools
import json
import os
import pickle
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx.components.example_gen.write_split import DEFAULT_TF_RECORD_FILE_NAME

from ..names import SPLITS
from ..sizes import Sizes, merged, to_json
from .listing import Listing
from .sample import FEATURES, Picture, final_split, look, read

SKIPPED = "skipped.jsonl"  # beside the splits' folders
SIZES = "sizes.json"  # there, too
IMAGE, PATH = FEATURES  # of the Examples; further ones bear their columns' names
_MOST_SHARDS, _PICTURES_PER_SHARD = 8, 1000
_BATCH = 200  # pictures to an element: Beam takes more memory for one than a picture's path
_BAD, _SIZES = "bad", "sizes"

Bad = tuple[str, str]  # path, reason
Batch = list[tuple[int, str, Picture]]  # position, split, picture


def ingest(
    pipeline: beam.Pipeline, listing: Listing, label: str, uri: str, folders: Mapping[str, str]
) -> None:
    """Add the steps to a pipeline.

    Args:
        pipeline: runs when its context ends.
        listing: pictures by split, as `list_pictures` returns them.
        label: the name of the feature that holds the labels.
        uri: the folder for SKIPPED, a line of JSON ({"path", "reason"}) per picture left out, and
            for SIZES: {split: {"width": `Sizes.to_json`, "height": ...}}.
        folders: where each split's files go.
    """
    looked = (
        pipeline
        | "Pictures" >> beam.Create([_pack(batch) for batch in mixed(listing)])
        | "Look"
        >> beam.ParDo(_Look(list(listing), _shards(listing))).with_outputs(_BAD, _SIZES, main="ok")
    )
    lost = (
        looked.ok
        | "Group" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(label, dict(folders), _shards(listing)))
    )
    _ = (
        (looked[_BAD], lost)
        | "Bad" >> beam.Flatten()
        | "Gather" >> beam.combiners.ToList()
        | "WriteBad" >> beam.Map(_write_skipped, uri)
    )
    _ = (
        looked[_SIZES]
        | "GatherSizes" >> beam.combiners.ToList()
        | "WriteSizes" >> beam.Map(_write_sizes, uri)
    )


def mixed(listing: Listing) -> list[Batch]:
    """The pictures in the same random order each time: folders come sorted by class, and training
    mixes no more than what its buffer holds."""
    pictures = [(split, picture) for split, found in listing.items() for picture in found]
    random.Random(0).shuffle(pictures)
    numbered = [(position, *pair) for position, pair in enumerate(pictures)]
    return [numbered[start : start + _BATCH] for start in range(0, len(numbered), _BATCH)]


def _pack(pictures: list[Any]) -> bytes:
    """Paths of one data set are much alike, and Beam copies what it is given several times."""
    return zlib.compress(pickle.dumps(pictures))


def _unpack(packed: bytes) -> list[Any]:
    pictures: list[Any] = pickle.loads(zlib.decompress(packed))
    return pictures


def _shards(listing: Listing) -> dict[str, int]:
    """How many files each split gets; training reads several at once."""
    count = {split: len(pictures) for split, pictures in listing.items()}
    expected = {
        split: count.get(split, (count.get("all") or count.get("train", 0)) // 10)
        for split in SPLITS
    }
    if "all" in count:
        expected["train"] = count["all"] * 8 // 10
    return {
        split: min(_MOST_SHARDS, max(1, rows // _PICTURES_PER_SHARD))
        for split, rows in expected.items()
    }


class _Look(beam.DoFn):
    """Batch -> ((final split, shard), pictures); and, tagged, those that are bad, and how large
    the good ones are."""

    def __init__(self, given: list[str], shards: dict[str, int]) -> None:
        self.given, self.shards = given, shards

    def process(self, packed: bytes) -> Iterator[Any]:
        found: dict[tuple[str, int], list[Picture]] = {}
        sizes: dict[str, dict[str, Sizes]] = {}
        for position, split, picture in _unpack(packed):
            seen, digest = look(picture)
            if seen.fault:
                yield beam.pvalue.TaggedOutput(_BAD, (picture.path, seen.reason))
            else:
                end = final_split(digest, split, self.given)
                found.setdefault((end, position % self.shards[end]), []).append(picture)
                sides = sizes.setdefault(end, {"width": Sizes(), "height": Sizes()})
                sides["width"].add(seen.width)
                sides["height"].add(seen.height)
        yield beam.pvalue.TaggedOutput(_SIZES, sizes)
        for key, pictures in found.items():
            yield key, _pack(pictures)


class _Write(beam.DoFn):
    """Writes one file; returns the pictures that can no longer be read."""

    def __init__(self, label: str, folders: dict[str, str], shards: dict[str, int]) -> None:
        self.label, self.folders, self.shards = label, folders, shards

    def process(self, element: tuple[tuple[str, int], Iterable[bytes]]) -> Iterator[Bad]:
        (split, shard), batches = element
        name = f"{DEFAULT_TF_RECORD_FILE_NAME}-{shard:05}-of-{self.shards[split]:05}.gz"
        tf.io.gfile.makedirs(self.folders[split])
        # Pictures are packed already; the level that is fast loses nothing.
        options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
        with tf.io.TFRecordWriter(os.path.join(self.folders[split], name), options) as writer:
            for picture in itertools.chain.from_iterable(map(_unpack, batches)):
                try:
                    data = read(picture)
                except OSError as error:
                    yield picture.path, f"cannot be read: {error.strerror}"
                else:
                    writer.write(to_example(picture, data, self.label).SerializeToString())


def to_example(picture: Picture, data: bytes, label: str) -> tf.train.Example:
    """The Example of one picture: `image` as encoded, `path`, its labels, a CSV's other columns."""
    values = {
        IMAGE: [data],
        PATH: [picture.path.encode()],
        label: [one.encode() for one in picture.labels],
        **{name: [value.encode()] for name, value in picture.columns},
    }
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        for name, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def _write_skipped(bad: list[Bad], uri: str) -> None:
    tf.io.gfile.makedirs(uri)
    rows = [{"path": path, "reason": reason} for path, reason in sorted(bad)]
    with tf.io.gfile.GFile(os.path.join(uri, SKIPPED), "w") as file:
        # One write in any case: TensorFlow makes no file before the first.
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_sizes(parts: list[dict[str, dict[str, Sizes]]], uri: str) -> None:
    tf.io.gfile.makedirs(uri)
    with tf.io.gfile.GFile(os.path.join(uri, SIZES), "w") as file:
        file.write(json.dumps(to_json(merged(parts))))


def read_skipped(uri: str) -> list[Bad]:
    """What `ingest` left out, of the Examples that lie at `uri`."""
    with tf.io.gfile.GFile(os.path.join(uri, SKIPPED)) as file:
        rows = [json.loads(line) for line in file]
    return [(row["path"], row["reason"]) for row in rows]
