"""Look at everything before anything runs: the data, the model's start, the places to write to.

Finds in seconds what stock components pass over in silence, or fail on minutes later without a
line number. Imports neither TensorFlow nor TFX; holds a row at a time, and counts, not texts.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import cpu, text_proto
from ..components.faults import Faults, listed
from ..components.names import split_of
from ..components.row_split.rule import Rule
from ..errors import ConfigError
from ..retrying import retried
from .csv_rows import STRING, CsvFile
from .ledger import Ledger
from .places import check_places, check_writable
from .sources import find_files, find_sources, input_patterns
from .spans import gaps
from .splitting import Splits as Fallen
from .splitting import judge_groups, of_files
from .store import check_known
from .tally import (
    Columns,
    Tally,
    judge,
    percentiles,
    same_columns,
    slice_doubts,
)

if TYPE_CHECKING:
    from .config import Config, Data
    from .image_rows import Pictures

__all__ = [
    "DataReport",
    "check",
    "check_csv",
    "check_parquet",
    "check_tfrecord",
    "check_writable",
    "find_files",
    "find_sources",
    "input_patterns",
]

Splits = Mapping[str, Sequence[Path]]
Reader = Callable[[Path, Tally, Columns, list[str]], str]

TOKENS_PER_WORD = 1.35  # WordPiece on English
_RECORD_LINES = 20  # a row that spans more lines than this looks like a forgotten quote


@dataclass
class DataReport:
    """What the rows are, as counted in one pass.

    Attributes:
        rows: count per split; `all` when the split is still to be made.
        labels: count per label per split, the most frequent first.
        columns: as the first file names them.
        words: percentile (50, 90, 95, 99, 100) of the words per row, both texts of a pair.
        fingerprint: SHA-256 (hex) over the files' splits, names and contents.
        bytes: the files' sizes together.
        warnings: sentences for the user; nothing that stops a run.
        pictures: of images: sizes, and what is left out.
        lengths: rows by their words, both texts of a pair.
        ledgers: a few numbers of each row, by split as given.
        fallen: how the rows fall to splits; of what is given by split, as it is given.
    """

    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    words: dict[int, int] = field(default_factory=dict)
    fingerprint: str = ""
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    pictures: "Pictures | None" = None
    lengths: dict[int, int] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    fallen: "Fallen | None" = None


def check(config: "Config", progress: Callable[[str], None] | None = None) -> DataReport:
    """Look at all that a run needs, in seconds (a named checkpoint is fetched the first time).

    Args:
        config: the job.
        progress: called with a line of text about what takes time: a download, many pictures.

    Raises:
        ConfigError, CheckpointError, DataError: one message that says every fault found.
    """
    warnings = [warning for look in checks(config, progress) for warning in look()]
    report = look_at_rows(config, progress)
    check_places(config, bytes_of(config, report))
    report.warnings += warnings
    return report


def checks(
    config: "Config", progress: Callable[[str], None] | None = None
) -> list[Callable[[], list[str]]]:
    """What is looked at beside the rows and the places: each returns warnings, or raises."""
    from ..trainer import families

    family = families.load(config.model.family)

    def served() -> list[str]:
        cpu.choose(config.export.cpu, getattr(family, "SERVED", ["any"]))
        return []

    def start() -> list[str]:
        tell = progress or logging.getLogger(__name__).info
        retried(lambda: family.check(config.model, progress), config.retries, tell)
        _check_freeze(config, family.depth(config.model))
        return []

    def known() -> list[str]:
        check_known(config.home)
        return []

    return [
        partial(_check_schema, config.data),
        served,
        start,
        partial(_check_compress, config),
        partial(missing_spans, config),
        known,
    ]


def bytes_of(config: "Config", report: DataReport) -> int:
    """The size of the rows; of pictures, also as the model's pixels."""
    from ..trainer import families

    shapes = families.load(config.model.family).pixel_shapes(config.model).values()
    return report.bytes + sum(map(math.prod, shapes)) * sum(report.rows.values())


def look_at_rows(config: "Config", progress: Callable[[str], None] | None = None) -> DataReport:
    """Read every row, as a run would; DataError with every fault."""
    images = config.data.format == "images"
    report = _check_images(config, progress) if images else _check_rows(config)
    length = getattr(config.model, "sequence_length", None)
    if length and report.words and report.words[95] * TOKENS_PER_WORD > length:
        report.warnings.append(
            f"model.sequence_length is {length} tokens, and 5 % of the rows have "
            f"{report.words[95]} words or more (about {TOKENS_PER_WORD} tokens each): they will "
            f"be cut."
        )
    return report


