"""What compression costs and gains: MiniLM on SST-2's sentences, ResNet-20 on Fashion-MNIST.

Needs: `make setup`; the data sets as their READMEs describe them, under --data; for the peer a
Python with torch, transformers, onnx and onnxruntime. Takes: an hour and a half on two cores,
which must be idle: each line of the log is kept in --work, and a second call goes on behind it.

    .venv/bin/python benchmarks/compression.py [--peer PEER/bin/python] [--seeds 3] [bert] [resnet]

One model of each family is trained; the seeds are those of the training that its recipes do.
Accuracies are those of the exported SavedModels on the published test rows (and the 872 validation
rows); sizes and latencies are measured side by side in one process, the peer in one of its own. The
control of pruning is the same model trained on for as many steps without pruning, on the labels;
the pruned one learns from labels and teacher, as it does in a run.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rounds
from rich.console import Console
from rich.table import Table

from espalier import Config, run
from espalier.trainer import checkpoints
from espalier.trainer.compression import recipe
from espalier.trainer.compression.job import Candidate, Job
from espalier.trainer.compression.measure import Served, batched, quality, sizes
from espalier.trainer.compression.prune import prune, pruning
from espalier.trainer.compression.settings import Compress, Prune
from espalier.trainer.compression.setup import Surroundings, prepare
from espalier.trainer.fit import compile_model
from espalier.trainer.restore import restore

HERE = Path(__file__).parent
PEER = HERE / "peer" / "onnx_bert.py"
SHARED = HERE.parents[1] / "shared" / "data"
INT8 = {"quantize": {"to": "int8", "how": "weights"}}
TRAINING = {
    "bert": {"epochs": 3, "learning_rate": 1e-4},
    "resnet": {
        "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "decay": "cosine",
        "weight_decay": 5e-3, "epochs": 12, "augment": {"flip": True, "crop": 0.125},
    },
}  # fmt: skip
PRUNED = {"bert": {"epochs": 2}, "resnet": {"epochs": 2, "learning_rate": 0.02}}
RECIPES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "bert": {
        "int8 weights": [INT8],
        "best": [
            {"distill": {"layers": 3, "epochs": 3, "learning_rate": 2e-4}},
            {"prune": {"sparsity": 0.65, "epochs": 2}},
            {"cluster": {"clusters": 13, "learning_rate": 2e-5}},
            INT8,
        ],
    },
    "resnet": {
        "best": [
            {"prune": {"sparsity": 0.88, **PRUNED["resnet"], "epochs": 5}},
            {"cluster": {"clusters": 10, "learning_rate": 0.002}},
            INT8,
        ],
    },
}


def main() -> None:
    """Run what is named and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=["bert", "resnet"])
    parser.add_argument("--peer", help="a Python with torch, transformers, onnx, onnxruntime")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--work", type=Path, default=Path("runs/compression"))
    args = parser.parse_args()
    console = Console(width=150)
    for family in args.families:
        found = [row for seed in range(args.seeds) for row in one_seed(family, seed, args)]
        console.print(summary(family, found))
    if args.peer and "bert" in args.families:
        console.print(beside_onnx(args))


def names_of(family: str) -> list[str]:
    """What is tried on each seed's model."""
    alone = ["control", "pruned 50 %", "pruned 70 %"] if family == "bert" else []
    return [*alone, *RECIPES[family]]


