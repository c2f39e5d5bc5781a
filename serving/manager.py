"""Which versions of which models are loaded: polls base paths, loads, swaps, unloads, retries.

As TensorFlow Serving's manager with its AvailabilityPreservingPolicy: a new version is loaded and
warmed before the old one goes, and the old one goes when its last request is answered. Two things
are done better: a version that cannot be loaded does not hide an older one that can, and one whose
files are still being copied is waited for.
"""

import ctypes
import gc
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from .batching import Batcher
from .predictor import is_version
from .servable import Servable, is_whole
from .status import Status, invalid

log = logging.getLogger("espalier.serving")
_PATIENCE = 5.0  # seconds to wait at the end for a version that is being loaded
START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # ModelVersionStatus.State


@dataclass(frozen=True)
class ModelConfig:
    """One model to serve: of model_server_config.proto, what matters here.

    `latest` newest versions are served, or all (0), or the `specific` ones.
    """

    name: str
    base_path: Path
    latest: int = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    log_prefix: str = ""  # where its requests are logged, and
    log_rate: float = 0.0  # how many of them


@dataclass(frozen=True)
class Policy:
    """When to look, and what to do about what fails; the names are TensorFlow Serving's flags."""

    poll_seconds: float = 1.0
    max_num_load_retries: int = 5
    load_retry_seconds: float = 60.0
    labels_for_unavailable: bool = False


class Version:
    """A version of a model, in one of the states, and how many requests hold it."""

    def __init__(self, model: str, number: int, path: Path) -> None:
        self.model, self.number, self.path = model, number, path
        self.state = START
        self.error: Status | None = None
        self.servable: Servable | None = None
        self.batcher: Batcher | None = None
        self.failures, self.failed_at = 0, 0.0
        self.looks: Any = None  # of its files, when it last failed
        self._users, self._lock, self._free = 0, threading.Lock(), threading.Event()
        self._leaving = False

    @property
    def loaded(self) -> Servable:
        """The servable of a version that is held."""
        assert self.servable is not None
        return self.servable

    def enter(self) -> bool:
        """Hold the version for a request; False if it is on its way out."""
        with self._lock:
            if self._leaving or self.state != AVAILABLE:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """Let go of it."""
        with self._lock:
            self._users -= 1
            if self._leaving and not self._users:
                self._free.set()

    def retire(self) -> bool:
        """Take no new request; True if none is under way."""
        with self._lock:
            self._leaving, self.state = True, UNLOADING
            if not self._users:
                self._free.set()
        return self._free.is_set()

    def unload(self) -> None:
        """Wait for the requests under way, and let go of the servable."""
        self._free.wait()
        servable, self.servable = self.servable, None
        if servable is not None:
            servable.close()
        self.state = END


class _Model:
    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.versions: dict[int, Version] = {}
        self.reported: dict[Any, str] = {}  # about what, the last thing that was said


