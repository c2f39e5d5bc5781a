"""TFX's Tuner, which also leaves all trials behind."""

from .component import Tuner

__all__ = ["Tuner"]
