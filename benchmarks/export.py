"""How fast what is exported answers, beside the Keras graph and ONNX Runtime: MiniLM on SST-2.

Needs: `benchmarks/compression.py bert` has run with the same --work (its trained model and its best
student are measured); for the peer a Python with torch, transformers, onnx and onnxruntime. Takes:
ten minutes on two cores, which must be idle.

    .venv/bin/python benchmarks/export.py [--peer PEER/bin/python] [--work runs/compression]

One process per model, asked in turn with raw texts: what tokenizes them counts. ONNX Runtime's
client pads to 64, as our graph is given rows, or to the longest text of the batch.
"""

import argparse
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import rounds
from compression import SHARED, configuration, ours, surroundings, theirs, to_onnx
from rich.console import Console
from rich.table import Table

from espalier.errors import ConfigError
from espalier.trainer import proof
from espalier.trainer.compression.job import Candidate, Job
from espalier.trainer.compression.setup import prepare
from espalier.trainer.export import Columns, export
from espalier.trainer.restore import Restored, restore
from espalier.trainer.serving_graph import Served, Weights

# (title, threads, clients)
CASES = (("1 client, 2 threads", 2, 1), ("2 clients, 1 thread each", 1, 2))
PADDED, TIGHT = "ORT int8, padded", "ORT int8, tight"
ONNX = (
    ("ORT fp32, padded", "fp32.onnx", "max_length"),
    ("ORT fp32, tight", "fp32.onnx", "longest"),
    (PADDED, "int8.onnx", "max_length"),
    (TIGHT, "int8.onnx", "longest"),
)
Command = Callable[[int], list[str]]  # threads -> what starts a worker


def main() -> None:
    """Export each way, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with torch, transformers, onnx, onnxruntime")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--work", type=Path, default=Path("runs/compression"))
    args = parser.parse_args()
    console = Console(width=150)
    models = exported(args, console)
    test = args.data / "sst2_sentence" / "test.csv"
    commands: dict[str, Command] = {
        name: functools.partial(ours, version, test) for name, version in models.items()
    }
    if args.peer:
        commands |= peers(args, test)
    right = answers(commands, rounds.true_labels(test))
    for title, threads, clients in CASES:
        workers = {
            name: [rounds.Worker(command(threads)) for _ in range(clients)]
            for name, command in commands.items()
        }
        times = {
            size: rounds.in_turn(workers, size, 8, calls) for size, calls in ((1, 25), (32, 3))
        }
        for these in workers.values():
            for worker in these:
                worker.close()
        console.print(table(title, right, times), "")


def exported(args: argparse.Namespace, console: Console) -> dict[str, Path]:
    """SavedModels by name: Keras' graph, the serving graphs, and the student's."""
    given = surroundings(configuration("bert", args), args.work / "scratch" / "export")
    restored = restore(str(given.version), given.transform_graph)
    job, trained, _ = prepare(given)
    student = job.build(3)
    student.load_weights(str(args.work / "bert-best.h5"))
    formats = json.loads((args.work / "bert-best.json").read_text())["formats"]
    found = {"Keras": write(restored, job, as_keras_nlp(restored, job), args.work, "keras")}
    for label, candidate in (
        ("", trained),
        ("student, ", Candidate("student", student, layers=3, formats=formats)),
    ):
        for cpu in ("any", "bf16", "int8"):
            try:
                served = graph(job, candidate, cpu)
            except ConfigError as error:
                console.print(f"{label}{cpu}: not measured. {error}")
                continue
            name = f"{label}{cpu}"
            console.print(f"{name}: {served.facts['verdict']}")
            found[name] = write(restored, job, served, args.work, name.replace(", ", "-"))
    return found


def graph(job: Job, candidate: Candidate, cpu: str) -> Served:
    """As the Trainer and the Compressor make it."""
    weights = Weights(candidate.model, candidate.formats)
    return proof.served(
        job.family, job.settings, weights, cpu, job.source, job.evaluation, layers=candidate.layers
    )


def as_keras_nlp(restored: Restored, job: Job) -> Served:
    """The graph that was trained: keras-nlp's layers."""
    from espalier.trainer.families._bert_unrolled import _PARTS

    model = job.family.build(job.settings, job.classes, job.learned)
    for layer in filter(lambda layer: layer.weights, model.layers):
        parts = [f"_{part}" for part in _PARTS] if "transformer" in layer.name else [""]
        unrolled = [restored.model.get_layer(layer.name + part) for part in parts]
        arrays = [weight for one in unrolled for weight in one.get_weights()]
        layer.set_weights([a.reshape(w.shape) for a, w in zip(arrays, layer.weights, strict=True)])
    weights = Weights(model)
    return Served(lambda features: model(features, training=False), weights, {"verdict": ""})


def write(restored: Restored, job: Job, served: Served, work: Path, name: str) -> Path:
    """Export it."""
    folder = work / "exported" / name
    shutil.rmtree(folder, ignore_errors=True)
    export(
        served, restored.transform, restored.facts["labels"], Columns.described(restored.facts),
        str(folder), {"model": {}},
    )  # fmt: skip
    return folder


def peers(args: argparse.Namespace, test: Path) -> dict[str, Command]:
    """Commands of ONNX Runtime's workers, of the trained model and of the student."""
    given = surroundings(configuration("bert", args), args.work / "scratch" / "export")
    job, trained, _ = prepare(given)
    student = job.build(3)
    student.load_weights(str(args.work / "bert-best.h5"))
    found: dict[str, Command] = {}
    for label, model in (("", trained.model), ("student, ", student)):
        folder = args.work / "onnx" / (label or "trained").strip(", ")
        to_onnx(args.peer, model, folder)
        for name, file, padding in ONNX if not label else ONNX[-1:]:
            found[f"{label}{name}"] = functools.partial(
                theirs, args.peer, folder / file, test, padding=padding
            )
    return found


def answers(commands: Mapping[str, Command], labels: list[int]) -> dict[str, tuple[float, float]]:
    """(accuracy, share of rows answered as Keras answers them) by name."""
    found: dict[str, tuple[float, float]] = {}
    keras: list[int] = []
    for name, command in commands.items():
        worker = rounds.Worker(command(2))
        right, said = rounds.accuracy(worker, labels)
        worker.close()
        keras = keras or said
        found[name] = (right, sum(a == b for a, b in zip(said, keras, strict=True)) / len(said))
    return found


def table(
    title: str, right: dict[str, tuple[float, float]], times: dict[int, dict[str, float]]
) -> Table:
    """A line for each model: milliseconds, and how many times faster than three others."""
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    shown.add_column("model")
    beside = [name for name in ("Keras", PADDED, TIGHT) if name in right]
    for name in ("test", "as Keras"):
        shown.add_column(name, justify="right")
    for size in times:
        for name in (f"{size} row(s), ms", *(f"x {other}" for other in beside)):
            shown.add_column(name, justify="right")
    for name, (accuracy, agreement) in right.items():
        cells = []
        for of in times.values():
            cells += [f"{of[name]:.2f}", *(f"{of[other] / of[name]:.2f}" for other in beside)]
        shown.add_row(name, f"{accuracy:.4f}", f"{agreement:.4f}", *cells)
    return shown


if __name__ == "__main__":
    main()
