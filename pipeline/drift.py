"""Has what comes in changed? A server's log of requests against the rows that were trained on.

TFDV measures how far apart the two are, by its comparator for training-serving skew: Jensen-Shannon
divergence for numbers, L-infinity for names. Texts and pictures themselves have no distribution
worth comparing: their lengths, words, sizes and brightness have. StatisticsGen's output knows of
these at most the mean, so the training rows are read again, a sample where there are many.
"""

import contextlib
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..components.faults import counted, listed
from ..errors import ConfigError, DataError
from ..serving.tensors import to_numpy
from ..trainer.preprocess import LABEL
from .config import Config
from .sources import find_files
from .store import Store, opened

if TYPE_CHECKING:
    import pandas as pd

ALARM = 6  # the exit code
THRESHOLD = 0.1  # the largest distance that is no alarm, unless told otherwise
NUMBERS, NAMES = "Jensen-Shannon", "L-infinity"  # the measures
_MOST = {"text": 20_000, "image": 2_000}  # rows compared: more hardly change a distance
_DRAWS = 20  # the largest of so many is exceeded by chance about once in twenty
_SHOWN = 3  # of the commonest names
_WORD = re.compile(r"\w+")

T = TypeVar("T")
Made = TypeVar("Made")
# The inputs, in the configuration's order (of a picture what it is like), and the label.
_Row = tuple[Sequence[Any], Any]
_Known = dict[str, Counter[str]]


@dataclass(frozen=True)
class Feature:
    """One thing that was compared.

    Attributes:
        name: the column, and what of it: `text: words`.
        measure: Jensen-Shannon or L-infinity, as TFDV computes it; 0 is alike, 1 nothing in common.
        distance: between the training rows and the logged ones.
        noise: the largest of 20 distances between as many random training rows (at most half of
            them) and the rest.
        threshold: a larger distance is an alarm, if the noise stays below it.
        training, log: what a person can read: a mean and the middle 80 %, or the commonest names.
    """

    name: str
    measure: str
    distance: float
    noise: float
    threshold: float
    training: str
    log: str

    @property
    def verdict(self) -> Literal["ok", "alarm", "too few"]:
        """Alarm if it is too far, too few if rows of the training data would be as well."""
        if self.noise >= self.threshold:
            return "too few"
        return "alarm" if self.distance > self.threshold else "ok"


@dataclass(frozen=True)
class Drift:
    """What the comparison came to.

    Attributes:
        name: the pipeline's.
        run: whose training rows were compared.
        version: what that run pushed, if it answered requests of the log; else "".
        training_rows, rows: how many there are in the training split and in the log.
        features: what was compared.
    """

    name: str
    run: str
    version: str
    training_rows: int
    rows: int
    features: Sequence[Feature]

    @property
    def alarms(self) -> list[str]:
        """The names of the features that give alarm."""
        return [one.name for one in self.features if one.verdict == "alarm"]

    @property
    def exit_code(self) -> int:
        """0, or 6 for an alarm."""
        return ALARM if self.alarms else 0

    @property
    def verdict(self) -> str:
        """All of it in a sentence or two."""
        of = f"version {self.version}" if self.version else f"the run of {self.run}"
        what = f"the {counted(self.training_rows, 'training row')} of {of}"
        few = [one for one in self.features if one.verdict == "too few"]
        if self.alarms:
            return (
                f"Alarm: {counted(self.rows, 'logged row')} differ from {what} in "
                f"{', '.join(self.alarms)}. Look at the requests, and train on rows like them."
            )
        if few:
            return (
                f"No alarm, but {counted(self.rows, 'logged row')} beside {what} are too few to "
                f"tell by {', '.join(one.name for one in few)}: rows taken at random differ by up "
                f"to {max(one.noise for one in few):.2f}. Log more requests."
            )
        return f"No alarm: {counted(self.rows, 'logged row')} are like {what}."


