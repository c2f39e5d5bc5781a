"""Which combinations a sweep runs, and what it says of them."""

from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError
from espalier.pipeline import sweep
from espalier.terminal import markdown

BASE: dict[str, Any] = {
    "name": "a", "data": {"csv": "a.csv", "text": "text", "label": "label"},
    "model": {"family": "bert", "start": "tiny"}, "push": {"to": "models"},
}  # fmt: skip


def swept(**keys: list[Any]) -> Config:
    return Config(**BASE, sweep={key.replace("__", "."): values for key, values in keys.items()})


def test_every_combination_is_a_configuration() -> None:
    found = sweep.variants(swept(train__learning_rate=[1e-4, 3e-4], train__seed=[1, 2, 3]))
    assert len(found) == 6
    assert {(v.config.train.learning_rate, v.config.train.seed) for v in found} == {
        (rate, seed) for rate in (1e-4, 3e-4) for seed in (1, 2, 3)
    }
    for variant in found:
        assert variant.config.sweep == {} and variant.config.home == swept(train__seed=[1]).home
        assert variant.values["train.seed"] == variant.config.train.seed


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "sweep: is missing"),
        ({"train__learning_rat": [1]}, "unknown key 'learning_rat'; did you mean learning_rate"),
        ({"trian__epochs": [1]}, "there is no section 'trian'"),
        ({"train__epochs": [1, 0, "two"]}, "train.epochs"),
        ({"push__to": ["a", "b"]}, "push.to: cannot be swept"),
        ({"name": ["a", "b"]}, "name: cannot be swept"),
        ({"train__seed": list(range(101))}, "101 combinations; at most 100"),
    ],
)
def test_what_cannot_be_swept(keys: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep.variants(swept(**keys))
    assert words in str(caught.value)


def test_no_values_are_a_fault_of_the_file() -> None:
    with pytest.raises(ConfigError, match="sweep"):
        swept(train__seed=[])


def rows() -> sweep.Swept:
    return sweep.Swept(
        [
            sweep.Row(
                {"train.epochs": 1, "train.seed": 1}, "r1", {"accuracy": 0.80, "auc": 0.9}, 5
            ),
            sweep.Row({"train.epochs": 1, "train.seed": 2}, "r2", {"accuracy": 0.84}, 5),
            sweep.Row({"train.epochs": 2, "train.seed": 1}, "r3", {"accuracy": 0.90}, 5),
            sweep.Row({"train.epochs": 2, "train.seed": 2}, failure="Trainer failed:\nno\n"),
        ],
        "accuracy",
    )


def test_seeds_are_put_together_and_the_best_comes_first() -> None:
    best, other = rows().groups
    assert (best.values, best.runs, best.means) == ({"train.epochs": 2}, 1, {"accuracy": 0.9})
    assert best.deviations == {"accuracy": None}
    assert other.means == {"accuracy": pytest.approx(0.82)}
    assert other.deviations["accuracy"] == pytest.approx(0.02828, rel=1e-3)
    assert rows().exit_code == 3
    of_loss = sweep.Swept(
        [sweep.Row({"a": n}, "r", {"loss": loss}) for n, loss in enumerate((0.3, 0.1))], "loss"
    )
    assert [group.values["a"] for group in of_loss.groups] == [1, 0]


def test_the_tables() -> None:
    runs = markdown(sweep.table(rows()))
    assert "| 1 | 2 | 0.8400 | - | 5.0 | r2 |" in runs
    assert "failed: Trainer failed:" in runs and "\nno" not in runs
    groups = markdown(sweep.groups_table(rows()))
    assert groups.splitlines()[2:] == ["| 2 | 1 | 0.9000 |", "| 1 | 2 | 0.8200 ± 0.0283 |"]


def test_what_fails_in_all_runs_alike_is_the_sweeps_own(tmp_path: Path) -> None:
    config = Config(**{**BASE, "runs": str(tmp_path), "data": {**BASE["data"], "csv": "gone.csv"}},
                    sweep={"train.seed": [1, 2]})  # fmt: skip
    with pytest.raises(ConfigError, match="every run failed alike: .*gone.csv"):
        sweep.sweep(config)


def test_what_a_search_decides_is_not_swept() -> None:
    tune = {"trials": 2, "over": {"train.learning_rate": [1e-4, 3e-4]}}
    config = Config(**BASE, tune=tune, sweep={"train.learning_rate": [1e-3]})
    with pytest.raises(ConfigError, match="train.learning_rate: tune.over searches it"):
        sweep.variants(config)
