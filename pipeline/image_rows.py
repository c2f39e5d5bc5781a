"""Look at every picture once: what the pre-flight check says of images.

A picture's file is read, judged by its headers and hashed; nothing is decoded. Imports neither
TensorFlow nor TFX.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..components.faults import Faults, counted, listed
from ..components.image_example_gen import idx
from ..components.image_example_gen.listing import Listing, list_pictures, output_splits
from ..components.image_example_gen.picture import NOTES, Inspection
from ..components.image_example_gen.sample import FEATURES, Picture, key_of, look
from ..components.names import plain
from ..components.row_split.rule import RATIOS, TIME_FORMATS, Rule, is_number, read_time
from ..errors import ConfigError
from .ledger import Ledger
from .preflight import DataReport, doubts
from .splitting import Keys, Splits, judge_groups
from .tally import FEWEST_ROWS, MOST_LABELS, MOST_SLICES, percentiles, slice_doubts

_THREADS, _BATCH = 4, 256  # one picture per thread is in memory
_PATIENCE = 2.0  # seconds
_FEW = 10  # pictures of a class
_SHOWN = 3
Progress = Callable[[str], None]


@dataclass
class Pictures:
    """What a DataReport says of images alone.

    Attributes:
        splits: how many pictures each split will have.
        skipped: reason by path of each picture that is left out.
        widths, heights: percentile (50, 90, 95, 99, 100) in pixels.
        grey: share of the pictures that are stored in grey.
        notes: how many pictures have each of picture.NOTES.
    """

    splits: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)
    heights: dict[int, int] = field(default_factory=dict)
    grey: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)


def check_images(
    sources: Mapping[str, str],
    *,
    label: str,
    multi_label: bool,
    on_bad_image: str,
    slices: Sequence[str] = (),
    rule: Rule | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Read every picture as ImageExampleGen will, and find what would stop it or mislead.

    Args:
        sources: a path per split; `all` when one source is to be split later.
        label: the label's column in a CSV.
        multi_label: whether a picture may have any number of labels.
        on_bad_image: `fail`, or `skip` to leave out what TensorFlow cannot read.
        slices: further columns that must be in the CSV.
        rule: how the pictures will fall to splits; 8:1:1 if None.
        progress: gets a line if this takes more than two seconds.

    Raises:
        DataError: every fault, with the file, how many have it and what to do.
        ConfigError: a path that TFX cannot be told, or a label's column that cannot be one.
    """
    for source in sources.values():
        plain(Path(source))
    if label in FEATURES:
        raise ConfigError(f"data.label: {label!r} is taken, by the picture itself. Rename it.")
    faults, report = Faults(), DataReport()
    listing = list_pictures(
        sources,
        label=label,
        multi_label=multi_label,
        skip_missing=on_bad_image == "skip",
        faults=faults,
        warnings=report.warnings,
    )
    faults.raise_if_any()
    _check_slices(listing, slices, label, sources, faults)
    rule = rule or Rule()
    _check_rule(listing, rule, sources, faults)
    survey = _Survey(listing, slices, rule)
    try:
        for split, picture, seen, digest in _looked_at(listing, progress):
            survey.add(split, picture, seen, digest)
    finally:
        idx.forget()
    survey.say_bad(on_bad_image, faults, report.warnings)
    if on_bad_image == "skip" or not survey.bad:
        _judge(survey, sources, multi_label, faults)
    faults.raise_if_any()
    survey.fill(report)
    report.columns = ["path", label, *_columns(listing)]
    content = [survey.fingerprint.hexdigest(), on_bad_image]
    report.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    report.warnings += survey.warnings(multi_label)
    report.warnings += doubts(next(iter(listing)), report) + survey.doubts
    return report


def _looked_at(
    listing: Listing, progress: Progress | None
) -> Iterator[tuple[str, Picture, Inspection, str]]:
    """(split, picture, what was seen, digest) in order; several files are read at a time."""
    total, start = sum(map(len, listing.values())), time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for split, pictures in listing.items():
            for first in range(0, len(pictures), _BATCH):
                batch = pictures[first : first + _BATCH]
                for picture, (seen, digest) in zip(batch, pool.map(look, batch), strict=True):
                    yield split, picture, seen, digest
                if progress and time.monotonic() - start > _PATIENCE:
                    progress(f"looking at {total:,} pictures ...")
                    progress = None


def _columns(listing: Listing) -> list[str]:
    first = next((pictures[0] for pictures in listing.values() if pictures), None)
    return [name for name, _ in first.columns] if first else []


def _check_slices(
    listing: Listing,
    slices: Sequence[str],
    label: str,
    sources: Mapping[str, str],
    faults: Faults,
) -> None:
    known = _columns(listing)
    for name in slices:
        if name not in known:
            what = f"no column {name!r}, which is to be a slice (evaluate.slices)"
            has = f"The other columns are: {listed(known)}." if known else "There are none."
            advice = f"Slices are columns of a CSV beside path and {label}. {has}"
            faults.add(next(iter(sources.values())), None, what, advice)


