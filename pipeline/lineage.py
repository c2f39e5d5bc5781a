"""Which data, settings and checkpoint gave a pushed version: read from ML Metadata alone."""

from pathlib import Path

from rich.markup import escape
from rich.tree import Tree

from ..errors import ConfigError
from ..trainer.export import DESCRIPTION
from . import results, versions
from .config import Config
from .store import Node
from .versions import Pushed


def tree(config: Config, version: str | None = None) -> Tree:
    """The history of one pushed version, as a tree to print.

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
    return _draw(config, known[version], history.runs[known[version].run])


def _draw(config: Config, pushed: Pushed, nodes: dict[str, Node]) -> Tree:
    root = Tree(f"[bold]{escape(config.name)}[/] version [bold]{pushed.version}[/]")
    gone = "" if Path(pushed.folder).exists() else " [red](deleted since)[/]"
    made = f"by the run of {pushed.run}"
    if pushed.copy_of:
        made = (
            f"by the rollback of {pushed.when}; a copy of version {pushed.copy_of}, pushed {made}"
        )
    root.add(f"pushed to {escape(pushed.folder)}{gone} {made}")
    if verdict := nodes.get("Evaluator"):
        root.add(escape(results.produced(verdict)))
    record = results.of_run(config.home / "results", pushed.run)
    if record:
        root.add(f"from data with the hash {record.data}")
    checkpoint = _checkpoint(nodes)
    if checkpoint:
        root.add(f"training started from {escape(checkpoint)}")
    branch = root.add("made by")
    for node in nodes.values():
        words = escape(results.produced(node))
        branch.add(f"{node.name} [dim]({node.state}, {node.seconds:.1f} s)[/] {words}")
    if record:
        root.add("settings").add(escape(record.config.rstrip()))
    return root


def _checkpoint(nodes: dict[str, Node]) -> str:
    trainer = nodes.get("Trainer")
    facts = trainer and trainer.outputs["model"].read_json(f"Format-Serving/{DESCRIPTION}")
    if not facts:
        return ""
    model = facts["model"]
    start = model.get("weights") or model.get("start") or model["family"]
    return f"{start}, hash {facts['checkpoint']}"
