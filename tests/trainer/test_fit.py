"""The training loop: it learns, keeps the best epoch, stops, resumes, and refuses NaN."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from espalier import ConfigError
from espalier.trainer.fit import State, compile_model, fit
from espalier.trainer.settings import Train

STEPS = 8


def data(seed: int = 0, noise: bool = False) -> "tf.data.Dataset":
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(STEPS * 16, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    if noise:
        y = rng.integers(0, 2, size=y.shape)
    labels = np.eye(2, dtype="float32")[y]
    return tf.data.Dataset.from_tensor_slices(({"x": x}, labels)).batch(16)


def model() -> Any:
    keras.utils.set_random_seed(1)
    x = keras.Input((4,), name="x")
    return keras.Model({"x": x}, keras.layers.Dense(2)(keras.layers.Dense(8, "relu")(x)))


def freeze(built: Any, parts: Any) -> None:
    """All but the last layer for "all", nothing for 0."""
    for layer in built.layers[:-1]:
        layer.trainable = parts == 0


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[Any, State]]:
    def call(settings: Train, built: Any = None, evaluation: Any = None) -> tuple[Any, State]:
        built = built or model()
        state = fit(
            built, lambda epoch: data(epoch), evaluation or data(99), settings,
            steps_per_epoch=STEPS, state_dir=tmp_path / "state", log_dir=str(tmp_path / "logs"),
            freeze=freeze,
        )  # fmt: skip
        return built, state

    return call


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_loss_falls(train: Callable[..., Any], optimizer: Any, tmp_path: Path) -> None:
    _, state = train(Train(epochs=4, learning_rate=0.05, optimizer=optimizer))
    losses = [epoch["loss"] for epoch in state.history]
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0]
    assert list(tmp_path.glob("logs/**/*tfevents*"))


def test_the_best_epochs_weights_are_kept(train: Callable[..., Any]) -> None:
    noise = data(3, noise=True)
    built, state = train(Train(epochs=5, learning_rate=0.5, decay="none"), evaluation=noise)
    best = min(epoch["val_loss"] for epoch in state.history)
    assert state.history[state.best_epoch - 1]["val_loss"] == best
    assert built.evaluate(noise, verbose=0)[0] == pytest.approx(best, rel=1e-4)


def test_patience_stops(train: Callable[..., Any]) -> None:
    _, state = train(
        Train(epochs=30, learning_rate=0.5, decay="none", patience=2),
        evaluation=data(3, noise=True),
    )
    assert len(state.history) == state.best_epoch + 2 < 30


def test_a_killed_training_resumes_to_the_same_weights(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    settings = Train(epochs=4, learning_rate=0.05)
    whole = fit(
        (undisturbed := model()), data, data(99), settings,
        steps_per_epoch=STEPS, state_dir=tmp_path / "other", log_dir=str(tmp_path / "other-logs"),
        freeze=freeze,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def until_third(epoch: int) -> Any:
        if epoch == 2:
            raise Killed
        return data(epoch)

    with pytest.raises(Killed):
        fit(
            model(), until_third, data(99), settings,
            steps_per_epoch=STEPS, state_dir=tmp_path / "state", log_dir=str(tmp_path / "logs"),
            freeze=freeze,
        )  # fmt: skip
    assert State.load(tmp_path / "state").epoch == 2
    resumed, state = train(settings)
    assert len(state.history) == len(whole.history) == 4
    for one, other in zip(resumed.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


STAGES = [{"epochs": 2, "freeze": "all"}, {"epochs": 3, "freeze": 0, "learning_rate": 0.01}]


def test_stages_freeze_and_then_train_everything(train: Callable[..., Any]) -> None:
    built = model()
    before = [layer.get_weights() for layer in built.layers]
    train(Train(learning_rate=0.05, stages=[STAGES[0]]), built)
    after = [layer.get_weights() for layer in built.layers]
    changed = [
        any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        for one, two in zip(before, after, strict=True)
    ]
    assert changed == [False, False, True]  # input, hidden, the head


def test_each_stage_has_its_own_rate_and_length(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = keras.Model.fit

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        result = plain(self, *arguments, **options)
        rate = self.optimizer._learning_rate
        peak = max(float(rate(step)) for step in range(STEPS * 3))
        seen.append((round(peak, 4), int(self.optimizer.iterations), len(self.trainable_weights)))
        return result

    monkeypatch.setattr(keras.Model, "fit", watched)
    _, state = train(Train(learning_rate=0.05, stages=STAGES))
    assert len(state.history) == 5
    assert [peak for peak, _, _ in seen] == [0.05, 0.05, 0.01, 0.01, 0.01]
    assert [steps for _, steps, _ in seen] == [STEPS, 2 * STEPS, STEPS, 2 * STEPS, 3 * STEPS]
    assert [weights for _, _, weights in seen] == [2, 2, 4, 4, 4]


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_stages_resume_to_the_same_weights(
    train: Callable[..., Any], tmp_path: Path, killed_in: int
) -> None:
    settings = Train(learning_rate=0.05, stages=STAGES)
    places = {"state_dir": tmp_path / "other", "log_dir": str(tmp_path / "other-logs")}
    fit(
        (whole := model()), data, data(99), settings,
        steps_per_epoch=STEPS, freeze=freeze, **places,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def until(epoch: int) -> Any:
        if epoch == killed_in:
            raise Killed
        return data(epoch)

    places = {"state_dir": tmp_path / "state", "log_dir": str(tmp_path / "logs")}
    with pytest.raises(Killed):
        fit(model(), until, data(99), settings, steps_per_epoch=STEPS, freeze=freeze, **places)
    resumed, state = train(settings)
    assert len(state.history) == 5
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("settings", [{"epochs": 5}, {"stages": STAGES}])
def test_a_training_in_parts_is_the_same_training(tmp_path: Path, settings: Any) -> None:
    given = Train(learning_rate=0.05, **settings)

    def part(built: Any, name: str, until: int | None = None) -> State:
        return fit(
            built, data, data(99), given, steps_per_epoch=STEPS, state_dir=tmp_path / name,
            log_dir=str(tmp_path / "logs"), freeze=freeze, until=until,
        )  # fmt: skip

    part(whole := model(), "whole")
    assert len(part(model(), "parts", until=2).history) == 2
    assert part(model(), "parts", until=2).epoch == 2  # there is nothing left to do
    assert len(part(model(), "parts", until=4).history) == 4
    state = part(last := model(), "parts")
    assert len(state.history) == 5
    for one, other in zip(last.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("stages", [[], [{"epochs": 50}, {"epochs": 50}]])
def test_a_time_limit_ends_it_with_the_best_so_far(
    train: Callable[..., Any], stages: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0, 30)  # seconds that pass each time somebody looks
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr("espalier.trainer.fit.time", clock)
    _, state = train(Train(epochs=50, stages=stages, time_limit=2))
    assert state.epoch == len(state.history) == 4 and state.seconds == 120
    assert 1 <= state.best_epoch <= 4


def test_one_epoch_is_always_trained(train: Callable[..., Any]) -> None:
    _, state = train(Train(epochs=50, time_limit=1e-9))
    assert state.epoch == state.best_epoch == 1


def test_patience_ends_a_stage_and_not_the_training(train: Callable[..., Any]) -> None:
    stages = [{"epochs": 30, "learning_rate": 0.5}, {"epochs": 2, "learning_rate": 1e-4}]
    noise = data(3, noise=True)
    _, state = train(Train(decay="none", patience=2, stages=stages), evaluation=noise)
    assert state.stage == 1
    assert len(state.history) == state.stage_begin + 2 < 32


def test_labels_that_do_not_exclude_each_other_are_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * 16, 4)).astype("float32")
    y = (x[:, :2] > 0).astype("float32")  # any of the two, both or none
    rows = tf.data.Dataset.from_tensor_slices(({"x": x}, y)).batch(16)
    built = model()
    state = fit(
        built, lambda epoch: rows, rows, Train(epochs=15, learning_rate=0.05),
        steps_per_epoch=STEPS, state_dir=tmp_path / "state", log_dir=str(tmp_path / "logs"),
        freeze=freeze, multi_label=True,
    )  # fmt: skip
    right = ((built.predict({"x": x}, verbose=0) > 0) == y).mean()
    assert right > 0.9
    best = state.history[state.best_epoch - 1]
    assert best["val_accuracy"] == pytest.approx(right, abs=1e-6)


def test_divergence_is_a_sentence(train: Callable[..., Any]) -> None:
    built = model()
    built.set_weights([np.full_like(w, np.nan) for w in built.get_weights()])
    with pytest.raises(ConfigError, match="learning_rate: training diverged in epoch 1"):
        train(Train(epochs=2), built=built)


@pytest.mark.parametrize(("decay", "last"), [("linear", 0.0), ("cosine", 0.0), ("none", 0.1)])
def test_the_rate_warms_up_and_decays(decay: Any, last: float) -> None:
    built = model()
    compile_model(built, Train(epochs=10, learning_rate=0.1, warmup=0.5, decay=decay), 10)
    rate = built.optimizer._learning_rate
    schedule = rate if callable(rate) else built.optimizer.learning_rate
    assert float(schedule(0)) == pytest.approx(0.1 / 50)
    assert float(schedule(49)) == pytest.approx(0.1)
    assert float(schedule(100)) == pytest.approx(last, abs=1e-6)


def test_an_epoch_has_no_step_more_than_batches(train: Callable[..., Any]) -> None:
    built, _ = train(Train(epochs=3))
    assert int(built.optimizer.iterations) == 3 * STEPS