def compare(config: Config, log: str, threshold: float = THRESHOLD) -> Drift:
    """Compare logged requests with the training rows of the run whose version answered them.

    Where no run here pushed that version, the newest run's rows are taken.

    Args:
        config: the job whose model is served.
        log: TFRecords of PredictionLog, as `serve --request_log` and TensorFlow Serving's own
            loggers write them: a file, a folder or a glob.
        threshold: the largest distance that is no alarm.

    Raises:
        ConfigError: no run has left training rows.
        DataError: there is no log, it is empty or damaged, or another model's.
    """
    store = opened(config.home, config.name)
    seen = _Seen(config)
    files = find_files(log, (".tfrecord", ".tfrecord.gz"))
    most, make = _MOST[config.data.kind], _described(config.data.kind)
    incoming, rows = _sample(seen.rows(files), most, make)
    if not incoming:
        raise DataError(
            f"{log}: no request was logged. Expected PredictionLogs; see docs/drift.md."
        )
    run, version, examples = _source(config, store, seen.versions)
    records = _records(sorted(examples.glob("Split-train/*")))
    trained, training_rows = _sample(
        (record for _, _, record in records), most, lambda record: make(_row(record, config))
    )
    known = _known(config, trained)
    frames = _frame(config, trained, known, own=1), _frame(config, incoming, known, own=0)
    return Drift(config.name, run, version, training_rows, rows, _features(*frames, threshold))


@dataclass
class _Seen:
    """Reads a log, and notes whose it is."""

    config: Config
    model: str = ""
    versions: Counter[str] = field(default_factory=Counter)

    def rows(self, files: Sequence[Path]) -> Iterator[_Row]:
        """Each row of each request, and the label it was answered with (None if it was not)."""
        from google.protobuf.message import DecodeError
        from tensorflow_serving.apis import prediction_log_pb2

        for file, number, record in _records(files):
            where = f"{file}, record {number}"
            try:
                logged = prediction_log_pb2.PredictionLog.FromString(record)
                predicted = logged.predict_log if logged.HasField("predict_log") else None
            except DecodeError:
                predicted = None
            if predicted is None:
                raise DataError(
                    f"{where}: not a PredictionLog of a Predict call. Expected what `espalier "
                    f"serve --request_log` writes."
                )
            self._check(where, logged.log_metadata.model_spec, predicted.request.inputs)
            columns = [_strings(predicted.request.inputs[one]) for one in self.config.data.inputs]
            outputs = predicted.response.outputs
            answers = _strings(outputs[LABEL]) if LABEL in outputs else repeat(None)
            yield from zip(zip(*columns, strict=True), answers, strict=False)

    def _check(self, where: str, spec: Any, inputs: Iterable[str]) -> None:
        wanted, found = sorted(self.config.data.inputs), sorted(inputs)
        self.model = self.model or spec.name
        if found != wanted or spec.name != self.model:
            also = f", in a log of {self.model!r}" if spec.name != self.model else ""
            raise DataError(
                f"{where}: a request to the model {spec.name!r} with {listed(found)}{also}; "
                f"{self.config.name} takes {listed(wanted)}. Name the log files of one model: its "
                f"name is part of theirs."
            )
        self.versions[str(spec.version.value)] += 1


def _strings(tensor: Any) -> list[bytes]:
    return [bytes(value) for value in to_numpy(tensor).ravel()]


