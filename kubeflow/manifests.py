"""Fills the manifests in `manifests/` from a configuration: what serves its model on a cluster.

One folder for each way, each with a kustomization of its own: TensorFlow Serving as it is
(`serving`), KServe (`kserve`), and the whole line as a TFJob (`training`).
"""

import datetime
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import cpu
from ..errors import ConfigError
from ..pipeline.config import Config, Resources
from ..serving.predictor import description, find_newest

# tensorflow_model_server of the TensorFlow that exports (pyproject.toml: tensorflow-serving-api).
SERVING_VERSION = "2.16.1"
TEMPLATES = Path(__file__).parent / "manifests"
_FILES = {
    "serving": ("kustomization", "deployment", "services", "settings", "scaling"),
    "kserve": ("kustomization", "inference-service"),
    "training": ("kustomization", "tfjob", "config"),
}
_DATA = "/data"  # where training finds its volume, if models are pushed elsewhere
_MOST = 4  # times `replicas`, when the CPUs are busy
# node-feature-discovery's names for what a serving graph needs.
_LABEL = "feature.node.kubernetes.io/cpu-cpuid."
_LABELS = {cpu.BFLOAT16: f"{_LABEL}AVX512BF16", cpu.INT8: f"{_LABEL}AVX512VNNI"}
# What a version that cannot be seen from here needs, by export.cpu: what it may need at most.
_NEEDS = {
    "any": [],
    "auto": [cpu.BFLOAT16],
    "bf16": [cpu.BFLOAT16],
    "int8": [cpu.INT8, cpu.BFLOAT16],
}
_LONGEST = 50  # of 63 characters, for what a cluster adds to a name
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[\w][\w.:/@-]*", re.ASCII)


@dataclass(frozen=True)
class Place:
    """Where a cluster finds the model.

    Attributes:
        base: the model's base path, as TensorFlow Serving reads it.
        uri: the same for KServe.
        claim: the PersistentVolumeClaim that holds it; empty for a bucket.
        mount: where that is mounted.
    """

    base: str
    uri: str
    claim: str = ""
    mount: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is a bucket."""
        return not self.claim

    @property
    def readable(self) -> bool:
        """Whether TensorFlow itself reads it: not s3:// since 2.7 (tensorflow/serving#1963)."""
        return not self.base.startswith("s3://")


@dataclass(frozen=True)
class Needs:
    """What the nodes that serve must have.

    Attributes:
        labels: of the nodes.
        certain: whether the model cannot be served without.
        reason: a sentence.
    """

    labels: list[str]
    certain: bool
    reason: str


def render(
    config: Config,
    *,
    image: str = "",
    canary: int | None = None,
    replicas: int = 2,
    workers: int | None = None,
    namespace: str = "",
    now: datetime.datetime | None = None,
) -> dict[str, str]:
    """Every file's text, by its path.

    Args:
        config: the job. Its `push.to` must be seen from the cluster.
        image: what trains; else the configuration's `cluster.image`.
        canary: the share of calls in per cent that KServe sends to this revision; None for all.
        replicas: how many pods serve at least.
        workers: how many train; None is 2 with `train.distribute: multi_worker`, else 1.
        namespace: where it goes; else where kubectl points.
        now: for KServe, which tells revisions apart by it.

    Raises:
        ConfigError: a cluster cannot use this.
    """
    image = image or config.cluster.image
    _check(config.name, image, canary, replicas, namespace)
    workers = _workers(config, workers)
    found, needed = place(config), needs(config)
    if canary is not None and found.claim:
        raise ConfigError(
            f"--canary needs a bucket in push.to, which is {config.push.to}: what is pushed to a "
            f"volume is seen by the pods of every revision at once."
        )
    written = (now or datetime.datetime.now(datetime.timezone.utc)).replace(microsecond=0)
    values = {
        "name": config.name,
        "config": config.to_yaml(),
        "image": image,
        "namespace": namespace,
        "serving_version": SERVING_VERSION,
        "place": found,
        "replicas": replicas,
        "most_replicas": replicas * _MOST,
        "canary": canary,
        "written": written.isoformat(),
        "node_labels": needed.labels,
        "needs_certain": needed.certain,
        "needs_reason": needed.reason,
        "workers": workers,
        "resources": _resources(config),
        "data_claim": found.claim or f"{config.name}-data",
        "data_mount": found.mount or _DATA,
    }
    ways = list(_FILES) if found.readable else ["kserve"]
    files = {f"{way}/{name}.yaml": f"{way}/{name}.yaml" for way in ways for name in _FILES[way]}
    if found.claim:
        files["serving/volume.yaml"] = "volume.yaml"
    if "training" in ways:
        files["training/volume.yaml"] = "volume.yaml"
    return {file: _fill(template, values) for file, template in files.items()}