def _check_compress(config: "Config") -> list[str]:
    """What a recipe will not do, in a sentence; ConfigError for a student that cannot be."""
    if config.compress is None:
        return []
    from ..trainer import families
    from ..trainer.compression.distill import check_student

    steps = config.compress.steps
    if distill := next((entry.distill for entry in steps if entry.distill), None):
        check_student(families.load(config.model.family), config.model, distill.layers)
    elif any(entry.prune or entry.cluster for entry in steps):
        return [
            "compress: zeros and clusters make the gzipped file smaller, and nothing faster: dense "
            "kernels multiply by zero, too. Distill to fewer layers for speed."
        ]
    return []


def missing_spans(config: "Config") -> list[str]:
    """Doubts about `{SPAN}` in the data's paths: numbers that are missing."""
    found = []
    for path in config.data.places.values():
        if missing := gaps(path):
            names = ", ".join(map(str, missing[:20]))
            are = "is" if len(missing) == 1 else "are"
            found.append(f"{path}: the newest span is read; below it {names} {are} missing.")
    return found


def _check_rows(config: "Config") -> DataReport:
    data = config.data
    splits = find_sources(data.sources, data.format)
    input_patterns(splits)
    look = {"csv": check_csv, "parquet": check_parquet, "tfrecord": check_tfrecord}[data.format]
    report = look(splits, data.texts, data.label_column, config.evaluate.slices, data.rule)
    report.warnings += _mixed_splits(splits)
    return report


def _check_images(config: "Config", progress: Callable[[str], None] | None) -> DataReport:
    from .image_rows import check_images

    return check_images(
        config.data.sources,
        label=config.data.label_column,
        multi_label=config.data.multi_label,
        on_bad_image=config.data.on_bad_image,
        slices=config.evaluate.slices,
        rule=config.data.rule,
        progress=progress,
    )


def _check_freeze(config: "Config", depth: int) -> None:
    found = [("train.freeze", stage.freeze) for stage in config.train.plan]
    if config.tune:
        found += [("tune.over: train.freeze", end) for _, end in config.tune.ends("train.freeze")]
    for key, freeze in found:
        if freeze != "all" and (freeze or 0) > depth:
            raise ConfigError(
                f"{key} is {freeze}, and this model has {depth} parts to count. Give at most "
                f"{depth}, or all."
            )


def _mixed_splits(splits: Splits) -> list[str]:
    """A doubt about one source whose files are named like splits."""
    found = sorted({split for file in splits.get("all", ()) if (split := split_of(file))})
    if len(found) < 2:
        return []
    return [
        f"the files for {' and '.join(found)}, by their names, are mixed and split anew; to keep "
        f"them apart, name each (`{{train: ..., eval: ..., test: ...}}`)."
    ]


def _check_schema(data: "Data") -> list[str]:
    if data.schema_file is None:
        return []
    from tensorflow_metadata.proto.v0 import schema_pb2

    advice = "A run leaves a schema in artifacts/SchemaGen, to begin with."
    try:
        schema = text_proto.read(Path(data.schema_file), schema_pb2.Schema())
    except ConfigError as error:
        raise ConfigError(f"data.schema: {error} {advice}") from None
    names = {feature.name for feature in schema.feature}
    for column in (*data.inputs.values(), data.label_column):
        if column not in names:
            raise ConfigError(
                f"data.schema: {data.schema_file} has no feature {column!r}, which the model "
                f"reads. {advice}"
            )
    return []


def check_csv(
    splits: Splits,
    text: Sequence[str],
    label: str,
    slices: Sequence[str] = (),
    rule: Rule | None = None,
) -> DataReport:
    """Read every row as TFX would, and find what it would fail on or garble.

    Args:
        splits: files per split; `all` when one source is to be split later.
        text: one column, or two that are read as a pair.
        label: the label's column.
        slices: further columns that must be there.
        rule: how the rows will be split, for them to be counted so; None does not count.

    Raises:
        DataError: every fault, with file, line, how many rows have it and what to do.
    """
    columns = Columns(text, label, slices, rule or Rule())
    return _check(splits, columns, Faults("line"), _read_csv, "csv" if rule else None)


def check_parquet(
    splits: Splits,
    text: Sequence[str],
    label: str,
    slices: Sequence[str] = (),
    rule: Rule | None = None,
) -> DataReport:
    """The same for Parquet files; places are row numbers, counted from 1 in each file."""
    from .parquet_rows import read_parquet

    columns = Columns(text, label, slices, rule or Rule())
    return _check(splits, columns, Faults("row"), read_parquet, "parquet" if rule else None)


def check_tfrecord(
    splits: Splits,
    text: Sequence[str],
    label: str,
    slices: Sequence[str] = (),
    rule: Rule | None = None,
) -> DataReport:
    """The same for TFRecord files of tf.train.Example; the report has the used columns only."""
    from .tfrecord import read_tfrecord

    columns = Columns(text, label, slices, rule or Rule())
    return _check(splits, columns, Faults("row"), read_tfrecord, "tfrecord" if rule else None)


