"""What a run will do and why: which components run again, and which come from the cache.

TFX decides by what a component is told and by the artifacts that it takes (its cache_utils). The
same is read here from ML Metadata, without TFX.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ruamel.yaml import YAML

from . import contents, results, steps
from .config import Config
from .store import Node, Output, Store, database

_DONE = ("done", "cached")
_MOST = 4  # changed keys that are named
# What the names mean, where they are no keys of the YAML.
_WORDS = {
    "fingerprint": "the data's content",
    "checkpoint": "what training starts from",
    "code": "Espalier's own code",
    "accepted": "--accept",
    "sources": "data: the places",
    "rule": "data.split",
    "rule.sample": "data.sample",
    "rule.column": "data.split, its column",
    "inputs.text": "data.text",
    "inputs.text_pair": "data.text, the second",
    "label": "data.label",
    "texts": "data.text",
    "multi_label": "data.multi_label",
    "on_bad_image": "data.on_bad_image",
    "schema": "data.schema",
    "metrics": "evaluate.metrics",
    "slices": "evaluate.slices",
    "at_least": "evaluate.at_least",
    "worse_than_blessed_by_at_most": "evaluate.worse_than_blessed_by_at_most",
    "state_dir": "runs",
}


@dataclass(frozen=True)
class Step:
    """What will become of one component.

    Attributes:
        name: the component's.
        runs: whether it runs, and is not taken from the cache.
        why: what makes it run; "" if it comes from the cache.
        outputs: what the cache gives, by key.
        spoilt: artifacts that TFX's cache must not give, by their ids, and why: all of what an
            execution made, where one was altered since. Not the model that was pushed last, or
            TFX would not find it any more to compare the next one with.
    """

    name: str
    runs: bool
    why: str = ""
    outputs: Mapping[str, Output] = field(default_factory=dict)
    spoilt: Mapping[int, str] = field(default_factory=dict)


def plan(
    config: Config, *, data: str, start: str, accept: bool = False, cache: bool = True
) -> list[Step]:
    """What a whole run would do now.

    Args:
        config: the job.
        data: a hash of the data's content.
        start: a hash of what training starts from.
        accept, cache: as of `runner.run`.
    """
    told = steps.told(config, data=data, start=start, accept=accept)
    found = _Past(config) if database(config.home).exists() else None
    beam = found is not None and _is_beam_changed(config)
    taken, last = steps.takes(config), steps.last_pushed(config, accept)
    planned: dict[str, Step] = {}
    for name, settings in told.items():
        if not cache:
            planned[name] = Step(name, True, "--no-cache")
        elif found is None:
            planned[name] = Step(name, True, "it has never run")
        elif beam:
            planned[name] = Step(name, True, "beam has changed, by which TFX caches too")
        else:
            inputs = taken[name]
            first = next((p for p, _ in inputs.values() if planned[p].runs), None)
            expected = None if first else _inputs(inputs, planned)
            if name in last and expected is not None:
                expected |= found.baseline(last[name])
            planned[name] = found.step(name, settings, expected, first)
    return [*planned.values(), Step("Pusher", True, "always")]


def _is_beam_changed(config: Config) -> bool:
    """Whether the last whole run computed elsewhere; executions do not say where."""
    before = results.latest(config.home / "results")
    old = (YAML(typ="safe").load(before.config) or {}) if before else {}
    return "beam" in old and old["beam"] != config.written()["beam"]


def _inputs(taken: steps.Taken, planned: Mapping[str, Step]) -> dict[str, tuple[int, ...]]:
    return {key: (planned[node].outputs[output].id,) for key, (node, output) in taken.items()}


class _Past:
    """What has run before."""

    def __init__(self, config: Config) -> None:
        self._home, self._contents = config.home, contents.read(config.home)
        store = Store(config.home)
        self._pushed = store.outputs("PushedModel")
        self._nodes: dict[str, list[Node]] = {}
        for nodes in store.history().values():
            for node in nodes:
                self._nodes.setdefault(node.name, []).insert(0, node)  # the newest first

    def baseline(self, key: str) -> dict[str, tuple[int, ...]]:
        """The model that was pushed last, as `LastPushed` resolves it, under this key."""
        pushes = [output for output in self._pushed if output.properties.get("pushed") == 1]
        last = max(pushes, key=lambda push: push.id, default=None)
        return {key: (last.properties["model_id"],)} if last else {}

    def step(
        self,
        name: str,
        settings: steps.Told,
        inputs: dict[str, tuple[int, ...]] | None,
        upstream: str | None,
    ) -> Step:
        """What becomes of a component that is told and takes this; `upstream` runs before it."""
        spoilt: dict[int, str] = {}
        before = [node for node in self._nodes.get(name, []) if node.state in _DONE]
        for node in before:
            live = all(output.live for output in node.outputs.values())
            if steps.read(name, node.properties) != settings or node.inputs != inputs or not live:
                continue
            wrong = contents.altered(self._home, node.outputs.values(), self._contents)
            if not wrong:
                return Step(name, False, outputs=node.outputs)
            words = next(iter(wrong.values()))
            (served,) = self.baseline("").get("", (0,))
            spoilt |= {o.id: words for o in node.outputs.values() if o.id != served}
        return Step(name, True, self._why(name, settings, before, upstream, spoilt), spoilt=spoilt)

    def _why(
        self,
        name: str,
        settings: steps.Told,
        before: Sequence[Node],
        upstream: str | None,
        spoilt: Mapping[int, str],
    ) -> str:
        if not before:
            return "it has never run"
        if spoilt:
            return next(iter(spoilt.values()))
        told = (steps.read(name, node.properties) for node in before)
        old = next((one for one in told if one is not None), None)  # --from notes no settings
        if old is None:
            return "another Espalier ran it last"
        if changed := list(_changes(old, settings)):
            more = f" and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
            return "; ".join(changed[:_MOST]) + more
        if upstream:
            return f"{upstream} runs"
        if not all(output.live for output in before[0].outputs.values()):
            return "its last result was deleted"
        if name in ("Evaluator", "Trainer"):
            doing = "compared with" if name == "Evaluator" else "begun with"
            return f"another model is served than the last one was {doing}"
        return "what it takes is not what the last one took"


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The keys that differ, in words: train.epochs: 3, was 4."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*new, *old)):
            if old.get(key) != new.get(key):
                yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return
    if path in ("fingerprint", "checkpoint", "code"):
        yield f"{_WORDS[path]} has changed"
        return
    first, dot, rest = path.partition(".")
    words = _WORDS.get(path) or f"{_WORDS.get(first, first)}{dot}{rest}"
    yield f"{words}: {_short(new)}, was {_short(old)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def lines(planned: Sequence[Step]) -> list[str]:
    """The plan as a person reads it: a line for neighbours that share a fate."""
    found = []
    for (runs, why), group in groupby(planned, key=lambda step: (step.runs, _fate(step))):
        names = ", ".join(step.name for step in group)
        found.append(f"{'run   ' if runs else 'cached'}  {names}{f': {why}' if why else ''}")
    return found


def _fate(step: Step) -> str:
    """What follows from a component before it needs no telling apart."""
    return "what comes before it runs" if step.why.endswith(" runs") else step.why
