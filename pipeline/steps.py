"""What each component is told, as plain values, and what it takes: by this TFX's cache decides.

`dag` makes the components of it, and `plan` compares it with what earlier executions were told.
Imports no TFX.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..trainer import families
from . import code_digest
from .config import Config, Data

Told = dict[str, Any]


def told(config: Config, *, data: str, start: str, accept: bool = False) -> dict[str, Told]:
    """What every component that TFX may take from its cache is told, in the order of the line.

    Args:
        config: the job.
        data: a hash of the data's content.
        start: a hash of what training starts from.
        accept: leave the last blessed model out of the verdict.
    """
    schema = schema_copy(config)
    found = {
        "ExampleGen": example_gen(config.data, data),
        "StatisticsGen": {},
        "SchemaGen": {"schema": str(schema) if schema else None},
        "ExampleValidator": {},
        "DataGate": {"label": config.data.label_column, "texts": config.data.texts},
        "Transform": transform(config, start),
        "Tuner": tuner(config, start),
        "Trainer": trainer(config, start),
        "Compressor": compressor(config),
        "Evaluator": evaluator(config, accept),
        "ServingCheck": {"inputs": config.data.inputs, "server": server(config)},
    }
    absent = {"Tuner"} if config.tune is None else set()
    absent |= {"Compressor"} if config.compress is None else set()
    return {name: one for name, one in found.items() if name not in absent}


def example_gen(data: Data, fingerprint: str) -> Told:
    """Where the rows are, and what they are."""
    rule = data.rule
    found: Told = {"sources": data.sources, "fingerprint": fingerprint, "rule": rule.to_dict()}
    if data.kind != "image":
        return {**found, "format": data.format, "label": data.label_column}
    return {
        **found,
        "label": data.label_column,
        "multi_label": data.multi_label,
        "on_bad_image": data.on_bad_image,
    }


def schema_copy(config: Config) -> Path | None:
    """Where a curated schema is copied to: ImportSchemaGen's result is cached by the path, which
    is therefore named by the content."""
    if config.data.schema_file is None:
        return None
    digest = hashlib.sha256(Path(config.data.schema_file).read_bytes()).hexdigest()
    return config.home / "schemas" / digest / "schema.pbtxt"


def server(config: Config) -> str:
    """The tensorflow_model_server to check with: the named one, or one on PATH; "" is our own."""
    return config.push.model_server or shutil.which("tensorflow_model_server") or ""


def transform(config: Config, start: str) -> Told:
    """What preprocessing is told: nothing that another training alone would change."""
    later = set(families.load(config.model.family).AFTER_TRANSFORM)
    checkpoint = {} if "weights" in later else {"checkpoint": start}
    return {**_reads(config), **checkpoint, "model": _plain(config.model, exclude=later)}


def training(config: Config, start: str) -> Told:
    """What a training is told, wherever it is done."""
    return {
        **_reads(config),
        "checkpoint": start,
        "model": _plain(config.model),
        "train": _plain(config.train, by_alias=True),
        "state_dir": str(config.home),
    }


def continues(config: Config) -> bool:
    """Whether training goes on from the model that was pushed last."""
    return config.train.from_ == "last-blessed"


def last_pushed(config: Config, accept: bool) -> dict[str, str]:
    """Under which key which component takes the model that was pushed last."""
    found = {} if accept else {"Evaluator": "baseline_model"}
    return {**found, "Trainer": "base_model"} if continues(config) else found


def tuner(config: Config, start: str) -> Told:
    """The search, and what each of its trainings is told."""
    return {**training(config, start), "tune": _plain(config.tune, by_alias=True)}


def trainer(config: Config, start: str) -> Told:
    """What the Trainer is told."""
    return {**training(config, start), "export": _plain(config.export)}


def compressor(config: Config) -> Told:
    """The recipe, and how a model is trained: as the YAML says it, for what a Tuner has found for
    the training changes no recipe."""
    return {
        "compress": _plain(config.compress),
        "train": _plain(config.train, by_alias=True),
        "state_dir": str(config.home),
        "code": code_digest("trainer"),
    }


def evaluator(config: Config, accept: bool) -> Told:
    """What is measured, and what is asked of the model."""
    at_least, worse = config.evaluate.limits
    return {
        "metrics": config.evaluate.measured,
        "slices": config.evaluate.slices,
        "at_least": at_least,
        "worse_than_blessed_by_at_most": worse,
        "accepted": accept,
        "code": code_digest("components", "trainer"),
    }


def _reads(config: Config) -> Told:
    return {
        "inputs": config.data.inputs,
        "label": config.data.label_column,
        "multi_label": config.data.multi_label,
        "code": code_digest("trainer"),  # not read by the code: TFX caches by these values
    }


def _plain(section: Any, **options: Any) -> Told:
    return dict(section.model_dump(mode="json", **options)) if section else {}


# --- the same, read back from an execution's properties -------------------------------------------


def _custom(properties: Mapping[str, Any]) -> Told:
    return dict(json.loads(properties["custom_config"]))


def _settings(properties: Mapping[str, Any]) -> Told:
    return dict(json.loads(properties["settings"]))


_READ: dict[str, Callable[[Mapping[str, Any]], Told]] = {
    "ExampleGen": lambda p: dict(json.loads(_custom(p)["custom_config"]["value"])),
    "SchemaGen": lambda p: {"schema": p.get("schema_file")},
    "DataGate": lambda p: {"label": p["label"], "texts": json.loads(p["texts"])},
    "Transform": _custom,
    "Tuner": _custom,
    "Trainer": _custom,
    "Compressor": _settings,
    "Evaluator": _settings,
    "ServingCheck": lambda p: {"inputs": json.loads(p["inputs"]), "server": p["server"]},
}


def read(name: str, properties: Mapping[str, Any]) -> Told | None:
    """What an earlier execution was told; None if an Espalier wrote it that says it otherwise."""
    try:
        return _READ.get(name, lambda _: {})(properties)
    except (KeyError, TypeError, ValueError):
        return None


# --- what it takes --------------------------------------------------------------------------------

Taken = dict[str, tuple[str, str]]  # the input's key -> the component and its output's key


def takes(config: Config) -> dict[str, Taken]:
    """What each component takes of others; see `last_pushed`, too."""
    examples, statistics = ("ExampleGen", "examples"), ("StatisticsGen", "statistics")
    schema, graph = ("SchemaGen", "schema"), ("Transform", "transform_graph")
    transformed = ("Transform", "transformed_examples")
    trained = model = ("Trainer", "model")
    learned = {"examples": transformed, "transform_graph": graph, "schema": schema}
    found: dict[str, Taken] = {
        "ExampleGen": {},
        "StatisticsGen": {"examples": examples},
        "SchemaGen": {} if config.data.schema_file else {"statistics": statistics},
        "ExampleValidator": {"statistics": statistics, "schema": schema},
        "DataGate": {
            "examples": examples,
            "statistics": statistics,
            "anomalies": ("ExampleValidator", "anomalies"),
        },
        "Transform": {"examples": examples, "schema": schema},
        "Trainer": learned,
    }
    if config.tune:
        found["Tuner"] = learned
        found["Trainer"] = {**learned, "hyperparameters": ("Tuner", "best_hyperparameters")}
    evaluated: Taken = {}
    if config.compress:
        found["Compressor"] = {
            "model": trained,
            "examples": examples,
            "transformed_examples": transformed,
            "transform_graph": graph,
        }
        model = ("Compressor", "compressed_model")
        evaluated = {"compression": ("Compressor", "report")}
    found["Evaluator"] = {"examples": examples, "model": model, "schema": schema, **evaluated}
    found["ServingCheck"] = {"examples": examples, "model": model}
    return found
