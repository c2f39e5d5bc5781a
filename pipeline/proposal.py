"""The parts of a proposed configuration that texts and pictures share."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..components.names import split_of
from ..errors import DataError
from .columns import Column

_MOST_TOLD = 40  # columns in a message
# The likeliest first.
_LABEL_NAMES = (
    ("label", "labels", "class", "sentiment", "target", "gold", "y"),
    ("category", "intent", "topic", "rating", "stars", "score", "polarity", "spam", "answer"),
)


def head(path: Path) -> list[str]:
    """The first lines: whence it comes, version and name."""
    return [
        f"# Written by `espalier init {short(str(path))}`, from what the data looks like.",
        "# Every other key and its default: docs/configuration.md.",
        "version: 2",
        f"name: {name_of(path)}",
        "",
    ]


def name_of(path: Path) -> str:
    """A pipeline's name out of a path: lower-case letters, digits and dashes."""
    stem = path.resolve().stem if path.is_file() else path.resolve().name
    if stem in ("data", "dataset") or split_of(path):
        stem = path.resolve().parent.name
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    return (name if name[:1].isalpha() else f"job-{name}")[:63].strip("-")


def limits(labels: Mapping[str, int]) -> list[str]:
    """The lines of `evaluate` that a model must be held to: better than always one answer."""
    common, count = next(iter(labels.items()))
    share = count / sum(labels.values())
    return [
        f"  # Always answering {short(common)} reaches {share:.2f}: raise this to what you need.",
        "  at_least:",
        f"    accuracy: {min(0.99, math.floor(share * 100 + 1) / 100):.2f}",
        "  worse_than_blessed_by_at_most:",
        "    accuracy: 0.01",
    ]


def class_weight(labels: Mapping[str, int], label: str, rows: str) -> list[str]:
    """The line of `train` that balances classes of very different size, if they are; the words
    are what a label and its rows are called."""
    rarest, most = min(labels.values()), max(labels.values())
    if most < 5 * rarest:
        return []
    why = f"the most frequent {label} has {most / rarest:.0f} times the {rows} of the rarest"
    return [f"  class_weight: balanced  # {why}"]


def metrics(labels: Mapping[str, int], others: Sequence[str], nearly_all: str) -> str:
    """The line of `evaluate` that names the metrics: accuracy first, unless one label is so
    frequent that it says nothing."""
    if next(iter(labels.values())) / sum(labels.values()) > 0.8:
        return f"  metrics: [{', '.join(['f1', 'accuracy', *others])}]  # f1 first: {nearly_all}"
    return f"  metrics: [{', '.join(['accuracy', 'f1', *others])}]"


def push(path: Path) -> list[str]:
    """The lines of `push`, and the last line's end."""
    return [
        "",
        "push:",
        f"  to: {quoted('models/' + name_of(path))}  # TensorFlow Serving watches this folder",
        "  keep: 5  # versions",
        "",
    ]


def source_lines(kind: str, sources: Mapping[str, str]) -> list[str]:
    """Where the data is: a path, or one per split."""
    if "all" in sources:
        return [f"  {kind}: {quoted(sources['all'])}"]
    return [f"  {kind}:", *(f"    {split}: {quoted(one)}" for split, one in sources.items())]


def label_counts(labels: Mapping[str, int]) -> str:
    """The most frequent labels, for a comment."""
    shown = ", ".join(f"{short(name)}: {count:,}" for name, count in list(labels.items())[:5])
    more = f", ... {len(labels)} in all" if len(labels) > 5 else ""
    return f"{shown}{more}"


def find_label(candidates: Sequence[Column], columns: Sequence[Column], path: Path) -> Column:
    """The column that is the label, by its name or its values.

    Args:
        candidates: those that are not known to be something else.
        columns: all, for the message.
        path: the data, for the message.

    Raises:
        DataError: none or several could be.
    """
    classes = [column for column in candidates if column.is_class]
    for names in _LABEL_NAMES:
        for name in names:
            for column in candidates:
                if column.name.strip().lower() == name and not column.many:
                    return column
        near = [c for c in classes if set(re.split(r"[^a-z]+", c.name.lower())) & set(names)]
        if len(near) == 1:
            return near[0]
    if len(classes) == 1:
        return classes[0]
    what = "more than one column could be the label" if classes else "no column looks like a label"
    raise undecided(path, what, columns)


def undecided(path: Path, what: str, columns: Sequence[Column]) -> DataError:
    """The error that says what each column looks like."""
    looks = "\n".join(f"  {column.describe()}" for column in columns[:_MOST_TOLD])
    if len(columns) > _MOST_TOLD:
        looks += f"\n  ... and {len(columns) - _MOST_TOLD:,} more"
    return DataError(
        f"{path}: {what} (a text has several words a row, a label a few values that repeat):\n"
        f"{looks}\nName the label's column `label` and run this again, or copy "
        f"examples/reviews.yaml and set data.text and data.label."
    )


def short(text: str) -> str:
    """For a comment: one line, not long."""
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return plain if len(plain) <= 60 else f"{plain[:57]}..."


def quoted(text: str) -> str:
    """As YAML: bare where that is safe."""
    words = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", text) and text.lower() not in words:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
