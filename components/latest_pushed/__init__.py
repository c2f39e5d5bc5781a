"""Finds the baseline at the push destination: what TFX's Resolver cannot do on Kubeflow."""

from .component import LatestPushed

__all__ = ["LatestPushed"]
