"""How long a step of training takes on this machine: a few real steps, on rows made up.

A process of its own, so that the caller needs no TensorFlow: `python -m espalier.trainer.trial`
reads measure's arguments as JSON from standard input and prints its answer as JSON.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_STEPS, _SECONDS = 5, 5.0  # whichever is over first
_VOCABULARY = 8000  # of a model that will learn its own


def measure(
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    *,
    classes: int,
    pair: bool,
    length: int,
    multi_label: bool,
) -> dict[str, float]:
    """Build the model as the Trainer would and train it for a few steps.

    Args:
        model, train: the YAML's sections.
        classes: how many labels there are.
        pair: whether a row has two texts.
        length: tokens of a row.
        multi_label: whether labels do not exclude each other.

    Returns:
        first: seconds of the first step, in which TensorFlow prepares the others.
        step: seconds of each later one.
    """
    import numpy as np
    import tensorflow as tf

    from . import families, hardware
    from .fit import compile_model
    from .settings import Train

    family, settings = families.load(model["family"]), Train(**train)
    chosen = family.Settings(**model)
    with tempfile.TemporaryDirectory() as folder, hardware.precision(settings.precision):
        learned = family.learned(chosen, _pretended(chosen, pair, Path(folder)))
        built = family.build(chosen, classes, learned)
        family.freeze(built, settings.plan[0].freeze)
        compile_model(built, settings, 1000, multi_label=multi_label)
        random = np.random.default_rng(0)
        rows = {
            name: _values(random, (settings.batch_size, *place.shape[1:]), place.dtype, length)
            for name, place in zip(built.input_names, built.inputs, strict=True)
        }
        labels = tf.one_hot(random.integers(0, classes, settings.batch_size), classes)
        taken: list[float] = []
        while len(taken) <= _STEPS and sum(taken[1:]) < _SECONDS:
            begin = time.perf_counter()
            built.train_on_batch(rows, labels)
            taken.append(time.perf_counter() - begin)
    return {"first": taken[0], "step": statistics.median(taken[1:])}


def _values(random: Any, shape: tuple[int | None, ...], dtype: Any, length: int) -> Any:
    """Ids of words, of segments, or pixels."""
    whole = tuple(length if size is None else size for size in shape)
    if dtype.is_integer:
        return random.integers(1, 2, whole, dtype="int32")
    return random.uniform(0, 255, whole).astype("float32")


def _pretended(settings: Any, pair: bool, folder: Path) -> Any:
    """What a family's `learned` reads of the transformed rows, where there are none yet."""
    import tensorflow as tf

    from . import wordpiece

    size = getattr(settings, "vocabulary_size", None) or _VOCABULARY
    os.mkdir(folder / "assets")
    wordpiece.write_vocabulary([f"[unused{n}]" for n in range(size)], str(folder / "assets"))
    return SimpleNamespace(
        spec={"segment_ids": None} if pair else {},
        transform=SimpleNamespace(transform_savedmodel_dir=str(folder)),
        pixels=lambda _: tf.data.Dataset.from_tensors(
            tf.cast(
                tf.random.uniform((8, 4, 4, 1 if settings.color == "grey" else 3)) * 255, "uint8"
            )
        ),
    )


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(measure(given.pop("model"), given.pop("train"), **given)))
