"""Stops the run when the data does not fit its schema; stock TFX goes on in silence."""

from .component import DataGate

__all__ = ["DataGate"]
