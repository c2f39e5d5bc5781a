"""Tiny jobs of both families, made of a few hundred rows that are quickly learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.trainer import families
from espalier.trainer.compression.job import Candidate, Job
from espalier.trainer.input import Source
from espalier.trainer.settings import Train

ROWS = 192


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str) -> str:
    """Transformed Examples, as Transform leaves them."""
    import tensorflow as tf

    def feature(value: Any) -> Any:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))

    file = folder / f"{name}.gz"
    with tf.io.TFRecordWriter(str(file), "GZIP") as writer:
        for row in rows:
            features = tf.train.Features(feature={k: feature(v) for k, v in row.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return str(file)


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Token ids of up to 8, whose label is whether the word 9 comes more often than the 10."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = int(random.integers(2))
        words = random.integers(11, 30, random.integers(3, 7))
        words[:2] = 9 if label else 10
        ids = np.zeros(8, np.int64)
        ids[: len(words) + 2] = [2, *random.permutation(words), 3]
        found.append({"token_ids": ids, "label": label})
    return found


def pictures(count: int, seed: int) -> list[dict[str, Any]]:
    """Grey 8 x 8 pixels, bright on the left or on the right."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = int(random.integers(2))
        pixels = random.integers(0, 80, (8, 8, 1), dtype=np.uint8)
        pixels[:, 4 * label : 4 * label + 4] += 120
        found.append({"image": pixels.tobytes(), "label": label})
    return found


@pytest.fixture(scope="session")
def make_job(small_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """`make_job("bert" or "resnet")`: a job with a scratch folder of its own."""
    import tensorflow as tf

    shared = tmp_path_factory.mktemp("rows")
    files: dict[str, list[str]] = {}
    for name, rows in (("bert", texts), ("resnet", pictures)):
        files[name] = [
            write_rows(shared, rows(ROWS, 1), f"{name}-train"),
            write_rows(shared, rows(64, 2), f"{name}-eval"),
        ]

    def make(name: str) -> Job:
        family = families.load(name)
        given: dict[str, Any] = (
            {"start": str(small_bert), "sequence_length": 8}
            if name == "bert"
            else {"start": "resnet20", "size": 8, "color": "grey"}
        )
        settings = family.Settings(**given)
        feature = (
            {"token_ids": tf.io.FixedLenFeature([8], tf.int64)}
            if name == "bert"
            else {"image": tf.io.FixedLenFeature([], tf.string)}
        )
        spec = {**feature, "label": tf.io.FixedLenFeature([], tf.int64)}
        sources = [
            Source(
                [file], spec, 2,
                sequence=[n for n in family.SEQUENCE_FEATURES if n in spec],
                pixel_shapes=family.pixel_shapes(settings),
            )
            for file in files[name]
        ]  # fmt: skip
        learned = family.learned(settings, sources[0])
        train = Train(
            batch_size=32, learning_rate=3e-3, precision="float32",
            optimizer="adam", weight_decay=0,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        return Job(family, settings, 2, learned, train, *sources, ROWS, False, folder)

    return make


def _trained(job: Job) -> Candidate:
    import tf_keras as keras

    from espalier.trainer.fit import fit
    from espalier.trainer.input import batches

    keras.utils.set_random_seed(1)
    model = job.build()
    fit(
        model, job.batches, batches(job.evaluation, 32),
        job.train.model_copy(update={"epochs": 4}),
        steps_per_epoch=6, state_dir=job.folder / "trained", log_dir=str(job.folder / "log"),
        freeze=lambda model, what: None,
    )  # fmt: skip
    return Candidate("trained", model)


@pytest.fixture(scope="session")
def trained(make_job: Callable[..., Job]) -> Callable[[str], tuple[Job, Candidate]]:
    """`trained("bert" or "resnet")`: a job of its own, and the model that all share."""
    models: dict[str, Candidate] = {}

    def get(name: str) -> tuple[Job, Candidate]:
        if name not in models:
            models[name] = _trained(make_job(name))
        job = make_job(name)
        job.teacher = models[name]
        return job, models[name]

    return get
