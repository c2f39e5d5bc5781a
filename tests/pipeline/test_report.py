"""The page: whatever a run left or did not leave, it comes, is small, and runs nobody's code."""

import json
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from espalier import ConfigError
from espalier.components.intervals import wilson
from espalier.pipeline import drawing, report, results
from espalier.pipeline.results import RunResult
from espalier.pipeline.store import Node, Output

HOSTILE = "<script>alert('&')</script>\x1b[31m"
LONG = "long " * 100_000


def node(folder: Path, name: str, output: str, file: str, content: Any, **marks: Any) -> Node:
    place = folder / name / output
    place.mkdir(parents=True, exist_ok=True)
    (place / file).write_text(json.dumps(content))
    return Node(name, "done", 100.0, 2.0, {output: Output(1, str(place), marks)})


def measured(labels: list[str], slices: int) -> dict[str, Any]:
    numbers = {"rows": 1000, "accuracy": 0.9, "auc": None}
    return {
        "overall": numbers,
        "slices": {f"{HOSTILE}={n}": {**numbers, "accuracy": n / slices} for n in range(slices)},
        "labels": {label: {"f1": 0.5 - n / 3000, "auc": None} for n, label in enumerate(labels)},
        "confusion": {label: dict.fromkeys(labels[:50], 3) for label in labels},
    }


def context(folder: Path, labels: list[str], slices: int = 3) -> report.Context:
    facts = {
        "candidate": measured(labels, slices), "baseline": measured(labels, 1), "blessed": True,
        "verdict": f"Blessed: {HOSTILE}.",
    }  # fmt: skip
    closer = {
        "mistakes": [{"text": HOSTILE + LONG, "is": labels[0], "said": labels[1], "score": 0.99}],
        "scores": {label: {"without": [2] * 200, "with": [1] * 200} for label in labels[:20]},
    }
    evaluator = node(folder, "Evaluator", "evaluation", "metrics.json", facts)
    (folder / "Evaluator" / "evaluation" / "closer.json").write_text(json.dumps(closer))
    epochs = [{"loss": 0.5, "val_loss": 0.6, "accuracy": 0.7, "val_accuracy": 0.6}] * 3
    history = {"best_epoch": 2, "epochs": epochs}
    nodes = {
        "Trainer": node(folder, "Trainer", "model_run", "history.json", history),
        "Evaluator": evaluator,
    }
    result = RunResult(
        name=HOSTILE, run="r", status="not_blessed", verdict=f"Blessed: {HOSTILE}.",
        config=f"data:\n  label: label\n  # {HOSTILE}\n", data="abc", start="def",
    )  # fmt: skip
    return report.Context(folder, "r", result, nodes)


