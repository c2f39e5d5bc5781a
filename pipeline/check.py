"""Look at a configuration and its data without running: every fault at once, and what to expect.

The rows are read by the pre-flight check's own pass; beside it, only the numbers that it keeps of
each row are looked at. TensorFlow is imported by the trial alone, in a process of its own.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..components.faults import counted
from ..components.names import SPLITS
from ..errors import EspalierError
from . import preflight
from .config import Config
from .places import needed, room
from .preflight import TOKENS_PER_WORD, DataReport
from .splitting import LEFT_OUT

_IMBALANCE = 10  # times the rows of the rarest label
_LENGTH_STEP = 4  # tokens; batches are as long as their longest row, and a multiple of this
_OVERHEAD = 40.0  # seconds of a run beside the steps: imports, the other components, the export
_SECONDS_PER_ROW = 0.001  # of what they do with each row
_TRIAL = "espalier.trainer.trial"
Progress = Callable[[str], None]


@dataclass
class Place:
    """A folder that a run writes to: bytes it will need, bytes that are free."""

    path: str
    needed: int
    free: int


@dataclass
class Estimate:
    """What a short trial says a run will take on this machine, in seconds; all of it about.

    Attributes:
        step: one step of training.
        steps: how many there are at most, over all epochs.
        training: all steps, and the evaluations between them.
        run: the whole run, without `compress:`.
    """

    step: float
    steps: int
    training: float
    run: float


@dataclass
class Check:
    """What was found. Faults stop a run, warnings do not.

    Attributes:
        rows, labels: by split, as they will be.
        words: percentile (50, 90, 95, 99, 100) of the words per row, both texts of a pair.
        cut: share of the rows that are longer than model.sequence_length, by their words.
        duplicates: rows that have text (or picture) and label of another.
        conflicts: rows that have the text of another, and not its label.
        leaks: by two splits, `train and test`, how many rows of the second the first has, too.
    """

    name: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    cut: float = 0.0
    duplicates: int = 0
    conflicts: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    estimate: Estimate | None = None
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 2 where something given cannot be used."""
        return 2 if self.faults else 0


def check(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    trial: bool = True,
    progress: Progress | None = None,
) -> Check:
    """Look at all that a run needs and go on after each fault.

    Args:
        path: the YAML file.
        overrides: `key.path=value`.
        trial: whether to train for a few steps, for an estimate of the time.
        progress: called with a line of text about what takes time.
    """
    found = Check()
    report, config = DataReport(), None
    with _Noting(found):
        config = Config.load(path, overrides)
    if config is None:
        return found
    found.name = config.name
    for look in preflight.checks(config, progress):
        with _Noting(found):
            found.warnings += look()
    with _Noting(found):
        report = preflight.look_at_rows(config, progress)
    _look_at_places(config, preflight.bytes_of(config, report), found)
    if report.fallen is None:
        return found
    found.warnings += report.warnings
    found.rows, found.labels = report.fallen.rows, report.fallen.labels
    _look_at_lengths(config, report, found)
    _look_at_copies(config, report, found)
    _look_at_balance(config, found)
    if trial and not found.faults:
        if progress:
            progress("trying a few steps of training ...")
        with _Noting(found):
            found.estimate = _estimate(config, report)
    return found


class _Noting:
    """Notes a user's error, each line once, and goes on."""

    def __init__(self, found: Check) -> None:
        self.found = found

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, EspalierError):
            return False
        known = self.found.faults
        known += [line for line in str(error).splitlines() if line not in known]
        return True


def _look_at_places(config: Config, rows: int, found: Check) -> None:
    for path, size in needed(config, rows).items():
        with _Noting(found):
            found.places.append(Place(str(path), size, room(path, size)))


def _look_at_lengths(config: Config, report: DataReport, found: Check) -> None:
    found.words = report.words
    length, total = getattr(config.model, "sequence_length", None), sum(report.lengths.values())
    if length and total:
        longer = sum(n for words, n in report.lengths.items() if words * TOKENS_PER_WORD > length)
        found.cut = longer / total


def _look_at_copies(config: Config, report: DataReport, found: Check) -> None:
    """Rows that are alike, by the hashes of their texts or pictures."""
    assert report.fallen is not None
    unit, content = ("picture", "content") if report.pictures else ("row", "text")
    rows = _Rows(report)
    found.duplicates, example = rows.repeated()
    if found.duplicates:
        found.warnings.append(
            f"{counted(found.duplicates, unit)} with the {content} and the label of another: "
            f"{example}. Copies count more than once in training, and in the score."
        )
    found.conflicts, example = rows.conflicting()
    if found.conflicts and not report.pictures:  # of which the pre-flight check has told
        found.warnings.append(
            f"{counted(found.conflicts, unit)} with the {content} of another and not its label: "
            f"{example}. A model can learn one of the two at most."
        )
    shared = rows.shared()
    found.leaks = {pair: count for pair, (count, _) in shared.items()}
    if shared and not (report.pictures and "all" not in report.fallen.given):  # nor of these
        counts = ", ".join(f"{counted(n, unit)} in both {pair}" for pair, n in found.leaks.items())
        advice = "Take the copies out."
        if "all" in report.fallen.given and len(config.data.texts) == 1:
            advice = f"To keep copies together: data.split: {{group: {config.data.texts[0]}}}."
        found.warnings.append(
            f"{counts} ({next(iter(shared.values()))[1]}): a score on what was trained on says "
            f"nothing. {advice}"
        )


