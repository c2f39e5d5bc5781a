"""What runs in each container: TFX's entry point, with artifacts where KFP's launcher has them.

The launcher (src/v2/component/launcher_v2.go) downloads inputs to a local path made of their URI,
and uploads outputs from there: minio://b/k is /minio/b/k, s3://b/k is /s3/b/k, gs://b/k is
/gcs/b/k. TFX can write neither minio:// nor s3://, so URIs are turned into those paths on the way
in, and back on the way out.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

STAGED = {"minio://": "/minio/", "s3://": "/s3/", "gs://": "/gcs/"}
EXAMPLE_GEN = "--file_based_example_gen"  # said of a component whose driver has to run first
_INPUT = "--json_serialized_invocation_args"
_VALUES = tuple(f"tfx.{name}" for name in ("String", "Integer", "Float", "Boolean", "JsonValue"))


def local(uri: str) -> str:
    """Where the launcher has an artifact; the URI itself if it does not stage it."""
    for scheme, folder in STAGED.items():
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return uri


def remote(path: str) -> str:
    """The URI of a path that `local` gave."""
    for scheme, folder in STAGED.items():
        if path.startswith(folder):
            return scheme + path.removeprefix(folder)
    return path


def main(arguments: Sequence[str]) -> None:
    """Run a component as the launcher asks for it.

    Args:
        arguments: as compiled: the executor's class, ExecutorInput as JSON, flags of Beam.
    """
    argv = list(arguments)
    example_gen = EXAMPLE_GEN in argv
    if example_gen:
        argv.remove(EXAMPLE_GEN)
    place = argv.index(_INPUT) + 1
    given = json.loads(argv[place])
    _rewrite(given, local)
    argv[place] = json.dumps(given)
    for artifacts in given["outputs"].get("artifacts", {}).values():
        for artifact in artifacts["artifacts"]:
            _make_place(artifact)
    output = given["outputs"]["outputFile"]
    found = _drive(argv, output) if example_gen else {}
    _execute(argv)
    _rewrite_output(output, found)


def _make_place(artifact: dict[str, Any]) -> None:
    """Make an output's folder, as TFX's local drivers do; a value's output is a file."""
    title = artifact["type"].get("instanceSchema", "").partition("\n")[0].removeprefix("title: ")
    if "://" not in artifact["uri"]:
        place = artifact["uri"]
        os.makedirs(os.path.dirname(place) if title in _VALUES else place, exist_ok=True)


def _drive(argv: list[str], output: str) -> dict[str, Any]:
    """Find spans and fingerprints, which the executor reads from the output file; and return them.

    Vertex AI takes ExampleGen's metadata from the driver; the executor writes none of it.
    """
    from tfx.orchestration.kubeflow.v2.file_based_example_gen import driver

    driver.main(driver._parse_flags(["driver", *argv]))
    with open(output, encoding="utf-8") as opened:
        return json.load(opened)["artifacts"]


def _execute(argv: list[str]) -> None:
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as executor

    executor.main(executor._parse_flags(["executor", *argv]))


def _rewrite(given: dict[str, Any], change: Callable[[str], str]) -> None:
    """Change the URIs of all artifacts in an ExecutorInput or ExecutorOutput."""
    for part in (given.get("inputs", {}), given.get("outputs", {}), given):
        for artifacts in part.get("artifacts", {}).values():
            for artifact in artifacts.get("artifacts", []):
                if "uri" in artifact:
                    artifact["uri"] = change(artifact["uri"])


def _rewrite_output(file: str, driven: dict[str, Any]) -> None:
    with open(file, encoding="utf-8") as opened:
        written = json.load(opened)
    for key, artifacts in driven.items():
        for before, after in zip(artifacts["artifacts"], written["artifacts"][key]["artifacts"],
                                 strict=True):  # fmt: skip
            after["metadata"] = {**before.get("metadata", {}), **after.get("metadata", {})}
    _rewrite(written, remote)
    with open(file, "w", encoding="utf-8") as opened:
        json.dump(written, opened)


if __name__ == "__main__":
    main(sys.argv[1:])
