"""Learning from the trained model: its answers, and how it comes to them.

A student learns the teacher's softened answers and the true labels (Hinton et al.,
https://arxiv.org/abs/1503.02531, section 2) and, where the family names them, the hidden states of
the layers that it stands for (TinyBERT, Jiao et al., https://arxiv.org/abs/1909.10351, equation 8)
and the last layer's attention (MiniLM, Wang et al., https://arxiv.org/abs/2002.10957, section 3.1).
For pictures the pooled features are the hint (FitNets, Romero et al.,
https://arxiv.org/abs/1412.6550). A model that is pruned or clustered is a student of what it was
(Sanh et al., https://arxiv.org/abs/2005.07683, section 6).
"""

import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...files import to_disk, write_whole
from ..settings import Augment
from .job import Job, progress

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

# The teacher's outputs for all rows go to disk up to this; beyond, it answers in every epoch anew.
CACHE_BYTES = 4_000_000_000
TEMPERATURE = 2.0
_HARD = 0.5  # the share of the true labels in the loss of the answers
_SHUFFLED = 16  # cached batches that are mixed


def learn(
    student: "keras.Model",
    job: Job,
    layers: int | None,
    step: str,
    epochs: int,
    rate: float,
    *,
    temperature: float = TEMPERATURE,
    cuts: int = 0,
    callbacks: Sequence[Any] = (),
    keep: str = "last",
) -> None:
    """Train a student in place, with the job's teacher; see `Job.tune`.

    Args:
        student: an unrolled model, or one in TF-MOT's wrappers.
        job: its teacher is the trained model.
        layers: the student's; None is all.
        step, epochs, rate, callbacks, keep: as for `Job.tune`.
        temperature: softens both models' answers.
        cuts: random pieces of each text that are learned too.
    """
    assert job.teacher is not None
    with job.precision():
        teacher = job.copy(job.teacher)
    most = job.family.blocks(job.settings) if job.family.LAYER else 0
    fewer = layers or most
    job.tune(
        _taught(student, job, fewer, temperature),
        step,
        epochs,
        rate,
        data=_teaching(job, _watched(teacher, job, most, fewer), f"{fewer}-{cuts}", cuts),
        callbacks=callbacks,
        keep=keep,
        steps_per_epoch=job.steps_per_epoch * (1 + cuts),
    )


