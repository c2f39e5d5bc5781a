"""Configurations of older formats, brought to the present one."""

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError

PRESENT = 2


def migrate(tree: dict[str, Any], where: str) -> list[str]:
    """Bring a configuration to the present format, in place.

    Args:
        tree: the YAML; one without `version` is taken as it is, or for the oldest.
        where: what the message calls it.

    Returns:
        what changed, a line each.

    Raises:
        ConfigError: it is of a newer format.
    """
    version = tree.get("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        return []  # which the model refuses
    if version > PRESENT:
        raise ConfigError(
            f"{where}: version: the file is of format {version}, and this Espalier reads 1 to "
            f"{PRESENT}. Upgrade Espalier, or make the file anew with `espalier init`."
        )
    changes = [line for step in _STEPS[version - 1 :] for line in step(tree)]
    tree["version"] = PRESENT
    return changes


def _from_1(tree: dict[str, Any]) -> list[str]:
    cluster = tree.get("cluster")
    if not isinstance(cluster, dict) or "retries" not in cluster or "retries" in tree:
        return []
    lines = getattr(getattr(cluster, "lc", None), "data", {})
    if "retries" in lines and hasattr(tree, "lc"):  # for the message of a fault in it
        tree.lc.data["retries"] = lines["retries"]
    tree["retries"] = cluster.pop("retries")
    return [f"cluster.retries is now retries: {tree['retries']}, and holds for local runs too"]


_STEPS: list[Callable[[dict[str, Any]], list[str]]] = [_from_1]
