"""The ImageExampleGen's executor: unpacks settings and artifacts; the work is in `ingest`."""

from typing import Any

import tensorflow as tf
from tfx.components.example_gen import write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact

from ...errors import DataError
from ..by_content import unpack
from ..faults import Faults
from ..row_split.rule import Rule
from . import idx
from .ingest import Bad, ingest, read_skipped
from .listing import Listing, list_pictures, output_splits

SKIPPED = "skipped"  # custom property of the Examples: how many pictures were left out
_SHOWN = 10


class Executor(base_beam_executor.BaseBeamExecutor):
    """Lists the pictures, judges each, and writes the good ones split by split.

    Not on TFX's BaseExampleGenExecutor, of which nothing would be left: see `ingest`.
    """

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the Examples; raises DataError, complete in itself, if the data is refused."""
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = unpack(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        sources = settings["sources"]
        rule = Rule(**settings["rule"])
        splits = output_splits(sources, rule)
        artifacts = output_dict[standard_component_specs.EXAMPLES_KEY]
        examples = artifact_utils.get_single_instance(artifacts)
        examples.split_names = artifact_utils.encode_split_names(splits)
        folders = {split: artifact_utils.get_split_uri(artifacts, split) for split in splits}
        try:
            listing = _list(settings)
            with self._make_beam_pipeline() as pipeline:
                ingest(pipeline, listing, settings["label"], examples.uri, folders, rule)
        finally:
            idx.forget()
        bad = read_skipped(examples.uri)
        if bad and settings["on_bad_image"] == "fail":
            raise DataError(_refusal(bad))
        for split, folder in folders.items():
            if not tf.io.gfile.exists(folder) or not tf.io.gfile.listdir(folder):
                raise DataError(f"{', '.join(sources.values())}: no picture in {split}. Give more.")
        examples.set_int_custom_property(SKIPPED, len(bad))
        examples_utils.set_payload_format(
            examples, exec_properties[standard_component_specs.OUTPUT_DATA_FORMAT_KEY]
        )
        file_format = exec_properties[standard_component_specs.OUTPUT_FILE_FORMAT_KEY]
        examples_utils.set_file_format(examples, write_split.to_file_format_str(file_format))


def _list(settings: dict[str, Any]) -> Listing:
    faults = Faults()
    listing = list_pictures(
        settings["sources"],
        label=settings["label"],
        multi_label=settings["multi_label"],
        skip_missing=settings["on_bad_image"] == "skip",
        faults=faults,
        warnings=[],  # said by the pre-flight check
    )
    faults.raise_if_any()
    return listing


def _refusal(bad: list[Bad]) -> str:
    lines = [f"{path}: {reason}." for path, reason in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"... and {len(bad) - _SHOWN:,} more.")
    lines.append("Mend them or take them out, or set data.on_bad_image: skip.")
    return "\n".join(lines)
