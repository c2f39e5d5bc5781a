"""Whole runs on public pictures: Fashion-MNIST, a part of CIFAR-10, chest X-rays.

Needs: `make setup`; the three data sets as their READMEs describe them, under --data. Takes: 40
minutes on two cores, most of it Fashion-MNIST.

    .venv/bin/python benchmarks/image_accuracy.py [--data FOLDER] [--work FOLDER] [SET ...]

Each is a configuration as a user would write it, run from files to a pushed version. Accuracy and
the like are those of the Evaluator on the published test pictures. The X-rays are trained twice:
from random weights, and from those that Fashion-MNIST's run has left.
"""

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from espalier import Config, RunResult, run

SHARED = Path(__file__).parents[2] / "shared" / "data"
TRAIN = {
    "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "decay": "cosine",
    "weight_decay": 5e-3, "augment": {"flip": True, "crop": 0.125},
}  # fmt: skip
X_RAY_TRAIN = {
    **TRAIN, "batch_size": 32, "epochs": 12, "learning_rate": 0.05, "class_weight": "balanced",
    "augment": {"crop": 0.125, "color": 0.2},
}  # fmt: skip
SETS = ("fashion", "cifar", "x-rays", "x-rays-from-fashion")
METRICS = ("accuracy", "f1", "recall", "specificity", "auc")


def main() -> None:
    """Run the sets named and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS, metavar="SET", help=", ".join(SETS))
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--work", type=Path, default=Path("runs/image-accuracy"))
    args = parser.parse_args()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("set", "train", "test", "epochs", "training in s", "whole run in s", *METRICS):
        table.add_column(name, justify="left" if name == "set" else "right")
    for name in args.sets:
        config = configuration(name, args.data, args.work)
        table.add_row(name, *row(config, run(config)))
    Console(width=140).print(table)


def row(config: Config, result: RunResult) -> list[str]:
    """A result's cells."""
    trainer = next(c for c in result.components if c.name == "Trainer")
    overall = result.metrics["overall"]
    history = json.loads(_left_by_trainer(config, "history.json").read_text())
    return [
        f"{result.rows['train']:,}",
        f"{result.rows['test']:,}",
        str(len(history["epochs"])),
        f"{trainer.seconds:.0f}",
        f"{result.seconds:.0f}",
        *(f"{overall[name]:.4f}" if name in overall else "-" for name in METRICS),
    ]


def configuration(name: str, data: Path, work: Path) -> Config:
    """A set's configuration; its pictures are unpacked where they come as an archive."""
    everything: dict[str, dict[str, Any]] = {
        "fashion": {
            "data": {"images": str(data / "fashion_mnist")},
            "model": {"family": "resnet", "start": "resnet20", "size": 28, "color": "grey"},
            "train": {**TRAIN, "epochs": 20},
            "evaluate": {"metrics": ["accuracy", "f1"], "at_least": {"accuracy": 0.915}},
        },
        "cifar": {
            "data": {"images": unpacked(data / "cifar10_subset", work)},
            "model": {"family": "resnet", "start": "resnet20"},
            "train": {**TRAIN, "epochs": 30},
            "evaluate": {"metrics": ["accuracy", "f1"], "at_least": {"accuracy": 0.7}},
        },
        "x-rays": {
            "data": {"images": unpacked(data / "chest_xray", work)},
            "model": {"family": "resnet", "start": "resnet20", "size": 64, "color": "grey"},
            "train": X_RAY_TRAIN,
            "evaluate": {"metrics": list(METRICS), "at_least": {"accuracy": 0.8}},
        },
    }
    everything["x-rays-from-fashion"] = {**everything["x-rays"]}
    if name == "x-rays-from-fashion":
        fashion = Config(**_whole("fashion", everything["fashion"], work))
        weights = str(_left_by_trainer(fashion, "weights.h5"))
        everything[name]["model"] = {**everything[name]["model"], "weights": weights}
    return Config(**_whole(name, everything[name], work))


def _whole(name: str, sections: dict[str, Any], work: Path) -> dict[str, Any]:
    push = {"to": str(work / "models" / name)}
    return {"name": name, "push": push, "runs": str(work / "runs"), **sections}


def _left_by_trainer(config: Config, name: str) -> Path:
    found = config.home.glob(f"artifacts/Trainer/model_run/*/{name}")
    return max(found, key=lambda file: file.stat().st_mtime)


def unpacked(source: Path, work: Path) -> str:
    """The folder that a data set's archive is unpacked into."""
    (archive,) = source.glob("*.tar.gz")
    folder = work / "data" / source.name
    if not folder.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return str(folder)


if __name__ == "__main__":
    main()
