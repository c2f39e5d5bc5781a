"""The configuration: one YAML file, one pydantic model, every field documented here.

Paths are relative to the current directory. `model:` is validated by the family's own
`Settings` (`trainer/families/NAME.py`), `train:` by `trainer/settings.py`.
"""

import difflib
import functools
import io
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML

from .. import masking
from ..components.names import SPLITS
from ..components.row_split.rule import RATIOS, Rule
from ..errors import ConfigError
from ..trainer import families
from ..trainer.compression.settings import Compress
from ..trainer.preprocess import INPUTS, LABEL
from ..trainer.settings import Augment, Export, Section, Train
from ..trainer.tuning.settings import Tune, faults
from . import environment, formats, yaml_text
from .spans import newest_spans

_log = logging.getLogger(__name__)

Metric = Literal["accuracy", "f1", "auc", "precision", "recall", "specificity", "loss"]
FORMATS = ("csv", "parquet", "tfrecord", "images")


def _model_settings() -> Any:
    """The union of every family's Settings, told apart by `family`."""
    settings = tuple(families.load(name).Settings for name in families.names())
    if len(settings) == 1:
        return settings[0]
    return Annotated[Union[settings], Field(discriminator="family")]  # noqa: UP007


if TYPE_CHECKING:
    ModelSettings = Any
else:
    ModelSettings = _model_settings()


Place = Annotated[str, AfterValidator(os.path.expanduser)]


class SplitPaths(Section):
    """Separate files for each split."""

    train: str = Field(description="Rows to train on: a file, a folder or a glob.")
    eval: str | None = Field(
        None,
        description="Rows that choose the best epoch. Only images can do without: a tenth of "
        "train is taken.",
    )
    test: str | None = Field(
        None, description="Rows for the final evaluation; without them it uses the eval rows."
    )


class Split(Section):
    """How one source is split; at most one of `by`, `group` and `time`."""

    ratios: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default=RATIOS,
        description="Whole numbers: how large the splits are, beside each other. Without test, "
        "the eval rows are evaluated on.",
    )
    by: Literal["label"] | None = Field(
        None, description="label: each label's rows are split by the ratios."
    )
    group: str | None = Field(
        None,
        description="A column, such as a customer's: rows that have the same in it fall into one "
        "split. The ratios are those of the groups.",
    )
    time: str | None = Field(
        None,
        description="A column of dates, of dates with times (ISO 8601) or of whole numbers: the "
        "newest rows are test, the next newest eval.",
    )

    @model_validator(mode="after")
    def _is_one_way(self) -> "Split":
        ways = {"by": self.by, "group": self.group, "time": self.time}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"give one of by, group and time; found {' and '.join(given)}")
        if unknown := [name for name in self.ratios if name not in SPLITS]:
            raise ValueError(f"ratios: no split {unknown[0]!r}; they are {', '.join(SPLITS)}")
        if missing := [name for name in ("train", "eval") if name not in self.ratios]:
            raise ValueError(f"ratios: {missing[0]} is missing; such as {RATIOS}")
        return self


