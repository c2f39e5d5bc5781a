"""One small pipeline run, shared by the tests that look at its results."""

import csv
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from espalier import Config, RunResult, run

GOOD = ("great", "lovely", "perfect", "delightful")
BAD = ("awful", "broken", "dreadful", "useless")
THINGS = ("book", "pan", "room", "train", "lamp", "soup")


def rows(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Distinct (text, category, label) that a tiny model learns in a few epochs."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words, label = rng.choice(((GOOD, "positive"), (BAD, "negative")))
        thing = rng.choice(THINGS)
        text = f"the {thing} was {rng.choice(words)}, order {number}"
        found.append((text, "home" if thing in ("pan", "lamp") else "other", label))
    return found


def write_csv(path: Path, data: list[tuple[str, str, str]]) -> Path:
    """A CSV file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category", "label"])
        writer.writerows(data)
    return path


@dataclass
class Job:
    """A folder with data and the YAML of a job on it."""

    folder: Path
    yaml: Path

    @property
    def config(self) -> Config:
        return Config.load(self.yaml)

    def cli(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in the job's folder, as a user would."""
        command = [sys.executable, "-m", "espalier.pipeline.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env={**os.environ, "COLUMNS": "200", **env},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def versions(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "models").iterdir() if p.name.isdecimal())


YAML = """\
version: 2
name: small
data:
  csv: {folder}/data
  text: text
  label: label
model:
  family: bert
  start: {start}
  sequence_length: 16
train:
  epochs: 4
  batch_size: 16
  learning_rate: 3e-3
  precision: float32
evaluate:
  metrics: [accuracy, f1, auc]
  slices: [category]
  at_least: {{accuracy: 0.7}}
  worse_than_blessed_by_at_most: {{accuracy: 0.05}}
push: {{to: {folder}/models, keep: 2}}
runs: {folder}/runs
"""


def _make_job(folder: Path, start: Path | str, count: int = 400) -> Job:
    """Data and a configuration in `folder`."""
    write_csv(folder / "data" / "reviews.csv", rows(count))
    yaml = folder / "small.yaml"
    yaml.write_text(YAML.format(folder=folder, start=start), encoding="utf-8")
    return Job(folder, yaml)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, small_bert: Path) -> Job:
    return _make_job(tmp_path_factory.mktemp("job"), small_bert)


@pytest.fixture(scope="session")
def first_run(job: Job) -> RunResult:
    """The job's first whole run; later tests may run it again, and must say so."""
    return run(job.config)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    """`make_job(folder, start, count=400)`: for tests that need a job of their own."""
    return _make_job
