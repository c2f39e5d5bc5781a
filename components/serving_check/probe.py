"""Run as `python -I probe.py REQUEST RESULT`: loads a SavedModel as a server would, and asks it.

It imports nothing of this package: a model that needs more than TensorFlow and TensorFlow Text
must fail here. REQUEST is JSON (model, rows: serialized tf.Examples in base64, inputs: the
features by the names of serving_default's inputs, multi_label and fewer_bits: bool); RESULT is JSON
(failures: sentences; and what was measured, see `check.Report`).
"""

import base64
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text  # Registers its ops, as TensorFlow Serving does.

ALIKE = 1e-4  # Between the two signatures: the same graph behind both.
ALONE = 1e-3  # Between a batch and its first row alone: other kernels, other rounding.
ALONE_IN_FEWER_BITS = 0.05  # The same in bfloat16 or int8.
SUM_TO_ONE = 1e-3
LONG_TEXT = b"very " * 20_000
CALLS = 20
LIBRARIES = {
    "espalier", "keras", "keras_hub", "keras_nlp", "tensorflow_model_optimization",
    "tensorflow_transform", "tf_keras", "tfx", "torch", "transformers",
}  # fmt: skip

Answer = tuple[np.ndarray, list[str]]  # scores [B, C] float32, labels [B]
Ask = Callable[[list[list[bytes]]], Answer]
IMAGE = ["image_bytes"]
NO_IMAGES = {"no bytes": b"", "a text": b"this is no picture", "half a PNG": b"\x89PNG\r\n\x1a\n"}


class Refusal(Exception):
    """The model does not do what a server needs. The message is a sentence."""


def modules() -> set[str]:
    """Top-level names of the libraries of interest that are loaded now."""
    return LIBRARIES & {name.partition(".")[0] for name in sys.modules}


def probe(request: dict[str, Any], brought_in: set[str]) -> dict[str, Any]:
    """Measures the model; raises Refusal at the first thing that is wrong.

    Args:
        request: model, rows, inputs; see above.
        brought_in: what `import tensorflow` itself had loaded.
    """
    rows = [base64.b64decode(row) for row in request["rows"]]
    names, keys = list(request["inputs"]), list(request["inputs"].values())
    raw = [values_of(row, keys) for row in rows]
    begin = time.perf_counter()
    model = tf.saved_model.load(request["model"])
    load_seconds = time.perf_counter() - begin
    multi_label = request.get("multi_label", False)
    ask = asker(signature(model, "serving_default"), names, multi_label)
    scores, labels = ask(raw)
    examples = signature(model, "serve_examples")
    difference = check_examples(examples, rows, scores, labels, multi_label)
    check_alone(ask, raw, scores, ALONE_IN_FEWER_BITS if request.get("fewer_bits") else ALONE)
    if names == IMAGE:
        check_no_images(ask)
    else:
        check_odd_texts(ask, len(names), scores.shape[1])
    latency_ms = median_ms(lambda: ask(raw[:1]))
    needed = sorted(modules() - brought_in)
    if needed:
        raise Refusal(f"it loads {', '.join(needed)}, which a server does not have.")
    return {
        "rows": len(rows),
        "classes": int(scores.shape[1]),
        "load_seconds": round(load_seconds, 3),
        "latency_ms": round(latency_ms, 3),
        "largest_difference": difference,
        "predictions": predictions(
            [values_of(row, ["path"]) for row in rows[:2]] if names == IMAGE else raw[:2],
            scores,
            labels,
        ),
        "tensorflow": tf.__version__,
        "tensorflow_text": tf_text.__version__,
    }


def values_of(row: bytes, keys: list[str]) -> list[bytes]:
    """The row's values of these features."""
    features = tf.train.Example.FromString(row).features.feature
    return [features[key].bytes_list.value[0] for key in keys]


def signature(model: Any, name: str) -> Any:
    """The model's signature of that name; Refusal if it has none."""
    if name not in model.signatures:
        found = ", ".join(sorted(model.signatures)) or "none"
        raise Refusal(f"it has no signature {name!r} (found: {found}).")
    return model.signatures[name]


def asker(function: Any, names: list[str], multi_label: bool = False) -> Ask:
    """A function from rows of raw inputs to a checked answer of `serving_default`."""
    found = sorted(function.structured_input_signature[1])
    if found != names:
        raise Refusal(f"serving_default takes {found}, and should take {names}.")

    def ask(rows: list[list[bytes]]) -> Answer:
        columns = {name: tf.constant([row[i] for row in rows]) for i, name in enumerate(names)}
        return checked(function(**columns), len(rows), "serving_default", multi_label)

    return ask


