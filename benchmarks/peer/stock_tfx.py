"""The peer of benchmarks/whole_run.py: the job of examples/reviews-tiny.yaml in stock TFX alone.

Written as TFX's own examples are: `from tfx import v1`, components by name, functions given by
dotted path (a `module_file` would cost a wheel build and four pip installs more), LocalDagRunner,
a Keras fit on keras-nlp's BertBackbone (2 layers, 128 wide, from random weights). Words come from
`tft.compute_and_apply_vocabulary`, the vocabulary that TFX users write; it is cheaper than
learning WordPiece. Rows are split 8:1:1, as Espalier splits them.

    python stock_tfx.py DATA HOME

HOME then holds metadata.sqlite, the artifacts, and the pushed model under serving/.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # keras-nlp 0.12 works with Keras 2 only

import tensorflow as tf
import tensorflow_model_analysis as tfma
import tensorflow_transform as tft
from tfx import v1 as tfx
from tfx_bsl.public.tfxio import TensorFlowDatasetOptions

TEXT, LABEL, SLICE = "text", "label", "category"
LENGTH, LAYERS, WIDTH, HEADS = 32, 2, 128, 2
EPOCHS, BATCH, RATE = 3, 32, 3e-4
WORDS = 8000
UNKNOWN = 2  # token ids: 0 pads, 1 begins a row, 2 is any unknown word, 3 on are words


def main() -> None:
    """Run the pipeline once; a second run in the same HOME finds the first one's results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder of CSV files")
    parser.add_argument("home", type=Path, help="a folder for all that the run leaves")
    args = parser.parse_args()
    args.home.mkdir(parents=True, exist_ok=True)
    tfx.orchestration.LocalDagRunner().run(create_pipeline(os.path.abspath(args.data), args.home))


def create_pipeline(data: str, home: Path) -> Any:
    """Return the whole line, of stock components only."""
    split = tfx.proto.SplitConfig(
        splits=[
            tfx.proto.SplitConfig.Split(name=name, hash_buckets=buckets)
            for name, buckets in (("train", 8), ("eval", 1), ("test", 1))
        ]
    )
    examples = tfx.components.CsvExampleGen(
        input_base=data, output_config=tfx.proto.Output(split_config=split)
    )
    statistics = tfx.components.StatisticsGen(examples=examples.outputs["examples"])
    schema = tfx.components.SchemaGen(
        statistics=statistics.outputs["statistics"], infer_feature_shape=True
    )
    validator = tfx.components.ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    transform = tfx.components.Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        preprocessing_fn="stock_tfx.preprocessing_fn",
    )
    trainer = tfx.components.Trainer(
        run_fn="stock_tfx.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        train_args=tfx.proto.TrainArgs(splits=["train"]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
    )
    baseline = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("latest_blessed")
    evaluator = tfx.components.Evaluator(
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["model"],
        eval_config=eval_config(),
        example_splits=["test"],
    )
    pusher = tfx.components.Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(home / "serving"))
        ),
    )
    nodes = [examples, statistics, schema, validator, transform, trainer]
    return tfx.dsl.Pipeline(
        pipeline_name="stock",
        pipeline_root=str(home / "artifacts"),
        components=[*nodes, baseline, evaluator, pusher],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(home / "metadata.sqlite")
        ),
    )


def eval_config() -> tfma.EvalConfig:
    """Accuracy and loss, overall and per category; at least 0.55, and hardly below the baseline."""
    threshold = tfma.MetricThreshold(
        value_threshold=tfma.GenericValueThreshold(lower_bound={"value": 0.55}),
        change_threshold=tfma.GenericChangeThreshold(
            direction=tfma.MetricDirection.HIGHER_IS_BETTER, absolute={"value": -0.01}
        ),
    )
    metrics = [
        tfma.MetricConfig(class_name="SparseCategoricalAccuracy", threshold=threshold),
        tfma.MetricConfig(class_name="SparseCategoricalCrossentropy"),
        tfma.MetricConfig(class_name="ExampleCount"),
    ]
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name="serving_default",
                label_key=LABEL,
                preprocessing_function_names=["transform_features"],
            )
        ],
        slicing_specs=[tfma.SlicingSpec(), tfma.SlicingSpec(feature_keys=[SLICE])],
        metrics_specs=[tfma.MetricsSpec(metrics=metrics)],
    )