class Data(Section):
    """Where the rows are and what their columns mean."""

    csv: str | SplitPaths | None = Field(
        None,
        description="A CSV file, a folder of them or a glob, split 8:1:1 into train, eval and "
        "test by a hash of the row; or {train:, eval:, test:}. Hidden files are ignored. "
        "`data/{SPAN}/` names the folder with the highest number.",
    )
    parquet: str | SplitPaths | None = Field(None, description="The same, as Parquet files.")
    tfrecord: str | SplitPaths | None = Field(
        None, description="The same, as TFRecord files of tf.Example."
    )
    images: str | SplitPaths | None = Field(
        None,
        description="Pictures (JPEG, PNG, GIF, BMP): a folder with one folder a class, or with "
        "train, eval and test folders of those; a folder of MNIST-style idx files; or a CSV of "
        "path and label. Or {train:, eval:, test:}, each of them one of these. One source is "
        "split 8:1:1 by a hash of the picture; where only eval is missing, a tenth of train is it.",
    )
    text: str | Annotated[list[str], Field(min_length=1, max_length=2)] | None = Field(
        None, description="The text's column, or two columns [a, b] read as a pair."
    )
    label: str | None = Field(
        None,
        description="The label's column: strings or integers. For images only in a CSV, where "
        "`label` is the default.",
    )
    split: Split | None = Field(
        None,
        description="How one source is split; null is 8:1:1 by a hash of the row. Not with "
        "{train:, eval:, test:}.",
    )
    sample: int | None = Field(
        None,
        ge=1,
        description="For a quick first run: so many rows of all, chosen by a hash, the same ones "
        "each time; rows alike in all columns are taken together. Of files given by split "
        "each gives its share.",
    )
    multi_label: bool = Field(
        False,
        description="Images only: a picture may have any number of labels, none included; in a "
        "CSV they stand in one cell with | between them.",
    )
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="What a picture that cannot be used does: fail stops the run and names it, "
        "skip leaves it out and counts it.",
    )
    schema_file: str | None = Field(
        None,
        alias="schema",
        description="A curated TFDV schema (.pbtxt) that the data must fit; null infers one.",
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        given = [name for name in FORMATS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"name the data's source once, as one of {', '.join(FORMATS)}; "
                f"found {' and '.join(given) or 'none'}"
            )
        if self.split is not None and "all" not in self.places:
            raise ValueError(
                f"`split` splits one source, and {self.format} names files by split already"
            )
        if self.multi_label and self.split is not None and self.split.by:
            raise ValueError("`split: {by: label}` goes by a row's one label; not multi_label")
        if self.format == "images":
            if self.text is not None:
                raise ValueError("`text` names a column of csv, parquet or tfrecord, not of images")
            if list(self.places) == ["train"]:
                raise ValueError("images names train alone; name eval or test, or one source")
            return self
        source = getattr(self, self.format)
        if isinstance(source, SplitPaths) and source.eval is None:
            raise ValueError(f"{self.format}.eval is missing: the rows that choose the best epoch")
        for key in ("text", "label"):
            if getattr(self, key) is None:
                raise ValueError(f"`{key}` is missing: the name of a column in {self.format}")
        if self.label in self.texts:
            raise ValueError(f"the label's column {self.label!r} is also the text's")
        if self.multi_label or self.on_bad_image != "fail":
            raise ValueError("`multi_label` and `on_bad_image` are for images")
        return self

    @property
    def format(self) -> str:
        """csv, parquet, tfrecord or images."""
        return next(name for name in FORMATS if getattr(self, name) is not None)

    @property
    def sources(self) -> dict[str, str]:
        """Path per split; one source that is still to be split stands under `all`. `{SPAN}` is the
        newest one.

        Raises:
            DataError: there is no span.
            ConfigError: the splits' newest spans are not the same.
        """
        return newest_spans(self.places)

    @property
    def places(self) -> dict[str, str]:
        """The same as it stands in the YAML, `{SPAN}` included."""
        source = getattr(self, self.format)
        if isinstance(source, str):
            return {"all": source}
        return {name: path for name in SPLITS if (path := getattr(source, name))}

    @property
    def rule(self) -> Rule:
        """Which rows are taken, and which split each falls to."""
        if "all" not in self.places:
            return Rule({}, sample=self.sample)
        split = self.split or Split()
        column = split.group or split.time or ""
        by = split.by or ("group" if split.group else "time" if split.time else "row")
        return Rule(split.ratios, by, column, self.sample)

    @property
    def texts(self) -> list[str]:
        """The text columns, one or two; none for images."""
        return [self.text] if isinstance(self.text, str) else list(self.text or ())

    @property
    def kind(self) -> Literal["text", "image"]:
        """What a family has to read."""
        return "image" if self.format == "images" else "text"

    @property
    def inputs(self) -> dict[str, str]:
        """The column of each raw input, by the name that the served model gives the input."""
        columns = ["image"] if self.kind == "image" else self.texts
        return dict(zip(INPUTS[self.kind], columns, strict=False))

    @property
    def label_column(self) -> str:
        """The column that holds the label in the Examples."""
        return self.label or LABEL


class Evaluate(Section):
    """What is measured on the test rows, and what a model must reach to be blessed."""

    metrics: list[Metric] = Field(
        default=["accuracy", "f1", "auc"],
        min_length=1,
        description="accuracy; f1, precision, recall (sensitivity), specificity and auc (two "
        "classes: of the second in sorted order; more, or multi_label: the mean over classes); "
        "loss (cross-entropy). The first one decides where no limit is given. With multi_label "
        "accuracy is the share of right answers over all labels of all rows.",
    )
    slices: list[str] = Field(
        default=[], description="Columns by whose values the metrics are shown separately."
    )
    at_least: dict[Metric, float] = Field(
        default={},
        description="Lowest value a blessed model may have (loss: highest).",
    )
    worse_than_blessed_by_at_most: dict[Metric, float] = Field(
        default={},
        description="How much worse than the last blessed model it may be, in the metric's units.",
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> "Evaluate":
        for name, limit in self.at_least.items():
            if name != "loss" and not 0 <= limit <= 1:
                raise ValueError(f"at_least: {name} lies between 0 and 1; found {limit:g}")
        return self

    @property
    def measured(self) -> list[Metric]:
        """Every metric that is shown or has a limit, once."""
        return list(
            dict.fromkeys([*self.metrics, *self.at_least, *self.worse_than_blessed_by_at_most])
        )

    @property
    def limits(self) -> tuple[dict[Metric, float], dict[Metric, float]]:
        """(at_least, worse_than_blessed_by_at_most); where neither is set, the first metric
        must be no worse than the blessed model's (an Evaluator without thresholds would
        neither bless nor refuse: tensorflow/tfx#5148)."""
        if self.at_least or self.worse_than_blessed_by_at_most:
            return self.at_least, self.worse_than_blessed_by_at_most
        return {}, {self.metrics[0]: 0.0}


class Push(Section):
    """Where a blessed model is published for TensorFlow Serving."""

    to: Place = Field(description="The model's base path, which TensorFlow Serving watches.")
    keep: int = Field(5, ge=1, description="How many of the newest versions stay there.")
    model_server: str | None = Field(
        None,
        description="A tensorflow_model_server to check the model with before it is published; "
        "else one on PATH, else our own server, which answers the same calls.",
    )


class Card(Section):
    """What the model card of each version says that only people know."""

    intended_use: str | None = Field(None, description="What the model is for, and for whom.")
    out_of_scope: str | None = Field(None, description="What it is not meant for.")
    limits: str | None = Field(None, description="What it is known not to do well.")
    ethics: str | None = Field(None, description="Whom it may harm, and what was done about it.")
    licence: str | None = Field(
        None,
        description="Its licence (SPDX: Apache-2.0); null is what the checkpoint's folder says.",
    )
    contact: str | None = Field(None, description="Who answers questions about it.")


# What each of Beam's runners cannot do without; the names are Beam's own flags.
_BEAM_NEEDS: dict[str, tuple[str, ...]] = {
    "direct": (),
    "portable": ("job_endpoint",),
    "flink": ("flink_master",),
    "spark": ("spark_master_url",),
    "dataflow": ("project", "region", "temp_location", "sdk_container_image"),
}


class Beam(Section):
    """Where ExampleGen, statistics, Transform and the Evaluator compute."""

    runner: Literal["direct", "portable", "flink", "spark", "dataflow"] = Field(
        "direct", description="direct: in this process. The others are Beam's runners."
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Beam's own flags, without --: {job_endpoint: host:8099}."
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Beam":
        if missing := [name for name in _BEAM_NEEDS[self.runner] if name not in self.options]:
            raise ValueError(f"the runner {self.runner} needs options.{', options.'.join(missing)}")
        if self.runner == "direct" and self.options:
            raise ValueError("the runner direct takes no options")
        return self

    @property
    def flags(self) -> list[str]:
        """Beam's command line; empty for the runner in this process."""
        if self.runner == "direct":
            return []
        options = dict(self.options)
        # Without an image, TFX packs itself anew for each component, which workers here need not.
        options.setdefault("sdk_container_image", "unused")
        flags = [f"--runner={self.runner.capitalize()}Runner"]
        for name, value in options.items():
            flags += [f"--{name}"] if value is True else [f"--{name}={value}"]
        return flags


class Accelerator(Section):
    """What a component computes on beside CPUs."""

    type: str = Field(description="As the cluster names it: nvidia.com/gpu.")
    count: int = Field(1, ge=1, description="How many.")


class Resources(Section):
    """What a component's container asks for, and may use at most."""

    cpu: float | None = Field(None, gt=0, description="CPUs.")
    memory: str | None = Field(
        None, pattern=r"^\d+(\.\d+)?(Mi|Gi|Ti|M|G|T)$", description="Bytes: 500Mi, 16Gi, 16G."
    )
    accelerator: Accelerator | None = Field(None, description="null asks for none.")


class Cluster(Section):
    """How the same job runs on Kubeflow Pipelines; a local run does not read it."""

    image: str = Field("espalier:0.1.0", description="The container image, by tag or digest.")
    root: str = Field(
        "", description="Where artifacts go: minio://, s3:// or gs://; else the cluster's default."
    )
    resources: dict[str, Resources] = Field(
        default_factory=dict, description="By component (Trainer), or `all` for those not named."
    )


def _check_together(data: Data, train: Train, model: Any) -> None:
    """Raise ValueError for sections that are sound by themselves alone."""
    kind, family = data.kind, model.family
    if kind != families.load(family).FEATURE_KIND:
        fitting = [n for n in families.names() if kind == families.load(n).FEATURE_KIND]
        raise ValueError(
            f"model.family {family} does not read data.{data.format}; families that do: "
            f"{', '.join(fitting)}"
        )
    if kind == "text" and train.augment != Augment():
        raise ValueError("train.augment is for images")
    if train.time_limit and train.distribute == "multi_worker":
        raise ValueError("train.time_limit: each worker has its own clock; not with multi_worker")
    if data.multi_label and train.class_weight != "none":
        raise ValueError("train.class_weight weighs rows by their one label; not multi_label")
    if train.class_weight != "none" and train.augment.mix != "none":
        raise ValueError("train.class_weight weighs rows by their one label; not with mix")


class Config(BaseModel):
    """One job, whole. Raises ConfigError with every fault found.

    Example: `Config(name="reviews", data={"csv": "reviews.csv", "text": "text", "label":
    "label"}, model={"family": "bert", "start": "tiny"}, push={"to": "models/reviews"})`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[2] = Field(
        2,
        description="The version of this file's format. Files of version 1 are read too.",
    )
    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,62}$",
        description="The pipeline's name: lower-case letters, digits and dashes.",
    )
    data: Data
    model: ModelSettings = Field(description="The family and its own settings.")
    train: Train = Field(default_factory=Train)
    tune: Tune | None = Field(
        None, description="Which settings are searched before training; null searches none."
    )
    compress: Compress | None = Field(
        None, description="How the model is made small after training; null leaves it as it is."
    )
    export: Export = Field(default_factory=Export)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    push: Push
    card: Card = Field(default_factory=Card)
    beam: Beam = Field(default_factory=Beam)
    cluster: Cluster = Field(default_factory=Cluster)
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Keys and the values to try, for `espalier sweep`: {train.learning_rate: "
        "[1e-4, 3e-4], train.seed: [1, 2, 3]}. `run` does not read it.",
    )
    runs: Place = Field(
        "runs", description="Folder for what runs leave: artifacts, metadata, logs, results."
    )
    retries: int = Field(
        0,
        ge=0,
        description="How often what a network failed is tried again, after 1, 2, 4, ... seconds: "
        "fetching what model names, publishing to a remote place. On Kubeflow Pipelines: every "
        "failed component.",
    )
    secrets: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        default=[],
        description="Variables of the environment that this file refers to as ${NAME}, and whose "
        "values are written nowhere. They may stand in beam.options alone.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "Config":
        _check_together(self.data, self.train, self.model)
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> "Config":
        if self.tune is None:
            return self
        after = families.load(self.model.family).AFTER_TRANSFORM
        check = functools.partial(_check_together, self.data)
        if found := list(faults(self.tune, self.train, self.model, after, check)):
            raise ValidationError.from_exception_data(
                "tune",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("value_error", "{reason}", {"reason": reason}),
                        loc=("tune", *place),
                        input=given,
                    )
                    for place, reason, given in found
                ],
            )
        return self

    def __init__(self, **values: Any) -> None:
        self._fill(values, "Config")

    def _fill(self, values: Any, where: str) -> None:
        try:
            self.__pydantic_validator__.validate_python(values, self_instance=self)
        except ValidationError as error:
            faults = yaml_text.listed(_sentences(error, where, values, Config))
            raise ConfigError(masking.masked(faults)) from None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> "Config":
        """Read a YAML file, apply `key.path=value` overrides, and put the environment's values in
        place of `${NAME}`. A file of an older format is read too, and what is another there now
        is logged.

        Raises:
            ConfigError: with a line per fault: file, line, key path, found, expected.
        """
        config, changes = cls._load(path, overrides)
        for change in changes:
            _log.warning("%s: written for an older Espalier: %s.", path, change)
        return config

    @classmethod
    def _load(cls, path: str | Path, overrides: Iterable[str] = ()) -> "tuple[Config, list[str]]":
        tree = yaml_text.parse(yaml_text.read(Path(path)), str(path))
        for override in overrides:
            _apply(tree, override)
        changes = formats.migrate(tree, str(path))
        _expand(tree, str(path))
        config = cls.__new__(cls)
        config._fill(tree, str(path))  # not __init__(**tree), which would lose the line numbers
        return config, changes

    def written(self) -> dict[str, Any]:
        """The resolved configuration as a file has it: every default filled in, secrets as
        `${NAME}`."""
        tree: dict[str, Any] = environment.restore(self.model_dump(mode="json", by_alias=True))
        return tree

    @classmethod
    def of_version(cls, version: Path) -> "Config | None":
        """How a pushed version was made; None if that does not stand beside it.

        Raises:
            ConfigError: see `load`.
        """
        from ..components.pusher import publish  # which imports gRPC

        file = version / publish.EXTRA / publish.CONFIG
        return cls._load(file)[0] if file.exists() else None

    def settled(self) -> "Config":
        """The same with `{SPAN}` looked up, once for all who read the data.

        Raises:
            ConfigError, DataError: see `Data.sources`.
        """
        found = self.data.sources
        if found == self.data.places:
            return self
        whole = isinstance(getattr(self.data, self.data.format), str)
        source = found["all"] if whole else SplitPaths(**found)
        data = self.data.model_copy(update={self.data.format: source})
        return self.model_copy(update={"data": data})

    def to_yaml(self) -> str:
        """The same as YAML; `load` makes this configuration of it."""
        out, yaml = io.StringIO(), YAML()
        yaml.width = 10_000  # a path stays on its line
        yaml.representer.add_representer(
            type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
        )
        yaml.dump(self.written(), out)
        return out.getvalue()

    @property
    def home(self) -> Path:
        """The folder of everything that runs of this pipeline leave behind."""
        return Path(self.runs) / self.name


Part = TypeVar("Part", bound=BaseModel)


def load_section(path: str | Path, name: str, model: type[Part]) -> Part:
    """Read one section out of a file of its own, or out of a whole configuration.

    Args:
        path: a YAML file with the section's keys at its top, or with the section under `name`.
        name: the section.
        model: what it has to be.

    Raises:
        ConfigError: with a line per fault, as `Config.load` gives them.
    """
    tree = yaml_text.parse(yaml_text.read(Path(path)), str(path))
    prefix = (name,) if name in tree else ()
    section = tree[name] if prefix else tree
    if section is None or (not prefix and "data" in tree):
        raise ConfigError(
            f"{path}: a configuration without `{name}:`. Expected that section in it, or a file "
            f"with {', '.join(model.model_fields)} at its top."
        )
    _expand(tree, str(path), prefix)
    try:
        return model.model_validate(section)
    except ValidationError as error:
        raise ConfigError(
            yaml_text.listed(_sentences(error, str(path), tree, model, prefix))
        ) from None


def _expand(tree: dict[str, Any], where: str, prefix: Sequence[str] = ()) -> None:
    if faults := environment.expand(tree, prefix):
        raise ConfigError("\n".join(f"{_place(tree, where, p)}: {why}" for p, why in faults))


def _place(tree: Any, where: str, path: Sequence[Any]) -> str:
    """The file, the line and the key."""
    line = _line(tree, path)
    return (
        f"{where}{f':{line}' if line else ''}: {yaml_text.cut('.'.join(map(str, path))) or '(top)'}"
    )


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as train.epochs=1")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section.")
    tree[last] = yaml_text.parse(f"value: {value}", f"--set {key}")["value"]
    lines = getattr(getattr(tree, "lc", None), "data", None)
    if lines:  # its line in the file would mislead
        lines.pop(last, None)


def _sentences(
    error: ValidationError, where: str, tree: Any, model: Any, prefix: tuple[str, ...] = ()
) -> list[str]:
    """A line per fault of what stands under `prefix` in the tree and should be a `model`."""
    lines: dict[str, None] = {}
    faults = [(_key_path(fault["loc"], fault["type"]), fault) for fault in error.errors()]
    for path, fault in faults:
        if any(len(other) > len(path) and other[: len(path)] == path for other, _ in faults):
            continue  # a union's other branch: the deeper fault says more
        lines[f"{_place(tree, where, [*prefix, *path])}: {_reason(fault, model)}"] = None
    return list(lines)


def _key_path(loc: Sequence[Any], kind: str) -> list[Any]:
    """The location without pydantic's own markers for the branch of a union."""
    if kind.startswith("union_tag"):
        return [*loc, "family"]
    families_, markers = set(families.names()), {"str", "int", "SplitPaths", "constrained-int"}
    return [
        part
        for position, part in enumerate(loc)
        if not (isinstance(part, str) and (part in markers or "[" in part or "literal" in part))
        and not (position == 1 and loc[0] == "model" and part in families_)
    ]


def _line(tree: Any, path: Sequence[Any]) -> int | None:
    """The 1-based line of the deepest part of the path that stands in the file."""
    line = None
    for part in path:
        try:
            if part in tree.lc.data:
                line = tree.lc.data[part][0] + 1
            tree = tree[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _reason(fault: Any, model: Any) -> str:
    shown = yaml_text.shown
    name, kind = str(fault["loc"][-1]) if fault["loc"] else "", fault["type"]
    if kind == "extra_forbidden":
        known = _known(fault["loc"][:-1], model)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
        return f"unknown key {shown(name)}; {hint}"
    if kind == "missing":
        return "missing; it has no default."
    if kind == "union_tag_not_found":
        return f"missing; the families are: {', '.join(families.names())}."
    if kind == "union_tag_invalid":
        near = difflib.get_close_matches(str(fault["ctx"]["tag"]), families.names(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(families.names())
        return f"{shown(fault['ctx']['tag'])} is not known; {hint}the families are: {names}."
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return message if kind == "value_error" else f"{message}; found {shown(fault['input'])}"


def _known(loc: Sequence[Any], model: Any) -> list[str]:
    """The names of the fields in the section at `loc` of a model."""
    for part in loc:
        if part in families.names() and model not in (Config, Data):
            continue
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _model_of(model.model_fields[part].annotation, loc)
    fields = model.model_fields if hasattr(model, "model_fields") else {}
    return [field.alias or name for name, field in fields.items()]


def _models(annotation: Any) -> list[Any]:
    """The models in an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in get_args(annotation) for model in _models(one)]


def _model_of(annotation: Any, loc: Sequence[Any]) -> Any:
    models = _models(annotation)
    chosen = [
        m
        for m in models
        if "family" in m.model_fields
        and len(loc) > 1
        and m.model_fields["family"].default == loc[1]
    ]
    return next(iter(chosen or models), None)
