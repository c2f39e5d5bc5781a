"""Run a configuration from end to end on this machine."""

import contextlib
import difflib
import hashlib
import json
import logging
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.spinner import Spinner
from ruamel.yaml import YAML

from ..errors import ComponentError, ConfigError, DataError, EspalierError, ServerError, reason
from ..files import write_whole
from ..serving.predictor import find_newest
from ..terminal import Screen
from ..trainer import families, images, workers
from ..trainer.run import train
from . import code_digest, contents, leftovers, plan, preflight, results, versions
from . import report as report_
from .config import Config
from .on_disk import on_disk_first
from .places import full, is_unfinished, temporary
from .progress import Reporter, live, quiet, shown
from .results import RunResult
from .store import BEGUN, Node, Output, Store, alone, check_format, database, follow_clock, is_busy

Runner = Literal["local", "beam"]
Part = tuple[str | None, str | None, str | None]  # from, to, the run that --from builds on
# The components in the order in which they run; `dag.create_pipeline` makes them.
NODES = (
    "ExampleGen",
    "LatestBlessed",
    "StatisticsGen",
    "SchemaGen",
    "ExampleValidator",
    "DataGate",
    "Transform",
    "Tuner",
    "Trainer",
    "Compressor",
    "Evaluator",
    "ServingCheck",
    "Pusher",
)


