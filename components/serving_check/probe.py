"""Asks a server that serves the exported model, and finds what is wrong with the answers."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import EspalierError, ServerError
from ...serving.client import Client
from ...serving.process import MODEL, ServerProcess, wait_until_served

ALIKE = 1e-4  # Between the two signatures: the same graph behind both.
ALONE = 1e-3  # Between a batch and its first row alone: other kernels, other rounding.
ALONE_IN_FEWER_BITS = 0.05  # The same in bfloat16 or int8.
SUM_TO_ONE = 1e-3
LONG_TEXT = b"very " * 20_000
CALLS = 20

Answer = tuple[np.ndarray, list[str]]  # scores [B, C] float32, labels [B]
Ask = Callable[[list[list[bytes]]], Answer]
IMAGE = ["image_bytes"]
NO_IMAGES = {"no bytes": b"", "a text": b"this is no picture", "half a PNG": b"\x89PNG\r\n\x1a\n"}


class Refusal(Exception):
    """The model does not do what a server needs. The message is a sentence."""


def probe(
    server: ServerProcess, rows: list[bytes], inputs: dict[str, str], kind: dict[str, bool]
) -> dict[str, Any]:
    """Measure the model behind a server.

    Args:
        server: one that is starting.
        rows: serialized tf.Examples.
        inputs: the features by the names of serving_default's inputs.
        kind: multi_label, and fewer_bits: whether the graph computes in them.

    Returns:
        what `check.Report` has under `measured`.

    Raises:
        Refusal: at the first thing that is wrong.
    """
    client = Client(server.target, MODEL, wait=False)  # one that ends does not come back
    begin = time.perf_counter()
    try:
        if why := wait_until_served(server, client):
            raise Refusal(why)
        ready = time.perf_counter() - begin
        return {"ready_seconds": round(ready, 3), **_measure(server, client, rows, inputs, kind)}
    except EspalierError as error:
        if fate := server.fate():
            raise Refusal(fate) from None
        raise Refusal(f"{error}") from None
    finally:
        client.close()


def _measure(
    server: ServerProcess,
    client: Client,
    rows: list[bytes],
    inputs: dict[str, str],
    kind: dict[str, bool],
) -> dict[str, Any]:
    names, keys = list(inputs), list(inputs.values())
    raw = [values_of(row, keys) for row in rows]
    signatures = client.metadata()
    multi_label = kind.get("multi_label", False)
    takes(signatures, "serving_default", names)
    ask = asker(server, client, names, multi_label)
    scores, labels = ask(raw)
    difference = check_examples(server, client, signatures, rows, (scores, labels), multi_label)
    check_alone(ask, raw, scores, ALONE_IN_FEWER_BITS if kind.get("fewer_bits") else ALONE)
    if names == IMAGE:
        check_no_images(ask)
    else:
        check_odd_texts(ask, len(names), scores.shape[1])
    shown = [values_of(row, ["path"]) for row in rows[:2]] if names == IMAGE else raw[:2]
    return {
        "rows": len(rows),
        "classes": int(scores.shape[1]),
        "latency_ms": round(median_ms(lambda: ask(raw[:1])), 3),
        "largest_difference": difference,
        "predictions": predictions(shown, scores, labels),
    }


def values_of(row: bytes, keys: list[str]) -> list[bytes]:
    """The row's values of these features."""
    import tensorflow as tf

    features = tf.train.Example.FromString(row).features.feature
    return [features[key].bytes_list.value[0] for key in keys]


def takes(signatures: Any, name: str, wanted: list[str] | None) -> list[str]:
    """The inputs of the signature of that name; Refusal if there is none, or it takes others."""
    if name not in signatures:
        others = ", ".join(sorted(signatures)) or "none"
        raise Refusal(f"it has no signature {name!r} (found: {others}).")
    found = sorted(signatures[name].inputs)
    if wanted is not None and found != wanted:
        raise Refusal(f"{name} takes {found}, and should take {wanted}.")
    return found


def asker(
    server: ServerProcess, client: Client, names: list[str], multi_label: bool = False
) -> Ask:
    """A function from rows of raw inputs to a checked answer of `serving_default`."""

    def ask(rows: list[list[bytes]]) -> Answer:
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        outputs = client.predict(columns, timeout=server.left())
        return checked(outputs, len(rows), "serving_default", multi_label)

    return ask


def checked(
    outputs: dict[str, np.ndarray], rows: int, where: str, multi_label: bool = False
) -> Answer:
    """The answer; Refusal unless it is scores and a label for every row.

    Scores of classes that exclude each other sum to one and have a likeliest label; others lie
    between 0 and 1 each, and may come with no label.
    """
    missing = sorted({"scores", "label"} - set(outputs))
    if missing:
        raise Refusal(f"{where} does not return {', '.join(missing)}.")
    scores, labels = outputs["scores"], outputs["label"]
    if scores.ndim != 2 or scores.shape[0] != rows or labels.shape != (rows,):
        shapes = f"scores {list(scores.shape)} and label {list(labels.shape)}"
        raise Refusal(f"{where} answered {rows} row(s) with {shapes}.")
    if not np.isfinite(scores).all():
        raise Refusal(f"{where} returned scores that are not finite numbers.")
    if multi_label:
        if scores.min() < 0 or scores.max() > 1:
            raise Refusal(f"{where} returned scores that do not lie between 0 and 1.")
        return scores, labels.tolist()
    furthest = float(np.abs(scores.sum(axis=1) - 1).max())
    if furthest > SUM_TO_ONE or scores.min() < 0:
        raise Refusal(f"{where} returned scores that are not a softmax (sums off by {furthest:g}).")
    if labels.dtype != object or not all(labels):
        raise Refusal(f"{where} returned an empty label, or labels that are not strings.")
    return scores, labels.tolist()


def check_examples(
    server: ServerProcess,
    client: Client,
    signatures: Any,
    rows: list[bytes],
    answer: Answer,
    multi_label: bool = False,
) -> float:
    """Refusal unless serve_examples answers as serving_default did; the largest difference."""
    names = takes(signatures, "serve_examples", None)
    if len(names) != 1:
        raise Refusal(f"serve_examples takes {names}, and should take one argument.")
    outputs = client.predict({names[0]: rows}, signature="serve_examples", timeout=server.left())
    again, again_labels = checked(outputs, len(rows), "serve_examples", multi_label)
    scores, labels = answer
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
        except ServerError as error:
            raise _if_alive(what, error) from None
        if scores.shape[1] != classes:
            raise Refusal(f"{what} is answered with {scores.shape[1]} scores, not {classes}.")


def check_no_images(ask: Ask) -> None:
    """Refusal unless bytes that are no picture are answered with an error of the client's."""
    for what, data in NO_IMAGES.items():
        try:
            ask([[data]])
        except ServerError as error:
            if error.code == "INVALID_ARGUMENT":
                continue
            raise _if_alive(what, error) from None
        raise Refusal(f"{what} is answered as if it were a picture.")


def _if_alive(what: str, error: ServerError) -> Exception:
    """What the error says of the model; a server that is gone is another matter."""
    return error if error.code == "UNAVAILABLE" else Refusal(f"{what} makes it fail: {error}")


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
