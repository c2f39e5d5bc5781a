"""Look at the user's data and write a commented configuration for it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..components.names import SPLIT_WORDS, split_of
from .columns import Column, look_at
from .init_images import picture_sources, propose_images
from .preflight import TOKENS_PER_WORD, DataReport, check_csv, check_parquet
from .proposal import (
    class_weight,
    find_label,
    head,
    label_counts,
    limits,
    metrics,
    push,
    quoted,
    short,
    source_lines,
    undecided,
)
from .sources import SUFFIXES, find_files, input_patterns, is_named

_TEXT_PAIRS = (
    ("premise", "hypothesis"),
    ("question", "answer"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "document"),
)
_MOST_SLICES, _MOST_SLICE_VALUES = 3, 20
_SHORTEST, _LONGEST = 32, 512  # tokens; BERT's checkpoints have 512 positions


def propose(path: Path) -> str:
    """A YAML configuration, each choice with its reason, for a CSV or Parquet file or folder, or
    for pictures.

    Raises:
        DataError: the data cannot be used, or it cannot be told which columns are meant.
    """
    kind, sources, note = _sources(path)
    if pictures := picture_sources(path, sources):
        return propose_images(path, pictures)
    files = {name: find_files(one, SUFFIXES[kind]) for name, one in sources.items()}
    columns = look_at(files[next(iter(files))], kind)
    texts = _texts(columns, path)
    label = find_label([column for column in columns if column not in texts], columns, path)
    slices = _slices([column for column in columns if column not in (*texts, label)])
    check = check_csv if kind == "csv" else check_parquet
    names = [column.name for column in texts]
    report = check(files, names, label.name, [column.name for column in slices])
    return "\n".join(
        [
            *head(path),
            *_data(kind, sources, note, texts, label, report),
            *_model(report, pair=len(texts) > 1),
            *_training(report),
            *_evaluation(report, slices),
            *push(path),
        ]
    )


def _sources(path: Path) -> tuple[str, dict[str, str], str]:
    """(format, a path per split or one under `all`, a remark on what was found)."""
    if not path.is_dir():
        kind = "parquet" if is_named(path.name, SUFFIXES["parquet"]) else "csv"
        return kind, {"all": str(path)}, "one source, split 8:1:1 by a hash of each row"
    entries = [one for one in sorted(path.iterdir()) if not one.name.startswith(".")]
    for kind in ("csv", "parquet"):
        files = [o for o in entries if o.is_file() and is_named(o.name, SUFFIXES[kind])]
        tables = files + [one for one in entries if one.is_dir()]
        named = {split: [o for o in tables if split_of(o) == split] for split in SPLIT_WORDS}
        if named["train"] and (named["eval"] or named["test"]):
            return kind, *_separate(named)
        if files:
            return kind, {"all": str(path)}, "a folder, split 8:1:1 by a hash of each row"
    return "csv", {"all": str(path)}, ""  # holds none: the search says what is there


def _separate(named: Mapping[str, list[Path]]) -> tuple[dict[str, str], str]:
    """A path per split and a remark, from what bears the splits' names."""
    sources = {}
    for split, paths in named.items():
        files = [one for one in paths if one.is_file()]
        if len(files) > 1:
            base, patterns = input_patterns({split: files})
            sources[split] = f"{base}/{patterns[split]}"
        elif paths:
            sources[split] = str((files or paths)[0])
    if "eval" not in sources:
        return {"train": sources["train"], "eval": sources["test"]}, (
            "no file for eval: the test rows choose the best epoch, too, so their score flatters"
        )
    return sources, "separate files, by their names"


def _texts(columns: Sequence[Column], path: Path) -> list[Column]:
    by_name = {column.name.lower(): column for column in columns}
    for first, second in _TEXT_PAIRS:
        pair = [by_name[name] for name in (first, second) if name in by_name]
        if len(pair) == 2 and all(column.is_text for column in pair):
            return pair
    found = sorted((c for c in columns if c.is_text), key=lambda c: -c.mean_characters)
    # Few rows: nothing is "many", but something still is the longest.
    found = found or sorted(
        (c for c in columns if c.mean_words >= 3), key=lambda c: -c.mean_characters
    )
    if not found:
        raise undecided(path, "no column looks like the text to read", columns)
    return found[:1]


def _slices(candidates: Sequence[Column]) -> list[Column]:
    found = [c for c in candidates if c.is_class and not c.blank]
    return [c for c in found if len(c.values) <= _MOST_SLICE_VALUES][:_MOST_SLICES]


def _data(
    kind: str,
    sources: Mapping[str, str],
    note: str,
    texts: Sequence[Column],
    label: Column,
    report: DataReport,
) -> list[str]:
    rows = " + ".join(f"{count:,}" for count in report.rows.values())
    lines = ["data:", f"  # {rows} rows; {note}"]
    lines += source_lines(kind, sources)
    names = ", ".join(quoted(column.name) for column in texts)
    length = " and ".join(f"{column.mean_words:.0f}" for column in texts)
    why = "the longest text" if len(texts) == 1 else "read as a pair"
    lines.append(f"  text: {names if len(texts) == 1 else f'[{names}]'}  # {why}: {length} words")
    counts = label_counts(next(iter(report.labels.values())))
    return [*lines, f"  label: {quoted(label.name)}  # rows of {counts}"]


def _model(report: DataReport, pair: bool) -> list[str]:
    middle, most = report.words[50], report.words[95]
    tokens = most * TOKENS_PER_WORD + (3 if pair else 2)  # and [CLS], [SEP]
    length = min(_LONGEST, max(_SHORTEST, math.ceil(tokens / 8) * 8))
    cut = "; longer rows are cut" if report.words[100] * TOKENS_PER_WORD > length else ""
    return [
        "",
        "model:",
        "  family: bert",
        "  start: minilm  # 6 layers, English, 90 MB, fetched once; `tiny` needs no network",
        f"  # Rows have {middle} words in the middle, and 95 % of them {most} or fewer{cut}.",
        f"  sequence_length: {length}  # tokens, about {TOKENS_PER_WORD} a word",
    ]


def _training(report: DataReport) -> list[str]:
    return [
        "",
        "train:",
        "  epochs: 3  # the best of them is kept",
        "  batch_size: 32",
        "  learning_rate: 3e-4  # high for BERT; MiniLM is small and takes it",
        *class_weight(next(iter(report.labels.values())), "label", "rows"),
    ]


def _evaluation(report: DataReport, slices: Sequence[Column]) -> list[str]:
    labels = list(report.labels.values())[-1]
    lines = ["", "evaluate:", metrics(labels, ["auc"], "nearly all rows have one label")]
    if slices:
        values = ", ".join(f"{column.name}: {len(column.values)} values" for column in slices)
        names = ", ".join(quoted(column.name) for column in slices)
        lines.append(f"  slices: [{names}]  # shown separately ({short(values)})")
    return [*lines, *limits(labels)]
