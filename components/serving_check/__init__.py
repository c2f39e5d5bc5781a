"""Loads the exported model in a clean process and sends it raw rows, in InfraValidator's place."""

from .component import ServingCheck

__all__ = ["ServingCheck"]