def run(
    config: Config,
    *,
    runner: Runner = "local",
    from_node: str | None = None,
    to_node: str | None = None,
    cache: bool = True,
    accept: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Take the data through the whole line and publish the model if it is blessed.

    Args:
        config: the job.
        runner: TFX's LocalDagRunner or its BeamDagRunner.
        from_node, to_node: run this part of the line only; what comes before is taken from
            the last run.
        cache: take results of unchanged components from earlier runs.
        accept: bless without a comparison with the last blessed model.
        console: where progress goes; standard output if None.

    Raises:
        ConfigError, CheckpointError, DataError: the user's input cannot be used.
        ComponentError: a component failed; the message names it and the log file.
    """
    _check_part(from_node, to_node, config, accept)
    if config.train.distribute == "multi_worker":
        if is_follower(config):
            raise ConfigError("TF_CONFIG: this is not worker 0, which alone runs the line.")
        with workers.leading(config.home, partial(is_busy, config.home)):
            return _run(config, runner, (from_node, to_node), cache, accept, console)
    return _run(config, runner, (from_node, to_node), cache, accept, console)


def _run(
    config: Config,
    runner: Runner,
    ends: tuple[str | None, str | None],
    cache: bool,
    accept: bool,
    console: Console | None,
) -> RunResult:
    started, begun = time.monotonic(), datetime.now().isoformat()
    screen, (from_node, to_node) = console or Screen(), ends
    options: dict[str, Any] = {"data": "", "start": "", "cache": cache, "accept": accept}
    try:
        config = _settled(config, screen)
        _look(config, options, screen)
        data, start = options["data"], options["start"]
        key = _key(config, data, start, accept)
        whole = from_node is None and to_node is None
        if cache and whole and (before := _same(config, key)):
            before.cached, before.seconds = True, time.monotonic() - started
            return before
        lock = alone(config.home, ", or give this one another `name:`")
    except Exception as error:
        _record_failure(config, options, begun, error, screen)
        raise
    with lock, temporary(config.home):
        try:
            write_whole(config.home / BEGUN, config.to_yaml())
            _follow_clock(config.home, screen)
            leftovers.clear(config.home)
            versions.finish_rollback(config)
            base = _base_run(config, data, start, from_node) if from_node else None
            if from_node is None:
                _announce(config, options, screen if whole else None)
        except Exception as error:
            _record_failure(config, options, begun, error, screen)
            raise
        workers.forget(config.home)
        part = (from_node, to_node, base)
        result = _run_pipeline(config, runner, part, options, begun, console)
        # A part of the line may rest on what other settings made: never a whole run's answer.
        result.key = key if whole else ""
        result.seconds = time.monotonic() - started
        return _recorded(result, config, options)


def foresee(
    config: Config, *, cache: bool = True, accept: bool = False, console: Console | None = None
) -> list[plan.Step]:
    """What `run` would do, as the data and the settings are now; nothing if it would do nothing.

    Args and errors as of `run`; the data is looked at as it is there.
    """
    options: dict[str, Any] = {"cache": cache, "accept": accept}
    screen = console or Screen(stderr=True)
    config = _settled(config, screen)
    _look(config, options, screen)
    if cache and _same(config, _key(config, options["data"], options["start"], accept)):
        return []
    return plan.plan(config, **options)


def _same(config: Config, key: str) -> RunResult | None:
    """The last whole run, if it had all the same to go by and its model is still served; not if
    the last of all was killed, be it as it drew its report."""
    check_format(config.home)
    before = results.latest(config.home / "results")
    if before is None or before.key != key or is_unfinished(config.home):
        return None
    return before if _is_served(before, config.push.to) else None


def _announce(config: Config, options: dict[str, Any], screen: Console | None) -> None:
    """Say what will run and why, and keep TFX's cache from giving what was altered since."""
    planned = plan.plan(config, **options)
    if screen:
        for line in plan.lines(planned):
            screen.print(escape(line), style="dim", highlight=False, soft_wrap=True)
    if spoilt := [id for step in planned for id in step.spoilt]:
        Store(config.home).mark_deleted(spoilt)


def _wrap_up(home: Path) -> None:
    """Note what the last run made, by which the next one sees whether it is still so, and let go
    of the states of what is done; what goes wrong in this fails no run."""
    try:
        leftovers.clear_states(home)
        if run := _last_run(home):
            nodes = Store(home).nodes(run)
            contents.note(home, [output for node in nodes for output in node.outputs.values()])
    except Exception:
        logging.getLogger(__name__).exception("the run could not be wrapped up")


def _settled(config: Config, screen: Console) -> Config:
    """The configuration with `{SPAN}` looked up once: new data may arrive at any time."""
    for warning in preflight.missing_spans(config):
        screen.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    return config.settled()


def _follow_clock(home: Path, screen: Console) -> None:
    if (late := follow_clock(home)) >= 1:
        said = f"the clock is {late:,.0f} seconds behind what earlier runs noted, which is set back"
        screen.print(f"[yellow]warning:[/] {said}.", highlight=False, soft_wrap=True)


def _look(config: Config, options: dict[str, Any], screen: Console) -> None:
    """The checks before a run; hashes of the data and of the start go to the options."""
    report = preflight.check(config, lambda line: screen.print(line, highlight=False))
    options["data"] = report.fingerprint
    for warning in report.warnings:
        screen.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    options["start"] = families.load(config.model.family).fingerprint(config.model)


def _recorded(result: RunResult, config: Config, options: dict[str, Any]) -> RunResult:
    """Keep the result, and draw its page; one that cannot be drawn fails no run."""
    result.config, result.data, result.start = config.to_yaml(), options["data"], options["start"]
    result.versions = report_.versions()
    result.save(config.home / "results")
    try:
        result.report = str(report_.write(config.home, result.run))
        result.save(config.home / "results")
    except Exception:
        logging.getLogger(__name__).exception("the report could not be written")
    return result


def _record_failure(
    config: Config, options: dict[str, Any], run: str, error: BaseException, screen: Console
) -> None:
    """Keep a failed run and its page, and say where that is; what goes wrong in this hides not
    what failed."""
    why = str(error) if isinstance(error, EspalierError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, Exception):  # Ctrl-C
        why = "It was stopped."
    try:
        result = results.failed(config.name, _nodes(config.home, run), run, why)
        page = _recorded(result, config, options).report
    except Exception:
        logging.getLogger(__name__).debug("the failure could not be recorded", exc_info=True)
        return
    if page:
        screen.print(f"report: {page}", style="dim", highlight=False, soft_wrap=True)


def _nodes(home: Path, run: str) -> list[Node]:
    """The components that a run has begun; none if the metadata cannot be read."""
    try:
        return Store(home).nodes(run) if database(home).exists() else []
    except Exception:  # of ML Metadata there are many kinds
        return []


def _last_run(home: Path) -> str:
    runs = Store(home).runs() if database(home).exists() else []
    return runs[-1] if runs else ""


def _run_since(home: Path, before: str | None) -> str:
    """The run that TFX has begun after that one, as it begins its first component; else ""."""
    with contextlib.suppress(Exception):  # the metadata may be why the run failed
        if before is not None and (last := _last_run(home)) != before:
            return last
    return ""


def is_follower(config: Config) -> bool:
    """Whether this machine only trains beside a chief that runs the line.

    Raises:
        ConfigError: it should be one of several workers, and TF_CONFIG does not say which.
    """
    return config.train.distribute == "multi_worker" and not workers.current().chief


def follow(config: Config, *, console: Console | None = None) -> None:
    """Train beside the chief, once it has come to its Trainer; nothing of it is kept here.

    Args:
        config: the job; its `runs` must be the chief's folder.
        console: where progress goes; standard output if None.

    Raises:
        EspalierError: what the training raised.
    """
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    log = config.home / "logs" / f"{now}-worker-{workers.current().index}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with shown(log, console):
        workers.follow(config.home, train)


def _key(config: Config, data: str, start: str, accept: bool) -> str:
    """Hash of everything that a run's results depend on."""
    parts = [config.to_yaml(), data, start, code_digest(), accept]
    if config.data.schema_file:
        parts.append(Path(config.data.schema_file).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_served(result: RunResult, to: str) -> bool:
    """Whether what the run pushed is still the newest version (a remote one is believed to be)."""
    if result.status == "not_blessed" or "://" in to:
        return True
    newest = find_newest(Path(to))
    return newest is not None and newest == Path(str(result.pushed))


# The components that a section of the configuration brings.
_BROUGHT_BY = {"Tuner": "tune", "Compressor": "compress"}
# The first component that reads each section: begun after it, a run would not see its change.
_READ_BY = {
    "data": "ExampleGen",
    "model": "Transform",
    "tune": "Tuner",
    "train": "Trainer",
    "export": "Trainer",
    "compress": "Compressor",
}


def _left_out(config: Config) -> set[str]:
    """The components that the configuration has no section for."""
    return {node for node, name in _BROUGHT_BY.items() if getattr(config, name) is None}


def _base_run(config: Config, data: str, start: str, from_node: str) -> str:
    """The run whose results stand in for the components before `from_node`.

    Raises:
        ConfigError: there is none, or what those components read has changed since.
    """
    needed = set(NODES[: NODES.index(from_node)]) - {"LatestBlessed"} - _left_out(config)
    kept = results.all_results(config.home / "results")
    found = [r for r in kept if needed <= r.finished and r.status != "failed"]
    runs = Store(config.home).runs() if found and database(config.home).exists() else []
    # As they followed each other: the results' times are those of a clock, which is set at times.
    found.sort(key=lambda r: runs.index(r.run) if r.run in runs else -1)
    before = next((r for r in reversed(found) if _still_lies(config.home, r.run, needed)), None)
    if before is None:
        raise ConfigError(
            f"--from {from_node}: no earlier run has finished what comes before it. Run without "
            f"--from; unchanged components come from the cache."
        )
    if altered := contents.altered(config.home, _made(config.home, before.run, needed)):
        raise ConfigError(
            f"--from {from_node}: {next(iter(altered.values()))} since the run of {before.run}. "
            f"Run without --from: what made it runs again, and all that comes behind."
        )
    old = YAML(typ="safe").load(before.config)
    now = config.written()
    hashes = {"data": before.data != data, "model": before.start != start}
    readers = {**_READ_BY, "train": "Tuner"} if config.tune else _READ_BY
    for section, reader in readers.items():
        changed = old.get(section) != now[section] or hashes.get(section)
        if changed and reader in needed:
            raise ConfigError(
                f"--from {from_node}: {section} has changed since the run of {before.run}, and "
                f"{reader} would not run again. Begin at {reader}, or run without --from."
            )
    return before.run


def _still_lies(home: Path, run: str, needed: set[str]) -> bool:
    """Whether `espalier gc` has left what these components of a run made."""
    return all(output.live for output in _made(home, run, needed))


def _made(home: Path, run: str, by: set[str]) -> list[Output]:
    nodes = Store(home).nodes(run) if database(home).exists() else []
    return [output for node in nodes if node.name in by for output in node.outputs.values()]


def _run_pipeline(
    config: Config,
    runner: Runner,
    part: Part,
    options: dict[str, Any],
    begun: str,
    console: Console | None,
) -> RunResult:
    log = config.home / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with quiet(log) as screen:
        console = console or Screen(file=screen)
        console.print(f"log: {log}", style="dim", highlight=False, soft_wrap=True)
        before = reporter = None
        try:
            pipeline = _pipeline(config, options, console)
            names = [component.id for component in pipeline.components]
            before = _last_run(config.home)
            reporter = Reporter(console, names, lambda name: _latest_node(config.home, name))
            with on_disk_first(), reporter.listening():
                _dag_runner(runner).run(pipeline, _run_options(part, names))
        except BaseException as error:
            traceback.print_exc()  # into the log
            node = reporter.current if reporter else ""
            if reporter and node:
                reporter.finish(node, "failed")
            explained = explain(error, node, log, _written(config))
            if config.data.kind == "image" and "InvalidArgument" in traceback.format_exc():
                explained = _undecodable(config.home) or explained
            _wrap_up(config.home)
            run = _run_since(config.home, before) or begun
            _record_failure(config, options, run, explained, console)
            raise explained from error
    _wrap_up(config.home)
    store = Store(config.home)
    result = results.collect(config.name, store, store.runs()[-1])
    result.log = str(log)
    return result


def _pipeline(config: Config, options: dict[str, Any], console: Console) -> Any:
    with live(Spinner("dots", "loading TFX"), console):
        from .dag import create_pipeline

        pipeline = create_pipeline(config, **options)
        if config.data.kind == "image":
            images.try_weights(families.load(config.model.family), config.model)
    return pipeline


def _undecodable(home: Path) -> DataError | None:
    """The error that names the pictures that a component failed on, which names none itself."""
    examples = _latest_node(home, "ExampleGen")
    files = Path(examples.outputs["examples"].uri).glob("Split-*/*") if examples else ()
    if bad := images.undecodable(sorted(map(str, files))):
        lines = "\n".join(f"  {path}: {reason}" for path, reason in bad)
        return DataError(
            f"TensorFlow cannot decode these pictures, though their headers are sound:\n{lines}\n"
            f"Mend them or take them out, and run again."
        )
    return None


def _dag_runner(name: Runner) -> Any:
    if name == "beam":
        from tfx.orchestration.beam.beam_dag_runner import BeamDagRunner

        return BeamDagRunner()
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    return LocalDagRunner()


def _check_part(from_node: str | None, to_node: str | None, config: Config, accept: bool) -> None:
    for option, node in (("--from", from_node), ("--to", to_node)):
        if node is not None and node not in NODES:
            near = difflib.get_close_matches(node, NODES, 1, 0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"{option} {node}: no such component. {hint}They are: {', '.join(NODES)}."
            )
    for node in _left_out(config) & {from_node, to_node}:
        section = _BROUGHT_BY[node]
        raise ConfigError(f"The configuration has no `{section}:` section, and so no {node}.")
    if accept and "LatestBlessed" in (from_node, to_node):
        raise ConfigError("LatestBlessed does not run with --accept, which takes no comparison.")
    if from_node and to_node and NODES.index(from_node) > NODES.index(to_node):
        raise ConfigError(f"--from {from_node} --to {to_node}: {from_node} comes after {to_node}.")


def _run_options(part: Part, names: list[str]) -> Any:
    from tfx.orchestration.pipeline import RunOptions

    from_node, to_node, base = part
    if from_node is None and to_node is None:
        return None
    begin = [from_node] if from_node else None
    ends_before = to_node is not None and NODES.index(to_node) < NODES.index("Evaluator")
    if begin and from_node != "LatestBlessed" and "LatestBlessed" in names and not ends_before:
        begin.append("LatestBlessed")  # the baseline of the earlier run may be stale
    return RunOptions(begin, [to_node] if to_node else None, base)


def _latest_node(home: Path, name: str) -> Node | None:
    store = Store(home)
    runs = store.runs()
    return next((n for n in store.nodes(runs[-1]) if n.name == name), None) if runs else None


_ROOM = "Make room (`espalier gc` shows what of earlier runs can go)"
_FULL = f"The disk is full. {_ROOM}"
_READ_ONLY = "The file system is read-only. Choose another place (runs:, push:)"
_SYSTEM_ERRORS = {
    "No space left on device": _FULL,
    "database or disk is full": _FULL,  # SQLite's word for it
    "Disk quota exceeded": f"The disk quota is used up. {_ROOM}",
    "Read-only file system": _READ_ONLY,
    "attempt to write a readonly database": _READ_ONLY,
    # ML Metadata's words for a locked SQLite file, after a minute and a half.
    "Concurrent writes aborted": "Another program holds the pipeline's metadata. End it",
    "Permission denied": "A file or folder may not be written. Change its permissions",
}


def _written(config: Config) -> list[Path]:
    """The folders that a run fills."""
    pushed = [] if "://" in config.push.to else [Path(config.push.to)]
    return [config.home, *pushed, Path(tempfile.gettempdir())]


def explain(
    error: BaseException, node: str, log: Path, written: Sequence[Path] = ()
) -> BaseException:
    """The error as the user should see it: its own sentence if it has one, else the first cause.

    `written` are folders that it may come of if one of them is full: what TFX or ML Metadata then
    say has often nothing to do with it.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, EspalierError):
            said = str(one).removeprefix(f"{node}: ")
            # A ServerError is made of a code, too; the server was a component's.
            kind = ComponentError if isinstance(one, ServerError) else type(one)
            return kind(f"{node}: {said}" if node else said)
    if not isinstance(error, Exception):  # Ctrl-C
        return error
    last = str(chain[-1]).strip() or type(chain[-1]).__name__
    first = reason(last) if "[[{{" in last else last.splitlines()[0]
    first = f"{type(chain[-1]).__name__}: {first[:500]}"
    found = ((w, a) for w, a in _SYSTEM_ERRORS.items() if any(w in str(one) for one in chain))
    words, advice = next(found, (first, _FULL if full(written) else ""))
    if not advice:
        return ComponentError(
            f"{node or 'TFX'} failed: {first}\n"
            f"The whole story is in {log}; what was finished before is kept for the next run."
        )
    if advice == _FULL and (where := full(written) or _named(chain)):
        advice = advice.replace("full.", f"full: {', '.join(map(str, where))}.")
    return ComponentError(
        f"{node or 'TFX'}: {words}. {advice} and run the same command again; what was finished is "
        f"kept. Log: {log}"
    )


def _named(chain: Sequence[BaseException]) -> list[Any]:
    """The file that an error of the system names."""
    return [one.filename for one in chain if isinstance(one, OSError) and one.filename][:1]
