"""The YAML's `compress:` section: a recipe, and what it may cost. Imports no TensorFlow."""

import itertools
import re
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..settings import Section

# A step may not undo an earlier one: training after quantization would move the weights off their
# grid, pruning after clustering would break clusters up.
ORDER = ("distill", "prune", "cluster", "quantize")
BYTES_OF = {"int8": 1, "float16": 2, "bfloat16": 2}

_Rate = Annotated[float, Field(gt=0)]


class Step(Section):
    """What every step that changes single layers takes."""

    exclude: list[str] | Literal["auto"] = Field(
        default=[],
        description="Layers to leave alone, as names or globs (transformer_layer_0_*); auto leaves "
        "out the costliest, one after the other, until the budget's accuracy holds. `espalier "
        "sensitivity` prints the names.",
    )


class Distill(Section):
    """A student of the same family with fewer layers learns the trained model's answers."""

    layers: int = Field(
        ge=1,
        description="Layers of the student: transformer layers (BERT), blocks in each stage "
        "(ResNet). They begin as evenly spaced layers of the trained model.",
    )
    temperature: float = Field(
        2.0, gt=0, description="Softens both models' answers; larger shows more of small scores."
    )
    cuts: int = Field(
        0,
        ge=0,
        description="Texts only: how many random pieces of each text the student also learns the "
        "teacher's answers to. Makes up for few rows; each costs as much time as the rows.",
    )
    epochs: int = Field(3, ge=1, description="Passes over the training rows.")
    learning_rate: _Rate | None = Field(
        None, description="The highest rate; null is the training's."
    )


class Prune(Step):
    """Sets the smallest weights of each layer to zero, while training goes on."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of zeros in each layer.")
    schedule: Literal["polynomial", "constant"] = Field(
        "polynomial",
        description="polynomial raises the share from 0 over the first two thirds of the steps; "
        "constant has it from the first step on.",
    )
    pattern: Literal["unstructured", "2:4", "block"] = Field(
        "unstructured",
        description="unstructured; 2:4 (two of four neighbours, so sparsity is 0.5); block (4 x 4 "
        "neighbours together, for layers whose weights have two dimensions).",
    )
    epochs: int = Field(2, ge=1, description="Passes over the training rows.")
    learning_rate: _Rate | None = Field(
        None, description="The highest rate; null is half the training's."
    )

    @model_validator(mode="after")
    def _two_of_four(self) -> "Prune":
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"pattern 2:4 leaves half of the weights; sparsity is {self.sparsity}")
        return self


class Cluster(Step):
    """Gives each layer's weights few different values, which the file then holds once."""

    clusters: int = Field(32, ge=2, le=256, description="Different values in each layer.")
    epochs: int = Field(1, ge=0, description="Passes over the training rows.")
    learning_rate: _Rate | None = Field(
        None, description="The highest rate; null is a tenth of the training's."
    )


class Quantize(Step):
    """Stores weights, or computes, in fewer bits."""

    to: Literal["int8", "float16", "bfloat16"] = Field("int8", description="The format.")
    how: Literal["weights", "full", "qat"] = Field(
        "weights",
        description="weights: the SavedModel's weights are stored in the format and unpacked once, "
        "at load. For int8 also full (model.tflite computes in int8; ranges from training rows) "
        "and qat (the same, after training that knows of it).",
    )
    epochs: int = Field(1, ge=1, description="Passes over the training rows, with qat.")
    learning_rate: _Rate | None = Field(
        None, description="The highest rate with qat; null is a tenth of the training's."
    )

    @model_validator(mode="after")
    def _only_int8_computes(self) -> "Quantize":
        if self.to != "int8" and self.how != "weights":
            raise ValueError(f"how: {self.how} is for int8; {self.to} stores weights")
        if self.how == "full" and self.exclude:
            raise ValueError("exclude is for weights and qat; full converts the model as a whole")
        return self


class Entry(Section):
    """One step of the recipe: its name, and its settings."""

    distill: Distill | None = Field(None, description="A smaller student learns from the model.")
    prune: Prune | None = Field(None, description="Small weights become zero.")
    cluster: Cluster | None = Field(None, description="Weights share few values.")
    quantize: Quantize | None = Field(None, description="Weights take fewer bits.")

    @model_validator(mode="after")
    def _one(self) -> "Entry":
        given = [name for name in ORDER if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a step is one of {', '.join(ORDER)}, with its settings; found "
                f"{' and '.join(given) or 'none'}"
            )
        return self

    @property
    def kind(self) -> str:
        """distill, prune, cluster or quantize."""
        return next(name for name in ORDER if getattr(self, name) is not None)

    @property
    def settings(self) -> "Distill | Prune | Cluster | Quantize":
        """The settings of the step."""
        found: Any = getattr(self, self.kind)
        return found  # type: ignore[no-any-return]


