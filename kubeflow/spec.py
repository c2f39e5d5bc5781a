"""A compiled pipeline, looked at before it is uploaded."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..pipeline import yaml_text
from .linting import SCHEMA_VERSION

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")  # the server's own rule
MOST_BYTES = 2_000_000  # Kubernetes takes 1.5 MB
_MOST_TOLD = 10 * MOST_BYTES


@dataclass(frozen=True)
class Spec:
    """A compiled pipeline.

    Attributes:
        name: the pipeline's, in its `pipelineInfo`.
        text: YAML, as it is uploaded.
        digest: SHA-256 of the content, the same for any layout of the YAML.
        root: its `defaultPipelineRoot`, or "".
        tasks: names of the root's tasks, in their order.
    """

    name: str
    text: str
    digest: str
    root: str
    tasks: tuple[str, ...]


def read_spec(text: str, where: str) -> Spec:
    """Look at a compiled pipeline, as far as it takes to say early what the server would refuse.

    Args:
        text: YAML, or JSON; a second document may hold Kubernetes' part.
        where: the file, for messages.

    Raises:
        ConfigError: it is not a PipelineSpec of the schema 2.1.0, or its name cannot be used.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"{where}: larger than {MOST_BYTES:,} bytes; this is no compiled pipeline."
        )
    try:
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}.") from None
    except (RecursionError, ValueError) as error:  # depth without end; numbers and dates
        raise ConfigError(f"{where}: not YAML: {error}.") from None
    if wrong := yaml_text.fault(documents, most=_MOST_TOLD):
        raise ConfigError(f"{where}: {wrong}")
    specs = [one for one in documents if isinstance(one, dict) and "pipelineInfo" in one]
    if len(specs) != 1 or not isinstance(specs[0].get("root"), dict):
        raise ConfigError(f"{where}: {_instead(documents, len(specs))}")
    spec = specs[0]
    if (version := spec.get("schemaVersion")) != SCHEMA_VERSION:
        raise ConfigError(
            f"{where}: schemaVersion is {version}; Kubeflow Pipelines takes {SCHEMA_VERSION} alone."
        )
    name = spec["pipelineInfo"].get("name") if isinstance(spec["pipelineInfo"], dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f'{where}: pipelineInfo.name is "{name}"; up to 128 lower-case letters, digits and '
            "dashes are expected, a letter or digit first."
        )
    canonical = json.dumps(documents, sort_keys=True, default=str)
    dag = spec["root"].get("dag") or {}
    return Spec(
        name,
        text,
        hashlib.sha256(canonical.encode()).hexdigest(),
        spec.get("defaultPipelineRoot") or "",
        tuple(dag.get("tasks") or ()),
    )


def _instead(documents: list[Any], specs: int) -> str:
    """What was found where one PipelineSpec is expected."""
    first = documents[0] if documents and isinstance(documents[0], dict) else {}
    if specs > 1:
        return f"{specs} pipeline specs; one is expected."
    if "pipelineSpec" in first:
        return (
            "a PipelineJob, which is Vertex AI's; a PipelineSpec is expected, in which "
            "pipelineInfo and root stand at the top."
        )
    if "argoproj.io" in str(first.get("apiVersion", "")):
        return "an Argo Workflow, of KFP 1; a PipelineSpec 2.1.0 is expected."
    if "data" in first and "model" in first:
        return "a configuration, not a compiled pipeline; give it without --spec."
    return "no pipeline spec in it; a mapping with pipelineInfo and root is expected."
