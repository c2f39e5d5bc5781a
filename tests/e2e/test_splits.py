"""Each way to split one source, through ExampleGen: what is written is what was announced."""

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError, run
from espalier.pipeline import preflight

SPLITS = ("train", "eval", "test")
Row = dict[str, Any]


def make(count: int = 400) -> list[Row]:
    """Rows with a rare label, customers of several rows, whole and broken numbers, and dates."""
    rng, first = random.Random(3), date(2023, 12, 20)
    labels = ["rare"] * 6 + ["good", "bad", "bad"] * count
    return [
        {
            "text": f"row {number} says {rng.choice('abcdef')} \N{SNOWMAN}",
            "label": label,
            "customer": rng.randrange(60) + 1,
            "day": str(first + timedelta(days=number * 7 % 365)),
            "price": ("1", "2.5", "")[number % 3],
            "note": "",
        }
        for number, label in enumerate(labels[:count])
    ]


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    prices = [float(row["price"] or 0) for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table({**columns, "price": prices, "tags": [["a", "b"]] * len(rows)}), path)


def write_tfrecord(path: Path, rows: list[Row]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            features = {
                name: tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[value])
                    if isinstance(value, int)
                    else None,
                    bytes_list=tf.train.BytesList(value=[value.encode()])
                    if isinstance(value, str)
                    else None,
                )
                for name, value in row.items()
                if value != ""
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "tfrecord": write_tfrecord,
}


def job(folder: Path, source: Any, kind: str = "csv", **data: Any) -> Config:
    return Config(
        name="split",
        data={kind: source, "text": "text", "label": "label", **data},
        model={"family": "bert", "start": "tiny"},
        push={"to": f"{folder}/models"},
        runs=f"{folder}/runs",
    )


def written(config: Config) -> dict[str, list[Row]]:
    """Run ExampleGen alone; the rows of each split, as the preflight check has counted them."""
    expected = preflight.check(config).fallen
    assert run(config, to_node="ExampleGen").status == "partial"
    folder = max(
        (config.home / "artifacts/ExampleGen/examples").iterdir(), key=lambda f: int(f.name)
    )
    found = {
        path.name.removeprefix("Split-"): [dict(columns(row)) for row in examples(path)]
        for path in sorted(folder.iterdir())
    }
    assert expected is not None
    assert {split: len(rows) for split, rows in found.items()} == expected.rows
    for split, rows in found.items():
        assert Counter(row["label"] for row in rows) == expected.labels[split]
    return found


def examples(folder: Path) -> Iterator[Any]:
    import tensorflow as tf

    for row in tf.data.TFRecordDataset(
        sorted(map(str, folder.iterdir())), "GZIP"
    ).as_numpy_iterator():
        yield tf.train.Example.FromString(row)


def columns(row: Any) -> Iterator[tuple[str, Any]]:
    for name, feature in row.features.feature.items():
        for value in (*feature.bytes_list.value, *feature.int64_list.value):
            yield name, value.decode() if isinstance(value, bytes) else value


@pytest.fixture(params=list(WRITERS))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """(format, file) of 400 rows."""
    file = tmp_path / f"rows.{request.param}"
    WRITERS[request.param](file, make())
    return request.param, str(file)


def test_by_a_hash_of_the_row(tmp_path: Path, source: tuple[str, str]) -> None:
    kind, file = source
    found = written(job(tmp_path, file, kind, split={"ratios": {"train": 6, "eval": 2, "test": 2}}))
    assert 200 < len(found["train"]) < 280


def test_each_label_by_itself(tmp_path: Path, source: tuple[str, str]) -> None:
    kind, file = source
    found = written(job(tmp_path, file, kind, split={"by": "label"}))
    counts = {split: Counter(row["label"] for row in found[split]) for split in SPLITS}
    assert counts["train"] == {"rare": 4, "good": 106, "bad": 210}
    assert counts["eval"] == {"rare": 1, "good": 13, "bad": 26}
    assert counts["test"] == counts["eval"]


def test_groups_stay_whole(tmp_path: Path, source: tuple[str, str]) -> None:
    kind, file = source
    found = written(job(tmp_path, file, kind, split={"group": "customer"}))
    customers = [{row["customer"] for row in found[split]} for split in SPLITS]
    assert all(customers)
    assert sum(map(len, customers)) == len(set.union(*customers))


def test_the_newest_rows_evaluate(tmp_path: Path, source: tuple[str, str]) -> None:
    kind, file = source
    found = written(job(tmp_path, file, kind, split={"time": "day"}))
    days = {split: sorted(row["day"] for row in found[split]) for split in SPLITS}
    assert days["train"][-1] < days["eval"][0]
    assert days["eval"][-1] < days["test"][0]
    assert len(found["test"]) == pytest.approx(40, abs=2)
    assert len(found["eval"]) == pytest.approx(40, abs=2)


def test_a_sample_is_the_same_each_time(tmp_path: Path, source: tuple[str, str]) -> None:
    kind, file = source
    config = job(
        tmp_path, file, kind, sample=100, split={"by": "label", "ratios": {"train": 8, "eval": 2}}
    )
    found = written(config)
    assert list(found) == ["eval", "train"]
    assert sum(map(len, found.values())) == 100
    again = written(Config(**{**config.model_dump(by_alias=True), "runs": f"{tmp_path}/again"}))
    assert sorted(row["text"] for row in found["train"]) == sorted(
        row["text"] for row in again["train"]
    )


@pytest.mark.parametrize("split", [{"group": "customer"}, {"time": "customer"}])
def test_a_sample_of_groups_or_of_the_time(tmp_path: Path, split: dict[str, str]) -> None:
    write_csv(tmp_path / "rows.csv", make())
    found = written(job(tmp_path, str(tmp_path / "rows.csv"), sample=200, split=split))
    assert sum(map(len, found.values())) == 200
    customers = [{row["customer"] for row in found[name]} for name in SPLITS]
    assert sum(map(len, customers)) == len(set.union(*customers))


def test_of_files_given_by_split_each_gives_its_share(tmp_path: Path) -> None:
    rows = make()
    parts = {"train": rows[:200] + rows[280:], "eval": rows[200:280]}
    for split, part in parts.items():
        write_csv(tmp_path / f"{split}.csv", part)
    files = {split: str(tmp_path / f"{split}.csv") for split in parts}
    found = written(job(tmp_path, files, sample=50))
    assert {split: len(part) for split, part in found.items()} == {"train": 40, "eval": 10}
    with pytest.raises(ConfigError, match="names files by split already"):
        job(tmp_path, files, split={"by": "label"})


def test_another_split_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", make())
    file = str(tmp_path / "rows.csv")
    ways: list[Any] = [
        None,
        {"by": "label"},
        {"time": "day"},
        {"group": "customer"},
        {"by": "label"},
    ]
    states = [
        run(job(tmp_path, file, split=way), to_node="ExampleGen").components[0].state
        for way in ways
    ]
    assert states == ["done", "done", "done", "done", "cached"]
