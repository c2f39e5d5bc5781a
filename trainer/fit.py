"""The training loop, the same for every family: stages and epochs, and it can be killed.

After each epoch the model, its optimizer and the history are on disk; a second call with the
same folder goes on behind the last whole epoch, with the same rows in the same order.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import to_disk, write_whole
from .settings import Stage, Train

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

progress = logging.getLogger("espalier.progress")


@dataclass
class State:
    """What must survive a kill, beside the weights."""

    epoch: int = 0
    stage: int = 0
    stage_begin: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    checkpoint: str = ""
    best: str = ""
    seconds: float = 0.0  # of training, in all epochs
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "State":
        """The state in `folder`, or a fresh one."""
        file = folder / "state.json"
        return cls(**json.loads(file.read_text())) if file.exists() else cls()

    def save(self, folder: Path) -> None:
        """Written last and atomically: it never names a checkpoint that is not whole."""
        write_whole(folder / "state.json", json.dumps(asdict(self)))


def fit(
    model: "keras.Model",
    train_data: Callable[[int], Any],
    eval_data: Any,
    settings: Train,
    *,
    steps_per_epoch: int,
    state_dir: Path,
    log_dir: str,
    freeze: Callable[["keras.Model", Any], None],
    multi_label: bool = False,
    eval_steps: int | None = None,
    until: int | None = None,
    callbacks: Sequence[Any] = (),
    keep: str = "best",
) -> State:
    """Train `model` and leave it with the weights of its best epoch (lowest eval loss), or last.

    Args:
        model: features -> logits float32 [B, C].
        train_data: the batches of epoch n, counted from 0: features, labels float32 [B, C] and, if
            rows do not all count the same, their weights [B]. A tf.data.Dataset, or a distributed
            one.
        eval_data: the same of the rows that choose the best epoch.
        settings: the YAML's `train:` section.
        steps_per_epoch: batches in one epoch; the rate's schedule needs it.
        state_dir: what a killed run resumes from.
        log_dir: TensorBoard's folder.
        freeze: the family's.
        multi_label: whether labels do not exclude each other.
        eval_steps: batches in `eval_data`; a distributed one does not say.
        until: the last epoch to train now, of all stages; a later call goes on. None is the end.
        callbacks: Keras callbacks beside our own; one that sets `stop_training` ends it all.
        keep: best or last.

    Raises:
        ConfigError: if the loss is no longer a number.
    """
    import tf_keras as keras

    state_dir.mkdir(parents=True, exist_ok=True)
    state = State.load(state_dir)
    if state.checkpoint:
        progress.info("resumed after epoch %d", state.epoch)
    model.stop_training = False
    model.distribute_reduction_method = "first"  # of a step's metrics; the sum of all says nothing
    callbacks = [
        *callbacks,
        keras.callbacks.TensorBoard(log_dir, write_graph=False, profile_batch=0),
        keras.callbacks.TerminateOnNaN(),
        _report_steps(settings.all_epochs, steps_per_epoch),
    ]
    for number, stage in enumerate(settings.plan):
        if number < state.stage:
            continue
        if until is not None and state.epoch >= until:
            break
        if _is_out_of_time(state, settings):
            break
        if number > state.stage:
            state.stage, state.stage_begin = number, state.epoch
        freeze(model, stage.freeze)
        compile_model(model, settings, steps_per_epoch, stage=stage, multi_label=multi_label)
        manager = _restored(model, state, state_dir)
        if len(settings.plan) > 1:
            progress.info("stage %d of %d: %s", number + 1, len(settings.plan), _words(stage))
        while not (_is_over(state, stage, settings, until) or model.stop_training):
            begun = time.monotonic()
            logs = model.fit(
                train_data(state.epoch),
                initial_epoch=state.epoch,
                epochs=state.epoch + 1,
                # Left to find the end itself, Keras begins one step more, and of that does what
                # needs no data: the rate's schedule goes on, and weights decay.
                steps_per_epoch=steps_per_epoch,
                validation_data=eval_data,
                validation_steps=eval_steps,
                callbacks=callbacks,
                verbose=0,
            ).history
            numbers = {name: values[-1] for name, values in logs.items()}
            numbers["learning_rate"] = float(model.optimizer.learning_rate.numpy())
            state.seconds += time.monotonic() - begun
            _record(state, numbers, state.epoch + 1)
            _keep(state, model, manager, state_dir)
            _report(state, settings)
    if keep == "best":
        model.load_weights(state.best).expect_partial()
    return state


def _restored(model: Any, state: State, folder: Path) -> "tf.train.CheckpointManager":
    """Go on from this stage's last whole epoch. A stage that only begins has the model of the one
    before it, and an optimizer of its own."""
    import tensorflow as tf

    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    if state.checkpoint and state.epoch > state.stage_begin:
        checkpoint.restore(state.checkpoint)
    # Each stage counts its checkpoints from 1: a name of its own, or it would write over others.
    return tf.train.CheckpointManager(
        checkpoint, str(folder), max_to_keep=2, checkpoint_name=f"stage-{state.stage}"
    )


def _is_over(state: State, stage: Stage, settings: Train, until: int | None) -> bool:
    if state.epoch - state.stage_begin >= stage.epochs or state.epoch == until:
        return True
    if _is_out_of_time(state, settings):
        progress.info(
            "stopped after %.1f minutes, train.time_limit is %g: best was epoch %d",
            state.seconds / 60, settings.time_limit, state.best_epoch,
        )  # fmt: skip
        return True
    waited = state.epoch - max(state.best_epoch, state.stage_begin)
    if settings.patience and waited >= settings.patience:
        progress.info("stopped early: best was epoch %d", state.best_epoch)
        return True
    return False


def _is_out_of_time(state: State, settings: Train) -> bool:
    """Whether another epoch, as long as those before it, would end after the limit; one is always
    trained."""
    if settings.time_limit is None or not state.epoch:
        return False
    return state.seconds * (1 + 1 / state.epoch) > 60 * settings.time_limit


def _words(stage: Stage) -> str:
    frozen = {0: "everything is trained", "all": "the head alone is trained"}
    what = frozen.get(stage.freeze or 0, f"frozen up to part {stage.freeze}")
    return f"{what}, rate {stage.learning_rate:g}"


def _report(state: State, settings: Train) -> None:
    last = state.history[-1]
    progress.info(
        "epoch %d of %d: loss %.4f, eval loss %.4f, eval accuracy %.4f",
        state.epoch, settings.all_epochs, last["loss"], last["val_loss"], last["val_accuracy"],
    )  # fmt: skip


def _keep(state: State, model: Any, manager: "tf.train.CheckpointManager", folder: Path) -> None:
    """Put the epoch on disk so that a kill, or a cut of the power, leaves a whole one."""
    outdated = ""
    if state.best_epoch == state.epoch:
        outdated, state.best = state.best, str(folder / f"best-{state.epoch}")
        model.save_weights(state.best)
    state.checkpoint = manager.save()
    to_disk(folder)
    state.save(folder)
    if outdated:  # only now does nothing name it
        for file in folder.glob(f"{Path(outdated).name}.*"):
            file.unlink()


def _record(state: State, logs: dict[str, float], epoch: int) -> None:
    if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("val_loss", math.nan)):
        raise ConfigError(
            f"train.learning_rate: training diverged in epoch {epoch} (the loss is no longer a "
            f"number). Lower the rate or lengthen the warm-up."
        )
    state.epoch = epoch
    state.history.append(logs)
    if logs["val_loss"] < state.best_loss:
        state.best_loss, state.best_epoch = logs["val_loss"], epoch


def compile_model(
    model: "keras.Model",
    settings: Train,
    steps_per_epoch: int,
    *,
    stage: Stage | None = None,
    multi_label: bool = False,
) -> None:
    """Give the model its loss, its optimizer and the rate's schedule in this stage."""
    import tensorflow as tf
    import tf_keras as keras

    # AutoGraph rewrites keras-nlp's layers to no effect, which takes 14 s of MiniLM's first step.
    plain = tf.autograph.experimental.do_not_convert
    model.train_step, model.test_step = plain(model.train_step), plain(model.test_step)
    stage = stage or settings.plan[0]
    if multi_label:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)  # of a logit
    else:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.CategoricalAccuracy("accuracy")
    rate = _schedule(settings, stage, steps_per_epoch * stage.epochs)
    model.compile(optimizer=_optimizer(settings, rate), loss=loss, metrics=[accuracy])


