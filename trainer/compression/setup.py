"""From a trained version and transformed rows to what a recipe needs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ... import cpu
from ...files import to_disk
from ..export import COMPRESSION, TRANSFORM, Columns, export
from ..input import Source, label_counts
from ..proof import served
from ..restore import Restored, restore
from ..serving_graph import Weights
from ..settings import Train
from .job import Candidate, Job
from .recipe import Export
from .tflite import TFLITE

if TYPE_CHECKING:
    import tensorflow_transform as tft


@dataclass(frozen=True)
class Surroundings:
    """Where a recipe's inputs lie.

    Attributes:
        version: the trained SavedModel.
        transform_graph: Transform's output; the copy in the version where it is None.
        train_files, eval_files: transformed rows, gzipped TFRecords of tf.Example.
        train: how the model was trained.
        folder: scratch.
    """

    version: Path
    transform_graph: str | None
    train_files: Sequence[str]
    eval_files: Sequence[str]
    train: Train
    folder: Path


def prepare(given: Surroundings) -> tuple[Job, Candidate, Export]:
    """The job, the trained model unrolled, and the writer of SavedModels.

    Raises ConfigError if the version cannot be rebuilt, or this machine cannot compute its graph.
    """
    import tensorflow_transform as tft

    restored = restore(str(given.version))
    graph = given.transform_graph or str(given.version / TRANSFORM)
    transform = tft.TFTransformOutput(graph)
    family, settings = restored.family, restored.settings
    # Before anything is trained: each candidate is exported as the trained model was.
    cpu.choose(restored.facts["graph"]["wanted"], getattr(family, "SERVED", ["any"]))
    spec = transform.transformed_feature_spec()
    classes = len(restored.facts["labels"])

    def source(files: Sequence[str]) -> Source:
        return Source(
            files,
            spec,
            classes,
            sequence=[name for name in family.SEQUENCE_FEATURES if name in spec],
            pixel_shapes=family.pixel_shapes(settings),
            transform=transform,
        )

    train = source(given.train_files)
    trained = Candidate("trained", restored.model)
    job = Job(
        family,
        settings,
        classes,
        restored.learned,
        given.train,
        train,
        source(given.eval_files),
        label_counts(train)[0],
        restored.facts["multi_label"],
        given.folder,
        teacher=trained,
    )
    return job, trained, _exporter(restored, transform, job)


def _exporter(restored: Restored, transform: "tft.TFTransformOutput", job: Job) -> Export:
    def write(candidate: Candidate, folder: Path) -> None:
        unfinished = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        known = ("model", "checkpoint", "learned", "tuned")
        facts = {key: restored.facts[key] for key in known if key in restored.facts}
        compression = {
            "after": candidate.name, "layers": candidate.layers, "formats": dict(candidate.formats)
        }  # fmt: skip
        graph = served(
            restored.family,
            restored.settings,
            Weights(candidate.model, candidate.formats),
            restored.facts["graph"]["wanted"],
            job.source,
            job.evaluation,
            layers=candidate.layers,
            multi_label=job.multi_label,
        )
        export(
            graph,
            transform,
            restored.facts["labels"],
            Columns.described(restored.facts),
            str(unfinished),
            {**facts, COMPRESSION: compression},
            multi_label=job.multi_label,
        )
        if candidate.tflite:
            shutil.copyfile(candidate.tflite, unfinished / TFLITE)
        to_disk(unfinished)
        unfinished.rename(folder)

    return write