class Page(HTMLParser):
    """Notes a page's tags, what they point to, and what stands between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_texts_and_labels_are_nobodys_code(tmp_path: Path) -> None:
    html = report.render(context(tmp_path, [HOSTILE, "b"]))
    page = Page(html)
    assert "script" not in page.tags
    assert page.words.count("<script>alert") >= 8  # shown, wherever they stand
    assert all(link.startswith("#") for link in page.links)
    assert "could not be drawn" not in page.words
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    assert "\x1b" not in html and "\N{SYMBOL FOR ESCAPE}[31m" in html
    assert "… (500,032 characters)" in page.words and len(html) < 100_000


def test_a_thousand_labels_and_ten_thousand_slices_stay_readable(tmp_path: Path) -> None:
    labels = [f"label {n}" for n in range(1000)]
    started = time.monotonic()
    html = report.render(context(tmp_path, labels, slices=10_000))
    assert time.monotonic() - started < 60  # a page that does not end, not a slow one
    assert len(html) < 2_000_000
    words = Page(html).words
    assert "9,960 more rows are not shown" in words
    assert "Confused most" in words
    each = words.index("Each label against the rest, the worst first")
    assert "label 9990.1670" in words[each : each + 100]
    first = words.index("Slices, the worst first")
    assert "\N{SYMBOL FOR ESCAPE}[31m=0" in words[first : first + 400]


def test_what_is_gone_is_said_in_its_place(tmp_path: Path) -> None:
    given = context(tmp_path, ["a", "b"])
    (tmp_path / "Trainer" / "model_run" / "history.json").write_text("{")
    del given.nodes["Evaluator"].outputs["evaluation"]
    given.result.compression = {"candidates": []}
    words = Page(report.render(given)).words
    assert words.count("This part could not be drawn") == 2  # Training, Compression
    assert "Lineage" in words


def test_a_run_that_failed_says_where_and_why(tmp_path: Path) -> None:
    given = context(tmp_path, ["a", "b"])
    given.result.failure = "Trainer: the loss is no longer a number."
    given.nodes["Trainer"].state = "failed"
    page = Page(report.render(given))
    assert "The run did not end. Trainer: the loss is no longer a number." in page.words


def test_a_label_that_no_row_has_is_no_bad_curve(tmp_path: Path) -> None:
    given = context(tmp_path, ["a", "b", "c"])
    file = tmp_path / "Evaluator" / "evaluation" / "closer.json"
    facts = json.loads(file.read_text())
    facts["scores"]["b"]["with"] = [0] * 200
    file.write_text(json.dumps(facts))
    words = Page(report.render(given)).words
    assert "ROC; the area below it: a 0.500, c 0.500." in words


def test_the_accuracy_of_many_labels_is_no_share_of_rows(tmp_path: Path) -> None:
    given = context(tmp_path, ["a", "b"])
    assert "95 % of samples" in Page(report.render(given)).words
    file = tmp_path / "Evaluator" / "evaluation" / "metrics.json"
    facts = json.loads(file.read_text())
    facts["candidate"]["confusion"] = {}
    file.write_text(json.dumps(facts))
    words = Page(report.render(given)).words
    assert "95 % of samples" not in words and "Slices" in words
    assert "ROC; the area below it: a 0.500, b 0.500." in words, "none is the other's mirror image"


def test_trials_are_shown_with_what_became_of_them(tmp_path: Path) -> None:
    given = context(tmp_path, ["a", "b"])
    trial: dict[str, Any] = {
        "values": {"train.learning_rate": 0.1, "train.optimizer": "sgd"}, "epochs": 2,
        "loss": 0.5, "accuracy": 0.75, "seconds": 3.0, "cut": False, "failure": "",
    }  # fmt: skip
    lost = {"loss": None, "accuracy": None, "failure": f"diverged {HOSTILE}"}
    slow = {"train.learning_rate": 0.0001, "train.optimizer": "adam"}
    trials = [
        {**trial, "trial": 1, **lost},
        {**trial, "trial": 2, "values": slow, "loss": 0.25},
        {**trial, "trial": 3, "cut": True},
    ]
    found = {"search": "random", "best": 2, "trials": trials}
    given.nodes["Tuner"] = node(tmp_path, "Tuner", "tuner_results", "trials.json", found)
    words = " ".join(Page(report.render(given)).words.split())
    assert "Trial 2 was chosen for the training: it had the lowest eval loss." in words
    assert "Trial 1 failed: diverged <script>" in words
    assert "2, best0.0001adam20.25000.75003.0" in words  # a row's cells
    assert "30.1sgd2, cut short0.5000" in words
    assert "could not be drawn" not in words
    said = results.produced(given.nodes["Tuner"])
    assert said == (
        "3 trials; best: train.learning_rate 0.0001, train.optimizer adam, eval loss 0.2500"
    )


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run of this pipeline yet"):
        report.write(tmp_path)


def test_wilsons_interval() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.0, 10)[0] == 0


def test_a_plot_of_one_point_has_ends() -> None:
    svg = str(drawing.plot("t", {"a": [(1.0, 0.0)]}, x="x", y="y", whole=True))
    assert "nan" not in svg and "inf" not in svg
    ElementTree.fromstring(svg)


def test_a_plot_of_powers_has_them_as_ticks() -> None:
    points = [(1e-5, 1.0), (1e-3, 2.0)]
    svg = str(drawing.plot("t", {"": points}, x="x", y="y", marked=True, log=True))
    ticks = [tick for tick in ("1e-05", "2e-05", "0.0001", "0.001") if f">{tick}</text>" in svg]
    assert len(ticks) == 4
    one = str(drawing.plot("t", {"": points[:1]}, x="x", y="y", marked=True, log=True))
    ElementTree.fromstring(one)
