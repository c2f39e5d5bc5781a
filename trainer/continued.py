"""A training that goes on from the model that was pushed last: `train.from: last-blessed`."""

import logging
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import wordpiece
from .export import COMPRESSION, describe_any

if TYPE_CHECKING:
    import tf_keras as keras

    from .run import Job

progress = logging.getLogger("espalier.progress")


def is_wanted(given: dict[str, Any]) -> bool:
    """Whether there is a model to go on from; `given` is what `run.train` is given."""
    return bool(given.get("base_model")) and bool(describe_any(given["base_model"]))


def unrolled(job: "Job", learned: Any) -> "keras.Model | None":
    """The unrolled model to begin with; None where training begins with the checkpoint.

    Raises:
        DataError: it has other labels, another shape or another vocabulary than this training.
    """
    if not is_wanted(job.given):
        if job.given["train"].get("from") == "last-blessed":
            progress.info("no model was pushed before: training begins with model.start")
        return None
    from .restore import restore

    base = job.given["base_model"]
    if why := _obstacle(job, describe_any(base), learned, base):
        raise DataError(
            f"train.from: last-blessed: {why}. Take `from` out for this run, to begin with "
            f"model.start again."
        )
    progress.info("training goes on from the model that was pushed last")
    return restore(base).model


def _obstacle(job: "Job", facts: dict[str, Any], learned: Any, base: str) -> str:
    if facts["labels"] != job.labels:
        known, found = (", ".join(labels[:20]) for labels in (facts["labels"], job.labels))
        return f"the model pushed last knows the labels {known}, and the rows have {found}"
    if facts.get(COMPRESSION, {}).get("layers"):
        return "the model pushed last was distilled to fewer layers"
    settings = ("family", "start", "color", "size")
    before, now = (
        [model.get(n) for n in settings] for model in (facts["model"], job.given["model"])
    )
    if before != now:
        return f"the model pushed last is another one ({_words(before)}, and not {_words(now)})"
    if job.family.FEATURE_KIND == "text":
        folders = (base, job.transform.transform_savedmodel_dir)
        if len({tuple(wordpiece.read_vocabulary(folder)) for folder in folders}) > 1:
            return (
                "its vocabulary was learned from other rows; a checkpoint (minilm, a folder) has a "
                "vocabulary that stays"
            )
        if facts["learned"] != learned:
            return "the model pushed last reads other columns"
    return ""


def _words(values: list[Any]) -> str:
    return " ".join(str(value) for value in values if value is not None)
