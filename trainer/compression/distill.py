"""Distillation: a shallower student of the trained model.

It begins as evenly spaced layers of its teacher, as DistilBERT does (Sanh et al.,
https://arxiv.org/abs/1910.01108, section 3), and learns as `teach` says.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..sparsity import keep_zeros
from .job import Candidate, Job, plainly, rate_of
from .settings import Distill
from .teach import learn

if TYPE_CHECKING:
    import tf_keras as keras


@plainly
def distill(before: Candidate, job: Job, settings: Distill) -> Candidate:
    """Return a student of `settings.layers` layers.

    Raises:
        ConfigError: the family has no students, or this one would be no smaller.
    """
    check_student(job.family, job.settings, settings.layers)
    with job.precision():
        student = job.build(settings.layers)
        inherit(student, before.model, job)
        keep_zeros(student)
        learn(
            student,
            job,
            settings.layers,
            "distill",
            settings.epochs,
            rate_of(settings, job, 1.0),
            temperature=settings.temperature,
            cuts=settings.cuts,
            keep="best",
        )
    return job.next(before, "distill", student.get_weights(), layers=settings.layers)


def check_student(family: ModuleType, settings: Any, layers: int) -> None:
    """Raise ConfigError unless the family has a student of so few layers.

    Args:
        family: its module.
        settings: the model's section of the YAML.
        layers: the student's.
    """
    if family.LAYER is None:
        raise ConfigError(
            f"compress.steps: distill: the family {settings.family} has no shallower student. "
            f"Leave the step out."
        )
    most = family.blocks(settings)
    if layers >= most:
        raise ConfigError(
            f"compress.steps: distill.layers is {layers}, and the trained model has {most}. Give "
            f"fewer."
        )


def inherit(student: "keras.Model", teacher: "keras.Model", job: Job) -> None:
    """Give the student the weights of evenly spaced layers of its teacher, and all the others.

    Layer j of m is the teacher's j * n / m, counted from 0; a stage of its own may have fewer.
    """
    theirs, ours = _numbered(teacher, job), _numbered(student, job)
    for layer in student.layers:
        if not layer.weights:
            continue
        found = job.family.LAYER.fullmatch(layer.name)
        if not found:
            layer.set_weights(teacher.get_layer(layer.name).get_weights())
            continue
        stem, number, part = found.groups()
        first = min(theirs[stem])
        place = (int(number) - first) * len(theirs[stem]) // len(ours[stem]) + first
        layer.set_weights(teacher.get_layer(f"{stem}{place}{part}").get_weights())


def _numbered(model: "keras.Model", job: Job) -> dict[str, set[int]]:
    """The numbers of the layers there are, by what stands before them."""
    found: dict[str, set[int]] = {}
    for layer in model.layers:
        if match := job.family.LAYER.fullmatch(layer.name):
            found.setdefault(match[1], set()).add(int(match[2]))
    return found
