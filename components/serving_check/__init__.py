"""Has a model server serve the exported model and sends it raw rows, in InfraValidator's place."""

from .component import ServingCheck

__all__ = ["ServingCheck"]
