"""A package's __init__ is left out until something is asked that only it gives."""

import subprocess
import sys

_TRIED = """
import sys
import espalier.pipeline.dag
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
assert not {"kubernetes", "keras_tuner", "keras"} & set(sys.modules), "imported for nothing"
import tfx.components
from tfx.components import Trainer, Tuner
from tfx.components.trainer.component import Trainer as same
assert Trainer is same and tfx.components.Tuner is Tuner
try:
    tfx.components.Nothing
except AttributeError as error:
    assert "tfx.components" in str(error) and "Nothing" in str(error)
else:
    raise AssertionError("there is no such component")
"""


def test_tfx_brings_no_component_that_nobody_uses() -> None:
    done = subprocess.run([sys.executable, "-c", _TRIED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
