"""Looks at everything a run needs before anything runs, in seconds and without TensorFlow.

Stock components pass over much of this in silence, or stop a minute later with a KeyError.
"""

import shutil
import tempfile
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..trainer import checkpoints, families
from .config import Config
from .csv_check import check_csv
from .parquet_check import check_parquet
from .sources import find_sources, input_patterns
from .tally import DataReport, Progress
from .tfrecord_check import check_tfrecord

__all__ = [
    "DataReport",
    "check",
    "check_csv",
    "check_parquet",
    "check_tfrecord",
    "check_writable",
    "find_sources",
    "input_patterns",
]

_CHECKS = {"csv": check_csv, "parquet": check_parquet, "tfrecord": check_tfrecord}
_MB = 1_000_000


def check(config: Config, progress: Progress | None = None) -> DataReport:
    """Check the data, the checkpoint, the schema and the places that will be written.

    Args:
        config: the job.
        progress: called with a line of text when something takes time (a download).

    Raises:
        ConfigError, CheckpointError, DataError: the first thing that would stop the run.
    """
    data = config.data
    files = find_sources(data.sources, data.format)
    input_patterns(files)
    if data.schema_file:
        _check_schema(Path(data.schema_file))
    families.load(config.model.family).check(config.model, progress)
    _check_places(config, sum(f.stat().st_size for paths in files.values() for f in paths))
    report = _CHECKS[data.format](files, data.texts, data.label, config.evaluate.slices)
    report.warnings += _cut_texts(config, report)
    return report


def _check_schema(file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"data.schema: no file {file} in {Path.cwd()}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.schema: {file} cannot be read as text: {error}.") from None
    if "feature {" not in text.replace("feature{", "feature {"):
        raise ConfigError(
            f"data.schema: {file} has no `feature {{`; expected a TFDV schema as text "
            "(schema.pbtxt, as a run's SchemaGen folder holds one)."
        )


def _check_places(config: Config, data_bytes: int) -> None:
    """What a run leaves: the rows twice as Examples, the checkpoint as weights with optimizer
    state (3x), twice as a SavedModel, and metadata; the push one more copy."""
    model = _checkpoint_bytes(config)
    check_writable(config.home, 4 * data_bytes + 6 * model + 100 * _MB)
    if "://" not in config.push.to:
        check_writable(Path(config.push.to), 2 * model + 20 * _MB)


def _checkpoint_bytes(config: Config) -> int:
    try:
        folder = checkpoints.resolve(str(getattr(config.model, "start", "")))
    except CheckpointError:  # a size, to be trained from scratch
        return 0
    return sum(f.stat().st_size for pattern in checkpoints.FILES for f in folder.glob(pattern))


def check_writable(path: Path, needed_bytes: int) -> None:
    """Raise ConfigError unless files can be written in the folder and there is room for them.

    The folder need not exist; then the nearest one above it is tried.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{path} cannot be a folder: {place} is a file. Name another place.")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise ConfigError(
            f"{path}: nothing can be written in {place}: {error.strerror}. Change its permissions, "
            "or name another place (`runs:`, `push.to:`)."
        ) from None
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ConfigError(
            f"{path}: about {needed_bytes / _MB:,.0f} MB are needed, and {place} has "
            f"{free / _MB:,.0f} MB free. Make room, or name another place (`runs:`, `push.to:`)."
        )


def _cut_texts(config: Config, report: DataReport) -> list[str]:
    """A word is at least one token, so that more words than tokens are surely cut."""
    length = getattr(config.model, "sequence_length", None)
    longest = report.words.get(95, 0)
    if length is None or longest <= length:
        return []
    return [
        f"model.sequence_length is {length}, and 5 % of the texts have {longest} words or more; "
        "what is longer is cut off."
    ]