class Manager:
    """All models and their versions.

    Args:
        load: sets a version's servable, warm, and its batcher; it may raise anything.
        policy: see there.
        changed: called after each round that changed what is served.
    """

    def __init__(
        self,
        load: Callable[[Version], None],
        policy: Policy,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._load, self._policy, self._changed = load, policy, changed
        self._models: dict[str, _Model] = {}
        self._round = threading.Lock()  # one round at a time: a poll, or a new configuration
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="poll", daemon=True)

    def start(self, configs: Sequence[ModelConfig]) -> None:
        """Load what is there, then go on looking in a thread of its own."""
        self.configure(configs)
        if self._policy.poll_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Look no more, and unload everything."""
        self._stopping.set()
        if not self._round.acquire(timeout=_PATIENCE):
            return  # a version is being loaded, which cannot be stopped; the process ends anyway
        try:
            for model in self._models.values():
                for version in model.versions.values():
                    # One that never answers holds its version; the process ends anyway.
                    if version.state == AVAILABLE and version.retire():
                        version.unload()
        finally:
            self._round.release()

    def configure(self, configs: Sequence[ModelConfig]) -> None:
        """Serve these models from now on, and return when that is so.

        Raises:
            Status: two have one name, or a label names a version that is not served; then
                nothing has changed.
        """
        for name, count in Counter(config.name for config in configs).items():
            if count > 1:
                raise invalid(f"Illegal to list model {name} multiple times in config list")
        with self._round:
            self._check_labels(configs)
            models, before = {}, self._models
            for config in configs:
                model = before.get(config.name)
                if model is None or model.config.base_path != config.base_path:
                    model = _Model(config)  # the same number is another model elsewhere
                    self._look_at(model, again=True)  # before the old one goes
                model.config = config
                models[config.name] = model
            self._models = models
            self._look(again=True)
            gone = [model for name, model in before.items() if models.get(name) is not model]
            left = [version for model in gone for version in model.versions.values()]
            self._retire([version for version in left if version.state == AVAILABLE])
        self._changed()

    def _check_labels(self, configs: Sequence[ModelConfig]) -> None:
        """New labels may be given to versions that are served; those of new models come later."""
        for config in configs:
            model = self._models.get(config.name)
            if model is None or self._policy.labels_for_unavailable:
                continue
            for label, number in config.labels.items():
                version = model.versions.get(number)
                served = version is not None and version.state == AVAILABLE
                if not served and model.config.labels.get(label) != number:
                    raise Status(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {config.name}, "
                        "which is not currently available for inference",
                    )

    @contextmanager
    def hold(self, name: str, number: int | None, label: str) -> Iterator[Version]:
        """The version that answers a request, kept until the block ends.

        Args:
            name: the model's.
            number: of the version, or None.
            label: of the version, or "" ; without both, the newest one answers.

        Raises:
            Status: there is none such.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        while True:
            version = self._find(name, number, label)
            if version.enter():
                break  # else it was retired since it was found: look again
        try:
            yield version
        finally:
            version.leave()

    def _find(self, name: str, number: int | None, label: str) -> Version:
        versions, number = self._asked(name, number, label)
        served = [one for one in versions if one.state == AVAILABLE]
        if not served:
            wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise Status(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return max(served, key=lambda one: one.number)

    def status(self, name: str, number: int | None, label: str) -> list[Version]:
        """The versions of a model in whatever state, newest first; or the one asked for.

        Raises:
            Status: the model or the version is unknown.
        """
        versions, number = self._asked(name, number, label)
        if not versions:
            which = "any versions" if number is None else f"version {number}"
            raise Status(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {name}")
        return sorted(versions, key=lambda one: -one.number)

    def _asked(self, name: str, number: int | None, label: str) -> tuple[list[Version], int | None]:
        """The versions that a request may mean, in whatever state, and the number it asks for."""
        model = self._models.get(name)
        if label:
            if model is None or label not in model.config.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            number = model.config.labels[label]
        # A copy, made at once: rounds change the map.
        versions = list(model.versions.values()) if model else []
        return [one for one in versions if number in (None, one.number)], number

    def knows(self, name: str) -> bool:
        """Whether a model of that name is configured."""
        return name in self._models

    def configs(self) -> list[ModelConfig]:
        """What is served now."""
        return [model.config for model in self._models.values()]

    def ready(self) -> bool:
        """Whether each model has a version that answers."""
        return bool(self._models) and all(
            any(version.state == AVAILABLE for version in list(model.versions.values()))
            for model in list(self._models.values())
        )

    def _poll(self) -> None:
        while not self._stopping.wait(self._policy.poll_seconds):
            with self._round:
                if self._stopping.is_set():
                    return
                try:
                    changed = self._look()
                except Exception:  # whatever lies in the folder, the next round comes
                    log.exception("looking for versions failed")
                    continue
            if changed:
                self._changed()

    def _look(self, again: bool = False) -> bool:
        """One round: load what should be served and is not, unload what should not be."""
        changed = False
        for model in self._models.values():
            try:
                changed |= self._look_at(model, again)
            except OSError as error:  # a folder that cannot be read must not stop the others
                self._report(model, "read", f"{model.config.name}: {error.strerror}")
        return changed

    def _look_at(self, model: _Model, again: bool) -> bool:
        found = self._found(model)
        if found is None:
            return False
        changed = False
        for number in self._wanted(model, found):
            changed |= self._try(model, number, found[number], again)
        wanted = set(self._served(model, found))
        changed |= self._retire(
            [
                version
                for number, version in model.versions.items()
                if version.state == AVAILABLE and number not in wanted
            ]
        )
        for number in [n for n in model.versions if n not in found]:
            if model.versions[number].state in (START, END):
                del model.versions[number]
        return changed

    def _found(self, model: _Model) -> dict[int, Path] | None:
        """The numbered folders; None where the base path is gone, which changes nothing."""
        try:
            names = os.listdir(model.config.base_path)
        except OSError as error:
            self._report(model, "base", f"{model.config.name}: no base path: {error.strerror}")
            return None
        named = sorted(filter(is_version, names), key=len, reverse=True)  # 1 goes before 001
        found = {int(name): model.config.base_path / name for name in named}
        if not found:
            self._report(
                model,
                "base",
                f"{model.config.name}: no versions yet. Is the folder of each named as a number?",
            )
        else:
            model.reported.pop("base", None)
        return found

    def _wanted(self, model: _Model, found: Mapping[int, Path]) -> Iterator[int]:
        """The versions to load, newest first.

        Of the newest, each is to be tried before the next one is asked for: an older one stands in
        for one that turns out broken or half-copied.
        """
        config = model.config
        if config.specific:
            for number in config.specific:
                if number in found:
                    yield number
                else:
                    self._report(model, number, f"{config.name}: version {number} was not found")
            return
        good = 0
        for number in sorted(found, reverse=True):
            yield number
            version = model.versions[number]
            good += version.error is None and version.state != START
            if good == config.latest:
                return

    def _served(self, model: _Model, found: Mapping[int, Path]) -> list[int]:
        """The versions to keep: those of the policy that are available."""
        config = model.config
        available = [n for n, v in model.versions.items() if v.state == AVAILABLE and n in found]
        if config.specific:
            return [number for number in available if number in config.specific]
        available.sort(reverse=True)
        return available[: config.latest] if config.latest else available

    def _try(self, model: _Model, number: int, path: Path, again: bool) -> bool:
        """Load a version unless it is loaded, half-copied, or failed and not to be tried yet."""
        version = model.versions.get(number)
        if version is None:
            version = model.versions[number] = Version(model.config.name, number, path)
        if version.state in (AVAILABLE, UNLOADING):  # or back, before it has gone
            return False
        if version.state == END and version.error is None:  # it was unloaded, and is back
            version = model.versions[number] = Version(model.config.name, number, path)
        if not is_whole(path):
            self._report(model, number, f"{model.config.name}: version {number} is not whole yet")
            return False
        model.reported.pop(number, None)
        if version.failures and not again and not self._due(version):
            return False
        version.state, version.error = LOADING, None
        begin = time.monotonic()
        try:
            self._load(version)
        except Exception as error:  # any bytes may lie there
            self._failed(version, error)
            return True
        version.state, version.failures = AVAILABLE, 0
        seconds = time.monotonic() - begin
        log.info("%s: version %d is served (loaded in %.1f s)", version.model, number, seconds)
        return True

    def _due(self, version: Version) -> bool:
        """Whether to try a failed version again: its files have changed, or its time has come."""
        if version.looks != _looks(version.path):
            version.failures = 0
            return True
        if version.failures > self._policy.max_num_load_retries:
            return False
        return time.monotonic() - version.failed_at >= self._policy.load_retry_seconds

    def _failed(self, version: Version, error: Exception) -> None:
        version.failures += 1
        version.failed_at, version.looks = time.monotonic(), _looks(version.path)
        words = " ".join(str(error).split()) or type(error).__name__
        # Its place on this machine's disk is nobody's business.
        words = words.replace(str(version.path), f"{version.model}/{version.number}")
        words = words.replace(str(version.path.parent), version.model)
        code = getattr(error, "code", None)
        code = code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
        version.error = Status(code, words[:1000])
        version.state = END
        if version.servable is not None:  # loaded, but its warm-up failed
            version.servable.close()
            version.servable = None
        gc.collect()
        log.error("%s: version %d cannot be loaded: %s", version.model, version.number, words)

    def _retire(self, versions: Sequence[Version]) -> bool:
        busy = [version for version in versions if not version.retire()]
        if free := [version for version in versions if version not in busy]:
            self._unload(free)
        for version in busy:  # a slow request must not hold up other models
            threading.Thread(target=self._unload, args=([version],), daemon=True).start()
        return bool(versions)

    def _unload(self, versions: Sequence[Version]) -> None:
        for version in versions:
            version.unload()
            log.info("%s: version %d is unloaded", version.model, version.number)
        _trim()

    def _report(self, model: _Model, about: Any, words: str) -> None:
        """Say a thing once, until something else happens."""
        if model.reported.get(about) != words:
            model.reported[about] = words
            log.warning("%s", words)


def _looks(version: Path) -> tuple[Any, ...]:
    """What shows that a version's files have changed: names, sizes and times."""
    found = []
    for folder, _, names in os.walk(version):
        for name in names:
            try:
                stat = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            found.append((folder, name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _trim() -> None:
    """Give freed memory back to the system; glibc keeps it otherwise."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another libc