def preprocessing_fn(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Raw columns string [B, 1] -> token_ids int64 [B, LENGTH] and label int64 [B, 1]."""
    text = tf.strings.lower(tf.reshape(inputs[TEXT], [-1]))
    words = tf.strings.split(tf.strings.regex_replace(text, r"(\p{P})", r" \1 "))
    ids = tft.compute_and_apply_vocabulary(words, top_k=WORDS, default_value=-1, vocab_filename="w")
    ids = (ids + UNKNOWN + 1)[:, : LENGTH - 1]
    first = tf.ones([tf.shape(text)[0], 1], tf.int64)
    rows = tf.concat([first, ids], 1).to_tensor(shape=[None, LENGTH])
    label = tft.compute_and_apply_vocabulary(inputs[LABEL], vocab_filename="labels")
    return {"token_ids": rows, LABEL: label}


def run_fn(fn_args: tfx.components.FnArgs) -> None:
    """Train with a plain Keras fit and export, as TFX's examples do."""
    output = tft.TFTransformOutput(fn_args.transform_output)
    train = _batches(fn_args.train_files, fn_args.data_accessor, output)
    evaluation = _batches(fn_args.eval_files, fn_args.data_accessor, output)
    model = _build(
        UNKNOWN + 1 + output.vocabulary_size_by_name("w"), output.vocabulary_size_by_name("labels")
    )
    logs = tf.keras.callbacks.TensorBoard(fn_args.model_run_dir, update_freq="epoch")
    model.fit(train, epochs=EPOCHS, validation_data=evaluation, callbacks=[logs], verbose=2)
    _export(model, output, fn_args.serving_model_dir)


def _batches(files: Any, accessor: Any, output: tft.TFTransformOutput) -> tf.data.Dataset:
    return accessor.tf_dataset_factory(
        files,
        TensorFlowDatasetOptions(batch_size=BATCH, label_key=LABEL, num_epochs=1),
        output.transformed_metadata.schema,
    )


def _build(vocabulary: int, classes: int) -> tf.keras.Model:
    import keras_nlp

    backbone = keras_nlp.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=4 * WIDTH,
        max_sequence_length=LENGTH,
    )
    ids = tf.keras.Input([LENGTH], dtype=tf.int64, name="token_ids")
    features = {
        "token_ids": ids,
        "segment_ids": tf.zeros_like(ids),
        "padding_mask": tf.not_equal(ids, 0),
    }
    pooled = tf.keras.layers.Dropout(0.1)(backbone(features)["pooled_output"])
    model = tf.keras.Model(ids, tf.keras.layers.Dense(classes, activation="softmax")(pooled))
    model.compile(
        optimizer=tf.keras.optimizers.Adam(RATE),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _export(model: tf.keras.Model, output: tft.TFTransformOutput, folder: str) -> None:
    model.tft_layer = output.transform_features_layer()
    spec = tf.TensorSpec([None], tf.string, name="examples")

    @tf.function(input_signature=[spec])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = output.raw_feature_spec()
        features.pop(LABEL)
        parsed = tf.io.parse_example(examples, features)
        return {"scores": model(model.tft_layer(parsed)["token_ids"])}

    @tf.function(input_signature=[spec])
    def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.tft_layer(tf.io.parse_example(examples, output.raw_feature_spec()))

    signatures = {"serving_default": serve, "transform_features": transform_features}
    model.save(folder, save_format="tf", signatures=signatures)


if __name__ == "__main__":
    main()
