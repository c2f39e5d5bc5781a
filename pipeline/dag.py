"""From a configuration to a TFX pipeline. Importing this module imports TFX (6 s)."""

from . import lean_tfx  # noqa: F401

# isort: split

import shutil
from datetime import datetime
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.example_gen.csv_example_gen import executor as csv_executor
from tfx.components.example_gen.custom_executors import parquet_executor
from tfx.components.example_gen.import_example_gen import executor as tfrecord_executor
from tfx.components.example_validator.component import ExampleValidator
from tfx.components.schema_gen.component import SchemaGen
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.components.trainer.component import Trainer
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, pusher_pb2, trainer_pb2, transform_pb2
from tfx.types import Channel
from tfx.types.standard_artifacts import Model, PushedModel

from ..components.batches import StatisticsGen, Transform
from ..components.by_content import FileBasedExampleGen, pack
from ..components.compressor import Compressor
from ..components.data_gate import DataGate
from ..components.evaluator import Evaluator
from ..components.image_example_gen.component import ImageExampleGen
from ..components.image_example_gen.listing import output_splits
from ..components.latest_pushed import LatestPushed
from ..components.pusher import Pusher
from ..components.pusher.strategy import LastPushed
from ..components.row_split.executor import EXECUTORS
from ..components.serving_check import ServingCheck
from ..trainer import families
from . import steps, store
from .config import Config, Data
from .preflight import find_sources, input_patterns

_READERS = {
    "csv": csv_executor.Executor,
    "parquet": parquet_executor.Executor,
    "tfrecord": tfrecord_executor.Executor,
}


def create_pipeline(
    config: Config,
    *,
    data: str = "",
    start: str = "",
    cache: bool = True,
    accept: bool = False,
    resolver: bool = True,
) -> Pipeline:
    """The whole line, from the user's rows to a pushed version.

    Args:
        config: the job.
        data: a hash of the data's content; TFX itself looks at sizes and times alone.
        start: a hash of what training starts from, for TFX's cache.
        cache: whether TFX may take a component's result from an earlier run.
        accept: leave the last blessed model out of the verdict.
        resolver: find that model in the metadata; else at the push destination, as Kubeflow must.
    """
    examples = _example_gen(config.data, data).with_id("ExampleGen")
    statistics = StatisticsGen(
        examples=examples.outputs["examples"],
        stats_options=_image_options() if config.data.kind == "image" else None,
    )
    schema = _schema(config, statistics)
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    gate = DataGate(
        examples=examples.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        anomalies=validator.outputs["anomalies"],
        label=config.data.label_column,
        texts=config.data.texts,
    )
    baseline = _baseline(config, resolver).with_id("LatestBlessed")
    transform, *tuner, trainer = _learn(config, start, examples, schema, baseline)
    transform.add_upstream_node(gate)
    model, report, compressor = trainer.outputs["model"], None, []
    if config.compress:
        compressor = [_compressor(config, examples, transform, trainer)]
        model, report = (compressor[0].outputs[key] for key in ("compressed_model", "report"))
    evaluator = Evaluator(
        examples=examples.outputs["examples"],
        model=model,
        schema=schema.outputs["schema"],
        compression=report,
        split=_splits(config.data)[-1],
        settings=steps.evaluator(config, accept),
        baseline_model=None if accept else baseline.outputs["model"],
    )
    check = ServingCheck(
        model=model,
        examples=examples.outputs["examples"],
        inputs=config.data.inputs,
        server=steps.server(config),
    )
    destination = pusher_pb2.PushDestination.Filesystem(base_directory=config.push.to)
    pusher = Pusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=check.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(filesystem=destination),
        evaluation=evaluator.outputs["evaluation"],
        data=gate.outputs["report"],
        compression=report,
        custom_config={
            "keep": config.push.keep,
            "retries": config.retries,
            "config": config.to_yaml(),
            "licence": licence(config),
            # TFX must not take it from its cache; on Kubeflow the spec says so, and stays the same.
            **({"run": datetime.now().isoformat()} if resolver else {}),
        },
    )
    nodes = [examples, statistics, schema, validator, gate]
    nodes += [transform, *tuner, trainer, *compressor]
    nodes += [evaluator, check, pusher]
    if not accept or steps.continues(config):
        nodes.append(baseline)
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(config.home / "artifacts"),
        components=nodes,
        enable_cache=cache,
        beam_pipeline_args=config.beam.flags,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            str(store.database(config.home))
        ),
    )


