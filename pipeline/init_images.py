"""Look at the user's pictures and write a commented configuration for them."""

import contextlib
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..components.image_example_gen import idx
from ..components.image_example_gen.folders import is_picture, visible
from ..components.image_example_gen.table import PATH_COLUMNS
from .columns import Column
from .image_rows import Pictures, check_images
from .preflight import DataReport
from .proposal import (
    class_weight,
    find_label,
    head,
    label_counts,
    limits,
    metrics,
    push,
    quoted,
    source_lines,
)

_DEEPEST = 4  # levels of folders in which a picture is looked for
_ROWS = 5  # of a CSV, to see whether they name pictures
_SMALL = 64  # pixels; up to here, ResNet-20 as it is
_USUAL = 224  # pixels; what ImageNet's weights were trained on


def picture_sources(path: Path, sources: Mapping[str, str]) -> dict[str, str]:
    """The sources of pictures by split, or under `all`; none if this is no data of pictures.

    Args:
        path: what the user named.
        sources: what it would be if it held tables.
    """
    files = [Path(source) for source in sources.values()]
    if path.is_dir() and "all" in sources:
        tables = [one for one in visible(path) if _names_pictures(one)]
        if len(tables) == 1:
            return {"all": str(tables[0])}
    elif all(_names_pictures(file) for file in files):
        return dict(sources)
    if path.is_dir() and _holds_pictures(path, _DEEPEST):
        return {"all": str(path)}
    return {}


def _holds_pictures(folder: Path, levels: int) -> bool:
    try:
        entries = visible(folder)
    except OSError:
        return False
    files = [one for one in entries if one.is_file()]
    if any(is_picture(one.name) or idx.is_idx(one) for one in files):
        return True
    folders = [one for one in entries if one.is_dir()] if levels else []
    return any(_holds_pictures(one, levels - 1) for one in folders)


def _names_pictures(file: Path) -> bool:
    if file.suffix.lower() != ".csv" or not file.is_file():
        return False
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = [row for row, _ in zip(csv.reader(opened), range(_ROWS), strict=False)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return len(rows) > 1 and all(any(is_picture(cell.strip()) for cell in row) for row in rows[1:])


def propose_images(path: Path, sources: Mapping[str, str]) -> str:
    """A YAML configuration for pictures, each choice with its reason.

    Args:
        path: what the user named.
        sources: a path per split, or one under `all`.

    Raises:
        DataError: the pictures cannot be used.
    """
    tables = [Path(one) for one in sources.values() if Path(one).is_file()]
    label, multi_label = _label(tables, path) if tables else ("label", False)
    report = check_images(sources, label=label, multi_label=multi_label, on_bad_image="skip")
    lines = [*head(path), *_data(sources, label if tables else "", multi_label, report)]
    pictures = report.pictures or Pictures()
    small = _side(pictures) <= _SMALL
    lines += _model(pictures, small) + (_from_nothing() if small else _from_weights())
    counts = next(iter(report.labels.values()))
    if not multi_label:
        lines += class_weight(counts, "class", "pictures")
    return "\n".join([*lines, *_evaluation(report, multi_label), *push(path)])


def _label(tables: Sequence[Path], path: Path) -> tuple[str, bool]:
    """(the label's column, whether its cells hold several labels)."""
    columns = _columns(tables)
    lower = [column.name.strip().lower() for column in columns]
    named = next((lower.index(name) for name in PATH_COLUMNS if name in lower), None)
    others = [column for place, column in enumerate(columns) if place != named]
    barred = [column for column in others if any("|" in value for value in column.values)]
    if len(others) == 1:
        label = others[0]
    else:
        label = barred[0] if len(barred) == 1 else find_label(others, columns, path)
    return label.name.strip(), label in barred


def _columns(tables: Sequence[Path]) -> list[Column]:
    """What the CSVs' columns look like; wrong rows are left to `check_images`."""
    columns: dict[str, Column] = {}
    for file in tables:
        opened = file.open(encoding="utf-8-sig", errors="replace", newline="")
        with contextlib.suppress(csv.Error), opened:
            for row in csv.DictReader(opened):
                for name, cell in row.items():
                    if isinstance(name, str):
                        columns.setdefault(name, Column(name)).add((cell or "").strip())
    return list(columns.values())


def _data(
    sources: Mapping[str, str], label: str, multi_label: bool, report: DataReport
) -> list[str]:
    pictures = report.pictures or Pictures()
    rows = " + ".join(f"{count:,}" for count in report.rows.values())
    lines = ["data:", f"  # {rows} pictures; {_split_note(report)}"]
    lines += source_lines("images", sources)
    if label:
        lines.append(f"  label: {quoted(label)}")
    lines.append(f"  # Pictures of {label_counts(next(iter(report.labels.values())))}.")
    if multi_label:
        lines.append("  multi_label: true  # cells of the label's column hold a |")
    if pictures.skipped:
        lines.append(
            f"  on_bad_image: skip  # {len(pictures.skipped):,} cannot be used; `fail` names them"
        )
    return lines


def _split_note(report: DataReport) -> str:
    if "all" in report.rows:
        return "split 8:1:1 by a hash of each picture's content"
    note = "separate, by their names"
    if {"train", "test"} == set(report.rows):
        return f"{note}; a tenth of train is eval"
    if "test" not in report.rows:
        return f"{note}; none for test: eval chooses the best epoch, too, so its score flatters"
    return note


def _side(pictures: Pictures) -> int:
    return round((pictures.widths[50] + pictures.heights[50]) / 2)


def _model(pictures: Pictures, small: bool) -> list[str]:
    usual = f"{pictures.widths[50]} x {pictures.heights[50]}"
    lines = ["", "model:", "  family: resnet"]
    if small:
        lines += [
            f"  start: resnet20  # small, from random weights: the pictures are {usual} pixels",
            f"  size: {max(8, math.ceil(_side(pictures) / 4) * 4)}  # height and width",
        ]
        if pictures.grey == 1:
            lines.append("  color: grey  # all are stored so")
        return lines
    return [
        *lines,
        f"  start: resnet50  # the pictures are {usual} pixels, of which it sees {_USUAL}",
        "  # Fetched once; needs a network. Leave it out to start from random weights.",
        "  weights: imagenet",
        f"  size: {_USUAL}  # height and width",
    ]


def _from_nothing() -> list[str]:
    return [
        "",
        "train:",
        "  epochs: 30  # the best of them is kept; the paper has 180",
        "  batch_size: 128",
        "  optimizer: sgd",
        "  learning_rate: 0.1  # the paper's",
        "  decay: cosine",
        "  weight_decay: 5e-3",
        "  augment: {flip: true, crop: 0.125}  # no flip where left and right differ in meaning",
    ]


def _from_weights() -> list[str]:
    return [
        "",
        "train:",
        "  epochs: 5  # the best of them is kept",
        "  batch_size: 32",
        "  learning_rate: 1e-4  # low: the weights know much already",
        "  augment: {flip: true, crop: 0.125}  # no flip where left and right differ in meaning",
    ]


def _evaluation(report: DataReport, multi_label: bool) -> list[str]:
    if multi_label:
        return [
            "",
            "evaluate:",
            "  metrics: [auc, f1]  # means over the labels",
            "  worse_than_blessed_by_at_most:",
            "    auc: 0.01",
        ]
    labels = list(report.labels.values())[-1]
    chosen = metrics(labels, [], "nearly all pictures are of one class")
    return ["", "evaluate:", chosen, *limits(labels)]