def _check_rule(listing: Listing, rule: Rule, sources: Mapping[str, str], faults: Faults) -> None:
    """Note what the pictures cannot be split by.

    Raises:
        DataError: it is so.
    """
    place, column = next(iter(sources.values())), rule.column
    if "all" not in listing:
        if column or rule.by != "row" or rule.ratios not in ({}, RATIOS):
            what = f"data.split, and the pictures are in {' and '.join(listing)} already"
            faults.add(place, None, what, "Take data.split out, or name one folder of classes.")
    elif column and column not in _columns(listing):
        what = f"no column {column!r}, which is to be the {rule.by} to split by (data.split)"
        columns = listed(_columns(listing)) if _columns(listing) else "none"
        faults.add(place, None, what, f"It has to stand in a CSV; its other columns: {columns}.")
    elif column:
        numbers = set()
        for picture in listing["all"]:
            cell = dict(picture.columns)[column]
            what, detail = f"{column!r}, which the pictures are split by, is ", f": {picture.path}"
            if not cell:
                faults.add(place, None, what + "empty", "Fill it in.", detail)
            elif rule.by == "time":
                try:
                    read_time(cell)
                    numbers.add(is_number(cell))
                except ValueError:
                    detail = f": {cell[:40]!r}, of {picture.path}"
                    faults.add(place, None, what + "no time", f"Expected {TIME_FORMATS}.", detail)
        if len(numbers) > 1:
            faults.add(place, None, f"{column!r} mixes dates and numbers", "Write all alike.")
    faults.raise_if_any()


class _Survey:
    """Gathers what the pictures are; holds their paths and hashes, never their bytes."""

    def __init__(self, listing: Listing, slices: Sequence[str], rule: Rule) -> None:
        self.given, self.rule = list(listing), rule
        self.names: dict[str, list[tuple[str, ...]]] = {split: [] for split in listing}
        self.keys = {
            split: Keys(strata=names) if rule.by == "label" else Keys()
            for split, names in self.names.items()
        }
        self.ledgers = {split: Ledger() for split in listing}
        self.doubts: list[str] = []  # of how they fall to splits
        self._ids: dict[tuple[str, ...], int] = {}
        self.bad: dict[tuple[str, str], list[tuple[Picture, Inspection]]] = {}  # by fault, advice
        self.notes: dict[str, list[Picture]] = {}
        self.labels: dict[str, dict[str, int]] = {split: {} for split in listing}
        self.rows = dict.fromkeys(listing, 0)
        self.bytes = 0
        self.widths: dict[int, int] = {}
        self.heights: dict[int, int] = {}
        self.grey = 0
        self.fingerprint = hashlib.sha256()
        self.slices: dict[str, set[str]] = {name: set() for name in slices}
        self._first: dict[bytes, tuple[str, Picture]] = {}
        self._other_label: list[tuple[Picture, Picture]] = []
        self._other_split: list[tuple[str, Picture, str, Picture]] = []

    def add(self, split: str, picture: Picture, seen: Inspection, digest: str) -> None:
        """Count one picture."""
        content = [split, picture.path, picture.labels, picture.columns, digest]
        self.fingerprint.update(json.dumps(content).encode())
        if seen.fault:
            self.bad.setdefault((seen.fault, seen.advice), []).append((picture, seen))
            return
        for note in seen.notes:
            self.notes.setdefault(note, []).append(picture)
        self.keys[split].add(key_of(picture, digest, self.rule))
        self.names[split].append(picture.labels)
        same = int.from_bytes(bytes.fromhex(digest)[:8], "big", signed=True)
        number = self._ids.setdefault(tuple(sorted(picture.labels)), len(self._ids))
        group = hash(dict(picture.columns).get(self.rule.column, ""))
        self.ledgers[split].add(picture.place, 0, same, number, group)
        self.rows[split] += 1
        for label in picture.labels:
            self.labels[split][label] = self.labels[split].get(label, 0) + 1
        self.widths[seen.width] = self.widths.get(seen.width, 0) + 1
        self.heights[seen.height] = self.heights.get(seen.height, 0) + 1
        self.grey += seen.grey
        self.bytes += seen.bytes
        for name, value in picture.columns:
            if name in self.slices and len(self.slices[name]) <= MOST_SLICES:
                self.slices[name].add(value)
        self._compare(split, picture, digest)

    def _compare(self, split: str, picture: Picture, digest: str) -> None:
        other_split, other = self._first.setdefault(bytes.fromhex(digest), (split, picture))
        if set(other.labels) != set(picture.labels):
            self._other_label.append((other, picture))
        if other_split != split:
            self._other_split.append((other_split, other, split, picture))

    def say_bad(self, on_bad_image: str, faults: Faults, warnings: list[str]) -> None:
        """Bad pictures by reason: faults, or a warning when they are left out."""
        for (fault, advice), found in self.bad.items():
            places, detail = _some([one for one, _ in found]), found[0][1].detail
            detail = f" (the first{detail})" if detail and len(found) > 1 else detail
            if on_bad_image == "skip":
                warnings.append(f"{len(found):,} left out: {fault}{detail}: {places}.")
            else:
                advice += " Or leave such pictures out: data.on_bad_image: skip."
                faults.add(places, None, fault, advice, detail)

    @functools.cached_property
    def fallen(self) -> Splits:
        """How the pictures fall to splits, once all are counted."""
        return Splits.of(self.rule, self.keys, self.names)

    def fill(self, report: DataReport) -> None:
        """Write the counts into a report."""
        report.fallen, report.ledgers = self.fallen, self.ledgers
        report.rows = self.rows
        for split, labels in self.labels.items():
            report.labels[split] = dict(sorted(labels.items(), key=lambda item: -item[1]))
        report.bytes = self.bytes
        report.pictures = Pictures(
            self.fallen.rows,
            {one.path: seen.reason for found in self.bad.values() for one, seen in found},
            percentiles(self.widths),
            percentiles(self.heights),
            self.grey / sum(self.rows.values()),
            {note: len(found) for note, found in self.notes.items()},
        )

    def warnings(self, multi_label: bool) -> list[str]:
        """What is odd and stops nothing."""
        found = [
            f"{counted(len(pictures), 'picture')} {note}: {_some(pictures)}. {NOTES[note]}"
            for note, pictures in self.notes.items()
            if NOTES[note]
        ]
        if self._other_label:
            one, other = self._other_label[0]
            found.append(
                f"{counted(len(self._other_label), 'picture')} the same as another, byte by byte, "
                f"and labelled otherwise: {one.path} ({_labels(one)}) and {other.path} "
                f"({_labels(other)})."
            )
        if self._other_split:
            split, one, other_split, other = self._other_split[0]
            found.append(
                f"{counted(len(self._other_split), 'picture')} in two splits: {one.path} in "
                f"{split} is {other.path} in {other_split}. A model's score on what it was "
                f"trained on says nothing."
            )
        labels = next(iter(self.labels.values()))
        few = {label: count for label, count in labels.items() if 1 < count < _FEW}
        if few and not multi_label:
            shown = ", ".join(f"{label!r} {count}" for label, count in list(few.items())[:5])
            found.append(f"{len(few)} of {len(labels)} classes have few pictures: {shown}.")
        return found + slice_doubts(self.slices.items())


