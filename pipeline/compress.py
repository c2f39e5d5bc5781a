"""A pushed version made small without a pipeline: `compress`, `sensitivity` and `recipes`.

Each takes a version, and rows with the columns that it was trained with. What takes long lies in
a work folder below `runs/compress/`, by which a second call with the same inputs goes on.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import Field
from rich.console import Console
from ruamel.yaml import YAML

from ..errors import ConfigError, EspalierError
from ..files import write_whole
from ..serving.predictor import newest_version
from ..trainer import states
from ..trainer.compression.settings import Budget, Compress, Entry
from ..trainer.export import describe
from ..trainer.restore import trained_facts
from ..trainer.settings import Section
from .config import Config, load_section
from .places import check_writable, temporary
from .progress import shown
from .raw_rows import Rows, find_rows
from .runner import explain
from .transformed import Files, write_few, write_split

if TYPE_CHECKING:
    from ..trainer.compression.job import Candidate, Job
    from ..trainer.compression.recipe import Export, Outcome
    from ..trainer.compression.search import Found

WORK = Path("runs", "compress")
_PUBLISHED = "published"  # in the work folder, for a moment: the version's folder
_ROOM = 100_000_000  # bytes, beside the versions
# What sensitivity applies where no recipe is given: the defaults of the settings.
DEFAULT_STEPS: list[dict[str, Any]] = [{"prune": {}}, {"cluster": {}}, {"quantize": {}}]


class Aim(Section):
    """What a search reads of a recipe's file: the budget."""

    budget: Budget = Field(description="What the compressed model may cost.")
    steps: list[Entry] | None = Field(None, description="Not used: the search has its own.")
    time_limit: float | None = Field(None, description="Not used.")


@dataclass(frozen=True)
class Trained:
    """A pushed version that was not compressed.

    Attributes:
        version: its folder.
        facts: its description.
        config: how it was trained.
    """

    version: Path
    facts: dict[str, Any]
    config: Config

    @property
    def base(self) -> Path:
        """The model's folder of versions; the version's own where it lies in none."""
        numbered = self.version.name.isdecimal()
        return self.version.parent if numbered else self.version


@dataclass(frozen=True)
class Compressed:
    """What `compress` came to.

    Attributes:
        report: see `trainer.compression.recipe.run`; also in `work`/report.json.
        kept: whether the model keeps to the budget.
        version: the published version's folder, or, over the budget, the best candidate's.
        work: the work folder.
    """

    report: dict[str, Any]
    kept: bool
    version: Path
    work: Path

    @property
    def exit_code(self) -> int:
        """0, or 4 for a model over its budget."""
        return 0 if self.kept else 4


def open_trained(model: str | Path) -> Trained:
    """The newest version of a model, or the one version that is named.

    Raises:
        ConfigError: there is none, or it cannot be compressed.
    """
    version = newest_version(Path(model))
    facts = trained_facts(str(version))
    config = Config.of_version(version)
    if config is None:
        raise ConfigError(
            f"{version}: it has no assets.extra/config.yaml, which says how it was trained. Name "
            f"a version that `espalier run` has pushed."
        )
    return Trained(version.resolve(), facts, config)


def compress(
    model: str | Path,
    recipe: str | Path,
    data: str,
    to: str | None = None,
    console: Console | None = None,
) -> Compressed:
    """Run a recipe on a pushed version, and publish what keeps to the budget.

    Args:
        model: a model's folder of versions, or one version.
        recipe: a YAML file with `steps:`, or a configuration with `compress:`.
        data: rows; a tenth of them is measured on, the rest trained on.
        to: where it is published; None is the model's folder with `-small` behind it.
        console: where progress goes; standard output if None.

    Raises:
        ConfigError, DataError: the version, the recipe or the rows cannot be used.
        ComponentError: something else failed; the message names the log file.
    """
    settings = load_section(recipe, "compress", Compress)
    trained = open_trained(model)
    rows = find_rows(data, trained.facts, trained.config.data.on_bad_image)
    base = to or f"{trained.base}-small"
    if "://" not in base:
        check_writable(Path(base), 0)
        _check_base(trained, Path(base))
    work = _work("compress", trained, rows, settings.model_dump_json())
    with _at_work(work, console):
        if version := _published(work, base):  # by a call that was killed as it cleaned up
            _forget(work)
            return Compressed(_read_report(work), True, version, work)
        from ..trainer.compression import recipe as recipe_  # its steps import TensorFlow

        files = write_split(rows, trained.version, trained.facts, work / "scratch" / "rows")
        job, candidate, export = _prepare(trained, files, work)
        outcome = recipe_.run(
            job, candidate, settings, version=trained.version, export=export, rows=files.raw_rows()
        )
        _write_report(work, outcome.report)
        if not outcome.kept:
            return Compressed(outcome.report, False, outcome.version, work)
        version = _publish(outcome, base, trained, settings)
        write_whole(work / _PUBLISHED, str(version))
        _forget(work)
    return Compressed(outcome.report, True, version, work)


