"""A run's record: what is stored is what is read, and the table shows it."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from espalier import RunResult
from espalier.pipeline.results import in_order, latest, table


def result(**changes: object) -> RunResult:
    """A whole run that pushed a model."""
    values: dict[str, object] = {
        "name": "reviews",
        "run": "2026-01-02T03:04:05.678",
        "status": "pushed",
        "verdict": "Blessed: accuracy 0.9000 is at least 0.85.",
        "key": "abc",
        "seconds": 12.5,
        "rows": {"train": 8000, "eval": 1000, "test": 1000},
        "metrics": {
            "overall": {"rows": 1000, "accuracy": 0.9, "f1": 0.8},
            "slices": {"category=[books]": {"rows": 10, "accuracy": 0.5}},
        },
        "baseline": {"overall": {"rows": 1000, "accuracy": 0.875, "f1": 0.75}},
        "predictions": [{"text": "[red]not markup[/]", "label": "positive", "score": 0.98765}],
        "model_bytes": 90_000_000,
        "pushed": "models/reviews/17",
        "config": "name: reviews\n",
    }
    return RunResult(**{**values, **changes})


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    before = result()
    file = before.save(folder)
    assert file == folder / "2026-01-02T03-04-05.678.json"
    assert latest(folder) == before
    assert RunResult.model_validate_json(file.read_text()) == before
    assert sorted(p.name for p in folder.iterdir()) == [file.name, "latest.json"]


def test_the_latest_run_replaces_the_one_before(tmp_path: Path) -> None:
    result(run="1").save(tmp_path)
    refused = result(run="2", status="not_blessed", pushed=None)
    refused.save(tmp_path)
    assert latest(tmp_path) == refused
    assert (tmp_path / "1.json").exists()


def test_a_metric_that_is_not_defined_is_shown_as_a_dash(tmp_path: Path) -> None:
    undefined = {"overall": {"rows": 9, "precision": None}, "slices": {}}
    result(metrics=undefined, baseline=undefined).save(tmp_path)
    again = latest(tmp_path)
    assert again is not None
    console = Console(file=io.StringIO(), width=100)
    console.print(table(again))
    assert re.search(r"overall +9 +-", console.file.getvalue())  # type: ignore[attr-defined]


def test_a_part_of_the_line_is_not_the_latest_run(tmp_path: Path) -> None:
    whole = result(run="1", key="all")
    whole.save(tmp_path)
    result(run="2", status="partial", key="", pushed=None).save(tmp_path)
    assert latest(tmp_path) == whole
    assert (tmp_path / "2.json").exists()


@pytest.mark.parametrize("content", ["", "{", '{"name": "x"}', '{"status": "lost"}', "[]"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "latest.json").write_text(content)
    assert latest(tmp_path) is None


def test_no_record(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None


def test_exit_codes() -> None:
    assert result().exit_code == 0
    assert result(status="partial").exit_code == 0
    assert result(status="not_blessed").exit_code == 4


def shown(one: RunResult) -> str:
    """What a run prints on a terminal of 100 columns."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(one))
    return console.export_text()


def test_the_table() -> None:
    text = shown(result())
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "rows 8,000 train, 1,000 eval, 1,000 test" in rows
    assert "model 90.0 MB" in rows
    assert "verdict Blessed: accuracy 0.9000 is at least 0.85." in rows
    assert "pushed models/reviews/17" in rows
    assert "time 12.5 s" in rows
    assert "slice rows accuracy f1" in rows
    assert "overall 1,000 0.9000 0.8000" in rows
    assert "category=[books] 10 0.5000 -" in rows
    assert "blessed before 1,000 0.8750 0.7500" in rows
    assert "[red]not markup[/] positive 0.988" in rows


def test_the_table_of_a_refused_and_of_a_cached_run() -> None:
    assert "what was pushed before stays" in shown(result(status="not_blessed", pushed=None))
    assert "12.5 s (all cached)" in shown(result(cached=True))


def test_the_table_of_a_run_that_stopped_early() -> None:
    text = shown(RunResult(name="reviews", status="partial"))
    assert "metrics" not in text
    assert "pushed" not in text


def test_what_came_first_stays_first_though_the_clock_was_set_back() -> None:
    known = [("T12:00", "a"), ("T11:10", "b"), ("T11:20", "c")]
    assert in_order(known, [("T13:00", "z"), ("T10:00", "x")]) == ["x", "a", "b", "c", "z"]
