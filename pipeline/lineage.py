"""Which data, settings and checkpoint gave a pushed version: read from ML Metadata alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from ..errors import ConfigError
from ..trainer.export import DESCRIPTION
from . import results, versions
from .config import Config
from .store import Node


@dataclass(frozen=True)
class Origin:
    """What a pushed version came of.

    Attributes:
        name: the pipeline's.
        version: its number.
        folder: where it was published.
        there: whether it still is (a remote one is not looked for).
        when: ISO time of the push, or of the rollback.
        run: the run that made the model.
        copy_of: the version that a rollback copied; "" if this is not a copy.
        verdict: the Evaluator's, in a sentence.
        data: hash of the data's content; "" where the run's results are gone.
        start: what training started from, and its hash; "" where that is not known.
        components: name, state, seconds and what it produced, of each in the order of its start.
        config: the resolved YAML; "" where the run's results are gone.
    """

    name: str
    version: str
    folder: str
    there: bool
    when: str
    run: str
    copy_of: str
    verdict: str
    data: str
    start: str
    components: list[dict[str, Any]]
    config: str


def find(config: Config, version: str | None = None) -> Origin:
    """Look up one pushed version.

    Args:
        config: the pipeline whose metadata is read.
        version: the version's number; None is the newest.

    Raises:
        ConfigError: there is no run, or no such version.
    """
    history = versions.read(config)
    known = history.versions
    if not known:
        raise ConfigError(f"{config.home}: no run of {config.name} has pushed a version yet.")
    version = version or max(known, key=int)
    if version not in known:
        raise ConfigError(
            f"no run of {config.name} pushed version {version}; pushed were: "
            f"{', '.join(sorted(known, key=int))}."
        )
    pushed = known[version]
    nodes = history.runs[pushed.run]
    record = results.of_run(config.home / "results", pushed.run)
    return Origin(
        name=config.name,
        version=version,
        folder=pushed.folder,
        there="://" in pushed.folder or Path(pushed.folder).exists(),
        when=pushed.when,
        run=pushed.run,
        copy_of=pushed.copy_of,
        verdict=results.produced(nodes["Evaluator"]) if "Evaluator" in nodes else "",
        data=record.data if record else "",
        start=_checkpoint(nodes),
        components=[one.model_dump() for one in results.components(list(nodes.values()))],
        config=record.config.rstrip() if record else "",
    )


def tree(found: Origin) -> Tree:
    """The same as a tree to print."""
    root = Tree(f"[bold]{escape(found.name)}[/] version [bold]{found.version}[/]")
    gone = "" if found.there else " [red](deleted since)[/]"
    made = f"by the run of {found.run}"
    if found.copy_of:
        made = f"by the rollback of {found.when}; a copy of version {found.copy_of}, pushed {made}"
    root.add(f"pushed to {escape(found.folder)}{gone} {made}")
    if found.verdict:
        root.add(escape(found.verdict))
    if found.data:
        root.add(f"from data with the hash {found.data}")
    if found.start:
        root.add(f"training started from {escape(found.start)}")
    branch = root.add("made by")
    for one in found.components:
        words = escape(one["produced"])
        branch.add(f"{one['name']} [dim]({one['state']}, {one['seconds']:.1f} s)[/] {words}")
    if found.config:
        root.add("settings").add(escape(found.config))
    return root


def _checkpoint(nodes: dict[str, Node]) -> str:
    trainer = nodes.get("Trainer")
    facts = trainer and trainer.outputs["model"].read_json(f"Format-Serving/{DESCRIPTION}")
    if not facts:
        return ""
    model = facts["model"]
    start = model.get("weights") or model.get("start") or model["family"]
    return f"{start}, hash {facts['checkpoint']}"