class _Rows:
    """The rows of all splits that a run will have, sorted by their texts' hashes."""

    def __init__(self, report: DataReport) -> None:
        assert report.fallen is not None
        codes = [np.frombuffer(report.fallen.codes[split], np.uint8) for split in report.ledgers]
        taken = [np.flatnonzero(code != LEFT_OUT) for code in codes]
        self._ledgers = list(report.ledgers.values())
        texts = [np.frombuffer(ledger.texts, np.int64) for ledger in self._ledgers]
        labels = [np.frombuffer(ledger.labels, np.uint32) for ledger in self._ledgers]
        self._owner = np.repeat(np.arange(len(taken)), [len(one) for one in taken])
        self._row = np.concatenate(taken)
        text = np.concatenate([t[one] for t, one in zip(texts, taken, strict=True)])
        label = np.concatenate([t[one] for t, one in zip(labels, taken, strict=True)])
        split = np.concatenate([t[one] for t, one in zip(codes, taken, strict=True)])
        self._order = np.lexsort((label, text))
        self.texts, self.labels, self.splits = (a[self._order] for a in (text, label, split))
        self._same = self.texts[1:] == self.texts[:-1]

    def repeated(self) -> tuple[int, str]:
        """How many rows have text and label of another, and the first two of them."""
        again = np.flatnonzero(self._same & (self.labels[1:] == self.labels[:-1]))
        return len(again), self._pair(again, again + 1)

    def conflicting(self) -> tuple[int, str]:
        """How many rows have another's text and not its label, and the first two of them."""
        apart = np.flatnonzero(self._same & (self.labels[1:] != self.labels[:-1]))
        rows = np.isin(self.texts, np.unique(self.texts[apart])).sum()
        return int(rows), self._pair(apart, apart + 1)

    def shared(self) -> dict[str, tuple[int, str]]:
        """By two splits: how many rows of the second are in the first, too, and two such rows."""
        starts = np.flatnonzero(np.concatenate(([True], ~self._same)))
        masks = np.bitwise_or.reduceat(1 << self.splits.astype(np.uint8), starts)
        mask = np.repeat(masks, np.diff([*starts, len(self.texts)]))
        found = {}
        for first, second in ((0, 1), (0, 2), (1, 2)):
            both = np.flatnonzero((mask >> first & mask >> second & 1) == 1)
            later = both[self.splits[both] == second]
            if len(later):
                here = later[np.argmin(self._order[later])]
                same = np.flatnonzero((self.texts == self.texts[here]) & (self.splits == first))
                pair = f"{SPLITS[first]} and {SPLITS[second]}"
                found[pair] = (len(later), self._pair(same[:1], np.array([here])))
        return found

    def _pair(self, ones: np.ndarray, others: np.ndarray) -> str:
        """Where the pair of rows is whose first one was read first."""
        if not len(ones):
            return ""
        chosen = np.argmin(self._order[ones])
        places = (self._order[ones[chosen]], self._order[others[chosen]])
        return " and ".join(
            self._ledgers[self._owner[place]].place(int(self._row[place])) for place in places
        )


def _look_at_balance(config: Config, found: Check) -> None:
    labels = found.labels.get("train", {})
    if len(labels) < 2 or config.data.multi_label or config.train.class_weight != "none":
        return
    (most, rows), (rarest, few) = next(iter(labels.items())), list(labels.items())[-1]
    if rows >= _IMBALANCE * few:
        found.warnings.append(
            f"train has {rows:,} rows of {most!r} and {few:,} of {rarest!r}: a model may never "
            f"answer the rare one. Weigh them (train.class_weight: balanced), and mind f1."
        )


def _estimate(config: Config, report: DataReport) -> Estimate:
    assert report.fallen is not None
    settings, rows = config.train, report.fallen.rows
    labels = {name for names in report.fallen.labels.values() for name in names}
    measured = _trial(
        {
            "model": config.model.model_dump(mode="json"),
            "train": settings.model_dump(mode="json"),
            "classes": len(labels),
            "pair": len(config.data.texts) > 1,
            "length": _mean_length(config, report.lengths),
            "multi_label": config.data.multi_label,
        }
    )
    epochs = settings.all_epochs
    steps = epochs * -(-rows.get("train", 0) // settings.batch_size)
    evaluations = epochs * -(-rows.get("eval", 0) // settings.batch_size)
    once = measured["first"] + (steps + evaluations / 3) * measured["step"]
    training = _all_trainings(config, once)
    run = training + _OVERHEAD + _SECONDS_PER_ROW * sum(rows.values())
    return Estimate(measured["step"], steps, training, run)


def _all_trainings(config: Config, once: float) -> float:
    """Seconds of the Trainer, and of a search before it, within their limits."""
    once = min(once, 60 * (config.train.time_limit or math.inf))
    if config.tune is None:
        return once
    return once + min(once * config.tune.most, 60 * (config.tune.time_limit or math.inf))


def _mean_length(config: Config, lengths: Mapping[int, int]) -> int:
    """Tokens of a batch, on average: rows of like length are trained on together."""
    longest = getattr(config.model, "sequence_length", 0)
    total = sum(lengths.values())
    if not longest or not total:
        return 1
    tokens = sum(min(longest, words * TOKENS_PER_WORD + 2) * n for words, n in lengths.items())
    return min(longest, -(-int(tokens / total) // _LENGTH_STEP) * _LENGTH_STEP + _LENGTH_STEP)


def _trial(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the first step and of each later one.

    Raises:
        EspalierError: the model could not be trained here.
    """
    done = subprocess.run(
        [sys.executable, "-m", _TRIAL],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed; is there memory enough?"])[-1]
        raise EspalierError(f"a trial step of training failed: {last[:500]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer
