"""How a model is trained, as the YAML's `train:` section says it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the YAML: a key that it does not know is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Export(Section):
    """What kind of machine will serve the model; see docs/fast-export.md."""

    cpu: Literal["any", "bf16", "int8", "auto"] = Field(
        "any",
        description="The arithmetic of the serving graph. any: float32, for every machine; bf16 "
        "and int8 are faster, and need a CPU with AVX-512 BF16, or VNNI, and TensorFlow Serving "
        "with oneDNN; auto: bf16 if this machine can, else any.",
    )


class Augment(Section):
    """Random changes of pictures in training; evaluation and serving see them as they are."""

    flip: bool = Field(False, description="Mirror every other picture, left to right.")
    crop: float = Field(
        0.0, ge=0, le=0.5, description="Move each picture by up to this share of its sides."
    )
    color: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Change brightness, contrast and saturation by up to this share.",
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(
        "none", description="Mix two pictures and their labels: as a whole, or a box of one."
    )


class Stage(Section):
    """One part of a training in stages; what is left out is as in `train:`."""

    epochs: int = Field(ge=1, description="Passes over the training rows, at most.")
    freeze: Annotated[int, Field(ge=0)] | Literal["all"] | None = Field(
        None, description="What stays as it is in this stage."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="The highest rate in this stage; warm-up and decay begin anew."
    )


class Train(Section):
    """The training loop's settings, the same for every family."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    from_: Literal["checkpoint", "last-blessed"] = Field(
        "checkpoint",
        alias="from",
        description="last-blessed goes on from the model that was pushed last, with the data as "
        "they are now; model.start is used as long as there is none. Labels and vocabulary must "
        "be the same.",
    )
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
        0.01,
        ge=0,
        description="Decoupled decay of the weights, with adamw and sgd; biases and norms are "
        "spared.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto computes in bfloat16 where the CPU or GPU has instructions for it. "
        "Weights, and the served model, stay float32.",
    )
    freeze: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0,
        description="0 trains everything, n keeps the first n layers (BERT), stages (ResNet) or "
        "blocks (Inception) and what comes before them as they are, all trains the head alone.",
    )
    stages: list[Stage] = Field(
        default=[],
        description="Train in stages, one after the other, such as the head alone and then, "
        "slower, everything: [{epochs: 2, freeze: all}, {epochs: 5, learning_rate: 1e-4}]. "
        "`epochs` above is not used then.",
    )
    augment: Augment = Field(
        default_factory=Augment, description="Random changes of pictures; for images only."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many epochs without a lower eval loss; null never stops "
        "early. The best epoch's weights are kept either way.",
    )
    time_limit: float | None = Field(
        None,
        gt=0,
        description="Minutes. Training ends behind the epoch after which another one would end "
        "later, and its best epoch is kept; one is always trained. Not with multi_worker, where "
        "clocks differ.",
    )
    class_weight: Literal["none", "balanced"] = Field(
        "none",
        description="balanced weighs each row by the rarity of its label; not with multi_label or "
        "mix.",
    )
    keep_sparsity: bool = Field(
        False,
        description="Keep the zeros of a pruned checkpoint: what is zero at the start stays zero. "
        "The Compressor's steps always keep them.",
    )
    distribute: Literal["auto", "mirrored", "multi_worker", "tpu"] = Field(
        "auto",
        description="What trains together. auto: all GPUs of the machine, or its CPU; mirrored: "
        "the same, and two GPUs at least must be there; multi_worker: the machines that TF_CONFIG "
        "names (docs/kubernetes.md); tpu: the one that TPU_NAME names (never tried).",
    )
    seed: int = Field(0, ge=0, description="Makes a run repeatable on the same machine.")

    @property
    def plan(self) -> list[Stage]:
        """The stages, complete; one where none are named."""
        stages = self.stages or [Stage(epochs=self.epochs)]
        return [
            Stage(
                epochs=stage.epochs,
                freeze=self.freeze if stage.freeze is None else stage.freeze,
                learning_rate=stage.learning_rate or self.learning_rate,
            )
            for stage in stages
        ]

    @property
    def all_epochs(self) -> int:
        """How many epochs there are, at most, over all stages."""
        return sum(stage.epochs for stage in self.plan)