def one_seed(family: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one seed: {"recipe", "step", "accuracy", "validation", ...}."""
    log = args.work / f"{family}-{seed}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {row["recipe"] for row in rows}
    left = [n for n in names_of(family) if n not in done and (seed == 0 or n != "int8 weights")]
    if not left:
        return rows
    config = configuration(family, args)
    if not Path(config.push.to).exists() and not run(config).pushed:
        raise SystemExit("the model was not pushed")
    for name in left:
        if name in RECIPES[family]:
            new = compressed(config, name, seed, args)
        else:
            new = [trained_on(config, name, seed, args)]
        rows += [{"recipe": name, **row} for row in new]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def configuration(family: str, args: argparse.Namespace) -> Config:
    """The job, as a user would write it."""
    name = f"{family}-0"
    sst = args.data / "sst2_sentence"
    data: dict[str, Any] = {"images": str(args.data / "fashion_mnist")}
    model: dict[str, Any] = {"family": "resnet", "start": "resnet20", "size": 28, "color": "grey"}
    if family == "bert":
        splits = {"train": "train", "eval": "validation", "test": "test"}
        files = {split: str(sst / f"{file}.csv") for split, file in splits.items()}
        data = {"text": "text", "label": "label", "csv": files}
        model = {"family": "bert", "start": "minilm", "sequence_length": 64}
    return Config(
        name=name, data=data, model=model, train=TRAINING[family],
        push={"to": str(args.work / "models" / name)}, runs=str(args.work / "runs"),
    )  # fmt: skip


def surroundings(config: Config, folder: Path, seed: int = 0) -> Surroundings:
    """The run's trained model and transformed rows."""
    home = config.home / "artifacts"

    def newest(pattern: str) -> Path:
        return max(home.glob(pattern), key=lambda path: path.stat().st_mtime)

    rows = newest("Transform/transformed_examples/*")
    return Surroundings(
        newest("Trainer/model/*") / "Format-Serving",
        str(newest("Transform/transform_graph/*")),
        [str(file) for file in sorted((rows / "Split-train").iterdir())],
        [str(file) for file in sorted((rows / "Split-eval").iterdir())],
        config.train.model_copy(update={"seed": seed}),
        folder,
    )


def raw_rows(config: Config, split: str) -> list[bytes]:
    """Serialized raw Examples of a split."""
    import tensorflow as tf

    found = config.home.glob(f"artifacts/ExampleGen/examples/*/Split-{split}/*")
    newest = max(found, key=lambda file: file.stat().st_mtime).parent
    files = sorted(map(str, newest.iterdir()))
    return list(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


def accuracy(version: Path, rows: list[bytes]) -> float:
    """Of a SavedModel, in a session, on raw rows."""
    import numpy as np

    served = Served(version)
    labels, scores = (served.function(*names) for names in (
        ("transform_label", "espalier_label"), ("serve_examples", "scores"),
    ))  # fmt: skip
    portions = [np.array(portion, dtype=object) for portion in batched(rows)]
    truth = np.concatenate([labels(portion) for portion in portions])
    said = np.concatenate([scores(portion).argmax(axis=1) for portion in portions])
    served.close()
    return quality(said, truth)["accuracy"]


def compressed(
    config: Config, name: str, seed: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A recipe's rows: the trained model, and what each step has left."""
    family = config.model.family
    folder = args.work / "scratch" / f"{family}-{seed}-{name.replace(' ', '')}"
    given = surroundings(config, folder, seed)
    job, trained, export = prepare(given)
    outcome = recipe.run(
        job, trained, Compress(steps=RECIPES[family][name]), version=given.version,
        export=export, rows=raw_rows(config, "eval"),
    )  # fmt: skip
    test = raw_rows(config, "test")
    rows = []
    for candidate in outcome.report["candidates"]:
        step = candidate["name"]
        version = given.version if step == "trained" else folder / "versions" / step
        figures = candidate["figures"]
        rows.append({
            "step": step, "test": accuracy(version, test), "validation": figures["accuracy"],
            "agreement": figures["agreement"], "bytes": figures["bytes"],
            "gzipped": figures["gzipped"], "nonzero": figures["nonzero"] / figures["parameters"],
            "latency": figures["latency_ms"], "memory": figures["memory_bytes"],
            "seconds": candidate["seconds"],
        })  # fmt: skip
    if name == "best" and seed == 0:  # what stands beside ONNX Runtime
        kept = args.work / f"{family}-best"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "versions" / step, kept)
        for file in folder.glob(f"{step}.*"):  # its weights and formats, for export.py
            shutil.copy(file, args.work / f"{family}-best{file.suffix}")
    shutil.rmtree(folder)
    return rows


def trained_on(config: Config, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The trained model after two more epochs: pruned, or (the control) as it is."""
    folder = args.work / "scratch" / f"bert-{seed}-{name.replace(' ', '')}"
    shutil.rmtree(folder, ignore_errors=True)
    job, trained, export = prepare(surroundings(config, folder, seed))
    found: dict[str, Any] = {"step": name}
    if name == "control":
        with job.precision():
            model = job.copy(trained)
        job.tune(model, name, PRUNED["bert"]["epochs"], 0.5 * job.train.learning_rate)
        after = job.next(trained, name, model.get_weights())
        if seed == 0:
            found["slowdown"] = slowdown(job, trained)
    else:
        sparsity = int(name.split()[1]) / 100
        after = prune(trained, job, Prune(sparsity=sparsity, **PRUNED["bert"]))
        found["zeros"] = after.facts["zeros"]
    export(after, folder / "version")
    for split, of in (("test", "test"), ("eval", "validation")):
        found[of] = accuracy(folder / "version", raw_rows(config, split))
    found["bytes"], found["gzipped"] = sizes(folder / "version")
    shutil.rmtree(folder)
    return found


def slowdown(job: Job, trained: Candidate, steps: int = 60) -> float:
    """How much longer a training step takes with TF-MOT's pruning, by rounds in turn."""
    import tensorflow_model_optimization as tfmot

    with job.precision():
        models = [job.copy(trained), job.copy(trained)]
    settings = Prune(sparsity=0.5, epochs=2)
    models[1] = pruning(models[1], job, settings)
    data = job.batches(0).take(steps).cache()
    times: list[list[float]] = [[], []]
    for number in range(4):
        for place, model in enumerate(models):
            if number == 0:
                compile_model(model, job.train, steps)
            callbacks = [tfmot.sparsity.keras.UpdatePruningStep()] if place else []
            begin = time.monotonic()
            model.fit(data, epochs=1, verbose=0, callbacks=callbacks)
            if number:  # the first round traces
                times[place].append(time.monotonic() - begin)
    return statistics.median(times[1]) / statistics.median(times[0]) - 1


def summary(family: str, rows: list[dict[str, Any]]) -> Table:
    """Mean (lowest to highest) over the seeds; sizes and times against the trained model's."""
    table = Table(title=family, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("recipe", "after", "test", "validation", "agrees", "smaller", "gzipped smaller",
                 "faster, 1 row", "faster, 32", "step slower"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("recipe", "after") else "right")
    trained = [row for row in rows if row["recipe"] == "best" and row["step"] == "trained"]
    for key in dict.fromkeys((row["recipe"], row["step"]) for row in rows):
        same = [row for row in rows if (row["recipe"], row["step"]) == key]
        own = [r for r in rows if (r["recipe"], r["step"]) == (key[0], "trained")] or trained
        table.add_row(*key, *cells(same, own))
    return table


def cells(rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> list[str]:
    """One line's numbers; what was not measured is left out."""

    def column(pick: Any, digits: int) -> str:
        try:
            return spread([pick(r, t) for r, t in zip(rows, trained, strict=False)], digits)
        except KeyError:
            return ""

    return [
        column(lambda r, t: r["test"], 4),
        column(lambda r, t: r["validation"], 4),
        column(lambda r, t: r["agreement"], 3),
        column(lambda r, t: t["bytes"] / r["bytes"], 2),
        column(lambda r, t: t["gzipped"] / r["gzipped"], 2),
        *(
            column(lambda r, t, n=n: t["latency"][n]["median"] / r["latency"][n]["median"], 2)
            for n in ("1", "32")
        ),
        "".join(f"{row['slowdown']:.2f}" for row in rows if "slowdown" in row),
    ]


def spread(values: list[float], digits: int) -> str:
    """Mean, with the lowest and the highest where they differ."""
    mean = f"{statistics.mean(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def beside_onnx(args: argparse.Namespace) -> Table:
    """The trained model of seed 0 and its best recipe beside ONNX Runtime's, in turn."""
    config = configuration("bert", args)
    trained = surroundings(config, args.work / "scratch" / "onnx").version
    test = args.data / "sst2_sentence" / "test.csv"
    folder = args.work / "onnx"
    to_onnx(args.peer, restore(str(trained)).model, folder)
    versions = {"trained": trained, "best": args.work / "bert-best"}
    commands = {f"Espalier, {name}": ours(version, test) for name, version in versions.items()}
    files = {"fp32": "fp32.onnx", "dynamic int8": "int8.onnx"}
    for name, file in files.items():
        commands[f"ONNX Runtime, {name}"] = theirs(args.peer, folder / file, test)
    sizes_ = [*(sizes(version)[0] for version in versions.values()),
              *((folder / file).stat().st_size for file in files.values())]  # fmt: skip
    workers = {name: [rounds.Worker(command)] for name, command in commands.items()}
    labels = rounds.true_labels(test)
    table = Table(title="beside ONNX Runtime (2 threads, padded to the longest)", box=None,
                  title_justify="left", padding=(0, 2, 0, 0))  # fmt: skip
    for name in ("model", "test", "MB", "1 row, ms", "32 rows, ms"):
        table.add_column(name, justify="left" if name == "model" else "right")
    right = {name: rounds.accuracy(one, labels)[0] for name, (one,) in workers.items()}
    times = [rounds.in_turn(workers, size, 8, calls) for size, calls in ((1, 20), (32, 3))]
    for (name, (worker,)), size in zip(workers.items(), sizes_, strict=True):
        table.add_row(name, f"{right[name]:.4f}", f"{size / 1e6:.1f}",
                      *(f"{of[name]:.2f}" for of in times))  # fmt: skip
        worker.close()
    return table


def to_onnx(python: str, model: Any, folder: Path) -> None:
    """Write fp32.onnx and int8.onnx of an unrolled BERT, with the peer's Python."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{layer.name}/{place}": array
        for layer in model.layers
        for place, array in enumerate(layer.get_weights())
    }
    np.savez(folder / "weights.npz", **arrays)
    checkpoint = str(checkpoints.resolve("minilm"))
    weights = str(folder / "weights.npz")
    subprocess.run([python, str(PEER), "convert", checkpoint, weights, str(folder)], check=True)


def ours(version: Path, test: Path, threads: int = 2) -> list[str]:
    """The command of a worker that serves a SavedModel."""
    script = HERE / "saved_model_worker.py"
    return [sys.executable, str(script), str(version), str(test), str(threads)]


def theirs(
    python: str, file: Path, test: Path, threads: int = 2, *, padding: str = "longest"
) -> list[str]:
    """The command of a worker that serves an ONNX file."""
    checkpoint = str(checkpoints.resolve("minilm"))
    return [python, str(PEER), "serve", str(file), checkpoint, str(test), str(threads), padding]


if __name__ == "__main__":
    main()