def _check(
    splits: Splits, columns: Columns, faults: Faults, read: Reader, kind: str | None
) -> DataReport:
    report, digests = DataReport(), []
    ids: dict[str, int] = {}
    tallies = {split: Tally(split, faults, columns, ids) for split in splits}
    for split, files in splits.items():
        for file in files:
            with faults.of_reading(file):
                digest = read(file, tallies[split], columns, report.warnings)
                digests.append((split, file.name, digest))
                report.bytes += file.stat().st_size
        if not tallies[split].rows and not faults:
            faults.add(files[0], None, "a header and no rows", "There is nothing to learn from.")
    faults.raise_if_any()
    judge(tallies, splits, columns, faults)
    faults.raise_if_any()
    _fill(report, tallies)
    if kind:
        report.fallen = _fall(splits, tallies, columns.rule, kind, report.warnings)
    report.fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return report


def _fall(
    splits: Splits,
    tallies: Mapping[str, Tally],
    rule: Rule,
    kind: str,
    warnings: list[str],
) -> Fallen:
    """How the rows fall to splits; DataError if the run would fail on it."""
    faults, files = Faults(), next(iter(splits.values()))
    place = str(files[0] if len(files) == 1 else files[0].parent)
    ledgers = {split: tally.ledger for split, tally in tallies.items()}
    keys = {
        split: of_files(splits[split], kind, rule, ledger, tallies[split].types)
        for split, ledger in ledgers.items()
    }
    fallen = Fallen.of(rule, keys, {split: tally.names() for split, tally in tallies.items()})
    warnings += fallen.judge(place, rule.splits or list(splits), "row", faults)
    if rule.by == "group":
        warnings += judge_groups(place, rule, ledgers["all"].keys, faults)
    faults.raise_if_any()
    return fallen


def _read_csv(file: Path, tally: Tally, columns: Columns, warnings: list[str]) -> str:
    """Count one file's rows; return its SHA-256."""
    with CsvFile(file, tally.faults) as table:
        same_columns(file, table.columns, tally, columns)
        texts = [table.columns.index(name) for name in columns.texts]
        label = table.columns.index(columns.label)
        slices = [table.columns.index(name) for name in columns.slices]
        key = table.columns.index(columns.rule.column) if columns.rule.column else None
        undecided = list(enumerate(table.columns))  # columns not known to be strings yet
        for line, row in table.rows():
            if table.lines and tally.swallowed(table.lines):
                tally.faults.add(
                    file,
                    line,
                    "a quote opens here and swallows what looks like a row",
                    "Close it before the end of its own row.",
                )
            found, sliced = [row[i] for i in texts], [row[i] for i in slices]
            tally.add(file, line, found, row[label], sliced, "" if key is None else row[key])
            if undecided:
                tally.infer((name, row[place]) for place, name in undecided)
                undecided = [one for one in undecided if tally.types[one[1]] < STRING]
        lines, first = table.longest
        if lines > _RECORD_LINES:
            warnings.append(
                f"{file}:{first}: this row spans {lines} lines, as its quotes stand. If it should "
                f"not, a quote is missing."
            )
        return table.sha256


def _fill(report: DataReport, tallies: Mapping[str, Tally]) -> None:
    words: dict[int, int] = {}
    for split, tally in tallies.items():
        report.columns = report.columns or tally.columns
        report.rows[split] = tally.rows
        ordered = sorted(tally.labels.items(), key=lambda item: -item[1])
        report.labels[split] = {tally.canonical(label): count for label, count in ordered}
        for count, rows in tally.words.items():
            words[count] = words.get(count, 0) + rows
        report.ledgers[split] = tally.ledger
    report.lengths, report.words = words, percentiles(words)
    report.warnings += doubts(next(iter(tallies)), report)
    report.warnings += slice_doubts(one for t in tallies.values() for one in t.slices.items())


def doubts(trained: str, report: DataReport) -> list[str]:
    """What looks odd in the labels and does not stop a run.

    Args:
        trained: the split to learn from.
        report: its rows and labels are filled in.
    """
    labels, found = report.labels[trained], []
    if single := [label for label, count in labels.items() if count == 1]:
        found.append(
            f"{len(single)} of {len(labels)} labels have a single row ({listed(single[:5])}): too "
            f"little to learn from."
        )
    folded: dict[str, str] = {}
    for label in labels:
        other = folded.setdefault(label.strip().casefold(), label)
        if other != label:
            found.append(f"the labels {other!r} and {label!r} are taken as two classes.")
    for split, here in report.labels.items():
        if split != trained and len(here) == 1:
            found.append(f"every row of {split} has the label {next(iter(here))!r}.")
    return found
