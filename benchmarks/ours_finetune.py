"""Espalier's side of benchmarks/finetune.py: the same fine-tune through trainer/, without TFX.

    .venv/bin/python benchmarks/ours_finetune.py --train A.csv --eval B.csv --test C.csv [...]

Rows are tokenized by the family's own preprocess() and written as Transform would write them;
input, loop and precision are the Trainer's. Prints one JSON object, like the peer.
"""

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import espalier  # noqa: F401 - first, since it makes TensorFlow take Keras 2

# isort: split
import numpy as np
import tensorflow as tf
import tf_keras as keras

from espalier.trainer import families, hardware
from espalier.trainer.fit import compile_model, fit
from espalier.trainer.input import Source, batches
from espalier.trainer.settings import Train

SKIPPED_STEPS = 10  # the first steps trace the graph


class StepTimes(keras.callbacks.Callback):
    """Seconds from the end of one step to the end of the next, waiting for input included."""

    def __init__(self, max_steps: int | None) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._last: float | None = None
        self._max = max_steps

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Do not count what lies between epochs."""
        self._last = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the step."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        if self._max and len(self.seconds) >= self._max:
            self.model.stop_training = True


def main() -> None:
    """Parse the options, train, print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "eval", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--checkpoint", default="minilm")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--no-group", action="store_true", help="pad every row to --length")
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--max-steps", type=int, help="stop early: for timing alone")
    print(json.dumps(finetune(parser.parse_args())))


def finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate with the Trainer's own functions."""
    started = time.perf_counter()
    tf.config.threading.set_intra_op_parallelism_threads(2)
    keras.utils.set_random_seed(args.seed)
    family = families.load("bert")
    settings = family.Settings(start=args.checkpoint, sequence_length=args.length)
    train_settings = Train(
        epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate
    )
    with tempfile.TemporaryDirectory() as folder:
        names: dict[str, int] = {}
        train = write(args.train, family, settings, names, f"{folder}/train.gz", args.rows)
        evaluation = write(args.eval, family, settings, names, f"{folder}/eval.gz")
        test = write(args.test, family, settings, names, f"{folder}/test.gz")
        rows, group = _count(train), not args.no_group
        steps = -(-rows // args.batch_size)
        times = StepTimes(args.max_steps)
        with hardware.precision(args.precision):
            model = family.build(settings, len(names), family.learned(settings, train))

        def data(epoch: int) -> tf.data.Dataset:
            return batches(train, args.batch_size, shuffle_seed=epoch + 1, group=group)

        accuracy = None
        if args.max_steps:
            compile_model(model, train_settings, steps)
            model.jit_compile = args.xla
            model.fit(data(0), epochs=1, callbacks=[times], verbose=0)
        else:
            _fit_timed(model, data, batches(evaluation, args.batch_size), train_settings, steps,
                       Path(folder), times)  # fmt: skip
            accuracy = model.evaluate(batches(test, args.batch_size), verbose=0)[1]
    timed = times.seconds[SKIPPED_STEPS:]
    return {
        "system": f"espalier, tensorflow {tf.__version__}",
        "test_accuracy": accuracy,
        "examples_per_second": args.batch_size * len(timed) / sum(timed),
        "steps": len(times.seconds),
        "wall_seconds": time.perf_counter() - started,
        "settings": vars(args),
    }


def _fit_timed(
    model: Any, data: Any, evaluation: Any, settings: Train, steps: int, folder: Path, times: Any
) -> None:
    """`fit` as the Trainer calls it, with the clock among Keras's callbacks."""
    plain = model.fit
    model.fit = lambda *a, callbacks, **k: plain(*a, callbacks=[*callbacks, times], **k)
    fit(
        model, data, evaluation, settings, steps_per_epoch=steps,
        state_dir=folder / "state", log_dir=str(folder / "logs"), freeze=lambda model, parts: None,
    )  # fmt: skip


def write(
    file: str, family: Any, settings: Any, names: dict[str, int], to: str, rows: int | None = None
) -> Source:
    """Tokenize a CSV's rows into a TFRecord file, as Transform does."""
    with open(file, encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))[:rows]
    features = family.preprocess({"text": tf.constant([row["text"] for row in table])}, settings)
    labels = [names.setdefault(row["label"], len(names)) for row in table]
    with tf.io.TFRecordWriter(to, "GZIP") as writer:
        for ids, label in zip(features["token_ids"].numpy(), labels, strict=True):
            writer.write(_example(ids, label))
    spec = {
        "token_ids": tf.io.FixedLenFeature([settings.sequence_length], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    return Source([to], spec, len(names), ["token_ids"])


def _example(ids: np.ndarray, label: int) -> bytes:
    def integers(values: Any) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = tf.train.Features(feature={"token_ids": integers(ids), "label": integers([label])})
    return tf.train.Example(features=features).SerializeToString()


def _count(source: Source) -> int:
    return sum(1 for _ in tf.data.TFRecordDataset(source.files, compression_type="GZIP"))


if __name__ == "__main__":
    main()
