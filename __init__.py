"""Espalier: customise an open model, make it small, put it behind TensorFlow Serving.

The public names are imported lazily: `import espalier` costs milliseconds, and TensorFlow or
TFX are loaded only by the call that needs them.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# TF-MOT and keras-nlp 0.12 work with Keras 2 only. Set before anything imports TensorFlow;
# child processes inherit it.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

if TYPE_CHECKING:
    from .errors import (
        CheckpointError,
        ComponentError,
        ConfigError,
        DataError,
        EspalierError,
        ServerError,
    )
    from .pipeline.config import Config
    from .pipeline.results import RunResult
    from .pipeline.runner import run
    from .serving.client import AsyncClient, Client
    from .serving.predictor import Predictor

_HOMES = {
    "AsyncClient": ".serving.client",
    "Client": ".serving.client",
    "Config": ".pipeline.config",
    "run": ".pipeline.runner",
    "RunResult": ".pipeline.results",
    "Predictor": ".serving.predictor",
    "EspalierError": ".errors",
    "ConfigError": ".errors",
    "CheckpointError": ".errors",
    "DataError": ".errors",
    "ComponentError": ".errors",
    "ServerError": ".errors",
    "CompressionReport": ".components.compressor",  # for TFX, which finds it by its type's name
}

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "CheckpointError",
    "Client",
    "ComponentError",
    "Config",
    "ConfigError",
    "DataError",
    "EspalierError",
    "Predictor",
    "RunResult",
    "ServerError",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