def _optimizer(settings: Train, rate: Any) -> "keras.optimizers.Optimizer":
    import tf_keras as keras

    from .adam import Adam

    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay or None)
    else:
        optimizer = Adam(rate, decay if settings.optimizer == "adamw" else 0.0)
    if decay:
        # As BERT's own optimizer does (google-research/bert, optimization.py).
        optimizer.exclude_from_weight_decay(var_names=["bias", "layer_norm", "gamma", "beta"])
    return optimizer


def _schedule(settings: Train, stage: Stage, steps: int) -> Any:
    """Linear warm-up to the rate, then its decay to 0 at the last step."""
    import tensorflow as tf
    import tf_keras as keras

    warmup = max(1, round(settings.warmup * steps))

    class WarmUpDecay(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            step = tf.cast(step, tf.float32)
            done = tf.clip_by_value((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
            factor = {
                "linear": 1.0 - done,
                "cosine": 0.5 * (1.0 + tf.cos(math.pi * done)),
                "none": tf.ones_like(done),
            }[settings.decay]
            return stage.learning_rate * tf.minimum((step + 1) / warmup, 1.0) * factor

        def get_config(self) -> dict[str, Any]:
            return {"steps": steps, "warmup": warmup}

    return WarmUpDecay()


def _report_steps(epochs: int, steps: int) -> "keras.callbacks.Callback":
    import tf_keras as keras

    class ReportSteps(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            done = self.epoch * steps + batch + 1
            progress.debug(
                "epoch %d of %d, loss %.4f", self.epoch + 1, epochs, (logs or {}).get("loss", 0),
                extra={"done": done, "total": epochs * steps},
            )  # fmt: skip

    return ReportSteps()


def stopping(is_late: Callable[[], bool]) -> Any:
    """A Keras callback that ends a training in time, and knows by `cut` whether it did."""
    import tf_keras as keras

    class Stopping(keras.callbacks.Callback):
        cut = False

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.cut = self.model.stop_training = is_late()

    return Stopping()