class Limit(Section):
    """One line of a budget: at most this much, or at least that many times less."""

    value: float
    unit: Literal["share", "%", "x", "points", "bytes", "ms"]

    def allowed(self, trained: float) -> float:
        """The most that may be found beside what the trained model has."""
        if self.unit == "x":
            return trained / self.value
        return self.value * {"share": trained, "%": trained / 100}.get(self.unit, 1.0)

    @property
    def words(self) -> str:
        """As it was written."""
        if self.unit == "bytes":
            return f"{self.value / 1e6:g} MB"
        return f"{self.value:g}{self.unit if self.unit in ('%', 'x', 'ms') else ''}"


_LIMIT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(%|x|kB|MB|GB|ms)?\s*")
_SIZES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def _limit(*units: str) -> Any:
    """A validator of limits with these units, besides plain numbers."""

    def parse(given: float | str) -> float | str:
        found = _LIMIT.fullmatch(str(given))
        if not found or (found[2] and found[2] not in units):
            raise ValueError(f"expected a number, with {', '.join(units)} or nothing behind it")
        if "%" in units or float(found[1]) > 0:
            return given
        raise ValueError("must be above 0")

    return AfterValidator(parse)


_Loss = Annotated[Union[float, str], _limit("%")]  # noqa: UP007
_Size = Annotated[Union[float, str], _limit("x", "kB", "MB", "GB")]  # noqa: UP007
_Time = Annotated[Union[float, str], _limit("x", "ms")]  # noqa: UP007


class Budget(Section):
    """What the compressed model may cost, beside the trained one on the eval rows."""

    accuracy_drop: _Loss | None = Field(
        None,
        description="Largest loss of accuracy: 0.01 is one point, 1% is relative; below 0 it is "
        "the least gain.",
    )
    f1_drop: _Loss | None = Field(None, description="The same for F1.")
    size: _Size | None = Field(
        None, description="Bytes on disk: a share of the trained model's (0.15), 10x, or 12MB."
    )
    gzipped: _Size | None = Field(None, description="The same, compressed with gzip.")
    latency: _Time | None = Field(
        None,
        description="Median time of one row, a hard limit: a share of the trained model's (0.5), "
        "4x, or 5ms.",
    )

    @property
    def limits(self) -> dict[str, Limit]:
        """What is limited."""
        found = {}
        for name in type(self).model_fields:
            if (given := getattr(self, name)) is not None:
                number, unit = _LIMIT.fullmatch(str(given)).groups()  # type: ignore[union-attr]
                if unit in _SIZES:
                    found[name] = Limit(value=float(number) * _SIZES[unit], unit="bytes")
                else:
                    plain = "points" if name.endswith("_drop") else "share"
                    found[name] = Limit(value=float(number), unit=unit or plain)
        return found


class Compress(Section):
    """The Compressor's recipe; without this section a run has none."""

    steps: list[Entry] = Field(
        min_length=1,
        description="Run in this order, each on what the one before has left: distill, prune, "
        "cluster, quantize, any of them once.",
    )
    budget: Budget = Field(
        default_factory=Budget, description="A model over it is not blessed; the best is kept."
    )
    time_limit: float | None = Field(
        None, gt=0, description="Minutes for all steps together; then the best so far is taken."
    )

    @field_validator("steps")
    @classmethod
    def _order(cls, steps: list[Entry]) -> list[Entry]:
        kinds = [entry.kind for entry in steps]
        for before, after in itertools.pairwise(kinds):
            if before == after:
                raise ValueError(f"steps has {after} twice; name it once")
            if ORDER.index(before) > ORDER.index(after):
                raise ValueError(
                    f"{after} comes after {before} and would undo it; the order is "
                    f"{', '.join(ORDER)}"
                )
        return steps

    @model_validator(mode="after")
    def _can_be_met(self) -> "Compress":
        limits, kinds = self.budget.limits, [entry.kind for entry in self.steps]
        if "distill" in kinds:
            return self  # how small its student is, only the model says
        quantize = next((e.quantize for e in self.steps if e.quantize), None)
        least = BYTES_OF[quantize.to] / 4 if quantize else 1.0
        # Limits in bytes or milliseconds depend on the trained model.
        known = {name: one for name, one in limits.items() if one.unit in ("share", "x")}
        if (size := known.get("size")) and size.allowed(1.0) < least:
            raise ValueError(
                f"budget.size {size.words} cannot be met: these steps leave {least:g} of the bytes "
                "at least (zeros and clusters shrink the gzipped file alone). Quantize to int8 for "
                "a quarter, distill for less"
            )
        if (latency := known.get("latency")) and latency.allowed(1.0) < 1:
            raise ValueError(
                f"budget.latency {latency.words} cannot be met: zeros, clusters and stored formats "
                "change no dense kernel's speed. Distill to fewer layers"
            )
        return self
