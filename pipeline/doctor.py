"""Is this machine fit for Espalier? Every question answered in a line, and none of them raises.

Works where the client alone is installed. Heavy packages are imported in another process.
"""

import contextlib
import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__, cpu
from ..components.faults import counted
from ..errors import DataError, EspalierError
from ..masking import masked
from . import imports, machine
from .places import check_writable

if TYPE_CHECKING:
    from .config import Config

State = Literal["ok", "warning", "fault"]
Extra = Literal["client", "serve", "pipeline"]

LOCK = Path(__file__).parents[1] / "requirements.lock"  # a checkout has it, a wheel does not
PORTS = {8500: "gRPC", 8501: "REST"}
IMPORT_SECONDS = 300.0  # for all; on two quiet cores they take half a minute
_LEAST_MEMORY, _LEAST_DISK = 4e9, 2e9  # bytes; a run of MiniLM takes about half of it
_NEEDED_DISK = 100_000_000  # bytes, beside the model
# The package of each module that is tried, in the order of the trying.
_CLIENT = {"grpc": "grpcio", "numpy": "numpy"}
_SERVE = {
    **_CLIENT,
    "tensorflow": "tensorflow",
    "tf_keras": "tf-keras",
    "tensorflow_text": "tensorflow-text",
    "tensorflow_serving.apis.predict_pb2": "tensorflow-serving-api",
}
_PIPELINE = {
    **_SERVE,
    "keras_nlp": "keras-nlp",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "apache_beam": "apache-beam",
    "ml_metadata": "ml-metadata",
    "tensorflow_model_analysis": "tensorflow-model-analysis",
    "tfx.components": "tfx",
}
_MODULES: dict[Extra, dict[str, str]] = {
    "client": _CLIENT, "serve": _SERVE, "pipeline": _PIPELINE,
}  # fmt: skip
_AGAIN = "Install the packages anew: ./setup.sh in a checkout, else pip install 'espalier[{}]'."


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        what: it.
        found: in words.
        state: warning: it may do; fault: something will not work.
        advice: what to do, in a sentence.
    """

    what: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine(config: Path | None = None, overrides: Iterable[str] = ()) -> list[Line]:
    """Look at everything; takes about half a minute, most of it imports.

    Args:
        config: a configuration whose places are looked at too.
        overrides: of it, as `Config.load` takes them.
    """
    extra = installed()
    lines = [*_try("installation", _basics, extra), *_try("computer", _computer)]
    found = imports.try_out(list(_MODULES[extra]), IMPORT_SECONDS)
    lines += _try("packages", _packages, extra, found)
    lines += _try("requirements.lock", compare_lock, LOCK, extra)
    lines += _try("ports", _ports)
    jobs: list[Config] = []
    if config is not None:
        lines += _try("configuration", _configuration, config, overrides, extra, jobs)
    if extra == "pipeline":
        lines += _try("folders", _folders, jobs)
    return [replace(one, found=_tidy(one.found), advice=_tidy(one.advice)) for one in lines]


def _try(what: str, look: Callable[..., Iterable[Line]], *given: Any) -> list[Line]:
    """What is found; what cannot even be looked at is a fault."""
    try:
        return list(look(*given))
    except Exception as error:
        return [Line(what, f"cannot be looked at: {type(error).__name__}: {error}", "fault")]


def bug_report(lines: Iterable[Line]) -> str:
    """The same as plain text to paste: no name of a user, no path of a home, no secret."""
    rows = [(one.state, one.what, one.found) for one in lines]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c}".rstrip() for a, b, c in rows)


def installed() -> Extra:
    """Which of the installations this is, by its packages."""
    if _version("tfx"):
        return "pipeline"
    return "serve" if _version("tensorflow") else "client"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- the lines ----------------------------------------------------------------------------------


def _basics(extra: Extra) -> Iterator[Line]:
    more = "" if extra == "pipeline" else "To train: pip install 'espalier[pipeline]'."
    if extra == "client":
        more += " To serve: pip install 'espalier[serve]'."
    words = "the client alone" if extra == "client" else f"with the extra `{extra}`"
    yield Line("espalier", f"{__version__}, {words}", "ok", more)
    version = platform.python_version()
    if extra == "pipeline" and sys.version_info[:2] != (3, 10):
        yield Line("Python", version, "fault", "TFX 1.16 works with Python 3.10 alone: use that.")
    else:
        yield Line("Python", version)
    if sys.platform != "linux" and extra != "client":
        yield Line("system", platform.platform(), "fault", "TFX has packages for Linux alone.")
    else:
        yield Line("system", platform.platform())


def _computer() -> Iterator[Line]:
    yield Line("CPU", machine.cpu_name())
    yield Line("CPUs to use", machine.cpus())
    for need, use in ((cpu.BFLOAT16, "bf16"), (cpu.INT8, "int8")):
        lacks = cpu.lacking([need])
        words = f"no: {lacks}" if lacks else f"yes; export.cpu can be {use}"
        yield Line(need, words, "ok", f"export.cpu: {use} cannot be made here." if lacks else "")
    size = machine.memory()
    small = size < _LEAST_MEMORY
    advice = "A run takes 2 GB and more: take smaller batches." if small else ""
    yield Line("memory", f"{size / 1e9:.1f} GB", "warning" if small else "ok", advice)


def _packages(extra: Extra, found: Mapping[str, Mapping[str, Any]]) -> Iterator[Line]:
    for module, package in _MODULES[extra].items():
        yield _package(package, found.get(module), _AGAIN.format(extra))
    if extra == "client" or "error" in found.get("tensorflow", {}):
        return
    keras, switch = found.get("keras", {}), os.environ.get("TF_USE_LEGACY_KERAS", "")
    version = str(keras.get("found") or keras.get("error", "unknown"))
    words = f"{version}, TF_USE_LEGACY_KERAS={switch}"
    if version.startswith("2."):
        yield Line("Keras of TensorFlow", words)
    else:
        advice = "Keras 2 is needed: unset TF_USE_LEGACY_KERAS, and have tf-keras installed."
        yield Line("Keras of TensorFlow", words, "fault", advice)
    yield _gpus(found.get("gpus", {}))


def _package(package: str, outcome: Mapping[str, Any] | None, again: str) -> Line:
    version = _version(package)
    if not version:
        return Line(package, "not installed", "fault", again)
    if outcome is None:
        return Line(package, f"{version}; not tried, after the fault above", "warning")
    if "error" in outcome:
        if "SIGILL" in outcome["error"]:
            again = "Its packages need a CPU with AVX: use another machine, or build them anew."
        return Line(package, f"{version}; {outcome['error']}", "fault", again)
    return Line(package, f"{version}, imported in {outcome['seconds']:.1f} s")


def _gpus(outcome: Mapping[str, Any]) -> Line:
    if "error" in outcome:
        return Line("GPUs", f"cannot be listed: {outcome['error']}", "warning")
    if names := outcome.get("found"):
        return Line("GPUs", ", ".join(names))
    if Path("/dev/nvidia0").exists():
        return Line(
            "GPUs", "TensorFlow sees none, and there is one", "warning",
            "Its CUDA packages are missing: pip install 'tensorflow[and-cuda]==2.16.2'.",
        )  # fmt: skip
    return Line("GPUs", "none; TensorFlow computes on CPUs")


def compare_lock(lock: Path, extra: Extra) -> Iterator[Line]:
    """What is installed beside what requirements.lock pins."""
    what = "requirements.lock"
    if not lock.exists():
        yield Line(what, "not here: only a checkout has it; nothing to compare with")
        return
    if extra != "pipeline":
        yield Line(what, "not compared: it is of the extra `pipeline`")
        return
    text = lock.read_text(encoding="utf-8")
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE)
    here = {name: _version(name) for name, _ in pins}
    missing = [name for name in here if not here[name]]
    other = [f"{name} {here[name]} for {pin}" for name, pin in pins if here[name] not in ("", pin)]
    if not missing and not other:
        yield Line(what, f"all {len(pins)} packages are as locked")
        return
    words = [f"missing: {_some(missing)}"] if missing else []
    words += [f"other versions: {_some(other)}"] if other else []
    yield Line(what, "; ".join(words), "fault" if missing else "warning", _AGAIN.format(extra))


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _ports() -> Iterator[Line]:
    for port, speaks in PORTS.items():
        what = f"port {port} ({speaks})"
        if machine.port_is_free(port):
            yield Line(what, "free")
        else:
            flag = "--port" if speaks == "gRPC" else "--rest-port"
            yield Line(what, "taken by another program", "warning",
                       f"Give `espalier serve` another one with {flag}.")  # fmt: skip


def _configuration(
    file: Path, overrides: Iterable[str], extra: Extra, jobs: "list[Config]"
) -> Iterator[Line]:
    """Looks at its data, and puts it into `jobs` for its folders to be looked at."""
    what = "configuration"
    if extra != "pipeline":
        yield Line(what, str(file), "warning", "Only the extra `pipeline` can read it.")
        return
    from .config import Config

    try:
        job = Config.load(file, overrides)
        jobs.append(job)
        yield Line(what, f"{file}; its data: {_data(job)}")
    except EspalierError as error:
        yield Line(what, " ".join(str(error).split()), "fault")


def _data(job: "Config") -> str:
    """How much there is of it; raises ConfigError or DataError."""
    from .sources import find_sources

    if job.data.kind == "image":
        for path in job.data.sources.values():
            if not Path(path).exists():
                raise DataError(f"data.images: {path}: there is no such folder or file.")
        return ", ".join(job.data.sources.values())
    found = find_sources(job.data.sources, job.data.format).values()
    files = [file for each in found for file in each]
    return f"{counted(len(files), 'file')}, {_size(sum(one.stat().st_size for one in files))}"


def _folders(jobs: "list[Config]") -> Iterator[Line]:
    from ..trainer.checkpoints import cache_folder

    yield _folder("runs", str(jobs[0].home) if jobs else "runs")
    yield _folder("models", jobs[0].push.to if jobs else "models")
    cache = cache_folder()
    kept = sum(one.stat().st_size for one in cache.rglob("*") if one.is_file())
    yield _folder("checkpoint cache", str(cache), f"holds {_size(kept)}, ")
    yield _folder("temporary files", tempfile.gettempdir())


def _folder(what: str, path: str, holds: str = "") -> Line:
    if "://" in path:
        return Line(what, f"{path}: remote, not looked at")
    try:
        check_writable(Path(path), _NEEDED_DISK)
    except EspalierError as error:
        return Line(what, " ".join(str(error).split()), "fault")
    there = next(one for one in (Path(path), *Path(path).absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    small = free < _LEAST_DISK
    advice = "A run with a large model may need more: make room." if small else ""
    found = f"{path}: {holds}can be written, {_size(free)} free"
    return Line(what, found, "warning" if small else "ok", advice)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _tidy(text: str) -> str:
    """Without what is nobody else's business."""
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    with contextlib.suppress(KeyError, OSError):  # a container's user without a name
        text = re.sub(rf"(?<=/){re.escape(getpass.getuser())}(?![\w.-])", "USER", text)
    return masked(text)