def checked(outputs: dict[str, Any], rows: int, where: str, multi_label: bool = False) -> Answer:
    """The outputs as numpy; Refusal unless they are scores and a label for every row.

    Scores of classes that exclude each other sum to one and have a likeliest label; others lie
    between 0 and 1 each, and may come with no label.
    """
    missing = sorted({"scores", "label"} - set(outputs))
    if missing:
        raise Refusal(f"{where} does not return {', '.join(missing)}.")
    scores, labels = outputs["scores"].numpy(), outputs["label"].numpy()
    if scores.ndim != 2 or scores.shape[0] != rows or labels.shape != (rows,):
        shapes = f"scores {list(scores.shape)} and label {list(labels.shape)}"
        raise Refusal(f"{where} answered {rows} row(s) with {shapes}.")
    if not np.isfinite(scores).all():
        raise Refusal(f"{where} returned scores that are not finite numbers.")
    if multi_label:
        if scores.min() < 0 or scores.max() > 1:
            raise Refusal(f"{where} returned scores that do not lie between 0 and 1.")
        return scores, [label.decode(errors="replace") for label in labels]
    furthest = float(np.abs(scores.sum(axis=1) - 1).max())
    if furthest > SUM_TO_ONE or scores.min() < 0:
        raise Refusal(f"{where} returned scores that are not a softmax (sums off by {furthest:g}).")
    if labels.dtype != object or not all(labels):
        raise Refusal(f"{where} returned an empty label, or labels that are not strings.")
    return scores, [label.decode(errors="replace") for label in labels]


def check_examples(
    function: Any,
    rows: list[bytes],
    scores: np.ndarray,
    labels: list[str],
    multi_label: bool = False,
) -> float:
    """Refusal unless serve_examples answers as serving_default did; the largest difference."""
    names = list(function.structured_input_signature[1])
    if len(names) != 1:
        raise Refusal(f"serve_examples takes {names}, and should take one argument.")
    outputs = function(**{names[0]: tf.constant(rows)})
    again, again_labels = checked(outputs, len(rows), "serve_examples", multi_label)
    if again.shape != scores.shape:
        raise Refusal("serve_examples and serving_default return different numbers of scores.")
    difference = float(np.abs(again - scores).max())
    if difference > ALIKE or again_labels != labels:
        raise Refusal(
            f"serve_examples and serving_default differ by {difference:g} for the same rows "
            f"(at most {ALIKE:g} is allowed)."
        )
    return difference


def check_alone(
    ask: Ask, texts: list[list[bytes]], scores: np.ndarray, allowed: float = ALONE
) -> None:
    """Refusal unless each row scores the same alone as among others."""
    difference = max(
        float(np.abs(ask([row])[0][0] - scores[i]).max()) for i, row in enumerate(texts)
    )
    if difference > allowed:
        raise Refusal(
            f"a row's scores alone and in a batch differ by {difference:g} "
            f"(at most {allowed:g} is allowed)."
        )


def check_odd_texts(ask: Ask, text_count: int, classes: int) -> None:
    """Refusal unless an empty text and a very long one are answered too."""
    for what, text in (("an empty text", b""), ("a very long text", LONG_TEXT)):
        try:
            scores, _ = ask([[text] * text_count])
        except tf.errors.OpError as error:
            raise Refusal(f"{what} makes it fail: {one_line(error)}") from error
        if scores.shape[1] != classes:
            raise Refusal(f"{what} is answered with {scores.shape[1]} scores, not {classes}.")


def check_no_images(ask: Ask) -> None:
    """Refusal unless bytes that are no picture are answered with an error of the client's."""
    for what, data in NO_IMAGES.items():
        try:
            ask([[data]])
        except tf.errors.InvalidArgumentError:
            continue
        except tf.errors.OpError as error:
            raise Refusal(f"{what} makes it fail: {one_line(error)}") from error
        raise Refusal(f"{what} is answered as if it were a picture.")


def median_ms(call: Callable[[], Any]) -> float:
    """The median time of a call, in milliseconds."""
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def predictions(
    texts: list[list[bytes]], scores: np.ndarray, labels: list[str]
) -> list[dict[str, Any]]:
    """What the model says about the first rows: text (a pair: two), label, score."""
    shown = []
    for row, row_scores, label in zip(texts, scores, labels, strict=False):
        words = [text.decode(errors="replace") for text in row]
        text = words[0] if len(words) == 1 else words
        shown.append({"text": text, "label": label, "score": float(row_scores.max())})
    return shown


def one_line(error: Exception, width: int = 400) -> str:
    """An error's message without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:width]


def outcome(request: dict[str, Any], brought_in: set[str]) -> dict[str, Any]:
    """What was measured, and `failures`: the sentence that stopped it, or none."""
    try:
        return {"failures": [], **probe(request, brought_in)}
    except Refusal as refusal:
        return {"failures": [str(refusal)]}
    except (tf.errors.OpError, OSError, ValueError) as error:
        return {"failures": [one_line(error)]}


def main(request_path: str, result_path: str) -> None:
    """Reads the request, writes the result; a crash ends the process with its traceback."""
    brought_in = modules()
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    result = outcome(request, brought_in)
    with open(result_path, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