def _published(work: Path, base: str) -> Path | None:
    """The version below `base` that a call has published whose scratch is not all gone."""
    file = work / _PUBLISHED
    version = Path(file.read_text(encoding="utf-8")) if file.exists() else None
    return version if version and version.is_dir() and version.parent == Path(base) else None


def _forget(work: Path) -> None:
    """Remove what only an unfinished call needs; the note of what was published last."""
    if (work / "scratch").exists():
        states.discard(work / "scratch")
    states.clear(work)
    (work / _PUBLISHED).unlink(missing_ok=True)


def _check_base(trained: Trained, base: Path) -> None:
    """A small version among the trained ones would be served in their place, unasked."""
    if base.resolve() == trained.base:
        raise ConfigError(
            f"--to {base}: the trained model's own folder; TensorFlow Serving would go over to the "
            f"small version at once. Name another folder, such as {base}-small."
        )


def _publish(outcome: "Outcome", base: str, trained: Trained, recipe: Compress) -> Path:
    """Publish the chosen candidate, if a call that was killed has not done so."""
    from ..components.pusher import card, publish

    push = trained.config.push.model_copy(update={"to": base})
    yaml = trained.config.model_copy(update={"compress": recipe, "push": push}).to_yaml()
    facts = card.Facts(
        config=yaml,
        when=datetime.now().date().isoformat(),
        model=describe(str(outcome.version)),
        licence=card.licence_of(trained.version),
        compression=outcome.report,
    )
    model, added = str(outcome.version), {publish.CONFIG: yaml, **card.files(facts)}
    if pushed := publish.published(model, base):
        publish.refresh(pushed, added, keep=push.keep)
    else:
        now = int(time.time())
        pushed = publish.publish(model, base, keep=push.keep, now=now, added=added)
    return Path(pushed.path)


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` came to.

    Attributes:
        layers: see `trainer.compression.sensitivity.sensitivity`.
        steps: what was applied, in words, by the step's name.
        rows: how many rows were asked.
        name: the model's.
    """

    layers: list[dict[str, Any]]
    steps: dict[str, str]
    rows: int
    name: str


def sensitivity(
    model: str | Path,
    data: str,
    recipe: str | Path | None = None,
    console: Console | None = None,
) -> Sensitivity:
    """What each layer costs when it alone is pruned, clustered or quantized, without training.

    Args:
        model, data, console: see `compress`; 512 of the rows are asked.
        recipe: whose steps are applied; None is pruning, clustering and int8 by their defaults.

    Raises:
        ConfigError, DataError, ComponentError: as `compress`.
    """
    settings = (
        load_section(recipe, "compress", Compress)
        if recipe
        else Compress.model_validate({"steps": DEFAULT_STEPS})
    )
    steps = [entry for entry in settings.steps if entry.kind != "distill"]
    if not steps:
        raise ConfigError(
            f"{recipe}: no step changes single layers. Expected prune, cluster or quantize."
        )
    trained = open_trained(model)
    rows = find_rows(data, trained.facts, trained.config.data.on_bad_image)
    work = _work("sensitivity", trained, rows, settings.model_dump_json())
    with _at_work(work, console):
        from ..trainer.compression import sensitivity as losses

        folder = work / "scratch" / "rows"
        files = write_few(rows, trained.version, trained.facts, folder, losses.ROWS)
        job, candidate, _ = _prepare(trained, files, work)
        layers = losses.sensitivity(job, candidate.model, steps)
    shutil.rmtree(work)
    words = {entry.kind: _step_words(entry) for entry in steps}
    return Sensitivity(layers, words, job.rows, trained.base.name)


def _step_words(entry: Entry) -> str:
    settings: Any = entry.settings
    value = {"prune": "sparsity", "cluster": "clusters", "quantize": "to"}[entry.kind]
    return f"{entry.kind} {getattr(settings, value)}"


def recipes(
    model: str | Path,
    data: str,
    recipe: str | Path | None = None,
    time_limit: float | None = None,
    console: Console | None = None,
) -> "Found":
    """Try out recipes on a pushed version: see `trainer.compression.search`.

    Args:
        model, data, console: see `compress`.
        recipe: a file with the budget.
        time_limit: minutes; then the best recipe so far is taken.

    Raises:
        ConfigError, DataError, ComponentError: as `compress`.
    """
    budget = load_section(recipe, "compress", Aim).budget if recipe else Budget()
    trained = open_trained(model)
    rows = find_rows(data, trained.facts, trained.config.data.on_bad_image)
    work = _work("recipes", trained, rows, budget.model_dump_json())
    with _at_work(work, console):
        from ..trainer.compression import recipe as recipe_
        from ..trainer.compression.search import search

        files = write_split(rows, trained.version, trained.facts, work / "scratch" / "rows")
        job, candidate, export = _prepare(trained, files, work)
        raw = files.raw_rows()

        def run(job: "Job", recipe: Compress) -> dict[str, Any]:
            return recipe_.run(
                job, candidate, recipe, version=trained.version, export=export, rows=raw
            ).report

        found = search(job, budget, run, time_limit)
        states.discard(work / "scratch")
    return found


def check_new(file: Path) -> None:
    """Raise ConfigError if a recipe cannot be written to this file, or would replace another."""
    if file.exists():
        raise ConfigError(f"{file}: exists already; name another file with -o.")
    check_writable(file.parent, 0)


def write_recipe(found: "Found", file: Path) -> None:
    """Write the best recipe of a search, as `espalier compress --recipe` takes it."""
    best, yaml = found.points[0], YAML()
    with file.open("x", encoding="utf-8") as out:
        out.write(
            f"# {best.name}: the best of {len(found.points)} recipes that `espalier recipes` "
            f"tried.\n# Measured: accuracy {best.figures.accuracy:.4f} "
            f"({best.trained.accuracy:.4f} as trained), gzipped {best.figures.gzipped / 1e6:.2f} "
            f"MB ({best.trained.gzipped / 1e6:.2f}),\n# one row in {best.latency:.2f} of the "
            f"trained model's time, after {best.share:.0%} of the training steps.\n"
        )
        yaml.dump(found.best.model_dump(mode="json", exclude_unset=True), out)


# --- what the three share -----------------------------------------------------------------------


def _prepare(trained: Trained, files: Files, work: Path) -> "tuple[Job, Candidate, Export]":
    from ..trainer.compression.setup import Surroundings, prepare

    return prepare(
        Surroundings(
            version=trained.version,
            transform_graph=None,
            train_files=[str(files.train)],
            eval_files=[str(files.eval)],
            train=trained.config.train,
            folder=work / "scratch",
        )
    )


def _work(command: str, trained: Trained, rows: Rows, settings: str) -> Path:
    """The work folder: the same for the same inputs.

    Raises ConfigError if it cannot be written.
    """
    parts = [command, str(trained.version), describe(str(trained.version)), rows.fingerprint]
    key = hashlib.sha256(json.dumps([*parts, settings]).encode()).hexdigest()[:8]
    work = WORK / f"{trained.base.name}-{command}-{key}"
    check_writable(work, _ROOM)
    return work


@contextlib.contextmanager
def _at_work(work: Path, console: Console | None) -> Iterator[None]:
    """Show progress, keep others out of the folder, and word what goes wrong."""
    work.mkdir(parents=True, exist_ok=True)
    log = work / "log.txt"
    try:
        lock = FileLock(work / ".lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{work}: the same command is running already. Wait for it, or stop it first."
        ) from None
    with lock, temporary(work), shown(log, console):
        try:
            yield
        except EspalierError:
            raise
        except Exception as error:
            traceback.print_exc()  # into the log
            written = [work, Path(tempfile.gettempdir())]
            raise explain(error, "The compression", log, written) from error


def _read_report(work: Path) -> dict[str, Any]:
    return dict(json.loads((work / "report.json").read_text(encoding="utf-8")))


def _write_report(work: Path, report: dict[str, Any]) -> None:
    write_whole(work / "report.json", json.dumps(report, indent=1))
