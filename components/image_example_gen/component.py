"""The ImageExampleGen component: its arguments, checked at construction."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path

from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2

from ...errors import ConfigError
from ..by_content import FileBasedExampleGen, pack
from ..names import SPLITS, plain
from ..row_split.rule import Rule
from . import executor
from .sample import FEATURES


class ImageExampleGen(FileBasedExampleGen):
    """Pictures to TFX's Examples: `image` (the file's bytes as they are), `path`, the labels, and
    the further columns of a CSV, all of them bytes.

    One source is split by a hash of each picture's content, if the rule says no more; where eval
    alone is missing, a tenth of train is it. The pictures that were left out are listed in
    `skipped.jsonl`, beside the splits' folders, and counted in the Examples' custom property
    `skipped`.

    Args:
        sources: a path per split (train, eval, test), or one under `all`; see `list_pictures`.
        label: the label's column in a CSV, and in the Examples.
        multi_label: whether a picture may have any number of labels.
        on_bad_image: `fail`, or `skip` to leave out what TensorFlow cannot read.
        fingerprint: a hash of the content, for TFX's cache.
        rule: which pictures are taken, and how one source is split; all, and 8:1:1, if None.

    Raises:
        ConfigError: an argument cannot be used.

    Example: `ImageExampleGen({"all": "pictures"}, label="label", multi_label=False,
    on_bad_image="fail", fingerprint="")`.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        label: str,
        multi_label: bool,
        on_bad_image: str,
        fingerprint: str,
        rule: Rule | None = None,
    ) -> None:
        """Checks the arguments and packs them for the executor."""
        _check(sources, label, on_bad_image)
        base, patterns = input_patterns(sources)
        inputs = [
            example_gen_pb2.Input.Split(name=name, pattern=pattern)
            for name, pattern in patterns.items()
        ]
        super().__init__(
            input_base=base,
            input_config=example_gen_pb2.Input(splits=inputs),
            output_config=example_gen_pb2.Output(),  # the executor splits; no default of 2:1
            custom_config=pack(
                {
                    "sources": dict(sources),
                    "label": label,
                    "multi_label": multi_label,
                    "on_bad_image": on_bad_image,
                    "fingerprint": fingerprint,
                    "rule": (rule or Rule()).to_dict(),
                }
            ),
        )


def _check(sources: Mapping[str, str], label: str, on_bad_image: str) -> None:
    names = set(sources)
    if names != {"all"} and not (names <= set(SPLITS) and "train" in names and len(names) > 1):
        raise ConfigError(
            f"ImageExampleGen: sources must have a path under `all`, or under train and eval or "
            f"test. Received: {dict(sources)!r}"
        )
    if not isinstance(label, str) or not label or label in FEATURES:
        raise ConfigError(
            f"ImageExampleGen: label must be a column's name, and not {' or '.join(FEATURES)}. "
            f"Received: {label!r}"
        )
    if on_bad_image not in ("fail", "skip"):
        raise ConfigError(
            f"ImageExampleGen: on_bad_image must be fail or skip. Received: {on_bad_image!r}"
        )


def input_patterns(sources: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """(base, pattern by split) that name the sources to TFX, which wants to find something there;
    what it makes of it, sizes and times, says nothing of a folder: `fingerprint` does.

    Raises:
        ConfigError: TFX cannot be told such a path.
    """
    places = {split: plain(Path(path).expanduser()) for split, path in sources.items()}
    if any(place.is_absolute() or not place.name for place in places.values()):
        places = {split: place.absolute() for split, place in places.items()}
    base = os.path.commonpath([place.parent for place in places.values()])
    patterns = {
        split: glob.escape(os.path.relpath(place, base or ".")) for split, place in places.items()
    }
    return glob.escape(base) or ".", patterns
