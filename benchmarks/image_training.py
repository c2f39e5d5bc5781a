"""Training steps of ResNet-20 on Fashion-MNIST: Espalier's Trainer beside a plain PyTorch loop.

Needs: `make setup`; Fashion-MNIST's idx files; a Python with torch and numpy for the peer. Takes:
4 minutes on two cores, which must be idle.

    .venv/bin/python benchmarks/image_training.py --peer PEER/bin/python [--idx FOLDER]

Both sides: batch 128, SGD with momentum, pictures moved by up to an eighth and mirrored, two
threads, 60 steps after 5. Ours read transformed examples from disk, as the Trainer does; "one
batch again and again" has no input pipeline at all, and shows what that one costs. Each side runs
twice in turn, and the faster counts.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune import run
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data" / "fashion_mnist"
STEPS, SKIPPED, BATCH, ROUNDS = 60, 5, 128, 2
FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
OURS = {
    "float32": ["--precision", "float32"],
    "bfloat16 (its default here)": ["--precision", "bfloat16"],
    "bfloat16, one batch again and again": ["--precision", "bfloat16", "--synthetic"],
}
PEER: dict[str, list[str]] = {"float32": [], "bfloat16, channels last": ["--bf16"]}


def main() -> None:
    """Run all in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="a Python with torch and numpy")
    parser.add_argument("--idx", type=Path, default=SHARED, help="folder of Fashion-MNIST")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--synthetic", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(measure(args.idx, args.precision, args.synthetic)))
        return
    images, labels = (str(args.idx / name) for name in FILES)
    peer = [args.peer, str(HERE / "peer" / "resnet.py"), "--images", images, "--labels", labels]
    ours = [sys.executable, __file__, "--ours", "--idx", str(args.idx)]
    sides = {"PyTorch": (peer, PEER), "Espalier": (ours, OURS)}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for system, (command, levers) in sides.items():
            for name, options in levers.items():
                result = run([*command, *options])
                best = found.setdefault((system, name), result)
                if result["images_per_second"] > best["images_per_second"]:
                    found[system, name] = result
    show(found)


def show(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    """One row each, beside the peer's first."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("system", "settings", "images/s", "ms a step", "ratio"):
        table.add_column(name, justify="left" if name in ("system", "settings") else "right")
    first = next(iter(found.values()))["images_per_second"]
    for (system, settings), result in found.items():
        speed = result["images_per_second"]
        row = (f"{speed:.0f}", f"{result['step_ms']:.1f}", f"{speed / first:.2f}")
        table.add_row(system, settings, *row)
    Console().print(table)


def measure(idx: Path, precision: str, synthetic: bool) -> dict[str, Any]:
    """Time our steps, with the Trainer's own functions, in this process."""
    import espalier  # noqa: F401 - first, since it makes TensorFlow take Keras 2

    # isort: split
    import tensorflow as tf
    import tf_keras as keras
    from ours_finetune import StepTimes

    from espalier.trainer import hardware
    from espalier.trainer.augment import augmentation
    from espalier.trainer.families import resnet
    from espalier.trainer.fit import compile_model
    from espalier.trainer.input import batches
    from espalier.trainer.settings import Augment, Train

    keras.utils.set_random_seed(0)
    settings = Train(optimizer="sgd", learning_rate=0.1, batch_size=BATCH, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        source = write(idx, f"{folder}/rows.gz", (STEPS + SKIPPED + 1) * BATCH)
        model_settings = resnet.Settings(start="resnet20", size=28, color="grey")
        with hardware.precision(precision):
            model = resnet.build(model_settings, 10, resnet.learned(model_settings, source))
        compile_model(model, settings, STEPS)
        augment = augmentation(Augment(flip=True, crop=0.125), "image", 1)
        data = batches(source, BATCH, shuffle_seed=1, augment=augment)
        if synthetic:
            one = next(iter(data))
            data = tf.data.Dataset.from_tensors(one).repeat(STEPS + SKIPPED + 1)
        times = StepTimes(None)
        model.fit(data, epochs=1, callbacks=[times], verbose=0)
    timed = times.seconds[SKIPPED:]
    return {
        "images_per_second": BATCH * len(timed) / sum(timed),
        "step_ms": 1000 * sum(timed) / len(timed),
        "parameters": int(sum(w.shape.num_elements() for w in model.trainable_weights)),
    }


def write(idx: Path, to: str, rows: int) -> Any:
    """The first rows as Transform writes them: pixels as bytes, a label id, in a gzipped file."""
    import tensorflow as tf

    from espalier.components.faults import Faults
    from espalier.components.image_example_gen import idx as idx_files
    from espalier.trainer.input import Source

    pixels, labels = (idx_files.load(idx / name, Faults())[:rows] for name in FILES)
    with tf.io.TFRecordWriter(to, "GZIP") as writer:
        for picture, label in zip(pixels, labels, strict=True):
            example = tf.train.Example()
            example.features.feature["image"].bytes_list.value.append(picture.tobytes())
            example.features.feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
    spec = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    return Source([to], spec, 10, pixel_shapes={"image": (*pixels.shape[1:], 1)})


if __name__ == "__main__":
    main()
