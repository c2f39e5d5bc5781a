"""The Trainer's run function: from transformed examples to an exported SavedModel."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import augment as augment_
from . import families, hardware
from .export import Columns, export
from .fit import State, fit
from .input import Source, batches, label_counts
from .preprocess import labels
from .settings import Train
from .sparsity import keep_zeros

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft
    import tf_keras as keras


WEIGHTS = "weights.h5"


def run_fn(fn_args: Any) -> None:
    """Train and export; `espalier.trainer.run.run_fn` is the module path TFX's Trainer calls.

    Args:
        fn_args: tfx.components.FnArgs. Its custom_config holds `inputs` (column by served name),
            `label` (column), `multi_label`, `model`, `train` and `export` (the YAML's sections),
            `checkpoint` (what training starts from, as a hash) and `state_dir` (survives a kill).
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    from . import proof  # these import TensorFlow
    from .serving_graph import Weights

    config = fn_args.custom_config
    settings = Train(**config["train"])
    output = tft.TFTransformOutput(fn_args.transform_output)
    tf.keras.utils.set_random_seed(settings.seed)
    job = _Job(config, output)
    source, eval_source = job.source(fn_args.train_files), job.source(fn_args.eval_files)
    rows, counts = label_counts(source)
    _check_labels((rows, counts), label_counts(eval_source), job.labels)
    weights = {i: rows / len(counts) / n for i, n in counts.items()}
    state_dir = _state_dir(config, fn_args)
    learned = job.family.learned(job.settings, source)

    def train_data(epoch: int) -> "tf.data.Dataset":
        seed = settings.seed * 1000 + epoch + 1
        augment = augment_.wanted(settings.augment, source.pixel_shapes, seed)
        return batches(source, settings.batch_size, shuffle_seed=seed, augment=augment)

    with hardware.precision(settings.precision), hardware.strategy().scope():
        model = job.build(learned)
        if settings.keep_sparsity:
            keep_zeros(model)
        state = fit(
            model,
            train_data,
            batches(eval_source, settings.batch_size),
            settings,
            steps_per_epoch=-(-rows // settings.batch_size),
            state_dir=state_dir,
            log_dir=os.path.join(fn_args.model_run_dir, "tensorboard"),
            freeze=job.family.freeze,
            multi_label=config["multi_label"],
            class_weight=weights if settings.class_weight == "balanced" else None,
        )
    job.family.freeze(model, 0)  # Keras orders weights by what is trainable
    unrolled = job.unroll(learned)  # float32, whatever it was trained in
    job.family.adopt(model, unrolled)
    served = proof.served(
        job.family, job.settings, Weights(unrolled), config["export"]["cpu"], source, eval_source,
        multi_label=config["multi_label"],
    )  # fmt: skip
    export(
        served, output, job.labels,
        Columns(config["inputs"], config["label"], source.pixel_shapes),
        fn_args.serving_model_dir,
        {"model": config["model"], "checkpoint": config["checkpoint"], "learned": learned},
        multi_label=config["multi_label"],
    )  # fmt: skip
    _keep_history(state, fn_args.model_run_dir)
    if source.pixel_shapes:  # what another training can start from, by model.weights
        unrolled.save_weights(os.path.join(fn_args.model_run_dir, WEIGHTS))
    shutil.rmtree(state_dir)


class _Job:
    """What `run_fn` derives from its custom_config and the transform graph."""

    def __init__(self, config: dict[str, Any], output: "tft.TFTransformOutput") -> None:
        self.family = families.load(config["model"]["family"])
        self.settings = self.family.Settings(**config["model"])
        self.labels = labels(output)
        self._output = output

    def build(self, learned: Any) -> "keras.Model":
        return self.family.build(self.settings, len(self.labels), learned)

    def unroll(self, learned: Any) -> "keras.Model":
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert
        return plain(self.family.unroll)(self.settings, len(self.labels), learned)

    def source(self, files: list[str]) -> Source:
        import tensorflow as tf

        names = [name for pattern in files for name in tf.io.gfile.glob(pattern)]
        spec = self._output.transformed_feature_spec()
        return Source(
            names,
            spec,
            len(self.labels),
            sequence=[n for n in self.family.SEQUENCE_FEATURES if n in spec],
            pixel_shapes=self.family.pixel_shapes(self.settings),
            transform=self._output,
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


def _state_dir(config: dict[str, Any], fn_args: Any) -> Path:
    """A folder that is the same for the same job on the same inputs, in every execution."""
    job = {k: v for k, v in config.items() if k not in ("state_dir", "export")}
    key = json.dumps([job, fn_args.train_files, fn_args.transform_output], sort_keys=True)
    return Path(config["state_dir"]) / "training" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _keep_history(state: State, folder: str) -> None:
    with open(os.path.join(folder, "history.json"), "w", encoding="utf-8") as file:
        json.dump({"best_epoch": state.best_epoch, "epochs": state.history}, file)
