"""The preflight check splits as ExampleGen will, and says what is wrong with a split."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import DataError
from espalier.components.faults import Faults
from espalier.components.row_split.rule import Rule
from espalier.pipeline.csv_rows import FLOAT, INT, STRING, UNKNOWN
from espalier.pipeline.preflight import DataReport, check_csv, check_parquet
from espalier.pipeline.row_examples import rows_of

# --- the bytes that are hashed ------------------------------------------------------------------


def read(file: Path, types: dict[str, int] | None = None) -> list[bytes]:
    return [row for row, _ in rows_of(file, file.suffix[1:], types or {}, Faults())]


def test_rows_of_csv_are_the_examples_that_tfx_makes(tmp_path: Path) -> None:
    from tfx.components.example_gen.csv_example_gen.executor import _ParsedCsvToTfExample
    from tfx_bsl.coders.csv_decoder import ColumnInfo, ColumnType

    rows = [
        [
            "schön " * number,
            str((-1) ** number * 10 ** (number % 19)),
            ("1.5", "1e39", "nan", "-0.0", "3", "")[number % 6],
            ("", " 7 ", "z")[number % 3],
            "",
        ]
        for number in range(200)
    ]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "whole", "real", "some", "none"], *rows])
    kinds = {"text": STRING, "whole": INT, "real": FLOAT, "some": STRING, "none": UNKNOWN}
    types = {STRING: ColumnType.STRING, INT: ColumnType.INT, FLOAT: ColumnType.FLOAT}
    types[UNKNOWN] = ColumnType.UNKNOWN
    infos = [ColumnInfo(name, types[kind]) for name, kind in kinds.items()]
    made = _ParsedCsvToTfExample()
    assert read(tmp_path / "rows.csv", kinds) == [
        example.SerializeToString(deterministic=True)
        for row in rows
        for example in made.process([cell.encode() for cell in row], infos)
    ]


def test_rows_of_parquet_and_tfrecord_are_the_examples_that_tfx_makes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf
    from tfx.components.example_gen.utils import dict_to_example

    numbers = range(50)
    table = pa.table(
        {
            "text": [f"row {n}" if n % 7 else None for n in numbers],
            "whole": [n - 25 for n in numbers],
            "flag": [n % 2 == 0 for n in numbers],
            "real": [n / 3 for n in numbers],
            "small": pa.array([n / 7 for n in numbers], pa.float32()),
            "list": [[n, -n] if n % 2 else [] for n in numbers],
            "words": [["a", "b"]] * 50,
            "bytes": [b"ab"] * 50,
            "coded": pa.array(["u", "v"] * 25).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = table.to_pydict()
    made = [dict_to_example({name: columns[name][n] for name in columns}) for n in numbers]
    expected = [example.SerializeToString(deterministic=True) for example in made]
    assert read(tmp_path / "rows.parquet") == expected
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as writer:
        for example in made:
            writer.write(example.SerializeToString())
    assert read(tmp_path / "rows.tfrecord") == expected


# --- what is said of a split --------------------------------------------------------------------


def look(folder: Path, rule: Rule, rows: list[str], header: str = "text,label,key") -> DataReport:
    (folder / "rows.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return check_csv({"all": [folder / "rows.csv"]}, ["text"], "label", [], rule)


def rows(
    count: int = 200, key: Callable[[int], Any] = str, label: Callable[[int], str] | None = None
) -> list[str]:
    label = label or (lambda number: "ab"[number % 2])
    return [f"words of row {n},{label(n)},{key(n)}" for n in range(count)]


def test_counts_by_split(tmp_path: Path) -> None:
    fallen = look(tmp_path, Rule(by="label"), rows()).fallen
    assert fallen is not None
    assert fallen.rows == {"train": 160, "eval": 20, "test": 20}
    assert fallen.labels["test"] == {"a": 10, "b": 10}


BY_GROUP, BY_TIME = Rule(by="group", column="key"), Rule(by="time", column="key")
REFUSED: dict[str, tuple[Rule, list[str], tuple[str, ...]]] = {
    "a label that no train row has": (
        Rule(),
        # By their hashes these rows, alike in all columns, fall to eval or test.
        [*rows(), *["alike 6,c,1"] * 20],
        ("rows.csv: no row to train on has the label 'c' (20)", "data.split: {by: label}"),
    ),
    "no row in a split": (
        Rule(),
        ["same a,a,1"] * 20 + ["same b,b,1"] * 20,
        ("no row falls to ", "Give more rows, or split each label by itself"),
    ),
    "one group": (
        BY_GROUP,
        rows(key=lambda n: 1 if n < 190 else n),
        ("one group, by column 'key', has 190 of 200 rows", "split by another column"),
    ),
    "an empty group": (
        BY_GROUP,
        [*rows(), "words,a,"],
        ("rows.csv:202: empty cell in 'key', the column that the rows are split by",),
    ),
    "groups that are no whole numbers": (
        BY_GROUP,
        rows(key=lambda n: n / 4),
        ("column 'key' holds numbers that are not whole, and is to be the group",),
    ),
    "no column": (
        Rule(by="group", column="keys"),
        rows(),
        ("rows.csv:1: no column 'keys', which is to be the group to split by", "mean 'key'?"),
    ),
    "no time": (
        BY_TIME,
        [*rows(key=lambda _: "2024-01-01"), "words,a,31.12.2024"],
        ("rows.csv:202: no time in 'key'", "'31.12.2024'", "Expected 2024-05-31, 2024-05-31 23:59"),
    ),
    "dates and numbers": (
        BY_TIME,
        [*rows(), "words,a,2024-12-31"],
        ("rows.csv:202: 'key' mixes dates and whole numbers", "'2024-12-31'"),
    ),
    "one time": (
        BY_TIME,
        rows(key=lambda _: "2024-01-01"),
        ("no row falls to eval", "those of one time, by column 'key', fall to one split"),
    ),
    "a label that is new": (
        BY_TIME,
        rows(label=lambda n: "new" if n > 190 else "ab"[n % 2]),
        ("no row to train on has the label 'new' (9)", "Give more rows of it, or take it out"),
    ),
    "a sample that is too small": (
        Rule(sample=4),
        rows(),
        ("no row falls to ", "Take a larger data.sample."),
    ),
}


@pytest.mark.parametrize(("rule", "lines", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_split_that_cannot_be_used(
    tmp_path: Path, rule: Rule, lines: list[str], expected: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        look(tmp_path, rule, lines)
    for fragment in expected:
        assert fragment in str(caught.value)


def test_what_is_odd_is_doubted(tmp_path: Path) -> None:
    (own,) = look(tmp_path, BY_GROUP, rows(400)).warnings
    assert "each row has a value of its own in 'key'" in own
    (few,) = look(tmp_path, Rule({"train": 98, "eval": 1, "test": 1}, "label"), rows()).warnings[:1]
    assert "eval has 2 rows: a score of so few says little" in few
    lines = rows(label=lambda n: "c" if n in (0, 1) else "ab"[n % 2])
    warnings = look(tmp_path, Rule(by="label"), lines).warnings
    assert any("test has no row of 'c': nothing will be known" in one for one in warnings)


def test_a_parquet_column_to_split_by_may_not_hold_what_tfx_loses(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "text": [f"row {n}" for n in range(60)],
        "label": ["a", "b"] * 30,
        "key": list(range(60)),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"row 1: column 'key' holds 0, which TFX's Parquet reader"):
        check_parquet({"all": [tmp_path / "rows.parquet"]}, ["text"], "label", [], BY_TIME)
