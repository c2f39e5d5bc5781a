"""Ingest to Transform at 20,000 and 200,000 rows: time per row, and peak memory.

Needs: `make setup` and the checkpoint minilm in the cache. Takes: 5 minutes on two cores.

    .venv/bin/python benchmarks/scale.py

The sample reviews are repeated, each time with a number behind the text, so that all rows differ.
The same job runs twice in processes of their own, `espalier run --to Transform`.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).parent.parent / "examples" / "reviews" / "data" / "reviews.csv"
SIZES = (20_000, 200_000)
YAML = """\
name: scale
data: {{csv: {folder}/data, text: text, label: label}}
model: {{family: bert, start: minilm, sequence_length: 32}}
push: {{to: {folder}/models}}
runs: {folder}/runs
"""


def main() -> None:
    """Run both sizes and print one table."""
    measured = [measure(size) for size in SIZES]
    table = Table(title="ingest to Transform", box=None, padding=(0, 2, 0, 0))
    for name in ("rows", "seconds", "ms per 1,000 rows", "peak memory in MB"):
        table.add_column(name, justify="right")
    for size, (seconds, peak) in zip(SIZES, measured, strict=True):
        table.add_row(
            f"{size:,}", f"{seconds:.1f}", f"{seconds / size * 1e6:.0f}", f"{peak / 1e6:.0f}"
        )
    Console().print(table)


def measure(size: int) -> tuple[float, int]:
    """Return the components' seconds together, and the process's peak resident bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "data" / "rows.csv", size)
        yaml = Path(folder) / "scale.yaml"
        yaml.write_text(YAML.format(folder=folder))
        command = [sys.executable, "-m", "espalier.pipeline.cli", "run", str(yaml)]
        process = subprocess.Popen([*command, "--to", "Transform"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"the run of {size} rows failed")
        (record,) = (Path(folder) / "runs" / "scale" / "results").glob("*.json")
        result: dict[str, Any] = json.loads(record.read_text())
        return sum(c["seconds"] for c in result["components"]), usage.ru_maxrss * 1024


def write(path: Path, size: int) -> None:
    """The sample's rows, repeated to `size` different ones."""
    path.parent.mkdir()
    with SAMPLE.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for number, row in enumerate(itertools.islice(itertools.cycle(rows), size)):
            writer.writerow({**row, "text": f"{row['text']} {number}"})


if __name__ == "__main__":
    main()
