"""How a model is trained, as the YAML's `train:` section says it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Train(BaseModel):
    """The training loop's settings, the same for every family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(3, ge=1, description="Passes over the training rows, at most.")
    batch_size: int = Field(32, ge=1, description="Rows per step, over all devices together.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="adamw (decoupled weight decay), adam, or sgd with momentum 0.9."
    )
    learning_rate: float = Field(3e-4, gt=0, description="The highest rate, after warm-up.")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of all steps in which the rate rises from 0."
    )
    decay: Literal["linear", "cosine", "none"] = Field(
        "linear", description="How the rate falls from its highest to 0 after warm-up."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW's decay; biases and layer norms are spared."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto computes in bfloat16 where the CPU or GPU has instructions for it. "
        "Weights, and the served model, stay float32.",
    )
    freeze: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0,
        description="0 trains everything, n keeps the embeddings and the first n layers as they "
        "are, all trains the head alone.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many epochs without a lower eval loss; null never stops "
        "early. The best epoch's weights are kept either way.",
    )
    class_weight: Literal["none", "balanced"] = Field(
        "none", description="balanced weighs each row by the rarity of its label."
    )
    seed: int = Field(0, ge=0, description="Makes a run repeatable on the same machine.")
