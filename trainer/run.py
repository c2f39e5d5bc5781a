"""The Trainer's run function: from transformed examples to an exported SavedModel."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import augment as augment_
from . import continued, families, hardware, hdf5, states, workers
from .export import Columns, export
from .fit import State, fit
from .input import Source, batches, label_counts, weighted
from .preprocess import labels
from .settings import Train
from .sparsity import keep_zeros
from .tuning.settings import tuned

if TYPE_CHECKING:
    import tensorflow_transform as tft
    import tf_keras as keras


WEIGHTS = "weights.h5"


def run_fn(fn_args: Any) -> None:
    """Train and export; `espalier.trainer.run.run_fn` is the module path TFX's Trainer calls.

    Args:
        fn_args: tfx.components.FnArgs. Its custom_config holds `inputs` (column by served name),
            `label` (column), `multi_label`, `model`, `train` and `export` (the YAML's sections),
            `checkpoint` (what training starts from, as a hash) and `state_dir` (survives a kill).
            Its hyperparameters are what a Tuner found best, if there is one.
    """
    given = gather(fn_args)
    if fn_args.hyperparameters:
        given = with_values(given, fn_args.hyperparameters["values"])
    given |= {
        "serving_model_dir": fn_args.serving_model_dir,
        "model_run_dir": fn_args.model_run_dir,
    }
    folder = state_folder(given, "training")
    if given["train"]["distribute"] == "multi_worker":
        workers.lead(given, folder, train)
    else:
        train(given, folder)


def gather(fn_args: Any) -> dict[str, Any]:
    """What is trained on, of the FnArgs that TFX's Trainer or its Tuner makes."""
    return {
        **fn_args.custom_config,
        "transform_output": fn_args.transform_graph_path,
        "train_files": list(fn_args.train_files),
        "eval_files": list(fn_args.eval_files),
        "base_model": fn_args.base_model or "",
    }


def with_values(given: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The same with the values of a trial in `train` and `model`, and under `tuned`."""
    model = families.load(given["model"]["family"]).Settings(**given["model"])
    found, *sections = tuned(values, Train(**given["train"]), model)
    train_, model_ = (section.model_dump(mode="json") for section in sections)
    return {**given, "train": train_, "model": model_, "tuned": found}


def train(given: dict[str, Any], state_dir: Path, chief: bool = True) -> None:
    """Train, and export as the chief; on every worker the same.

    Args:
        given: what `run_fn` makes of its FnArgs: the custom_config's entries beside paths.
        state_dir: survives a kill.
        chief: whether this worker exports.
    """
    import tensorflow_transform as tft

    settings = Train(**given["train"])
    strategy = hardware.strategy(settings.distribute)  # before TensorFlow does anything else
    job = Job(given, tft.TFTransformOutput(given["transform_output"]))
    learned = job.family.learned(job.settings, job.rows)
    model, state = fitted(job, settings, strategy, learned, state_dir)
    job.family.freeze(model, 0)  # Keras orders weights by what is trainable
    unrolled = job.unroll(learned)  # float32, whatever it was trained in
    job.family.adopt(model, unrolled)  # all workers together: some weights are a mean of theirs
    if chief:
        _export(job, unrolled, learned)
        _keep_history(state, given)
        if job.rows.pixel_shapes:  # what another training can start from, by model.weights
            hdf5.save_weights(unrolled, Path(given["model_run_dir"], WEIGHTS))
        states.finish(state_dir, given["model_run_dir"])


def fitted(
    job: "Job",
    settings: Train,
    strategy: Any,
    learned: Any,
    state_dir: Path,
    *,
    until: int | None = None,
    callbacks: Sequence[Any] = (),
) -> "tuple[keras.Model, State]":
    """A new model, trained: by the Trainer, and by the Tuner in each trial.

    Args:
        job: what is trained on what.
        settings: how.
        strategy: the devices that train together.
        learned: what the data decided about the model (the family's).
        state_dir, until, callbacks: as of `fit`.
    """
    import tensorflow as tf

    tf.keras.utils.set_random_seed(settings.seed)
    (rows, counts), evaluation = label_counts(job.rows), label_counts(job.eval_rows)
    _check_labels((rows, counts), evaluation, job.labels)
    before = continued.unrolled(job, learned)
    weights = {i: rows / len(counts) / n for i, n in counts.items()}

    def train_data(epoch: int) -> Any:
        seed = settings.seed * 1000 + epoch + 1
        augment = augment_.wanted(settings.augment, job.rows.pixel_shapes, seed)
        found = batches(job.rows, settings.batch_size, shuffle_seed=seed, augment=augment)
        if settings.class_weight == "balanced":
            found = weighted(found, weights, len(job.labels))
        return hardware.share(found, strategy, training=True)

    with hardware.precision(settings.precision), strategy.scope():
        model = job.build(learned)
        if before is not None:
            job.family.resume(model, before)
        if settings.keep_sparsity:
            keep_zeros(model)
        state = fit(
            model,
            train_data,
            hardware.share(batches(job.eval_rows, settings.batch_size), strategy, training=False),
            settings,
            steps_per_epoch=-(-rows // settings.batch_size),
            eval_steps=-(-evaluation[0] // settings.batch_size),
            state_dir=state_dir,
            log_dir=os.path.join(job.given["model_run_dir"], "tensorboard"),
            freeze=job.family.freeze,
            multi_label=job.given["multi_label"],
            until=until,
            callbacks=callbacks,
        )
    return model, state


def _export(job: "Job", unrolled: "keras.Model", learned: Any) -> None:
    from . import proof  # these import TensorFlow
    from .serving_graph import Weights

    given = job.given
    served = proof.served(
        job.family, job.settings, Weights(unrolled), given["export"]["cpu"],
        job.rows, job.eval_rows, multi_label=given["multi_label"],
    )  # fmt: skip
    export(
        served, job.transform, job.labels,
        Columns(given["inputs"], given["label"], job.rows.pixel_shapes),
        given["serving_model_dir"],
        {
            "model": given["model"], "checkpoint": given["checkpoint"], "learned": learned,
            "continued": continued.is_wanted(given), **_tuned(given),
        },
        multi_label=given["multi_label"],
    )  # fmt: skip


class Job:
    """What is trained on what, from what `train` is given and the transform graph."""

    def __init__(self, given: dict[str, Any], transform: "tft.TFTransformOutput") -> None:
        self.given, self.transform = given, transform
        self.family = families.load(given["model"]["family"])
        self.settings = self.family.Settings(**given["model"])
        self.labels = labels(transform)
        self.rows, self.eval_rows = (
            self._source(given[files]) for files in ("train_files", "eval_files")
        )

    def build(self, learned: Any) -> "keras.Model":
        return self.family.build(self.settings, len(self.labels), learned)

    def unroll(self, learned: Any) -> "keras.Model":
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert
        return plain(self.family.unroll)(self.settings, len(self.labels), learned)

    def _source(self, files: list[str]) -> Source:
        import tensorflow as tf

        names = [name for pattern in files for name in tf.io.gfile.glob(pattern)]
        spec = self.transform.transformed_feature_spec()
        return Source(
            names,
            spec,
            len(self.labels),
            sequence=[n for n in self.family.SEQUENCE_FEATURES if n in spec],
            pixel_shapes=self.family.pixel_shapes(self.settings),
            transform=self.transform,
        )


Counted = tuple[int, dict[int, int]]  # rows, rows by label


def _check_labels(train: Counted, evaluation: Counted, names: list[str]) -> None:
    if train[0] == 0 or evaluation[0] == 0:
        raise DataError("The train or the eval split has no rows. Give more data.")
    if len(names) < 2:
        raise DataError(f"All training rows have the label {names[0]!r}; two are needed.")
    if unknown := evaluation[1].get(-1):
        raise DataError(
            f"{unknown} eval rows have a label that no training row has. The training "
            f"rows know: {', '.join(names[:20])}."
        )


def state_folder(given: dict[str, Any], name: str) -> Path:
    """A folder that is the same for the same job on the same inputs, in every execution."""
    apart = ("state_dir", "export", "serving_model_dir", "model_run_dir")
    key = json.dumps({k: v for k, v in given.items() if k not in apart}, sort_keys=True)
    return Path(given["state_dir"]) / name / hashlib.sha256(key.encode()).hexdigest()[:16]


def _tuned(given: dict[str, Any]) -> dict[str, Any]:
    """What a Tuner chose, for the records of a training that had one."""
    return {"tuned": given["tuned"]} if "tuned" in given else {}


def _keep_history(state: State, given: dict[str, Any]) -> None:
    facts = {"best_epoch": state.best_epoch, "epochs": state.history, **_tuned(given)}
    with open(os.path.join(given["model_run_dir"], "history.json"), "w", encoding="utf-8") as file:
        json.dump(facts, file)
