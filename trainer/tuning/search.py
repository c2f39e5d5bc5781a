"""The Tuner's work: keras-tuner's oracles ask for trials, and the Trainer's code trains them.

What is found is on disk after each epoch and each trial: a search that was killed goes on. Its
oracle, whose own files a kill may leave half written, begins anew, asks for the same trials as
before, and is told at once what came of those that are done.
"""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_tuner import HyperParameters, Objective, oracles
from keras_tuner.engine import base_tuner
from keras_tuner.errors import FailedTrialError, FatalError

from ...errors import ConfigError, DataError
from ...files import write_whole
from .. import families, hardware, states
from ..fit import State, stopping
from ..run import Job, fitted, gather, state_folder, with_values
from ..settings import Train
from .settings import Range, Tune, applied, value_of, words

# What TensorFlow says of a full disk, which is no fault of the trial.
_FULL = ("No space left on device", "Disk quota exceeded")
_EPOCHS = "tuner/epochs"  # hyperband's word for how far a trial goes

progress = logging.getLogger("espalier.progress")
Record = dict[str, Any]


def tuner_fn(fn_args: Any) -> Any:
    """The search; `espalier.trainer.tuning.search.tuner_fn` is what TFX's Tuner calls.

    Args:
        fn_args: as of `trainer.run.run_fn`, with `tune` in its custom_config.

    Returns:
        A TunerFnResult.
    """
    import tensorflow_transform as tft
    from tfx.components.tuner.component import TunerFnResult

    given = gather(fn_args)
    folder = state_folder(given, "tuning")
    # Before TensorFlow does anything else.
    strategy = hardware.strategy(given["train"]["distribute"])
    transform = tft.TFTransformOutput(given["transform_output"])
    train = functools.partial(train_trial, transform, strategy)
    return TunerFnResult(Search(given, train, folder), {})


def train_trial(
    transform: Any, strategy: Any, given: dict[str, Any], place: Path, until: int, clock: Any
) -> State:
    """Train as the Trainer does.

    Args:
        transform: Transform's output.
        strategy: the devices that train together.
        given: what `trainer.run.train` takes.
        place: what a killed trial goes on from, and hyperband's that is taken up again.
        until: the last epoch.
        clock: a Keras callback that may end it earlier.
    """
    import tf_keras as keras

    job = Job({**given, "model_run_dir": str(place)}, transform)
    learned = job.family.learned(job.settings, job.rows)
    settings = Train(**given["train"])
    try:
        _, state = fitted(job, settings, strategy, learned, place, until=until, callbacks=[clock])
    finally:
        keras.backend.clear_session()  # else each trial's graph stays in memory
        gc.collect()
    return state