def _records(files: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Each record, with its file and its number in there; its checksums are right."""
    import tensorflow as tf

    for file in files:
        number = 0
        packed = "GZIP" if file.suffix == ".gz" else ""
        try:
            for record in tf.data.TFRecordDataset(str(file), packed).as_numpy_iterator():
                number += 1
                yield file, number, record
        except tf.errors.OpError as error:
            raise DataError(
                f"{file}: damaged or cut off after record {number}: {type(error).__name__}. "
                f"Expected TFRecords; leave the file out, or wait if it is still written to."
            ) from None


def _sample(
    rows: Iterable[T], most: int, make: Callable[[T], Made | None]
) -> tuple[list[Made], int]:
    """At most so many of the rows at random, each made into something, and how many there are.

    Rows of which nothing is made are counted alone.
    """
    chosen: list[Made] = []
    count, rng = 0, random.Random(0)
    for count, row in enumerate(rows, 1):
        place = len(chosen) if len(chosen) < most else rng.randrange(count)
        if place < most and (made := make(row)) is not None:
            chosen[place : place + 1] = [made]
    return chosen, count


def _source(config: Config, store: Store, versions: Iterable[str]) -> tuple[str, str, Path]:
    """The run that pushed one of these versions, or the newest: its id, version and Examples."""
    newest = None
    for run in reversed(store.runs()):
        nodes = {node.name: node for node in store.nodes(run)}
        examples = nodes["ExampleGen"].outputs.get("examples") if "ExampleGen" in nodes else None
        if examples is None or not Path(examples.uri, "Split-train").is_dir():
            continue
        pushed = nodes["Pusher"].outputs.get("pushed_model") if "Pusher" in nodes else None
        version = str(pushed.properties.get("pushed_version")) if pushed else ""
        if version in versions:
            return run, version, Path(examples.uri)
        newest = newest or (run, "", Path(examples.uri))
    if newest is None:
        raise ConfigError(
            f"{config.home}: no run of {config.name} has left training rows. Run `espalier run`."
        )
    return newest


def _row(record: bytes, config: Config) -> _Row:
    """What is compared of a training row."""
    import tensorflow as tf

    features = tf.train.Example.FromString(record).features.feature

    def values(name: str) -> Sequence[Any]:
        kind = features[name].WhichOneof("kind") if name in features else None
        return getattr(features[name], kind).value if kind else ()

    inputs = [next(iter(values(column)), b"") for column in config.data.inputs.values()]
    labels = values(config.data.label_column)
    if config.data.multi_label:
        return inputs, b"|".join(labels)
    # TFX's Parquet reader drops zeros, see `trainer.preprocess.one_string`.
    return inputs, next(iter(labels), 0)


def _described(kind: str) -> Callable[[_Row], _Row | None]:
    """What makes of a row what is kept of it: a picture's pixels would fill the memory."""

    def text(row: _Row) -> _Row | None:
        return [value.decode("utf-8", "replace") for value in row[0]], row[1]

    def picture(row: _Row) -> _Row | None:
        from PIL import Image, ImageStat

        with contextlib.suppress(OSError), Image.open(io.BytesIO(row[0][0])) as image:
            size = map(float, image.size)
            image.draft("L", (64, 64))  # a large JPEG is decoded small
            return [*size, ImageStat.Stat(image.convert("L")).mean[0]], row[1]
        return None

    return text if kind == "text" else picture


def _frame(config: Config, rows: Sequence[_Row], known: _Known, own: int) -> "pd.DataFrame":
    """What is compared as columns: of floats, and of strings.

    Args:
        known: the training rows' words, as `_known` counts them.
        own: 1 for the training rows, whose own words are among them.
    """
    import pandas as pd

    inputs = list(zip(*(values for values, _ in rows), strict=True))
    columns: dict[str, Any] = {}
    if config.data.kind == "image":
        of = ("width", "height", "brightness")
        columns = {f"image: {what}": values for what, values in zip(of, inputs, strict=True)}
    else:
        for name, texts in zip(config.data.texts, inputs, strict=True):
            columns |= _of_texts(name, texts, known[name], own)
    labels = [_label(label, config.data.multi_label) for _, label in rows]
    if None not in labels:
        columns[f"{config.data.label_column}: answered"] = labels
    return pd.DataFrame(columns)


def _known(config: Config, rows: Sequence[_Row]) -> _Known:
    """In how many of the rows each word stands, by column."""
    return {
        name: Counter(word for inputs, _ in rows for word in set(_words(inputs[place])))
        for place, name in enumerate(config.data.texts)
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _of_texts(
    name: str, texts: Sequence[str], known: Counter[str], own: int
) -> dict[str, list[Any]]:
    words = [_words(text) for text in texts]
    return {
        f"{name}: words": [float(len(one)) for one in words],
        f"{name}: characters": [float(len(text)) for text in texts],
        # Of a row's words, the share that no other training row has.
        f"{name}: new words": [
            sum(known[word] <= own for word in one) / max(len(one), 1) for one in words
        ],
        f"{name}: empty": ["no" if text.strip() else "yes" for text in texts],
    }


def _label(label: Any, several: bool) -> str | None:
    if label is None:
        return None
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
    return "|".join(sorted(text.split("|"))) if several else text


def _features(trained: "pd.DataFrame", incoming: "pd.DataFrame", threshold: float) -> list[Feature]:
    names = [name for name in trained if name in incoming]
    ranked, other = _ranked(trained[names], incoming[names])
    distances = _distances(ranked, other)
    # Not against all rows, these among them: a sample would be too like what it was drawn from.
    size, noise = min(len(incoming), len(trained) // 2), dict.fromkeys(names, 0.0)
    for draw in range(_DRAWS):
        some = ranked.sample(size, random_state=draw)
        found = _distances(some, ranked.drop(some.index))
        noise = {name: max(noise[name], found[name]) for name in names}
    return [
        Feature(
            name,
            _measure(ranked[name]),
            distances[name],
            noise[name],
            threshold,
            _in_words(trained[name]),
            _in_words(incoming[name]),
        )
        for name in names
    ]


def _ranked(trained: "pd.DataFrame", incoming: "pd.DataFrame") -> tuple[Any, Any]:
    """Numbers as their ranks among the training rows', 0 to 1, equal ones at random.

    A divergence is the same of values and of their ranks, and TFDV's ten buckets of equal width
    then hold a tenth of the training rows each. Of the values themselves, one very long text would
    put all others into one bucket.
    """
    import numpy as np

    rng, first, second = np.random.default_rng(0), trained.copy(), incoming.copy()
    for name in trained.select_dtypes(float):
        order = np.sort(trained[name])
        for frame in (first, second):
            low, high = (np.searchsorted(order, frame[name], side) for side in ("left", "right"))
            frame[name] = (low + rng.random(len(frame)) * (high - low)) / len(order)
    return first, second


def _distances(trained: "pd.DataFrame", incoming: "pd.DataFrame") -> dict[str, float]:
    """TFDV's distance of each column."""
    import tensorflow_data_validation as tfdv

    statistics = [tfdv.generate_statistics_from_dataframe(one) for one in (trained, incoming)]
    return distances({name: _measure(trained[name]) for name in trained}, *statistics)


def distances(measures: Mapping[str, str], before: Any, now: Any) -> dict[str, float]:
    """TFDV's distance of each feature.

    Args:
        measures: NUMBERS or NAMES, by feature.
        before, now: DatasetFeatureStatisticsLists that have all these features.
    """
    import tensorflow_data_validation as tfdv
    from tensorflow_metadata.proto.v0 import schema_pb2

    schema = schema_pb2.Schema()
    for name, measure in measures.items():
        feature = schema.feature.add(name=name)
        if measure == NAMES:
            feature.type = schema_pb2.BYTES
            feature.skew_comparator.infinity_norm.threshold = 1.0
        else:
            feature.type = schema_pb2.FLOAT
            feature.skew_comparator.jensen_shannon_divergence.threshold = 1.0
    found = tfdv.validate_statistics(before, schema, serving_statistics=now)
    return {info.path.step[0]: info.skew_measurements[0].value for info in found.drift_skew_info}


def _measure(values: "pd.Series[Any]") -> str:
    return NAMES if _is_name(values) else NUMBERS


def _is_name(values: "pd.Series[Any]") -> bool:
    return values.dtype.kind == "O"


def _in_words(values: "pd.Series[Any]") -> str:
    if _is_name(values):
        shares = values.value_counts(normalize=True)
        return ", ".join(f"{name or 'none'} {share:.0%}" for name, share in shares[:_SHOWN].items())
    low, high = values.quantile([0.1, 0.9])
    return f"{values.mean():.3g} ({low:.3g} to {high:.3g})"
