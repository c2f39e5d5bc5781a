"""What may be searched and where, as the YAML's `tune:` section says it.

Imports neither TensorFlow nor keras-tuner: every fault is found before anything runs.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from ..settings import Augment, Section, Train

FEWEST_EPOCHS = 3  # of a hyperband: it gives a trial a third of them first
# These name other parts of the run, what the search itself begins with, or a file whose content
# is looked at before anything runs.
_NEVER = ("augment", "distribute", "from", "from_", "seed", "stages", "time_limit", "weights")


class Range(Section):
    """Numbers between two ends, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    low: float = Field(alias="from", description="The lowest number.")
    high: float = Field(alias="to", description="The highest number.")
    scale: Literal["linear", "log"] = Field(
        "linear", description="log looks as closely between 1e-5 and 1e-4 as from there to 1e-3."
    )

    @model_validator(mode="after")
    def _can_be_walked(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"from must be below to; found {self.low:g} and {self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"scale: log needs a from above 0; found {self.low:g}")
        return self


def _kind(given: Any) -> str | None:
    if isinstance(given, dict | Range):
        return "[range]"
    return "[list]" if isinstance(given, list | tuple) else None


# Told apart by hand: pydantic would tell what is wrong with a range and with a list, each time.
Values = Annotated[
    Union[  # noqa: UP007
        Annotated[Range, Tag("[range]")],
        Annotated[list[Any], Field(min_length=1), Tag("[list]")],
    ],
    Discriminator(
        _kind,
        custom_error_type="values",
        custom_error_message="should be a list of values, or {from: ..., to: ...}",
    ),
]


class Tune(Section):
    """The Tuner's search; without this section a run has none."""

    search: Literal["random", "hyperband", "bayesian"] = Field(
        "bayesian",
        description="bayesian: after a third of the trials at random, each goes where a Gaussian "
        "process expects the lowest loss; random; hyperband: many begin, for few epochs, and the "
        "best of them go on.",
    )
    trials: int = Field(
        10, ge=1, description="How many trainings, at most; hyperband counts a trial that goes on."
    )
    over: dict[str, Values] = Field(
        min_length=1,
        description="What is searched: keys of `train:` and of `model:`, each with a list of "
        "values, [16, 32], or a range, {from: 1e-5, to: 1e-3, scale: log} (linear if left out).",
    )
    time_limit: float | None = Field(
        None, gt=0, description="Minutes for all trials together; the best so far is taken then."
    )

    @property
    def most(self) -> int:
        """How many trials there can be: a few lists have few combinations."""
        sizes = [math.inf if isinstance(v, Range) else len(v) for v in self.over.values()]
        return (
            self.trials if self.search == "hyperband" else int(min(self.trials, math.prod(sizes)))
        )

    def ends(self, key: str) -> list[tuple[str | int, Any]]:
        """A key's values with their places in the YAML: all of a list, both ends of a range."""
        values = self.over.get(key, [])
        if isinstance(values, Range):
            return [("from", values.low), ("to", values.high)]
        return list(enumerate(values))


def applied(values: Mapping[str, Any], train: Train, model: Any) -> tuple[Train, Any]:
    """`train:` and `model:` with other values.

    Args:
        values: by key: {"train.learning_rate": 1e-4, "model.dropout": 0.2}.
        train, model: the sections.

    Raises:
        ValidationError: a section does not take a value.
    """
    sections: Any = {"train": train.model_dump(), "model": model.model_dump()}
    for key, value in values.items():
        *parents, name = key.split(".")
        section = sections
        for parent in parents:
            section = section[parent]
        section[name] = value
    return type(train)(**sections["train"]), type(model)(**sections["model"])


def value_of(key: str, train: Train, model: Any) -> Any:
    """What a key is."""
    found = {"train": train, "model": model}
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


def tuned(values: Mapping[str, Any], train: Train, model: Any) -> tuple[dict[str, Any], Train, Any]:
    """A trial's values as the sections take them, and the sections with them.

    Args:
        values: keras-tuner's, which has words or numbers alone, and notes its own beside them.
        train, model: the sections.
    """
    wanted = {key: value for key, value in values.items() if not key.startswith("tuner/")}
    sections = applied(wanted, train, model)
    return {key: value_of(key, *sections) for key in wanted}, *sections


def words(values: Mapping[str, Any]) -> str:
    """A trial's values for a person."""
    return ", ".join(f"{key} {word(value)}" for key, value in values.items())


def word(value: Any) -> str:
    """A value for a person, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Fault = tuple[tuple[str | int, ...], str, Any]  # where below `tune:`, a sentence, what was found


def faults(
    tune: Tune,
    train: Train,
    model: Any,
    after_transform: Sequence[str],
    fit: Callable[[Train, Any], None],
) -> Iterator[Fault]:
    """Every reason why this cannot be searched.

    Args:
        tune: the section.
        train, model: what it changes.
        after_transform: the family's settings that Transform does not read.
        fit: raises ValueError where the sections do not go together.
    """
    if train.distribute == "multi_worker":
        reason = "a Tuner trains on one machine; leave train.distribute: multi_worker or this out"
        yield (), reason, train.distribute
    if train.from_ == "last-blessed":
        yield (), "trials begin with model.start; leave train.from or this out", train.from_
    if tune.search == "hyperband" and train.all_epochs < FEWEST_EPOCHS:
        yield (
            ("search",),
            f"hyperband stops trials early, and there are {train.all_epochs} epochs; give "
            f"{FEWEST_EPOCHS} at least, or take random or bayesian",
            tune.search,
        )
    for key in tune.over:
        if reason := _unknown(key, after_transform) or _useless(key, tune, train):
            yield ("over", key), reason, key
            continue
        for place, value in tune.ends(key):
            if reason := _refused(key, value, tune, train, model, fit):
                yield ("over", key, place), reason, value


def _unknown(key: str, after_transform: Sequence[str]) -> str:
    known = [f"train.{name}" for name in Train.model_fields if name not in _NEVER]
    known += [f"train.augment.{name}" for name in Augment.model_fields]
    known += [f"model.{name}" for name in after_transform if name not in _NEVER]
    if key in known:
        return ""
    near = difflib.get_close_matches(key, known, 1, 0.8)
    if near:
        return f"cannot be searched; did you mean {near[0]}?"
    section = key.partition(".")[0]
    reason = ", since Transform would have to run for each value" if section == "model" else ""
    listed = [name for name in known if name.startswith(f"{section}.")] or known
    return f"cannot be searched{reason}; known here: {', '.join(listed)}"


def _useless(key: str, tune: Tune, train: Train) -> str:
    """Why other values of a known key would change nothing."""
    if key == "train.epochs" and tune.search == "hyperband":
        return "hyperband itself says for how many epochs a trial trains; leave it out"
    name = key.removeprefix("train.")
    staged = name in ("epochs", "freeze", "learning_rate") and train.stages
    if staged and all(getattr(stage, name) is not None for stage in train.stages):
        return "each of train.stages has its own; leave it out"
    return ""


def _refused(
    key: str, value: Any, tune: Tune, train: Train, model: Any, fit: Callable[[Train, Any], None]
) -> str:
    """Why a section does not take a value."""
    if value is None or isinstance(value, list | dict):
        return f"should be a number, a word, true or false; found {value!r}"
    try:
        sections = applied({key: value}, train, model)
        fit(*sections)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        return f"{message.replace('Input should', 'should')}; found {value!r}"
    except ValueError as error:
        return str(error)
    taken = value_of(key, *sections)
    if isinstance(tune.over[key], Range) and type(taken) not in (int, float):
        return f"a range is for numbers; give a list of values instead of {value:g}"
    return ""
