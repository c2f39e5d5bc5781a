"""What this machine can compute in, and on how many devices."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf


# Instructions that serving graphs need, by the name that a version's description has for them:
# what Linux calls those that will do, and the least ONEDNN_MAX_CPU_ISA with which oneDNN uses them.
BFLOAT16, INT8 = "bfloat16 products", "int8 products"
_INSTRUCTIONS = {
    BFLOAT16: (("avx512_bf16", "amx_bf16"), "AVX512_CORE_BF16"),
    INT8: (("avx512_vnni", "amx_int8"), "AVX512_CORE_VNNI"),
}
# In oneDNN's order (its developer guide, "CPU Dispatcher Control"), up to the first that does.
_ISAS = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
    "AVX512_CORE_BF16",
)  # fmt: skip


def strategy() -> "tf.distribute.Strategy":
    """All GPUs of this machine where there are several, else the one device there is."""
    import tensorflow as tf

    many = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if many else tf.distribute.get_strategy()


@contextlib.contextmanager
def precision(wanted: str) -> Iterator[None]:
    """Keras's global policy for models built inside: float32 or mixed_bfloat16.

    Args:
        wanted: auto, float32 or bfloat16.
    """
    import tf_keras as keras

    bfloat16 = wanted == "bfloat16" or (wanted == "auto" and has_bfloat16())
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if bfloat16 else "float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def has_bfloat16() -> bool:
    """Whether the GPUs (compute capability 8.0 on), or else the CPU, multiply in bfloat16."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
        return all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
    return lacking([BFLOAT16]) == ""


def lacking(needs: Sequence[str]) -> str:
    """What this machine lacks of what a serving graph needs, in words; empty if nothing.

    Args:
        needs: BFLOAT16, INT8.
    """
    if not needs:
        return ""
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false"):
        return "oneDNN, which TF_ENABLE_ONEDNN_OPTS turns off"
    flags = _cpu_flags()
    highest = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    for need in needs:
        names, least = _INSTRUCTIONS[need]
        if not flags & set(names):
            return f"{need} ({' or '.join(names)})"
        if highest in _ISAS and _ISAS.index(highest) < _ISAS.index(least):
            return f"{need}, which ONEDNN_MAX_CPU_ISA={highest} turns off"
    return ""


def choose(cpu: str, possible: Sequence[str]) -> str:
    """The arithmetic of the serving graph: any, bf16 or int8.

    Args:
        cpu: of the YAML's `export:`; auto is bf16 on a machine that can, else any.
        possible: those that the family has.

    Raises:
        ConfigError: the family has none such, or this machine cannot compute it, so that it could
            not be proven.
    """
    if cpu not in (*possible, "auto"):
        raise ConfigError(
            f"export.cpu is {cpu}, and this family is exported for {', '.join(possible)}, or auto. "
            f"Take one of these."
        )
    if cpu == "auto":
        return "bf16" if "bf16" in possible and not lacking([BFLOAT16]) else "any"
    if lacks := lacking(needs(cpu)):
        raise ConfigError(
            f"export.cpu is {cpu}, and this machine lacks {lacks}. Run on a machine like the one "
            f"that will serve, or take `any`."
        )
    return cpu


def needs(cpu: str) -> list[str]:
    """The instructions that a serving graph of this arithmetic needs, where it is made here.

    In int8's graph, all but the products is in bfloat16 where this machine has it.
    """
    if cpu == "int8":
        can = not lacking([BFLOAT16])
        return [INT8, *([BFLOAT16] if can else [])]
    return [BFLOAT16] if cpu == "bf16" else []


def _cpu_flags() -> set[str]:
    """The instructions of this machine's CPU, as Linux names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
