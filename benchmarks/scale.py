"""Ingest to Evaluator at 10,000, 100,000 and 1,000,000 rows: seconds per component, peak memory.

Needs: `make setup`. Takes: half an hour on two cores, which must be idle; `--rows` for less.

    .venv/bin/python benchmarks/scale.py [--rows 10000 100000]

The sample reviews are repeated, each time with a number behind the text, so that all rows differ.
They are the eval rows of a job that trains a new tiny model on the sample alone: all components but
the Trainer see them all. Each size runs in a process of its own, `espalier run --to Evaluator`. The
last rows of the table are the line through the measured times: what a run costs anyway, and what
each further row does.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).parent.parent / "examples" / "reviews" / "data" / "reviews.csv"
PARTS = ("ExampleGen", "StatisticsGen", "ExampleValidator", "DataGate", "Transform", "Evaluator")
YAML = """\
name: scale
data: {{csv: {{train: {sample}, eval: {folder}/rows.csv}}, text: text, label: label}}
model: {{family: bert, start: tiny, sequence_length: 32}}
train: {{epochs: 1}}
evaluate: {{metrics: [accuracy, f1, auc], slices: [category]}}
push: {{to: {folder}/models}}
runs: {folder}/runs
"""


def main() -> None:
    """Run each size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    sizes = parser.parse_args().rows
    table = Table(title="seconds", box=None, padding=(0, 2, 0, 0))
    for name in ("rows", *PARTS, "peak memory in MB"):
        table.add_column(name, justify="right")
    measured = []
    for size in sizes:
        seconds, peak = measure(size)
        measured.append([seconds[name] for name in PARTS])
        table.add_row(f"{size:,}", *(f"{s:.1f}" for s in measured[-1]), f"{peak / 1e6:.0f}")
    if len(sizes) > 1:
        # Errors are a share of what is measured, and so the fit counts relative ones.
        fits = [
            np.polyfit(sizes, times, 1, w=1 / np.maximum(times, 0.1))
            for times in np.array(measured).T
        ]
        table.add_row("at 0 rows", *(f"{start:.1f}" for _, start in fits), "")
        table.add_row("ms per 1,000", *(f"{each * 1e6:.1f}" for each, _ in fits), "")
    Console(width=140).print(table)


def measure(size: int) -> tuple[dict[str, float], int]:
    """Return the components' seconds, and the process's peak resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "rows.csv", size)
        yaml = Path(folder) / "scale.yaml"
        yaml.write_text(YAML.format(folder=folder, sample=SAMPLE))
        command = [sys.executable, "-m", "espalier.pipeline.cli", "run", str(yaml)]
        process = subprocess.Popen([*command, "--to", "Evaluator"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"the run of {size} rows failed")
        (record,) = (Path(folder) / "runs" / "scale" / "results").glob("*.json")
        result: dict[str, Any] = json.loads(record.read_text())
        seconds = {one["name"]: float(one["seconds"]) for one in result["components"]}
        return seconds, usage.ru_maxrss * 1024


def write(path: Path, size: int) -> None:
    """The sample's rows, repeated to `size` different ones."""
    with SAMPLE.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for number, row in enumerate(itertools.islice(itertools.cycle(rows), size)):
            writer.writerow({**row, "text": f"{row['text']} {number}"})


if __name__ == "__main__":
    main()
