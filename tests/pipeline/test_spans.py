"""`{SPAN}` in a path is the highest number that is there."""

from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError, DataError
from espalier.pipeline import preflight
from espalier.pipeline.spans import gaps, newest_spans


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("text,label\ngood,a\nbad,b\n")


@pytest.mark.parametrize(
    ("files", "path", "newest"),
    [
        (["data/2/a.csv", "data/10/a.csv", "data/old/a.csv"], "data/{SPAN}/", "data/10/"),
        (["data/9/a.csv", "data/10/a.csv"], "data/{SPAN}/*.csv", "data/10/*.csv"),
        (["day-08.csv", "day-09.csv", "day-9x.csv"], "day-{SPAN}.csv", "day-09.csv"),
        (
            ["d/1/v2/a.csv", "d/2/v1/a.csv", "d/2/v3/a.csv"], "d/{SPAN}/v{VERSION}/a.csv",
            "d/2/v3/a.csv",
        ),
        (["s3-v9.csv", "s4-v1.csv", "s4-v2.csv"], "s{SPAN}-v{VERSION}.csv", "s4-v2.csv"),
        (["a.csv"], "a.csv", "a.csv"),
    ],
)  # fmt: skip
def test_the_newest_is_found(place: Path, files: list[str], path: str, newest: str) -> None:
    make(*files)
    found = newest_spans({"all": path})["all"]
    assert found.rstrip("/") == newest.rstrip("/")
    absolute = newest_spans({"all": str(place / path)})["all"]
    assert absolute.rstrip("/") == str(place / newest).rstrip("/")


def test_no_span_is_a_sentence(place: Path) -> None:
    make("data/new/a.csv")
    with pytest.raises(DataError, match=r"data/\{SPAN\}: there is nothing whose name has a number"):
        newest_spans({"all": "data/{SPAN}/"})
    with pytest.raises(DataError, match="nowhere"):
        newest_spans({"all": "nowhere/{SPAN}/a.csv"})


def test_splits_of_different_spans_are_refused(place: Path) -> None:
    make("train/1/a.csv", "train/2/a.csv", "eval/1/a.csv")
    with pytest.raises(ConfigError, match="train is at 2, eval is at 1"):
        newest_spans({"train": "train/{SPAN}/", "eval": "eval/{SPAN}/"})


def test_gaps(place: Path) -> None:
    make("data/1/a.csv", "data/2/a.csv", "data/5/a.csv")
    assert gaps("data/{SPAN}/") == [3, 4]
    assert gaps("data/1/") == [] and gaps("none/{SPAN}/") == []


def test_a_configuration_reads_the_newest_and_warns_of_gaps(place: Path) -> None:
    make("data/1/a.csv", "data/3/a.csv")
    base: dict[str, Any] = {
        "name": "a", "data": {"csv": "data/{SPAN}/", "text": "text", "label": "label"},
        "model": {"family": "bert", "start": "tiny"}, "push": {"to": "models"},
    }  # fmt: skip
    config = Config(**base)
    assert config.data.sources["all"].rstrip("/") == "data/3"
    assert "data/{SPAN}/" in config.to_yaml()
    assert preflight.missing_spans(config) == [
        "data/{SPAN}/: the newest span is read; below it 2 is missing."
    ]
    settled = config.settled()
    assert settled.data.csv == config.data.sources["all"]
    make("data/4/a.csv")
    assert config.data.sources["all"].rstrip("/") == "data/4"
    assert settled.data.sources["all"].rstrip("/") == "data/3", "what has come since is not read"
    assert settled.settled() is settled
