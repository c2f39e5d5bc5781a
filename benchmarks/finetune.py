"""Fine-tune MiniLM on SST-2's sentences: Espalier's Trainer beside PyTorch and transformers.

Needs: `make setup`; a Python with torch and transformers for the peer; the checkpoint minilm in
the cache (any run of examples/reviews.yaml puts it there); CSV files train, validation and test
with `text` and `label`. Takes: 15 minutes on two cores, which must be idle.

    .venv/bin/python benchmarks/finetune.py --peer PEER/bin/python [--data FOLDER]

Both sides: batch 32, length 64, AdamW 3e-4 with 10 % warm-up and linear decay, 3 epochs, mean
pooling, two threads. Full runs give accuracy; the levers are timed over 50 steps each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from espalier.trainer import checkpoints

HERE = Path(__file__).parent
STEPS = 50
PEER_LEVERS: dict[str, list[str]] = {
    "float32, padded to 64": ["--padding", "max_length"],
    "float32, padded to the longest": [],
    "float32, grouped by length": ["--group-by-length"],
    "bfloat16, padded to the longest": ["--bf16"],
    "bfloat16, grouped by length": ["--bf16", "--group-by-length"],
}
OUR_LEVERS: dict[str, list[str]] = {
    "float32, padded to 64": ["--precision", "float32", "--no-group"],
    "float32, grouped by length": ["--precision", "float32"],
    "bfloat16, padded to 64": ["--no-group"],
    "float32, padded to 64, XLA": ["--precision", "float32", "--no-group", "--xla"],
    "bfloat16, grouped by length": [],
}


def main() -> None:
    """Run both sides in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="a Python with torch and transformers")
    parser.add_argument("--data", type=Path, default=HERE.parent / "../shared/data/sst2_sentence")
    parser.add_argument("--levers-only", action="store_true", help="no full runs")
    args = parser.parse_args()
    names = {"train": "train", "eval": "validation", "test": "test"}
    files = [f"--{split}={args.data / name}.csv" for split, name in names.items()]
    folder = checkpoints.resolve("minilm")
    peer = [args.peer, str(HERE / "peer" / "finetune.py"), *files, "--checkpoint", str(folder)]
    ours = [sys.executable, str(HERE / "ours_finetune.py"), *files]
    console = Console()
    if not args.levers_only:
        best = "bfloat16, grouped by length"
        whole = [
            ("PyTorch", "bfloat16, padded to the longest", run([*peer, "--bf16"])),
            ("Espalier", f"{best} (its default)", run(ours)),
        ]
        console.print(_table("3 epochs", whole))
    sides = (("PyTorch", peer, PEER_LEVERS), ("Espalier", ours, OUR_LEVERS))
    timed = [
        (system, name, run([*command, *options, "--max-steps", str(STEPS)]))
        for system, command, levers in sides
        for name, options in levers.items()
    ]
    timed.sort(key=lambda row: row[1] != "float32, padded to the longest")
    console.print(_table(f"each lever, {STEPS} steps", timed))


def run(command: list[str]) -> dict[str, Any]:
    """The JSON object that a child prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _table(title: str, rows: list[tuple[str, str, dict[str, Any]]]) -> Table:
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for name in ("system", "settings", "test accuracy", "examples/s", "of the first row"):
        table.add_column(name, justify="left" if name in ("system", "settings") else "right")
    first = rows[0][2]["examples_per_second"]
    for system, settings, result in rows:
        accuracy = result["test_accuracy"]
        table.add_row(
            system, settings, f"{accuracy:.4f}" if accuracy is not None else "-",
            f"{result['examples_per_second']:.0f}", f"{result['examples_per_second'] / first:.2f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
