"""TFX's Evaluator, with limits taken from the YAML and a verdict in words."""

from .component import Evaluator

__all__ = ["Evaluator"]