def _judge(
    survey: _Survey,
    sources: Mapping[str, str],
    multi_label: bool,
    faults: Faults,
) -> None:
    """Note what only all pictures together show, once the bad ones are left out."""
    place, to_split = next(iter(sources.values())), "all" in survey.rows
    rows, labels = next(iter(survey.rows.values())), next(iter(survey.labels.values()))
    if to_split and rows < FEWEST_ROWS:
        what = f"{rows} pictures cannot be split into train, eval and test"
        advice = f"Give at least {FEWEST_ROWS}; a useful model needs hundreds."
        faults.add(place, None, what, advice)
        return
    if len(labels) < 2:
        what = f"every picture has the label {listed(list(labels))}" if labels else "no label"
        advice = "There is nothing to tell apart."
        if labels and multi_label:
            what = f"a single label, {listed(list(labels))}"
            advice = "Name its absence, too, and take data.multi_label out: these are two classes."
        faults.add(place, None, what, advice)
    elif len(labels) > MOST_LABELS or (not multi_label and 2 * len(labels) > rows >= FEWEST_ROWS):
        what = f"{len(labels):,} different labels for {rows:,} pictures"
        faults.add(place, None, what, f"Are these classes? {listed(list(labels)[:5])}, ...")
    else:
        expected = output_splits(sources, survey.rule)
        survey.doubts += survey.fallen.judge(place, expected, "picture", faults)
        if survey.rule.by == "group" and "all" in survey.ledgers:
            survey.doubts += judge_groups(place, survey.rule, survey.ledgers["all"].keys, faults)
        _judge_skipped(survey, place, faults)


def _judge_skipped(survey: _Survey, place: str, faults: Faults) -> None:
    """Note labels all of whose pictures are left out."""
    skipped = {
        label
        for found in survey.bad.values()
        for picture, _ in found
        for label in picture.labels
        if not any(label in labels for labels in survey.labels.values())
    }
    if skipped:
        what = f"every picture of {listed(sorted(skipped)[:5])} is left out (data.on_bad_image)"
        faults.add(place, None, what, "Mend the pictures, or take the class out.")


def _some(pictures: Sequence[Picture]) -> str:
    shown = ", ".join(picture.place for picture in pictures[:_SHOWN])
    more = len(pictures) - _SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _labels(picture: Picture) -> str:
    return ", ".join(picture.labels) or "none"
