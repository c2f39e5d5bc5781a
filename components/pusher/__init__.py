"""A Pusher whose versions appear whole, always grow in number, and are kept to the newest few."""

from .component import Pusher

__all__ = ["Pusher"]
