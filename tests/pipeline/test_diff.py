"""Two runs side by side: what differs is said, what does not is not, and chance is named."""

from pathlib import Path
from typing import Any

import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from espalier.pipeline import comparison, diff, report
from espalier.pipeline.diff import Change, Diff, Side
from espalier.pipeline.results import RunResult
from espalier.pipeline.store import Node, Output

CONFIG = """\
data: {label: label, csv: rows.csv}
train: {epochs: 3, learning_rate: 0.001}
evaluate: {metrics: [accuracy, f1]}
compress:
  steps:
  - prune: {sparsity: 0.5}
"""


def result(config: str = CONFIG, accuracy: float = 0.9, rows: int = 1000, **more: Any) -> RunResult:
    numbers = {"rows": rows, "accuracy": accuracy, "auc": None, "f1": 0.8}
    few = {"rows": 20, "accuracy": accuracy - 0.1, "f1": 0.8}
    measured = {"overall": numbers, "slices": {"kind=a|b": few}, "confusion": {"yes": {"no": 1}}}
    given = {"run": "r", "status": "pushed", "verdict": "Blessed: accuracy.", "metrics": measured}
    return RunResult(name="reviews", config=config, **{**given, **more})


def test_settings_are_told_by_their_paths() -> None:
    other = CONFIG.replace("epochs: 3", "epochs: 5").replace("0.5", "0.75")
    other = other.replace("[accuracy, f1]", "[accuracy]").replace("csv:", "parquet:")
    assert list(diff.settings(result(), result(other))) == [
        Change("data.csv", "rows.csv", None),
        Change("train.epochs", 3, 5),
        Change("evaluate.metrics", ["accuracy", "f1"], ["accuracy"]),
        Change("compress.steps.0.prune.sparsity", 0.5, 0.75),
        Change("data.parquet", None, "rows.csv"),
    ]
    assert list(diff.settings(result(), result())) == []
    assert list(diff.settings(result("at_least: {}"), result("at_least: {f1: 1}"))) == [
        Change("at_least.f1", None, 1)
    ]


def test_metrics_say_whether_it_may_be_chance() -> None:
    found = {(m.where, m.name): m for m in diff.metrics(result(), result(accuracy=0.95))}
    assert ("overall", "auc") not in found, "neither has it"
    # Wilson: 900 of 1000 is 0.880 to 0.917, 950 of 1000 is 0.935 to 0.962; of 20 both are wide.
    assert found["overall", "accuracy"].chance == diff.NO_CHANCE
    assert found["overall", "accuracy"].change == pytest.approx(0.05)
    assert found["kind=a|b", "accuracy"].chance == diff.MAY_BE_CHANCE
    assert found["overall", "f1"].chance == ""
    near = diff.metrics(result(), result(accuracy=0.91))
    assert near[0].chance == diff.MAY_BE_CHANCE
    assert [m.chance for m in diff.metrics(result(), result())] == [""] * 4


def test_of_several_labels_a_row_no_interval_is_known() -> None:
    both = result(), result(accuracy=0.95)
    for one in both:
        one.metrics["confusion"] = {}
    assert {m.chance for m in diff.metrics(*both)} == {""}


def statistics(folder: Path, labels: dict[str, int], mean: float) -> report.Context:
    """A run whose StatisticsGen saw such rows."""
    found = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = found.datasets.add(num_examples=sum(labels.values()))
    label = dataset.features.add(name="label", type=statistics_pb2.FeatureNameStatistics.STRING)
    label.string_stats.common_stats.num_non_missing = dataset.num_examples
    label.string_stats.unique = len(labels)
    for name, count in labels.items():
        label.string_stats.rank_histogram.buckets.add(label=name, sample_count=count)
    price = dataset.features.add(name="price", type=statistics_pb2.FeatureNameStatistics.FLOAT)
    price.num_stats.common_stats.num_non_missing = dataset.num_examples // 2
    price.num_stats.mean = mean
    (folder / "Split-train").mkdir(parents=True)
    (folder / "Split-train" / "FeatureStats.pb").write_bytes(found.SerializeToString())
    node = Node("StatisticsGen", "done", 0.0, 1.0, {"statistics": Output(1, str(folder))})
    given = result(data=folder.name)
    given.rows = {"train": dataset.num_examples}
    return report.Context(folder, "r", given, {node.name: node})


def test_data_is_told_by_hash_rows_labels_and_statistics(tmp_path: Path) -> None:
    a = statistics(tmp_path / "a", {"yes": 50, "no": 50}, 2.0)
    b = statistics(tmp_path / "b", {"yes": 150, "no": 50}, 3.0)
    assert list(diff.data(a, b)) == [
        Change("hash of the content", "a", "b"),
        Change("train: rows", 100, 200),
        Change("train: label yes", "50.0%", "75.0%"),
        Change("train: label no", "50.0%", "25.0%"),
        Change("train: price, mean", 2.0, 3.0),
    ]
    assert list(diff.data(a, a)) == []
    a.nodes.clear()
    assert list(diff.data(a, b))[2:] == [Change("TFDV's statistics", "gone", "there")]


def compressed(latency: float) -> dict[str, Any]:
    figures = {
        "accuracy": 0.9, "agreement": 0.99, "bytes": 5, "gzipped": 4_000_000,
        "latency_ms": {"1": {"median": latency}, "32": {"median": 9.0}},
    }  # fmt: skip
    return {"chosen": "int8", "candidates": [{"name": "int8", "figures": figures}]}


def test_sizes_and_packages() -> None:
    a = result(model_bytes=9_000_000, compression=compressed(2.0), versions={"tfx": "1", "x": "2"})
    b = result(model_bytes=9_000_000, compression=compressed(1.5), versions={"tfx": "2", "x": "2"})
    assert list(diff.sizes(a, b)) == [Change("1 row, ms", 2.0, 1.5)]
    assert Change("compressed by", "int8", None) in list(diff.sizes(a, result(model_bytes=1)))
    assert list(diff.packages(a, b)) == [Change("tfx", "1", "2")]


def whole(**lists: Any) -> Diff:
    empty: dict[str, Any] = dict.fromkeys(("settings", "data", "metrics", "sizes", "packages"), ())
    side = Side("2026", "17", "Blessed.")
    return Diff("reviews", side, side, **{**empty, **lists})


def test_markdown_keeps_its_tables_whatever_stands_in_them() -> None:
    nasty = Change("data.text", "a|b\n<script>\n| x", True)
    text = diff.markdown(whole(settings=[nasty], metrics=diff.metrics(result(), result())))
    assert "| `data.text` | a\\|b &lt;script> \\| x | True |" in text
    assert "| overall | accuracy | 0.9000 | 0.9000 | +0.0000 |  |" in text
    assert "kind=a" not in text and "2 more, of slices, are the same." in text
    assert "The data is the same." in text and "- A: the run 2026, version 17. Blessed." in text
    many = diff.markdown(whole(data=[Change(str(n), n, n + 1) for n in range(50)]))
    assert "... and 10 more; `--json` has all." in many


def test_the_page_and_the_command_tell_the_same(tmp_path: Path) -> None:
    a = statistics(tmp_path / "a", {"yes": 50, "no": 50}, 2.0)
    b = statistics(tmp_path / "b", {"yes": 150, "no": 50}, 3.0)
    a.result.versions, b.result.versions = {"tfx": "1"}, {"tfx": "2"}
    page = str(comparison._differences([a, b]))
    for change in [*diff.data(a, b), *diff.packages(a.result, b.result)]:
        assert change.what in page and diff.value(change.new) in page
    assert "The settings are the same." in page
