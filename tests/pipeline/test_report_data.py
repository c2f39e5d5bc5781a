"""The report's data: how values are spread, and what changed since the version before."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as proto

from espalier.components.sizes import Sizes
from espalier.pipeline import page, report_data
from espalier.pipeline.report import Context
from espalier.pipeline.results import RunResult
from espalier.pipeline.store import Store, database


def rows(count: int, seed: int, longer: int = 0, **spoilt: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "label": rng.choice(["no", "yes"], count),
            "stars": rng.integers(1, 6, count),
            "price": rng.lognormal(3.0, 1.5, count),
            "text": [f"row {n} " + "word " * (longer + rng.integers(3, 9)) for n in range(count)],
        }
    )
    return frame.assign(**spoilt)


class Line:
    """A pipeline's metadata and the files that a run's first components leave."""

    def __init__(self, home: Path) -> None:
        self.home = home
        connection = proto.ConnectionConfig()
        connection.sqlite.filename_uri = str(database(home))
        connection.sqlite.connection_mode = 3  # make it
        self.store = metadata_store.MetadataStore(connection)
        self.models: dict[str, int] = {}  # the id of each pushed model

    def run(
        self, run: str, data: pd.DataFrame | int, pushes: str = "", before: str | None = ""
    ) -> int:
        """Record a run on these rows, or on those of earlier statistics; the statistics' id.

        `before` is the version that LatestBlessed found, None where it did not run.
        """
        statistics: int = data if isinstance(data, int) else self._statistics(run, data)
        self._node(run, "StatisticsGen", {"statistics": statistics})
        if before is not None:
            kind = proto.Event.INTERNAL_OUTPUT
            found = {"pushed_model": self.models[before]} if before else {}
            self._node(run, "LatestBlessed", found, kind)
        if pushes:
            marks = {"pushed_version": pushes, "pushed_destination": f"models/{pushes}"}
            self.models[pushes] = self._artifact("PushedModel", "", marks)
            self._node(run, "Pusher", {"pushed_model": self.models[pushes]})
        return statistics

    def _statistics(self, run: str, data: pd.DataFrame) -> int:
        place = self.home / run / "Split-train"
        place.mkdir(parents=True)
        found = tfdv.generate_statistics_from_dataframe(data)
        (place / "FeatureStats.pb").write_bytes(found.SerializeToString())
        sizes = Sizes()
        for text in data["text"]:
            sizes.add(len(text))
        lengths = {"train": {"text": sizes.to_json()}}
        report = {"rows": {"train": len(data)}, "anomalies": [], "lengths": lengths}
        (place.parent / "value").write_text(json.dumps(report))
        self._node(run, "DataGate", {"report": self._artifact("String", str(place.parent))})
        return self._artifact("ExampleStatistics", str(place.parent))

    def _artifact(self, kind: str, uri: str, marks: dict[str, str] | None = None) -> int:
        type_id = self.store.put_artifact_type(proto.ArtifactType(name=kind))
        artifact = proto.Artifact(type_id=type_id, uri=uri)
        for name, value in (marks or {}).items():
            artifact.custom_properties[name].string_value = value
        (found,) = self.store.put_artifacts([artifact])
        return found

    def _node(
        self, run: str, name: str, outputs: dict[str, int], kind: int = proto.Event.OUTPUT
    ) -> None:
        pairs = []
        for key, artifact in outputs.items():
            event = proto.Event(type=kind, artifact_id=artifact)
            event.path.steps.add(key=key)
            (known,) = self.store.get_artifacts_by_id([artifact])
            pairs.append((known, event))
        contexts = [
            proto.Context(name=named, type_id=self.store.put_context_type(
                proto.ContextType(name=type_)))
            for type_, named in (("pipeline_run", run), ("node", f"job.{name}"))
        ]  # fmt: skip
        step = self.store.put_execution_type(proto.ExecutionType(name=name))
        done = proto.Execution(type_id=step, last_known_state=proto.Execution.COMPLETE)
        self.store.put_execution(done, pairs, contexts, reuse_context_if_already_exist=True)

    def words(self, run: str, **result: str) -> str:
        """The section of a run as a person reads it."""
        nodes = {node.name: node for node in Store(self.home).nodes(run)}
        facts = RunResult(name="job", run=run, status="partial", **result)
        context = Context(self.home, run, facts, nodes)
        html = page.render(
            "", "", "", "", [page.section("Data", lambda: report_data.section(context))]
        )
        body = html[html.index("<main>") :]
        assert "could not be drawn" not in body
        return " ".join(re.sub(r"<title>.*?</title>|<[^>]+>", " ", body).split())


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Runs on the same rows, on others, and on rows that are far from them."""
    line = Line(tmp_path_factory.mktemp("job"))
    first = line.run("2026-01-01T00:00:00", rows(2000, seed=0), pushes="1")
    line.run("2026-01-02T00:00:00", first, before="1")
    line.run("2026-01-03T00:00:00", rows(1000, seed=1), before="1")
    far = rows(
        1500,
        seed=2,
        longer=9,
        price=100.0,
        label=["no", "yes", "yes"] * 500,
        added=["x", "y"] * 750,
    )
    line.run("2026-01-04T00:00:00", far, before="1")
    line.run("2099-01-05T00:00:00", rows(1000, seed=3), before=None)
    return line