def licence(config: Config) -> str:
    """What the model card says of the licence; "" where nobody has said."""
    found: str = families.load(config.model.family).licence(config.model)
    return config.card.licence or found


def _baseline(config: Config, resolver: bool) -> Any:
    if not resolver:
        return LatestPushed(base=config.push.to)
    return Resolver(
        strategy_class=LastPushed,
        model=Channel(type=Model),
        pushed_model=Channel(type=PushedModel),
    )


def _splits(data: Data) -> list[str]:
    """The splits that ExampleGen will write."""
    if data.kind == "image":
        return output_splits(data.sources, data.rule)
    return data.rule.splits or list(data.sources)


def _image_options() -> tfdv.StatsOptions:
    """Without this, TFDV would count each encoded picture as a word."""
    schema = schema_pb2.Schema()
    schema.feature.add(name="image", type=schema_pb2.BYTES).image_domain.SetInParent()
    return tfdv.StatsOptions(schema=schema)


def _example_gen(data: Data, fingerprint: str) -> Any:
    if data.kind == "image":
        return ImageExampleGen(
            sources=data.sources,
            label=data.label_column,
            multi_label=data.multi_label,
            on_bad_image=data.on_bad_image,
            fingerprint=fingerprint,
            rule=data.rule,
        )
    rule = data.rule
    base, patterns = input_patterns(find_sources(data.sources, data.format))
    inputs = example_gen_pb2.Input(
        splits=[
            example_gen_pb2.Input.Split(name=name, pattern=pattern)
            for name, pattern in patterns.items()
        ]
    )
    # TFX splits by a hash of the row, or of one feature: the same always lands in the same split.
    output = example_gen_pb2.Output(
        split_config=example_gen_pb2.SplitConfig(
            splits=[
                example_gen_pb2.SplitConfig.Split(name=name, hash_buckets=rule.ratios[name])
                for name in rule.splits
            ],
            partition_feature_name=rule.column if rule.by == "group" else None,
        )
    )
    # The stock component of each format would take no custom_config, which enters the cache's key.
    return FileBasedExampleGen(
        input_base=base,
        input_config=inputs,
        output_config=output if rule.ratios else None,
        custom_config=pack(steps.example_gen(data, fingerprint)),
        custom_executor_spec=executor_spec.BeamExecutorSpec(
            (_READERS if rule.is_stock else EXECUTORS)[data.format]
        ),
    )


def _schema(config: Config, statistics: StatisticsGen) -> Any:
    if copy := steps.schema_copy(config):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(config.data.schema_file), copy)
        return ImportSchemaGen(schema_file=str(copy)).with_id("SchemaGen")
    return SchemaGen(statistics=statistics.outputs["statistics"], infer_feature_shape=True)


def _learn(config: Config, start: str, examples: Any, schema: Any, baseline: Any) -> list[Any]:
    """Transform, the Tuner if there is a search, and the Trainer."""
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn="espalier.trainer.preprocess.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        disable_statistics=True,
        custom_config=steps.transform(config, start),
    )
    given = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "schema": schema.outputs["schema"],
        "train_args": trainer_pb2.TrainArgs(splits=["train"]),
        "eval_args": trainer_pb2.EvalArgs(splits=["eval"]),
    }
    tuner = _tuner(config, start, given)
    trainer = Trainer(
        run_fn="espalier.trainer.run.run_fn",
        hyperparameters=tuner[0].outputs["best_hyperparameters"] if tuner else None,
        base_model=baseline.outputs["model"] if steps.continues(config) else None,
        custom_config=steps.trainer(config, start),
        **given,
    )
    return [transform, *tuner, trainer]


def _tuner(config: Config, start: str, given: dict[str, Any]) -> list[Any]:
    """The Tuner, if there is a search; `given` is what the Trainer is given."""
    if config.tune is None:
        return []
    from ..components.tuner import Tuner  # which imports keras-tuner, and this Keras 3

    return [
        Tuner(
            tuner_fn="espalier.trainer.tuning.search.tuner_fn",
            custom_config=steps.tuner(config, start),
            **given,
        )
    ]


def _compressor(
    config: Config, examples: Any, transform: Transform, trainer: Trainer
) -> Compressor:
    return Compressor(
        model=trainer.outputs["model"],
        examples=examples.outputs["examples"],
        transformed_examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        settings=steps.compressor(config),
    )
