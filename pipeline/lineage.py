"""Which data, settings and checkpoint gave a pushed version: read from ML Metadata alone."""

from pathlib import Path

from rich.markup import escape
from rich.tree import Tree

from ..errors import ConfigError
from ..trainer.export import DESCRIPTION
from . import results
from .config import Config
from .store import Node, Store, database


def tree(config: Config, version: str | None = None) -> Tree:
    """The history of one pushed version, as a tree to print.

    Args:
        config: the pipeline whose metadata is read.
        version: the version's number; None is the newest.

    Raises:
        ConfigError: there is no run, or no such version.
    """
    if not database(config.home).exists():
        raise ConfigError(f"{config.home}: no run of {config.name} yet. Run `espalier run` first.")
    store = Store(config.home)
    pushed = _pushed(store)
    if not pushed:
        raise ConfigError(f"{config.home}: no run of {config.name} has pushed a version yet.")
    version = version or max(pushed, key=int)
    if version not in pushed:
        raise ConfigError(
            f"no run of {config.name} pushed version {version}; pushed were: "
            f"{', '.join(sorted(pushed, key=int))}."
        )
    run = pushed[version]
    nodes = {node.name: node for node in store.nodes(run)}
    return _draw(config, version, run, nodes)


def _pushed(store: Store) -> dict[str, str]:
    """Version -> the first run that pushed it."""
    found: dict[str, str] = {}
    for run in store.runs():
        for node in store.nodes(run):
            if node.name == "Pusher" and (output := node.outputs.get("pushed_model")):
                version = output.properties.get("pushed_version")
                if version:
                    found.setdefault(str(version), run)
    return found


def _draw(config: Config, version: str, run: str, nodes: dict[str, Node]) -> Tree:
    root = Tree(f"[bold]{escape(config.name)}[/] version [bold]{version}[/]")
    destination = nodes["Pusher"].outputs["pushed_model"].properties["pushed_destination"]
    gone = "" if Path(destination).exists() else " [red](deleted since)[/]"
    root.add(f"pushed to {escape(destination)}{gone} by the run of {run}")
    if verdict := nodes.get("Evaluator"):
        root.add(escape(results.produced(verdict)))
    record = results.of_run(config.home / "results", run)
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