class Search(base_tuner.BaseTuner):
    """keras-tuner's loop over trials.

    Args:
        given: what `trainer.run.train` takes, and `tune`.
        train: trains a trial: `train_trial` from `given` on.
        folder: what a killed search goes on from; goes when its result is recorded.
    """

    def __init__(self, given: Mapping[str, Any], train: Callable[..., State], folder: Path) -> None:
        self.folder, self._given, self._train_trial = folder, dict(given), train
        self.tune = Tune(**given["tune"])
        self._train = Train(**given["train"])
        self._file = folder / "records.json"
        self.records = _read(self._file)  # by keras-tuner's number of the trial
        self._before = set(self.records)
        limit = self.tune.time_limit
        self._deadline = time.monotonic() + 60 * limit if limit else None
        model = families.load(given["model"]["family"]).Settings(**given["model"])
        oracle = _oracle(self.tune, self._train, space(self.tune, self._train, model))
        super().__init__(oracle, directory=str(folder), project_name="oracle", overwrite=True)
        if self.records:
            progress.info("resumed after trial %d", len(self.records))

    def found(self) -> dict[str, Any]:
        """All trials: `search`, `best` (a trial's number) and `trials`, each with its `trial`
        number, `values`, `epochs`, lowest eval `loss`, its `accuracy`, `seconds`, whether the time
        limit `cut` it, and its `failure`, a sentence or empty."""
        (best,) = self.oracle.get_best_trials(1)
        return {
            "search": self.tune.search,
            "best": self.records[best.trial_id]["trial"],
            "trials": sorted(self.records.values(), key=lambda record: record["trial"]),
        }

    # What keras-tuner calls.

    def pre_create_trial(self) -> None:
        """End the search where its time has passed."""
        done = len(self.oracle.trials)
        if self._is_late() and 0 < done < self.oracle.max_trials:
            progress.info("the time limit has passed: %d of %d trials", done, self.tune.most)
            self.oracle.max_trials = done

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> float:
        """The trial's lowest eval loss.

        Raises:
            FailedTrialError: there is none; the search goes on.
            FatalError: no other trial would fare better.
        """
        record = self._trained(int(trial.trial_id) + 1, trial.hyperparameters.values)
        self.records[trial.trial_id] = record
        if record["failure"]:
            raise FailedTrialError(record["failure"])
        return float(record["loss"])

    def on_trial_end(self, trial: Any) -> None:
        """Keep and tell what was found."""
        record = self.records[trial.trial_id]
        if trial.trial_id not in self._before:
            write_whole(self._file, json.dumps(self.records))
            self._tell(record)
        super().on_trial_end(trial)
        place = self._place(record["values"])
        whole = self.tune.search != "hyperband" or record["epochs"] == self._train.all_epochs
        if whole and place.exists():
            states.discard(place)

    def on_search_end(self) -> None:
        """Raise ConfigError if nothing was found; the next run then begins anew."""
        failures = [record["failure"] for record in self.records.values()]
        if all(failures):
            states.discard(self.folder)
            raise ConfigError(
                f"tune: all {len(failures)} trials failed, the last one: {failures[-1]}"
            )

    # A trial.

    def _trained(self, number: int, values: Mapping[str, Any]) -> Record:
        given = with_values(self._given, dict(values))
        until = values.get(_EPOCHS, Train(**given["train"]).all_epochs)
        record = {"trial": number, "values": given["tuned"], "until": until}
        for before in self.records.values():
            if all(before[key] == record[key] for key in ("values", "until")):
                new = {} if before["trial"] == number else {"trial": number, "seconds": 0.0}
                return {**before, **new}
        begin, clock = time.monotonic(), stopping(self._is_late)
        try:
            with _on_the_bar(f"trial {number} of {self.tune.most}"):
                state = self._train_trial(given, self._place(given["tuned"]), until, clock)
        except (DataError, OSError) as error:
            raise FatalError(str(error)) from error
        except Exception as error:
            if any(words in str(error) for words in _FULL):
                raise FatalError(str(error)) from error
            logging.getLogger(__name__).exception("trial %d failed", number)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            nothing = {"epochs": 0, "loss": None, "accuracy": None, "cut": False}
            return {**record, **nothing, "seconds": time.monotonic() - begin, "failure": reason}
        return {
            **record,
            "epochs": state.epoch,
            "loss": state.best_loss,
            "accuracy": state.history[state.best_epoch - 1]["val_accuracy"],
            "cut": clock.cut,
            "seconds": time.monotonic() - begin,
            "failure": "",
        }

    def _place(self, values: Mapping[str, Any]) -> Path:
        """The same for the same values: hyperband's trial that goes on finds where it was."""
        key = json.dumps(values, sort_keys=True)
        return self.folder / "trainings" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _tell(self, record: Record) -> None:
        name = f"trial {record['trial']} of {self.tune.most}: {words(record['values'])}"
        if record["failure"]:
            progress.info("%s, failed: %s", name, record["failure"])
            return
        best = min(r["loss"] for r in self.records.values() if not r["failure"])
        if self.tune.search == "hyperband" or record["cut"]:
            name += f", after epoch {record['epochs']}"
        progress.info("%s, eval loss %.4f (best so far %.4f)", name, record["loss"], best)


def _read(file: Path) -> dict[str, Record]:
    """What a killed search had found; nothing if there was none."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def space(tune: Tune, train: Train, model: Any) -> HyperParameters:
    """keras-tuner's own form of what is searched."""
    found = HyperParameters()
    for key, values in tune.over.items():
        taken = [value_of(key, *applied({key: value}, train, model)) for _, value in tune.ends(key)]
        if isinstance(values, Range):
            add = found.Int if isinstance(taken[0], int) else found.Float
            add(key, *taken, sampling=values.scale)
        else:
            # A choice has one type; the sections read words as well.
            alike = len({type(value) for value in taken}) == 1 and not isinstance(taken[0], bool)
            found.Choice(key, taken if alike else [str(value).lower() for value in taken])
    return found


def _oracle(tune: Tune, train: Train, space: HyperParameters) -> Any:
    given = {
        "objective": Objective("eval_loss", "min"),
        "hyperparameters": space,
        "seed": train.seed + 1,  # 0 would be any
        "max_consecutive_failed_trials": tune.trials + 1,  # never the end of a search
    }
    if tune.search == "random":
        oracle = oracles.RandomSearchOracle(max_trials=tune.most, **given)
    elif tune.search == "bayesian":
        # keras-tuner's own is three for each key, which may be all trials.
        first = max(2, min(3 * len(tune.over), tune.most // 3))
        oracle = oracles.BayesianOptimizationOracle(
            max_trials=tune.most, num_initial_points=first, **given
        )
    else:
        oracle = oracles.HyperbandOracle(
            max_epochs=train.all_epochs, hyperband_iterations=tune.trials, **given
        )
        oracle.max_trials = tune.most  # it has no argument for it, and TFX asks
    oracle.verbose = 0
    return oracle


@contextlib.contextmanager
def _on_the_bar(name: str) -> Iterator[None]:
    """Name the trial in front of the trainer's steps, and leave its lines to the trial's own."""

    def change(record: logging.LogRecord) -> bool:
        record.msg = f"{name}, {record.msg}"
        return record.levelno <= logging.DEBUG

    progress.addFilter(change)
    try:
        yield
    finally:
        progress.removeFilter(change)
