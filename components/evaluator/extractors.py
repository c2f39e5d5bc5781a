"""What TFX's Evaluator asks for by name. It loads this module anew each time."""

from typing import Any

import tensorflow_model_analysis as tfma

from . import closer


def custom_extractors(eval_shared_model: Any, eval_config: Any, tensor_adapter_config: Any) -> Any:
    """TFMA's own extractors, and ours behind them."""
    found = tfma.default_extractors(
        eval_shared_model=eval_shared_model,
        eval_config=eval_config,
        tensor_adapter_config=tensor_adapter_config,
    )
    return [*found, *closer.extractor(eval_shared_model)]
