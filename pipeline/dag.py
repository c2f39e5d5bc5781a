"""From a configuration to a TFX pipeline. Importing this module imports TFX (14 s)."""

from typing import Any

from tfx.components import (
    CsvExampleGen,
    ExampleValidator,
    ImportExampleGen,
    SchemaGen,
    StatisticsGen,
    Trainer,
    Transform,
)
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.components.example_gen.custom_executors import parquet_executor
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import example_gen_pb2, pusher_pb2, trainer_pb2, transform_pb2
from tfx.types import Channel
from tfx.types.standard_artifacts import Model, ModelBlessing

from ..components.data_gate import DataGate
from ..components.evaluator import Evaluator
from ..components.pusher import Pusher
from ..components.serving_check import ServingCheck
from ..trainer import families
from . import code_digest, store
from .config import Config, Data
from .preflight import find_sources, input_patterns

# TFX splits by a hash of the row: the same row always lands in the same split.
_RATIO = {"train": 8, "eval": 1, "test": 1}


def create_pipeline(
    config: Config, *, cache: bool = True, accept: bool = False, push_again: str = ""
) -> Pipeline:
    """The whole line, from the user's rows to a pushed version.

    Args:
        config: the job.
        cache: whether TFX may take a component's result from an earlier run.
        accept: leave the last blessed model out of the verdict.
        push_again: why a model that was pushed before is pushed again; a comment in the
            version's config.yaml, which makes a cached Pusher run.
    """
    examples = _example_gen(config.data).with_id("ExampleGen")
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = _schema(config.data, statistics)
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    gate = DataGate(
        statistics=statistics.outputs["statistics"],
        anomalies=validator.outputs["anomalies"],
        label=config.data.label,
    )
    transform, trainer = _learn(config, examples, schema)
    transform.add_upstream_node(gate)
    baseline = Resolver(
        strategy_class=LatestBlessedModelStrategy,
        model=Channel(type=Model),
        model_blessing=Channel(type=ModelBlessing),
    ).with_id("LatestBlessed")
    evaluator = Evaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        schema=schema.outputs["schema"],
        split=config.data.splits[-1],
        settings=_limits(config),
        baseline_model=None if accept else baseline.outputs["model"],
    )
    check = ServingCheck(
        model=trainer.outputs["model"],
        examples=examples.outputs["examples"],
        text_keys=config.data.texts,
    )
    destination = pusher_pb2.PushDestination.Filesystem(base_directory=config.push.to)
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=check.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(filesystem=destination),
        custom_config={
            "keep": config.push.keep,
            "config": config.to_yaml() + (f"# {push_again}\n" if push_again else ""),
        },
    )
    nodes = [examples, statistics, schema, validator, gate, transform, trainer]
    nodes += [evaluator, check, pusher] if accept else [baseline, evaluator, check, pusher]
    return Pipeline(
        pipeline_name=config.name,
        pipeline_root=str(config.home / "artifacts"),
        components=nodes,
        enable_cache=cache,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            str(store.database(config.home))
        ),
    )


def _example_gen(data: Data) -> Any:
    base, patterns = input_patterns(find_sources(data.sources, data.format))
    split_later = "all" in patterns
    inputs = example_gen_pb2.Input(
        splits=[
            example_gen_pb2.Input.Split(name=name, pattern=pattern)
            for name, pattern in patterns.items()
        ]
    )
    ratio = [
        example_gen_pb2.SplitConfig.Split(name=name, hash_buckets=buckets)
        for name, buckets in _RATIO.items()
    ]
    output = (
        example_gen_pb2.Output(split_config=example_gen_pb2.SplitConfig(splits=ratio))
        if split_later
        else None
    )
    settings = {"input_base": base, "input_config": inputs, "output_config": output}
    if data.format == "csv":
        return CsvExampleGen(**settings)
    if data.format == "tfrecord":
        return ImportExampleGen(**settings)
    parquet = executor_spec.BeamExecutorSpec(parquet_executor.Executor)
    return FileBasedExampleGen(**settings, custom_executor_spec=parquet)


def _schema(data: Data, statistics: StatisticsGen) -> Any:
    if data.schema_file:
        return ImportSchemaGen(schema_file=data.schema_file).with_id("SchemaGen")
    return SchemaGen(statistics=statistics.outputs["statistics"], infer_feature_shape=True)


def _learn(config: Config, examples: Any, schema: Any) -> tuple[Transform, Trainer]:
    family = families.load(config.model.family)
    reads = {
        "texts": config.data.texts,
        "label": config.data.label,
        "model": config.model.model_dump(mode="json"),
        # Not read by the code: TFX caches by these values.
        "checkpoint": family.fingerprint(config.model),
        "code": code_digest("trainer"),
    }
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn="espalier.trainer.preprocess.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "eval"]),
        disable_statistics=True,
        custom_config=reads,
    )
    trainer = Trainer(
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        run_fn="espalier.trainer.run.run_fn",
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
        custom_config={
            **reads,
            "train": config.train.model_dump(mode="json"),
            "state_dir": str(config.home),
        },
    )
    return transform, trainer


def _limits(config: Config) -> dict[str, Any]:
    at_least, worse = config.evaluate.limits
    return {
        "metrics": config.evaluate.measured,
        "slices": config.evaluate.slices,
        "at_least": at_least,
        "worse_than_blessed_by_at_most": worse,
    }
