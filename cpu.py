"""This machine's CPUs, and whether they have what a serving graph needs. No TensorFlow."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError

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


def count() -> int:
    """The CPUs that this process may use, of those that the machine has."""
    return len(os.sched_getaffinity(0))


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
    for need in map(str, needs):
        if need not in _INSTRUCTIONS:
            return f"{need}, which this Espalier does not know"
        names, least = _INSTRUCTIONS[need]
        if not flags & set(names):
            return f"{need} ({' or '.join(names)})"
        if highest in _ISAS and _ISAS.index(highest) < _ISAS.index(least):
            return f"{need}, which ONEDNN_MAX_CPU_ISA={highest} turns off"
    return ""


def unfit(description: Mapping[str, Any]) -> str:
    """That a version was made for machines with more than this one has; empty if it fits.

    oneDNN would end the process that runs it, so this is asked before a version is loaded.

    Args:
        description: what lies beside the SavedModel; older versions need nothing.
    """
    graph = description.get("graph")
    if not isinstance(graph, dict):  # of a stranger's
        return ""
    lacks = lacking(graph.get("needs", []))
    return (
        f"made for export.cpu {graph.get('cpu')}, and this machine lacks {lacks}" if lacks else ""
    )


def choose(wanted: str, possible: Sequence[str]) -> str:
    """The arithmetic of the serving graph: any, bf16 or int8.

    Args:
        wanted: of the YAML's `export:`; auto is bf16 on a machine that can, else any.
        possible: those that the family has.

    Raises:
        ConfigError: the family has none such, or this machine cannot compute it, so that it could
            not be proven.
    """
    if wanted not in (*possible, "auto"):
        raise ConfigError(
            f"export.cpu is {wanted}, and this family is exported for {', '.join(possible)}, or "
            f"auto. Take one of these."
        )
    if wanted == "auto":
        return "bf16" if "bf16" in possible and not lacking([BFLOAT16]) else "any"
    if lacks := lacking(needs(wanted)):
        raise ConfigError(
            f"export.cpu is {wanted}, and this machine lacks {lacks}. Run on a machine like the "
            f"one that will serve, or take `any`."
        )
    return wanted


def needs(arithmetic: str) -> list[str]:
    """The instructions that a serving graph of this arithmetic needs, where it is made here.

    In int8's graph, all but the products is in bfloat16 where this machine has it.
    """
    if arithmetic == "int8":
        can = not lacking([BFLOAT16])
        return [INT8, *([BFLOAT16] if can else [])]
    return [BFLOAT16] if arithmetic == "bf16" else []


def _cpu_flags() -> set[str]:
    """The instructions of this machine's CPU, as Linux names them; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
