"""The search: which trials there are, which is the best, what a failure or a kill costs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from espalier.errors import ConfigError, DataError
from espalier.trainer.families.bert import Settings
from espalier.trainer.fit import State
from espalier.trainer.run import with_values
from espalier.trainer.settings import Train
from espalier.trainer.tuning.search import Search, space
from espalier.trainer.tuning.settings import Tune, tuned, words

RATE = "train.learning_rate"
OVER: dict[str, Any] = {
    RATE: {"from": 1e-5, "to": 1e-1, "scale": "log"},
    "train.batch_size": [16, 32],
}


class Lab:
    """Trains by a table: the loss is lowest at a rate of 1e-3, and falls with each epoch."""

    def __init__(self, fails: Any = lambda rate, ran: None) -> None:
        self.ran: list[tuple[float, int, str]] = []  # the rate, the last epoch, the place
        self._fails = fails

    def __call__(self, given: dict[str, Any], place: Path, until: int, clock: Any) -> State:
        rate = given["train"]["learning_rate"]
        self.ran.append((rate, until, place.name))
        self._fails(rate, len(self.ran))
        place.mkdir(parents=True, exist_ok=True)
        loss = abs(math.log10(rate) + 3) + 1 / until
        history = [{"val_loss": loss, "val_accuracy": 1 / (1 + loss)}] * until
        return State(epoch=until, best_epoch=1, best_loss=loss, history=history)


def make(folder: Path, lab: Any, epochs: int = 3, seed: int = 0, **tune: Any) -> Search:
    given = {
        "model": Settings(start="tiny").model_dump(mode="json"),
        "train": Train(epochs=epochs, seed=seed).model_dump(mode="json"),
        "tune": {"over": OVER, "search": "random", "trials": 6, **tune},
    }
    return Search(given, lab, folder / "search")


def searched(folder: Path, lab: Any, **given: Any) -> dict[str, Any]:
    """What a whole search finds."""
    search = make(folder, lab, **given)
    search.search()
    return search.found()


def values(found: dict[str, Any]) -> list[Any]:
    return [trial["values"] for trial in found["trials"]]


@pytest.mark.parametrize("kind", ["random", "bayesian", "hyperband"])
def test_the_same_seed_gives_the_same_trials_and_the_lowest_loss_is_the_best(
    tmp_path: Path, kind: str
) -> None:
    found = searched(tmp_path / "a", Lab(), search=kind)
    again = searched(tmp_path / "b", Lab(), search=kind)
    other = searched(tmp_path / "c", Lab(), search=kind, seed=1)
    assert values(found) == values(again) != values(other)
    assert [trial["trial"] for trial in found["trials"]] == [1, 2, 3, 4, 5, 6]
    best = min(found["trials"], key=lambda trial: trial["loss"])
    assert found["best"] == best["trial"]
    for trial in found["trials"]:
        assert 1e-5 <= trial["values"][RATE] <= 1e-1
        assert trial["values"]["train.batch_size"] in (16, 32)


def test_bayesian_looks_where_the_loss_is_low(tmp_path: Path) -> None:
    over = {RATE: OVER[RATE]}
    found = searched(tmp_path, Lab(), search="bayesian", trials=12, over=over, epochs=1)
    losses = [trial["loss"] for trial in found["trials"]]
    assert min(losses[4:]) < min(losses[:4])  # a third of them is random
    assert min(losses) < 1.1  # it would be 1


def test_hyperband_takes_the_best_up_again_where_it_was(tmp_path: Path) -> None:
    lab = Lab()
    found = searched(tmp_path, lab, search="hyperband", trials=6, epochs=3)
    assert [trial["epochs"] for trial in found["trials"]] == [1, 1, 1, 3, 3, 3]
    short = lab.ran[:3]
    rate, _, place = lab.ran[3]
    assert (rate, 1, place) in short
    assert found["trials"][3]["loss"] == min(t["loss"] for t in found["trials"][:4])
    # What may still go on keeps its weights; what has no epoch left does not.
    kept = {one.name for one in (tmp_path / "search" / "trainings").iterdir()}
    assert kept == {place for _, _, place in short} - {place}


def test_few_combinations_are_tried_once(tmp_path: Path) -> None:
    over = {"train.batch_size": [8, 16], "model.dropout": [0, 0.1]}
    lab = Lab()
    found = searched(tmp_path, lab, trials=50, over=over)
    assert len(found["trials"]) == len({json.dumps(one) for one in values(found)}) <= 4
    assert len(lab.ran) == len(found["trials"])


def diverges(rate: float, ran: int) -> None:
    if rate > 1e-3:
        raise ConfigError("train.learning_rate: training diverged in epoch 1.\nLower it.")


@pytest.mark.parametrize("kind", ["random", "bayesian", "hyperband"])
def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path, kind: str) -> None:
    found = searched(tmp_path, Lab(diverges), search=kind, trials=9)
    failed = [trial for trial in found["trials"] if trial["failure"]]
    assert 0 < len(failed) < 9 == len(found["trials"])
    for trial in failed:
        assert trial["failure"] == "train.learning_rate: training diverged in epoch 1."
        assert trial["loss"] is None and trial["values"][RATE] > 1e-3
    assert found["trials"][found["best"] - 1] not in failed


def test_a_search_in_which_all_fail_is_a_sentence(tmp_path: Path) -> None:
    over = {RATE: {"from": 0.1, "to": 1}}
    with pytest.raises(ConfigError, match="tune: all 6 trials failed, the last one: train.learn"):
        searched(tmp_path, Lab(diverges), over=over)
    assert not list(tmp_path.iterdir()), "the next run tries again"


@pytest.mark.parametrize(
    "error",
    [
        DataError("no rows"),
        OSError("No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "write failed; No space left on device"),
    ],
)
def test_what_no_other_trial_would_mend_ends_the_search(tmp_path: Path, error: Exception) -> None:
    def breaks(rate: float, ran: int) -> None:
        raise error

    lab = Lab(breaks)
    with pytest.raises(Exception, match=str(error)) as caught:
        searched(tmp_path, lab)
    assert caught.value.__cause__ is error
    assert len(lab.ran) == 1


@pytest.mark.parametrize("killed_in", [1, 2, 5])
@pytest.mark.parametrize("kind", ["random", "bayesian", "hyperband"])
def test_a_killed_search_goes_on(tmp_path: Path, kind: str, killed_in: int) -> None:
    def killed(rate: float, ran: int) -> None:
        if ran == killed_in:
            raise KeyboardInterrupt

    undisturbed = searched(tmp_path / "whole", Lab(), search=kind)
    first, second = Lab(killed), Lab()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, first, search=kind)
    found = searched(tmp_path, second, search=kind)
    assert values(found) == values(undisturbed)
    assert found["best"] == undisturbed["best"]
    assert second.ran[0] == first.ran[-1]  # the same trial again, in the same place
    assert len(first.ran) + len(second.ran) == 6 + 1


def test_a_kill_while_the_oracle_wrote_its_files_costs_no_trial(tmp_path: Path) -> None:
    def killed(rate: float, ran: int) -> None:
        if ran == 5:
            raise KeyboardInterrupt

    first, second = Lab(killed), Lab()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, first)
    written = list((tmp_path / "search" / "oracle").rglob("*.json"))
    assert written
    for file in written:
        file.write_text('{"ongoing_tri')
    assert len(searched(tmp_path, second)["trials"]) == 6
    assert len(second.ran) == 2


def test_the_time_limit_keeps_the_best_so_far(tmp_path: Path) -> None:
    search = make(tmp_path, Lab(), trials=6, time_limit=60.0)

    def late(rate: float, ran: int) -> None:
        if ran == 2:
            search._deadline = 0.0

    search._train_trial = Lab(late)
    search.search()
    assert len(search.found()["trials"]) == 2


def test_values_become_the_sections_own(tmp_path: Path) -> None:
    tune = Tune(
        over={
            "train.freeze": [0, 2, "all"], "train.keep_sparsity": [True, False],
            "train.batch_size": {"from": 8, "to": 64, "scale": "log"}, "train.warmup": [0, 0.1],
            "train.optimizer": ["adamw", "sgd"], "train.augment.flip": [True, False],
        }
    )  # fmt: skip
    train, model = Train(), Settings(start="tiny")
    asked = {one.name: one for one in space(tune, train, model).space}
    assert type(asked["train.batch_size"]).__name__ == "Int"
    for key, one in asked.items():
        for place in (0.0, 0.4, 0.99):
            found, changed, _ = tuned({key: one.prob_to_value(place)}, train, model)
            assert type(changed) is Train
            assert found[key] in (tune.over[key] if key != "train.batch_size" else range(8, 65))
    found, changed, model = tuned({"model.dropout": 0.3, "tuner/epochs": 2}, train, model)
    assert found == {"model.dropout": 0.3} and model.dropout == 0.3
    assert changed == train


def test_the_trainer_is_given_the_best_values() -> None:
    given = {
        "model": Settings(start="tiny").model_dump(mode="json"),
        "train": Train().model_dump(mode="json"), "label": "l",
    }  # fmt: skip
    best = with_values(given, {RATE: 1e-4, "train.keep_sparsity": "true", "tuner/epochs": 1})
    assert best["train"] == {**given["train"], "learning_rate": 1e-4, "keep_sparsity": True}
    assert best["tuned"] == {RATE: 1e-4, "train.keep_sparsity": True}
    assert (best["model"], best["label"]) == (given["model"], "l")


def test_values_in_words() -> None:
    assert words({"a.b": 0.000123456, "c": 32, "d": "sgd"}) == "a.b 0.0001235, c 32, d sgd"
