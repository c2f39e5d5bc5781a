"""A trained model against counting words: accuracy of both on the very same rows.

Needs: scikit-learn (a development dependency).
Takes: seconds; with a model half a minute more, nearly all of it TensorFlow's imports.

    python benchmarks/bag_of_words.py [CSV]
    python benchmarks/bag_of_words.py --examples runs/reviews/CsvExampleGen/examples/1 \\
        --model models/reviews/1

Without --examples a seeded tenth of the CSV is held out. A pushed model must be compared with
--examples, ExampleGen's output in the same run: on other rows it may have been trained.

Expect on the sample reviews: counting words 0.67 to 0.75, MiniLM 0.9.
"""

import argparse
import csv
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

CSV = Path(__file__).parents[1] / "examples" / "reviews" / "data" / "reviews.csv"
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # C, the inverse of the regularisation


class Rows(NamedTuple):
    """Texts and their labels."""

    texts: list[str]
    labels: list[str]


def main() -> None:
    """Parse the options, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="?", default=CSV, help="rows, if no --examples")
    parser.add_argument("--examples", type=Path, help="folder with Split-train and Split-test")
    parser.add_argument("--model", type=Path, help="a pushed version: a SavedModel's folder")
    parser.add_argument("--text", default="text", help="the text's column")
    parser.add_argument("--label", default="label", help="the label's column")
    parser.add_argument("--seed", type=int, default=0, help="of the CSV's split")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a table, not TensorFlow's chatter
    if options.model and not options.examples:
        parser.error("--model needs --examples: on other rows the model may have been trained.")
    try:
        if options.examples:
            train = read_split(options.examples / "Split-train", options.text, options.label)
            test = read_split(options.examples / "Split-test", options.text, options.label)
        else:
            rows = read_csv(options.csv, options.text, options.label)
            train, test = split(rows, options.seed)
        Console().print(compare(train, test, options.model))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{parser.prog}: cannot read the rows or the model: {error}")


def compare(train: Rows, test: Rows, model: Path | None) -> Table:
    """A table of accuracies on `test`."""
    table = Table(title=f"{len(train.texts)} rows to learn from, {len(test.texts)} to judge by")
    table.add_column("what judges")
    table.add_column("accuracy", justify="right")
    table.add_row("the majority's label", f"{majority(train, test):.4f}")
    table.add_row("bag of words: single words", f"{bag_of_words(train, test, 1):.4f}")
    table.add_row("bag of words: and pairs of words", f"{bag_of_words(train, test, 2):.4f}")
    if model:
        table.add_row(f"the model in {model}", f"{accuracy(predict(model, test.texts), test):.4f}")
    return table


def majority(train: Rows, test: Rows) -> float:
    """Accuracy of always answering the most frequent training label."""
    label = max(sorted(set(train.labels)), key=train.labels.count)
    return accuracy([label] * len(test.labels), test)


def bag_of_words(train: Rows, test: Rows, longest: int) -> float:
    """Accuracy of logistic regression on TF-IDF of runs of up to `longest` words.

    The best strength is chosen on the test rows themselves, in this side's favour.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, longest))
    seen, unseen = vectorizer.fit_transform(train.texts), vectorizer.transform(test.texts)
    fits = (LogisticRegression(C=c, max_iter=2000).fit(seen, train.labels) for c in STRENGTHS)
    return max(float(fit.score(unseen, test.labels)) for fit in fits)


def predict(model: Path, texts: list[str], batch: int = 64) -> list[str]:
    """The labels that the SavedModel's `serving_default` answers."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the ops that the model uses

    serve = tf.saved_model.load(str(model)).signatures["serving_default"]
    answers: list[str] = []
    for start in range(0, len(texts), batch):
        found = serve(text=tf.constant(texts[start : start + batch]))["label"]
        answers += [label.decode() for label in found.numpy()]
    return answers


def accuracy(found: list[str], test: Rows) -> float:
    """Share of the rows whose label was found."""
    return sum(map(str.__eq__, found, test.labels)) / len(test.labels)


def read_csv(path: Path, text: str, label: str) -> Rows:
    """All rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return Rows([row[text] for row in rows], [row[label] for row in rows])


def split(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """(nine tenths, one tenth), at random."""
    order = list(range(len(rows.texts)))
    random.Random(seed).shuffle(order)
    cut = len(order) // 10

    def take(indices: list[int]) -> Rows:
        return Rows([rows.texts[i] for i in indices], [rows.labels[i] for i in indices])

    return take(order[cut:]), take(order[:cut])


def read_split(folder: Path, text: str, label: str) -> Rows:
    """All rows of one split that ExampleGen wrote: gzipped TFRecords of tf.Example."""
    files = sorted(str(path) for path in folder.glob("*.gz"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .gz files")

    import tensorflow as tf

    rows = Rows([], [])
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        for name, column in ((text, rows.texts), (label, rows.labels)):
            if name not in features:
                raise ValueError(f"{folder} has no column {name!r}")
            column.append(value(features[name]))
    return rows


def value(feature: "tf.train.Feature") -> str:  # type: ignore[name-defined]  # noqa: F821
    """A feature's one value as text; integer labels too."""
    if feature.bytes_list.value:
        return str(feature.bytes_list.value[0].decode())
    return str(feature.int64_list.value[0]) if feature.int64_list.value else ""


if __name__ == "__main__":
    main()
