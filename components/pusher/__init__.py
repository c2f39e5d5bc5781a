"""A Pusher whose versions appear whole, always grow in number, and are kept to the newest few.

The component is imported when it is asked for: a rollback uses `publish` alone, and must not wait
for TFX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .component import Pusher

__all__ = ["Pusher"]


def __getattr__(name: str) -> Any:
    if name == "Pusher":
        from .component import Pusher

        return Pusher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
