"""Which model a new one has to be compared with: the one that was pushed last."""

from typing import Any

from tfx.dsl.components.common import resolver
from tfx.types.artifact import Artifact

from .executor import MODEL_ID


class LastPushed(resolver.ResolverStrategy):
    """Resolves the Model of the newest push.

    TFX's LatestBlessedModelStrategy takes the newest *trained* model that was ever blessed. After
    an older model was pushed again, or when the serving check refused a blessed one, that is
    not the model which is served.
    """

    def resolve_artifacts(
        self, store: Any, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Return {"model": [Model], "pushed_model": [PushedModel]}, or both empty."""
        pushes = [
            push
            for push in input_dict["pushed_model"]
            if push.get_int_custom_property("pushed") == 1
        ]
        last = max(pushes, key=lambda push: push.id, default=None)
        if last is not None:
            for model in input_dict["model"]:
                if model.id == last.get_int_custom_property(MODEL_ID):
                    return {"model": [model], "pushed_model": [last]}
        return {"model": [], "pushed_model": []}
