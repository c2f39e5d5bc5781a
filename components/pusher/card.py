"""The model card of a version: what it is for, what it was made of, how good it is, its limits.

After Mitchell et al. 2019, https://arxiv.org/abs/1810.03993. MODEL_CARD.md is for people;
model_card.json has the fields of the Model Card Toolkit's schema 0.0.2, for its tools.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..intervals import wilson

MARKDOWN, JSON = "MODEL_CARD.md", "model_card.json"
SOURCES = ("csv", "parquet", "tfrecord", "images")  # the keys of `data:`
_SCHEMA = "0.0.2"
_MOST_SLICES = 20
_PAPERS = {
    "bert": "https://arxiv.org/abs/1810.04805",
    "resnet": "https://arxiv.org/abs/1512.03385",
    "inception": "https://arxiv.org/abs/1512.00567",
}
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        config: the job's YAML, as text; its `card:` holds what only people know.
        when: the day, YYYY-MM-DD.
        model: the version's description (assets.extra/espalier.json).
        licence: of what training started from; "" where nobody has said.
        data: {"rows": {split: int}, "anomalies": [...]}, the DataGate's report.
        evaluation: the Evaluator's metrics.json; empty if it was not measured.
        compression: the Compressor's report; empty if there is none.
        serving: the ServingCheck's report.
    """

    config: str
    when: str
    model: Json
    licence: str = ""
    data: Json = field(default_factory=dict)
    evaluation: Json = field(default_factory=dict)
    compression: Json = field(default_factory=dict)
    serving: Json = field(default_factory=dict)

    @cached_property
    def job(self) -> Json:
        """The configuration as plain values."""
        return YAML(typ="safe").load(self.config) or {}

    @property
    def card(self) -> Json:
        """Its `card:` section."""
        return self.job.get("card") or {}

    @property
    def source(self) -> str:
        """Where the rows come from, as the YAML says it."""
        data = self.job.get("data") or {}
        found = next((data[key] for key in SOURCES if data.get(key)), "an unnamed source")
        return found if isinstance(found, str) else ", ".join(v for v in found.values() if v)

    @property
    def architecture(self) -> str:
        """The model in a few words: bert, minilm."""
        return f"{self.model['model']['family']}, {self.model['model'].get('start', '')}".strip(
            ", "
        )


def files(facts: Facts) -> dict[str, str]:
    """The card's two files, by their names."""
    told = json.dumps(_json(facts), indent=1, ensure_ascii=False) + "\n"
    return {MARKDOWN: _markdown(facts), JSON: told}


