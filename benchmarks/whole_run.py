"""A whole job, first and unchanged again: Espalier beside a pipeline of stock TFX components.

Needs: `make setup`; the checkpoint minilm in the cache (any run of examples/reviews.yaml puts it
there). Takes: 7 minutes on two cores, which must be idle.

    .venv/bin/python benchmarks/whole_run.py [--skip-stock]

All runs take the same CSV, 3 epochs, batch 32, length 32, each in a process of its own, one after
the other, from the command to the exit. The rerun after a first run compares with the model that
was blessed meanwhile, so stock TFX evaluates once more; its third run finds everything cached.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from espalier.pipeline.config import Config
from espalier.pipeline.store import Store

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples/reviews/data"
RUNS = ("first run", "second run", "third run")


@dataclass
class System:
    """One side: its command, where its metadata lies, and what was measured, in seconds."""

    name: str
    command: list[str]
    home: Path
    walls: list[float] = field(default_factory=list)
    trainer: float = 0.0


def main() -> None:
    """Run every system three times and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-stock", action="store_true", help="Espalier alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        systems = [] if args.skip_stock else [_stock(Path(folder))]
        systems += [_ours(name, Path(folder)) for name in ("reviews-tiny", "reviews")]
        # Read from the disk once beforehand, or the first system would pay for all.
        _run([sys.executable, "-c", "import tfx.v1, tensorflow_text, keras_nlp"], Path(folder))
        for system in systems:
            _measure(system)
    Console().print(_table(systems))


def _stock(folder: Path) -> System:
    home = folder / "stock"
    script = str(ROOT / "benchmarks/peer/stock_tfx.py")
    return System("stock TFX, tiny", [sys.executable, script, str(DATA), str(home)], home)


def _ours(name: str, folder: Path) -> System:
    file = ROOT / f"examples/{name}.yaml"
    places = {"data.csv": DATA, "runs": folder / "runs", "push.to": folder / "models" / name}
    changes = [part for key, value in places.items() for part in ("--set", f"{key}={value}")]
    command = [str(Path(sys.executable).with_name("espalier")), "run", str(file), *changes]
    title = f"Espalier, {Config.load(file, ()).model.start}"
    return System(title, command, folder / "runs" / name)


def _measure(system: System) -> None:
    """Run it three times; the first must have pushed its model."""
    for number, title in enumerate(RUNS):
        print(f"{system.name}: {title}", file=sys.stderr)
        started = time.monotonic()
        _run(system.command, system.home.parent)
        system.walls.append(time.monotonic() - started)
        if number == 0:
            _look_at_first(system)


def _look_at_first(system: System) -> None:
    store = Store(system.home)
    nodes = {node.name: node for node in store.nodes(store.runs()[-1])}
    if not nodes["Pusher"].outputs["pushed_model"].properties.get("pushed"):
        sys.exit(f"{system.name}: the model was not pushed; its times mean nothing.")
    system.trainer = nodes["Trainer"].seconds


def _run(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _table(systems: list[System]) -> Table:
    table = Table(
        title="first and unchanged further runs, seconds from command to exit",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("system", no_wrap=True)
    for name in ("first", "outside Trainer", "of stock", "second", "third", "of stock"):
        table.add_column(name, justify="right")
    stock = systems[0].walls if systems[0].name.startswith("stock") else None
    for system in systems:
        first, second, third = system.walls
        ratios = [f"{w / s:.2f}" for w, s in zip(system.walls, stock, strict=True)] if stock else []
        ratios = ratios or ["-"] * 3
        table.add_row(
            system.name, f"{first:.1f}", f"{first - system.trainer:.1f}", ratios[0],
            f"{second:.1f}", f"{third:.1f}", ratios[2],
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