def _watched(model: "keras.Model", job: Job, layers: int, fewer: int) -> Any:
    """A model with the same inputs that gives its logits and hints, those of `layers` layers spaced
    as a student of `fewer` has them, the last of each part."""
    import tf_keras as keras

    outputs = {"logits": model.output}
    for kind, names in job.family.hints(layers).items():
        wanted = len(job.family.hints(fewer)[kind])
        spaced = [names[(i + 1) * len(names) // wanted - 1] for i in range(wanted)]
        outputs |= {f"{kind}_{i}": _output(model.get_layer(n)) for i, n in enumerate(spaced)}
    return keras.Model(model.inputs, outputs)


def _output(layer: "keras.layers.Layer") -> Any:
    """In the newest model that has it: TF-MOT's copies share the layers that they do not wrap."""
    return layer.get_output_at(len(layer.inbound_nodes) - 1)


def _teaching(
    job: Job, teacher: "keras.Model", name: str, cuts: int
) -> Callable[[int], "tf.data.Dataset"]:
    """The training rows with the teacher's outputs, which are computed once where there is room.

    Batches then hold the same rows in every epoch, in another order. Pictures that are changed at
    random are asked about anew: student and teacher see the same one (Beyer et al.,
    https://arxiv.org/abs/2106.05237).
    """
    import tensorflow as tf

    def passes(seed: int) -> "tf.data.Dataset":
        found = job.batches(seed)
        for number in range(1, cuts + 1):
            found = found.concatenate(job.batches(seed + number).map(cut))
        return found

    def ask(features: Any, label: "tf.Tensor") -> Any:
        outputs = teacher(features, training=False)
        small = {
            n: tf.cast(v, tf.float32 if n == "logits" else tf.bfloat16) for n, v in outputs.items()
        }
        return features, {"label": label, **small}

    plain = tf.autograph.experimental.do_not_convert(ask)
    rows = passes(0).map(plain, num_parallel_calls=1)
    total = _bytes_of_one_row(rows) * job.rows * (1 + cuts)
    changing = bool(job.source.pixel_shapes) and job.train.augment != Augment()
    if total > CACHE_BYTES or changing:
        progress.info("the teacher answers in every epoch anew")
        return lambda epoch: passes(epoch * (1 + cuts)).map(plain, num_parallel_calls=1).prefetch(2)
    folder = job.folder / "teacher" / name
    whole = folder / "whole"
    for other in folder.parent.glob("*"):
        # Another step's, which is not asked again; or one that may not all be on the disk.
        if other != folder or not whole.exists():
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    cached = rows.cache(str(folder / "outputs"))

    def epoch_rows(epoch: int) -> "tf.data.Dataset":
        # Known from the second epoch on, and noted once: the first one has asked for all.
        if any(folder.glob("*.index")) and not (whole.exists() or any(folder.glob("*.lockfile"))):
            to_disk(folder)
            write_whole(whole, "")
        return cached.shuffle(_SHUFFLED, seed=job.train.seed + epoch).prefetch(2)

    return epoch_rows


def cut(features: Any, label: "tf.Tensor") -> Any:
    """A random piece of each text, in the place of the text: the first token, some that follow
    one another, and the last (Tang et al., https://arxiv.org/abs/1903.12136, section 3.3, call it
    n-gram sampling).

    token_ids: int32 [B, T], padded with 0; segment_ids go with them. The label is kept, though
    the piece need not bear it out: the teacher's answer to the piece says so.
    """
    import tensorflow as tf

    ids = features["token_ids"]
    length = tf.math.count_nonzero(ids, axis=1, dtype=tf.int32)  # (B,)
    inner = tf.cast(tf.maximum(length - 2, 1), tf.float32)
    share = tf.random.uniform(tf.shape(length))
    size = tf.maximum(1, tf.cast(tf.math.ceil(share * inner), tf.int32))
    room = inner - tf.cast(size, tf.float32)
    start = 1 + tf.cast(tf.floor(tf.random.uniform(tf.shape(length)) * (room + 1)), tf.int32)
    places = tf.range(tf.shape(ids)[1])[tf.newaxis, :]  # (1, T)
    moved = places + start[:, tf.newaxis] - 1
    # The first token, then the piece, then the text's last token.
    source = tf.where(places == 0, 0, moved)
    source = tf.where(places == size[:, tf.newaxis] + 1, length[:, tf.newaxis] - 1, source)
    source = tf.clip_by_value(source, 0, tf.shape(ids)[1] - 1)
    kept = places < size[:, tf.newaxis] + 2
    found = dict(features)
    for name in ("token_ids", "segment_ids"):
        if name in found:
            found[name] = tf.where(kept, tf.gather(found[name], source, batch_dims=1), 0)
    return found, label


def _bytes_of_one_row(rows: "tf.data.Dataset") -> float:
    import tensorflow as tf

    for _, outputs in rows.take(1):
        sizes = [v.dtype.size * tf.size(v).numpy() for v in outputs.values()]
        return sum(sizes) / int(outputs["label"].shape[0])
    return 0.0


def _taught(student: "keras.Model", job: Job, layers: int, temperature: float) -> "keras.Model":
    """The student with a training step that also listens to its teacher."""
    import tensorflow as tf
    import tf_keras as keras

    watched = _watched(student, job, layers, layers)

    class Taught(keras.Model):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Keras' own metric of the loss is that of the labels alone.
            self.teaching = keras.metrics.Mean("teaching")

        def train_step(self, data: Any) -> Any:
            features, outputs = data
            with tf.GradientTape() as tape:
                ours = watched(features, training=True)
                mask = _mask(features)
                loss = answers_loss(ours["logits"], outputs, temperature, job.multi_label)
                for name in ours:
                    if name != "logits":
                        loss += hint_loss(name, ours[name], outputs[name], mask)
            self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
            self.teaching.update_state(loss)
            self.compiled_metrics.update_state(outputs["label"], ours["logits"])
            found = {metric.name: metric.result() for metric in self.compiled_metrics.metrics}
            return {**found, "loss": self.teaching.result()}

    return Taught(student.inputs, student.output)


def _mask(features: Any) -> "tf.Tensor | None":
    """1 for real tokens, float32 [B, T]; None for pictures."""
    import tensorflow as tf

    return tf.cast(features["token_ids"] != 0, tf.float32) if "token_ids" in features else None


def answers_loss(
    logits: "tf.Tensor", outputs: Any, temperature: float, multi_label: bool
) -> "tf.Tensor":
    """Cross-entropy with the softened answers of the teacher, and with the labels, half each.

    logits: float32 [B, C]; outputs: the teacher's `logits` and the true `label`, the same shape.
    The softened part is multiplied by the temperature's square, as in Hinton et al.
    """
    import tensorflow as tf

    theirs, label = outputs["logits"] / temperature, outputs["label"]
    ours = logits / temperature
    if multi_label:
        cross = tf.nn.sigmoid_cross_entropy_with_logits
        soft, hard = cross(tf.sigmoid(theirs), ours), cross(label, logits)
    else:
        soft = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(theirs), ours)
        hard = tf.nn.softmax_cross_entropy_with_logits(label, logits)
    squared = temperature**2
    return (1 - _HARD) * squared * tf.reduce_mean(soft) + _HARD * tf.reduce_mean(hard)


def hint_loss(
    name: str, ours: "tf.Tensor", theirs: "tf.Tensor", mask: "tf.Tensor | None"
) -> "tf.Tensor":
    """Mean squared error of hidden states, or divergence of attention, over real tokens.

    hidden: [B * T, H] or [B, F]; attention: [B, heads, T, T] distributions over the last axis.
    mask: float32 [B, T], or None.
    """
    import tensorflow as tf

    ours, theirs = tf.cast(ours, tf.float32), tf.cast(theirs, tf.float32)
    if name.startswith("attention"):
        ratio = tf.math.log(theirs + 1e-6) - tf.math.log(ours + 1e-6)
        each = tf.reduce_mean(tf.reduce_sum(theirs * ratio, axis=-1), axis=1)  # (B, T)
    else:
        each = tf.reduce_mean(tf.math.squared_difference(ours, theirs), axis=-1)  # (B * T,) or (B,)
    if mask is None:
        return tf.reduce_mean(each)
    return tf.reduce_sum(tf.reshape(each, tf.shape(mask)) * mask) / tf.reduce_sum(mask)
