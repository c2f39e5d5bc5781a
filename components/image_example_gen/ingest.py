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
from ..row_split.gather import find_cuts, find_highest
from ..row_split.rule import END, Cuts, Key, Rule
from ..sizes import Sizes, merged, to_json
from .listing import Listing
from .sample import FEATURES, Picture, key_of, look, read

SKIPPED = "skipped.jsonl"  # beside the splits' folders
SIZES = "sizes.json"  # there, too
IMAGE, PATH = FEATURES  # of the Examples; further ones bear their columns' names
_MOST_SHARDS, _PICTURES_PER_SHARD = 8, 1000
_BATCH = 200  # pictures to an element: Beam takes more memory for one than a picture's path
_BAD, _SIZES = "bad", "sizes"

Bad = tuple[str, str]  # path, reason
Batch = list[tuple[int, str, Picture]]  # position, split, picture
Looked = tuple[int, str, Picture, Key, tuple[int, int]]  # and width and height


def ingest(
    pipeline: beam.Pipeline,
    listing: Listing,
    label: str,
    uri: str,
    folders: Mapping[str, str],
    rule: Rule,
) -> None:
    """Add the steps to a pipeline.

    Args:
        pipeline: runs when its context ends.
        listing: pictures by split, as `list_pictures` returns them.
        label: the name of the feature that holds the labels.
        uri: the folder for SKIPPED, a line of JSON ({"path", "reason"}) per picture left out, and
            for SIZES: {split: {"width": `Sizes.to_json`, "height": ...}}.
        folders: where each split's files go.
        rule: which pictures are taken, and how they are split.
    """
    looked = (
        pipeline
        | "Pictures" >> beam.Create([_pack(batch) for batch in mixed(listing)])
        | "Look" >> beam.ParDo(_Look(rule)).with_outputs(_BAD, main="ok")
    )
    shards = _shards(listing, rule)
    place = beam.ParDo(_Place(rule, list(listing), shards), *_gather(looked.ok, listing, rule))
    placed = looked.ok | "Place" >> place.with_outputs(_SIZES, main="ok")
    lost = (
        placed.ok
        | "Group" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(label, dict(folders), shards))
    )
    _ = (
        (looked[_BAD], lost)
        | "Bad" >> beam.Flatten()
        | "Gather" >> beam.combiners.ToList()
        | "WriteBad" >> beam.Map(_write_skipped, uri)
    )
    _ = (
        placed[_SIZES]
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


def _gather(looked: beam.PCollection, listing: Listing, rule: Rule) -> tuple[Any, Any]:
    """(highest rank taken by given split, cuts): what all pictures together say, if need be."""
    highest: Any = dict.fromkeys(listing, END)
    cuts: Any = Cuts()
    if rule.sample is not None:
        keys = {
            split: looked | f"Keys[{split}]" >> beam.FlatMap(_keys, split, highest)
            for split in listing
        }
        highest = beam.pvalue.AsSingleton(find_highest(keys, rule.sample))
    if "all" in listing and rule.by in ("label", "time"):
        taken = looked | "Taken" >> beam.FlatMap(_keys, "all", highest)
        cuts = beam.pvalue.AsSingleton(find_cuts(taken, rule))
    return highest, cuts


def _keys(packed: bytes, split: str, highest: dict[str, int]) -> list[Key]:
    pictures: list[Looked] = _unpack(packed)
    return [key for _, given, _, key, _ in pictures if given == split and key[0] <= highest[split]]


def _shards(listing: Listing, rule: Rule) -> dict[str, int]:
    """How many files each split gets; training reads several at once."""
    count = {split: len(pictures) for split, pictures in listing.items()}
    expected = {split: count.get(split, count.get("train", 0) // 10) for split in SPLITS}
    if "all" in count:
        rows, parts = min(count["all"], rule.sample or count["all"]), sum(rule.ratios.values())
        expected = {split: rows * rule.ratios[split] // parts for split in rule.splits}
    return {
        split: min(_MOST_SHARDS, max(1, rows // _PICTURES_PER_SHARD))
        for split, rows in expected.items()
    }


class _Look(beam.DoFn):
    """Batch -> the pictures with their keys and sizes; and, tagged, those that are bad."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def process(self, packed: bytes) -> Iterator[Any]:
        found: list[Looked] = []
        for position, split, picture in _unpack(packed):
            seen, digest = look(picture)
            if seen.fault:
                yield beam.pvalue.TaggedOutput(_BAD, (picture.path, seen.reason))
            else:
                key, size = key_of(picture, digest, self.rule), (seen.width, seen.height)
                found.append((position, split, picture, key, size))
        yield _pack(found)


class _Place(beam.DoFn):
    """Pictures with their keys -> ((final split, shard), pictures); and, tagged, their sizes."""

    def __init__(self, rule: Rule, given: list[str], shards: dict[str, int]) -> None:
        self.rule, self.given, self.shards = rule, given, shards

    def process(self, packed: bytes, highest: dict[str, int], cuts: Cuts) -> Iterator[Any]:
        found: dict[tuple[str, int], list[Picture]] = {}
        sizes: dict[str, dict[str, Sizes]] = {}
        pictures: list[Looked] = _unpack(packed)
        for position, split, picture, key, (width, height) in pictures:
            if key[0] <= highest[split]:
                end = self.rule.place(key, cuts, split, self.given)
                found.setdefault((end, position % self.shards[end]), []).append(picture)
                sides = sizes.setdefault(end, {"width": Sizes(), "height": Sizes()})
                sides["width"].add(width)
                sides["height"].add(height)
        yield beam.pvalue.TaggedOutput(_SIZES, sizes)
        for place, ones in found.items():
            yield place, _pack(ones)


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
