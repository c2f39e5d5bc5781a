"""A collection on a real line: what is served answers on, and TFX takes what it kept."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, RunResult, run
from espalier.pipeline import store
from espalier.pipeline.collecting import collect

OTHER = ["evaluate.at_least={}", "train.epochs=1"]


@pytest.fixture(scope="module")
def mine(job: Any, first_run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of what the first run left, whose metadata names the copy's own files."""
    folder = tmp_path_factory.mktemp("gc")
    text = job.yaml.read_text(encoding="utf-8")
    for name in ("runs", "models"):
        shutil.copytree(job.folder / name, folder / name)
        text = text.replace(f"{job.folder}/{name}", f"{folder}/{name}")
    (folder / job.yaml.name).write_text(text, encoding="utf-8")
    copy = type(job)(folder, folder / job.yaml.name)
    file = store.database(copy.config.home)
    with contextlib.closing(sqlite3.connect(file)) as metadata, metadata:
        for table, column in (("Artifact", "uri"), ("ArtifactProperty", "string_value")):
            metadata.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",
                (str(job.folder), str(folder)),
            )
    return copy


def test_what_is_served_answers_on_and_the_cache_holds(
    mine: Any, job: Any, first_run: RunResult
) -> None:
    from tfx.types import standard_component_specs

    assert standard_component_specs.BASELINE_MODEL_KEY == store.BASELINE
    theirs = {p: p.stat().st_mtime_ns for p in job.folder.rglob("*") if p.is_file()}
    old = Path(str(first_run.pushed)).name
    config = Config.load(mine.yaml, OTHER)
    second = run(config, accept=True)
    new = Path(str(second.pushed)).name

    collect(config, 1, remove=True)  # what other tests' runs have left; both versions are there
    shown = mine.cli("diff", str(mine.yaml), old, new, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert {"what": "train.epochs", "old": 4, "new": 1} in found["settings"]
    assert found["data"] == [] and found["packages"] == []
    assert found["metrics"][0]["old"] == first_run.metrics["overall"]["accuracy"]

    assert mine.cli("rm", str(mine.yaml), old, "--yes").returncode == 0
    done = mine.cli("gc", str(mine.yaml), "--keep", "1", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Removed" in done.stdout
    models = config.home / "artifacts" / "Trainer" / "model"
    assert len(list(models.iterdir())) == 1

    asked = mine.cli("predict", str(mine.folder / "models"), "--text", "the pan was great, order 1")
    assert asked.returncode == 0, asked.stderr
    assert "positive" in asked.stdout or "negative" in asked.stdout
    listed = [line.split() for line in mine.cli("ls", str(mine.yaml)).stdout.splitlines()[1:]]
    assert [old, "-"] in [[line[0], line[-1]] for line in listed], "its metrics are gone"

    (config.home / "results" / "latest.json").unlink()  # so that TFX is asked
    again = run(config, accept=True)
    states = {component.name: component.state for component in again.components}
    assert states.pop("Pusher") == "done"
    assert set(states.values()) == {"cached"}, states
    assert mine.versions() == [new]
    assert theirs == {p: p.stat().st_mtime_ns for p in job.folder.rglob("*") if p.is_file()}