def licence_of(version: Path) -> str:
    """What a version's card says of the licence; "" if it has none."""
    try:
        told = json.loads((version / "assets.extra" / JSON).read_text(encoding="utf-8"))
        return str(told["model_details"]["licenses"][0]["identifier"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


# --- for people -------------------------------------------------------------------------------


def _markdown(facts: Facts) -> str:
    # Not at import: who lists versions, or rolls back, writes no card.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        autoescape=True,  # texts and labels come from anywhere, and Markdown may hold HTML
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = _cell
    return environment.get_template("card.md").render(
        facts=facts, card=facts.card, job=facts.job, limits=_limits(facts),
        overall=_overall(facts), slices=_slices(facts), steps=_steps(facts),
    ) + "\n"  # fmt: skip


def _cell(value: Any) -> str:
    """A text that stays in one cell of a table, and is no markup."""
    words = " ".join(str(value).split())[:200]
    plain = (c if c.isprintable() else "\ufffd" for c in words)  # a terminal would obey some
    return "".join(f"\\{c}" if c in "\\|`*_[]" else c for c in plain)


def _overall(facts: Facts) -> list[tuple[str, str, str]]:
    """(metric, value, what 95 % of samples lie between) over all evaluated rows."""
    measured = facts.evaluation.get("candidate", {}).get("overall", {})
    shares = not facts.model.get("multi_label")
    found = []
    for name, value in measured.items():
        if name != "rows" and value is not None:
            is_share = name == "accuracy" and shares
            between = (
                "{:.4f} to {:.4f}".format(*wilson(value, measured["rows"])) if is_share else ""
            )
            found.append((name, f"{value:.4f}", between))
    return found


def _slices(facts: Facts) -> list[tuple[str, str, str, str]]:
    """(slice, rows, metric, value) of the first metric, the worst first."""
    found = facts.evaluation.get("candidate", {}).get("slices", {})
    metric = next((n for values in found.values() for n in values if n != "rows"), "")
    known = [(name, v["rows"], v[metric]) for name, v in found.items() if v.get(metric) is not None]
    ordered = sorted(known, key=lambda one: one[2], reverse=metric == "loss")
    return [(name, f"{rows:,}", metric, f"{value:.4f}") for name, rows, value in ordered]


def _steps(facts: Facts) -> list[tuple[str, str, str, str]]:
    """(after, accuracy, MB, ms for one row) of the trained model and of the one that was kept."""
    report = facts.compression
    return [
        (
            one["name"],
            f"{one['figures']['accuracy']:.4f}",
            f"{one['figures']['bytes'] / 1e6:.2f}",
            f"{one['figures']['latency_ms']['1']['median']:.2f}",
        )
        for one in report.get("candidates", [])
        if one["name"] in ("trained", report["chosen"])
    ]


def _limits(facts: Facts) -> Iterator[str]:
    """What is known without being told."""
    labels, model = facts.model["labels"], facts.model["model"]
    if facts.card.get("limits"):
        yield facts.card["limits"]
    if facts.model.get("multi_label"):
        yield f"It knows {len(labels)} labels and no others."
    else:
        yield (
            f"It gives one of {len(labels)} labels to whatever it is asked, also to what is unlike "
            f"anything it was trained on."
        )
    if length := model.get("sequence_length"):
        yield f"Of a text it reads {length} tokens; the rest is cut off."
    if len({value for *_, value in _slices(facts)}) > 1:
        name, rows, metric, value = _slices(facts)[0]
        yield f"It is worst on {name}: {metric} {value} over {rows} rows."
    for needs in (facts.model.get("graph") or {}).get("needs", []):
        yield f"It needs a CPU with {needs}."
    for anomaly in facts.data.get("anomalies", [])[:5]:
        yield f"In the data, {anomaly['feature']} ({anomaly['split']}): {anomaly['long']}"


# --- for tools --------------------------------------------------------------------------------


def _json(facts: Facts) -> dict[str, Any]:
    card, family = facts.card, facts.model["model"]["family"]
    scope = [f"Not meant for: {card['out_of_scope']}"] if card.get("out_of_scope") else []

    def each(texts: Iterable[str | None], name: str = "description") -> list[dict[str, str]]:
        return [{name: text} for text in texts if text]

    return {
        "schema_version": _SCHEMA,
        "model_details": {
            "name": facts.job.get("name", ""),
            "overview": facts.evaluation.get("verdict", ""),
            "version": {"date": facts.when},
            "owners": each([card.get("contact")], "contact"),
            "licenses": each([facts.licence], "identifier"),
            "references": each([_PAPERS.get(family)], "reference"),
        },
        "model_parameters": {
            "model_architecture": facts.architecture,
            "data": [
                {"name": split, "description": f"{rows} rows"}
                for split, rows in facts.data.get("rows", {}).items()
            ],
            "input_format": ", ".join(facts.model["inputs"]),
            "output_format": ", ".join(facts.model["labels"][:100]),
        },
        "quantitative_analysis": {"performance_metrics": _metrics(facts)},
        "considerations": {
            "use_cases": each([card.get("intended_use")]),
            "limitations": each([*scope, *_limits(facts)]),
            "tradeoffs": each([facts.compression.get("verdict")]),
            "ethical_considerations": each([card.get("ethics")], "name"),
        },
    }


def _metrics(facts: Facts) -> list[dict[str, Any]]:
    found = [_metric(name, value, between) for name, value, between in _overall(facts)]
    for name, _, metric, value in _slices(facts)[:_MOST_SLICES]:
        found.append({"type": metric, "value": value, "slice": name})
    return found


def _metric(name: str, value: str, between: str) -> dict[str, Any]:
    if not between:
        return {"type": name, "value": value}
    low, high = between.split(" to ")
    interval = {"lower_bound": low, "upper_bound": high}
    return {"type": name, "value": value, "confidence_interval": interval}
