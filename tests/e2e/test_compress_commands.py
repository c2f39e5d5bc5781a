"""`compress`, `sensitivity` and `recipes` on the version that a pipeline run has pushed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from typer.testing import CliRunner, Result

from espalier import Config, ConfigError, Predictor, RunResult
from espalier.pipeline.cli import app
from espalier.pipeline.compress import Compressed, compress

RECIPE = """\
steps:
  - distill: {layers: 1, epochs: 1}
  - quantize: {}
budget: {accuracy_drop: 0.6, size: 0.95}
"""
OVER = """\
steps:
  - quantize: {to: float16}
budget: {accuracy_drop: -0.9}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "over.yaml").write_text(OVER, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def pushed(first_run: RunResult) -> str:
    return str(first_run.pushed)


@pytest.fixture(scope="module")
def data(job: Any) -> str:
    return str(job.folder / "data")


@pytest.fixture(scope="module")
def small(pushed: str, data: str, folder: Path) -> Compressed:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return compress(pushed, "recipe.yaml", data, str(folder / "small"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


def test_what_keeps_to_the_budget_is_published(small: Compressed, folder: Path) -> None:
    assert small.kept and small.exit_code == 0
    assert small.version.parent == folder / "small"
    assert json.loads((folder / small.work / "report.json").read_text()) == small.report
    names = [one["name"] for one in small.report["candidates"]]
    assert names == ["trained", "distill", "quantize"]
    config = Config.load(small.version / "assets.extra" / "config.yaml")
    assert config.compress and [one.kind for one in config.compress.steps] == names[1:]
    assert config.push.to == str(folder / "small")
    (prediction,) = Predictor(folder / "small").predict(["the book was perfect, order 1"])
    assert prediction.label in ("positive", "negative")


def test_nothing_but_the_report_stays_of_a_success(small: Compressed, folder: Path) -> None:
    left = {file.name for file in (folder / small.work).iterdir()}
    assert left == {"report.json", "log.txt", ".lock"}


def test_a_call_that_was_killed_as_it_cleaned_up_is_done_to_its_end(
    small: Compressed, pushed: str, data: str, folder: Path
) -> None:
    work = folder / small.work
    (work / ".gone-scratch").mkdir()
    (work / "published").write_text(str(small.version))
    again = compress(pushed, "recipe.yaml", data, str(folder / "small"))
    assert again == small
    assert {file.name for file in work.iterdir()} == {"report.json", "log.txt", ".lock"}


def test_every_row_is_measured_or_trained_on_once(small: Compressed, pushed: str) -> None:
    measured = small.report["candidates"][0]["figures"]["rows"]
    assert 20 <= measured <= 65  # a tenth of 400, by a hash


def test_a_compressed_version_is_no_model_to_begin_with(small: Compressed, data: str) -> None:
    done = call("compress", str(small.version.parent), "--recipe", "recipe.yaml", "--data", data)
    assert done.exit_code == 2
    assert "this version was compressed already" in done.stderr


def test_over_the_budget_nothing_is_published(pushed: str, data: str, folder: Path) -> None:
    arguments = ["compress", pushed, "--recipe", "over.yaml", "--data", data, "--to", "large"]
    done = call(*arguments)
    assert done.exit_code == 4, done.output
    assert not (folder / "large").exists()
    (best,) = folder.glob("runs/compress/*/scratch/versions/quantize")
    assert "Over the budget: accuracy_drop" in done.stdout
    assert f"the best candidate is {best.relative_to(folder)}" in done.stdout
    again = call(*arguments)
    assert "quantize was finished before" in again.stdout  # and what was written of the rows


def test_its_own_folder_is_refused(pushed: str) -> None:
    with pytest.raises(ConfigError, match="the trained model's own folder"):
        compress(
            pushed, "over.yaml", str(Path(pushed).parents[1] / "data"), str(Path(pushed).parent)
        )


def test_layers_are_weighed_up(pushed: str, data: str, folder: Path) -> None:
    done = call("sensitivity", pushed, "--data", data, "-o", "s.png")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(" < ") == 3  # the costliest of each step
    assert "transformer_layer_1_attention_output" in done.stdout
    assert (folder / "s.png").stat().st_size > 10_000
    assert not list(folder.glob("runs/compress/*sensitivity*"))


def test_a_search_without_time_says_so(pushed: str, data: str, folder: Path) -> None:
    done = call("recipes", pushed, "--data", data, "--time-limit", "0.0001")
    assert done.exit_code == 2
    assert "--time-limit 0.0001: no recipe was through in time" in done.stderr
    assert not (folder / "best-recipe.yaml").exists()


def test_what_is_written_is_what_a_run_writes(first_run: RunResult, data: str, job: Any) -> None:
    """The raw and the transformed Examples are, feature by feature, those of the pipeline."""
    from espalier.pipeline.compress import open_trained
    from espalier.pipeline.raw_rows import find_rows
    from espalier.pipeline.transformed import Transform

    trained = open_trained(str(first_run.pushed))
    transform = Transform(trained.version, trained.facts)
    rows = list(find_rows(data, trained.facts).read(transform.raw_spec))
    raw = [row.example() for row in rows]
    ours = [tf.train.Example.FromString(one) for one in transform(rows, raw)]
    files = sorted((job.config.home / "artifacts/Transform").glob("transformed_examples/*/*/*"))
    theirs = tf.data.TFRecordDataset(sorted(map(str, files)), "GZIP").as_numpy_iterator()
    keys = [{tuple(e.features.feature["token_ids"].int64_list.value) for e in ours}]
    parsed = [tf.train.Example.FromString(one) for one in theirs]
    keys.append({tuple(e.features.feature["token_ids"].int64_list.value) for e in parsed})
    assert len(keys[0]) > 10 and keys[0] == keys[1]
    by_tokens = {e.features.SerializeToString(deterministic=True) for e in parsed}
    assert {e.features.SerializeToString(deterministic=True) for e in ours} == by_tokens
