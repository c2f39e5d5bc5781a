"""Whether packages can be imported: tried in a process of its own, which may hang or be killed.

    python -m espalier.pipeline.imports MODULE...

writes a line of JSON before and after each module, and one about TensorFlow's Keras and GPUs.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

_SIGNALS = {
    "SIGILL": "an instruction that this CPU has not",
    "SIGKILL": "killed from outside, as where memory runs out",
}


def try_out(modules: Sequence[str], seconds: float) -> dict[str, dict[str, Any]]:
    """Import modules, one after the other.

    Args:
        modules: their names. Once `tensorflow` fails, the rest, which need it, is left out.
        seconds: for all of them.

    Returns:
        By module: `seconds` that it took, or `error`. If tensorflow is among them, as `found` or
        `error` under `keras` the version of tf.keras, and under `gpus` their names.
    """
    end, left = time.monotonic() + seconds, list(modules)
    found: dict[str, dict[str, Any]] = {}
    while left:
        lines, how = _one_process(left, end - time.monotonic())
        found.update({line.pop("module"): line for line in lines if "module" in line})
        begun = [line["begun"] for line in lines if "begun" in line] or left[:1]
        broken = next((one for one in begun if one not in found), None)
        if broken is None:
            break
        found[broken] = {"error": how}
        if broken in ("tensorflow", *_AFTER) or time.monotonic() >= end:
            break
        left = left[left.index(broken) + 1 :]
    return found


def _one_process(modules: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What a process wrote before it ended, and how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *modules],
        cwd="/",  # a tensorflow.py in the current folder is none of ours
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=seconds)
        how = _ended(process.returncode)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        how = f"its import hangs: not done after {seconds:.0f} s"
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], how


def _ended(code: int) -> str:
    if code >= 0:
        return f"its import ends the process with the exit code {code}"
    name = signal.Signals(-code).name
    why = f" ({_SIGNALS[name]})" if name in _SIGNALS else ""
    return f"its import ends the process by {name}{why}"


def _import_all(modules: Sequence[str], out: IO[str]) -> None:
    def tell(**facts: Any) -> None:
        out.write(json.dumps(facts) + "\n")
        out.flush()

    for module in modules:
        tell(begun=module)
        begun = time.monotonic()
        try:
            importlib.import_module(module)
        except BaseException as error:  # a package may even exit
            tell(module=module, error=f"its import raises {_words(error)}")
            if module == "tensorflow":
                return
        else:
            tell(module=module, seconds=time.monotonic() - begun)
    if tensorflow := sys.modules.get("tensorflow"):
        for name, look in _AFTER.items():
            tell(begun=name)
            try:
                tell(module=name, found=look(tensorflow))
            except Exception as error:
                tell(module=name, error=_words(error))


def _keras(tensorflow: Any) -> str:
    # Keras 2 has no version under tf.keras; its classes say which package they are of.
    package = tensorflow.keras.Model.__module__.partition(".")[0]
    return str(sys.modules[package].__version__)


def _gpus(tensorflow: Any) -> list[str]:
    details = tensorflow.config.experimental.get_device_details
    gpus = tensorflow.config.list_physical_devices("GPU")
    return [str(details(gpu).get("device_name", gpu.name)) for gpu in gpus]


_AFTER = {"keras": _keras, "gpus": _gpus}  # what is asked of TensorFlow


def _words(error: BaseException) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300]}"


if __name__ == "__main__":
    # What libraries print is not for the caller.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _import_all(sys.argv[1:], reports)