def test_the_first_run_has_nothing_to_be_compared_with(line: Line) -> None:
    assert "There is no earlier version whose data" in line.words("2026-01-01T00:00:00")


def test_the_same_data_is_said_in_a_sentence(line: Line) -> None:
    said = "The data are the same as those of version 1."
    assert said in line.words("2026-01-02T00:00:00")
    RunResult(name="job", run="2026-01-01T00:00:00", status="pushed", data="abc").save(
        line.home / "results"
    )
    assert said in line.words("2026-01-03T00:00:00", data="abc"), "counted anew, and the same"
    assert said not in line.words("2026-01-03T00:00:00", data="def")


def test_rows_drawn_alike_give_no_alarm(line: Line) -> None:
    words = line.words("2026-01-03T00:00:00")
    assert "The train split has 1,000 rows; that of version 1 has 2,000. They are alike." in words
    drift = words[words.index("Drift from the data of version 1") : words.index("Labels of train")]
    assert drift.count("ok") == 4 and "alarm" not in drift, "the dearest row decides nothing"
    assert "text: characters Jensen-Shannon" in drift
    assert "text L-infinity" not in drift, "every row has its own"


def test_rows_that_are_far_give_an_alarm_the_farthest_first(line: Line) -> None:
    words = line.words("2026-01-04T00:00:00")
    assert "Alarm: they differ in price, text: characters, label." in words
    assert "Only one of the two has added." in words
    found = re.findall(r"(\S+) (L-infinity|Jensen-Shannon) (\S+) 0.1 (alarm|ok)", words)
    assert [(name, verdict) for name, _, _, verdict in found] == [
        ("price", "alarm"), ("characters", "alarm"), ("label", "alarm"), ("stars", "ok"),
    ]  # fmt: skip
    shares = [(rows(2000, seed=0)["label"] == "yes").mean(), 2 / 3]
    assert float(found[2][2]) == pytest.approx(shares[1] - shares[0], abs=1e-3)


def test_a_run_without_a_comparison_is_held_to_the_version_before_it(line: Line) -> None:
    assert "that of version 1 has 2,000" in line.words("2099-01-05T00:00:00")


def test_statistics_that_are_gone_are_said(line: Line) -> None:
    file = line.home / "2026-01-01T00:00:00" / "Split-train" / "FeatureStats.pb"
    file.rename(file.with_suffix(".away"))
    try:
        words = line.words("2026-01-03T00:00:00")
    finally:
        file.with_suffix(".away").rename(file)
    assert "The statistics of version 1 are gone; its data cannot be compared." in words
    assert "Features of train" in words


def test_numbers_and_lengths_are_drawn_with_their_ends(line: Line) -> None:
    nodes = {node.name: node for node in Store(line.home).nodes("2026-01-01T00:00:00")}
    facts = RunResult(name="job", run="2026-01-01T00:00:00", status="partial")
    context = Context(line.home, facts.run, facts, nodes)
    features = report_data.section(context)[-1]
    by_name = {row[0]: row for row in features["rows"]}
    lengths = rows(2000, seed=0)["text"].str.len()
    ends = (f"{lengths.mean():.4g}", f"{lengths.min():.4g}", f"{lengths.max():.4g}")
    assert tuple(by_name["text: characters"][3:6]) == ends
    for name in ("text: characters", "stars", "price"):
        svg = str(by_name[name][6]["svg"])
        counts = [float(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", svg)]
        assert sum(counts) == pytest.approx(2000, abs=len(counts))
    assert by_name["label"][6] == ""