def place(config: Config) -> Place:
    """Where the cluster's pods find what is pushed.

    Raises:
        ConfigError: nowhere, since `push.to` is a path of this machine's.
    """
    to = config.push.to.rstrip("/")
    if re.fullmatch(r"(gs|s3)://[^/\s]+/\S+", to):
        return Place(base=to, uri=to)
    path = PurePosixPath(to)
    if not re.fullmatch(r"/[\w.@/-]+", to) or ".." in path.parts:
        raise ConfigError(
            f"push.to is {config.push.to}, which a cluster's pods cannot see. Expected a bucket's "
            f"folder (gs://BUCKET/{config.name} or s3://BUCKET/{config.name}), or the absolute "
            f"path of a folder in a volume that they mount (/models/{config.name}), without blanks."
        )
    mount = path.parent
    if mount == PurePosixPath("/"):
        raise ConfigError(
            f"push.to is {config.push.to}, and a volume cannot be mounted at /. Name a folder in "
            f"it: {to}/{config.name}."
        )
    claim = f"{config.name}-models"
    return Place(base=to, uri=f"pvc://{claim}/{path.name}", claim=claim, mount=str(mount))


def needs(config: Config) -> Needs:
    """What nodes need to serve the newest version, or what one made by this job may need."""
    newest = None if "://" in config.push.to else find_newest(Path(config.push.to))
    if newest is not None:
        wanted = [n for n in description(newest).get("graph", {}).get("needs", []) if n in _LABELS]
        reason = f"Version {newest.name} was made for CPUs with {' and '.join(wanted)}."
        return Needs([_LABELS[need] for need in wanted], True, reason)
    exported = config.export.cpu
    labels = [_LABELS[need] for need in _NEEDS[exported]]
    if exported == "auto":
        reason = "With export.cpu auto a version needs this if the machine that made it had it."
        return Needs(labels, False, reason)
    return Needs(labels, True, f"export.cpu is {exported}: other CPUs cannot serve the model.")


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write the files into a new folder, all or none.

    Raises:
        ConfigError: the folder is there already, or cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"{folder}: exists already, and is left as it is. Name another folder with -o, or "
            f"remove this one."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    try:
        for name, text in files.items():
            path = unfinished / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        unfinished.chmod(0o777 & ~_umask())  # mkdtemp lets no one else in
        unfinished.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check(name: str, image: str, canary: int | None, replicas: int, namespace: str) -> None:
    if len(name) > _LONGEST or name.endswith("-"):
        raise ConfigError(
            f"name is {name}, and a cluster's objects are named by it. Expected at most "
            f"{_LONGEST} characters, the last a letter or a digit."
        )
    if not _IMAGE.fullmatch(image):
        raise ConfigError(
            f"--image is {image!r}. Expected a container image as a cluster names it, like "
            f"registry.example.com/espalier:0.1.0."
        )
    if canary is not None and not 0 <= canary <= 100:
        raise ConfigError(
            f"--canary is {canary}. Expected the share of the calls in per cent, from 0 to 100."
        )
    if replicas < 1:
        raise ConfigError(f"--replicas is {replicas}. Expected how many pods serve, 1 or more.")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(
            f"--namespace is {namespace}. Expected at most 63 lower-case letters, digits and "
            f"dashes, no dash at either end."
        )


def _workers(config: Config, wanted: int | None) -> int:
    many = config.train.distribute == "multi_worker"
    count = (2 if many else 1) if wanted is None else wanted
    if count < 1:
        raise ConfigError(f"--workers is {count}. Expected how many pods train, 1 or more.")
    if many and count == 1:
        raise ConfigError(
            "--workers is 1, and train.distribute is multi_worker: Kubeflow's operator sets no "
            "TF_CONFIG for one worker alone. Expected 2 or more; or leave train.distribute out."
        )
    if count > 1 and not many:
        raise ConfigError(
            f"--workers is {count}, and train.distribute is {config.train.distribute}: each pod "
            f"would do the whole work. Set train.distribute: multi_worker."
        )
    return count


def _resources(config: Config) -> dict[str, str]:
    """What the TFJob's pod asks for: as much as the Trainer, which does the most."""
    given = config.cluster.resources
    asked = given.get("Trainer") or given.get("all") or Resources(cpu=2, memory="8Gi")
    amounts: dict[str, str] = {}
    if asked.cpu is not None:
        amounts["cpu"] = f"{asked.cpu:g}"
    if asked.memory is not None:
        amounts["memory"] = asked.memory
    if asked.accelerator is not None:
        amounts[asked.accelerator.type] = str(asked.accelerator.count)
    return amounts


def _fill(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
