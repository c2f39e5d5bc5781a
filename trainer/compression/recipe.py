"""A recipe's run: its steps one after the other, each exported, all measured side by side.

Nothing that was finished is lost: each step's weights lie in the job's folder, and a killed run
goes on behind the last of them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...files import write_whole
from .. import hdf5
from . import budget as budgets
from .cluster import cluster
from .distill import distill
from .job import Candidate, Job, kernels, layer_report, progress
from .measure import Figures, measure, sizes
from .prune import prune
from .quantize import quantize
from .sensitivity import accuracy, costliest
from .settings import BYTES_OF, Compress, Entry

TRAINED = "trained"
_STEPS: Mapping[str, Callable[..., Candidate]] = {
    "distill": distill, "prune": prune, "cluster": cluster, "quantize": quantize,
}  # fmt: skip
_MOST_TRIES = 4  # of `exclude: auto`, which leaves out 0, 1, 2, 4 layers

# Writes a candidate as a SavedModel into a folder that does not exist yet.
Export = Callable[[Candidate, Path], None]


@dataclass(frozen=True)
class Outcome:
    """What a recipe came to.

    Attributes:
        report: JSON-ready; see `run`.
        version: the chosen candidate's SavedModel.
        kept: whether it keeps to the budget.
    """

    report: dict[str, Any]
    version: Path
    kept: bool


def run(
    job: Job,
    trained: Candidate,
    recipe: Compress,
    *,
    version: Path,
    export: Export,
    rows: Sequence[bytes],
) -> Outcome:
    """Run a recipe on a trained model, which stays as it is.

    The report holds `candidates` (name, figures, budget lines, facts, seconds, layers), the first
    of which is the trained model, `ranked` names, the `chosen` one, `kept`, `verdict`, and
    `stopped` (what the time limit left out).

    Args:
        job: see `Job`; its folder holds what a killed run goes on with.
        trained: the trained model, unrolled.
        recipe: the YAML's section.
        version: the trained model's SavedModel.
        export: writes a candidate's.
        rows: serialized raw Examples of the eval split.

    Raises:
        ConfigError, DataError: a step cannot do what it was told; the message names the step.
    """
    if not rows:
        raise ConfigError("compress: there are no eval rows to measure on. Give some.")
    if recipe.time_limit:
        job.deadline = time.monotonic() + 60 * recipe.time_limit
    _check_reachable(job, trained, recipe, version)
    candidates, seconds, stopped = _steps(job, trained, recipe)
    versions = {TRAINED: version}
    for candidate in candidates[1:]:
        versions[candidate.name] = job.folder / "versions" / candidate.name
        if not versions[candidate.name].exists():
            export(candidate, versions[candidate.name])
    counts = {one.name: _count(one) for one in candidates}
    figures = measure(versions, rows, counts, lambda what: progress.info("measuring %s", what))
    report = _report(recipe, candidates, figures, seconds)
    report["stopped"] = stopped
    progress.info("%s", report["verdict"])
    return Outcome(report, versions[report["chosen"]], report["kept"])


def _steps(
    job: Job, trained: Candidate, recipe: Compress
) -> tuple[list[Candidate], dict[str, float], list[str]]:
    """(the candidates, seconds by name, the steps that the time limit left out)."""
    found, seconds = [replace(trained, name=TRAINED)], {TRAINED: 0.0}
    for number, entry in enumerate(recipe.steps, start=1):
        if job.out_of_time and len(found) > 1:
            left = [one.kind for one in recipe.steps[number - 1 :]]
            progress.info("the time limit has passed: without %s", ", ".join(left))
            return found, seconds, left
        progress.info("step %d of %d: %s", number, len(recipe.steps), _words(entry))
        begin = time.monotonic()
        found.append(_step(job, trained, found[-1], entry, recipe))
        seconds[entry.kind] = time.monotonic() - begin
    return found, seconds, []


def _words(entry: Entry) -> str:
    given = entry.settings.model_dump(exclude_defaults=True)
    return f"{entry.kind} {', '.join(f'{k} {v}' for k, v in given.items())}".strip()


def _step(
    job: Job, trained: Candidate, before: Candidate, entry: Entry, recipe: Compress
) -> Candidate:
    """The step's candidate, from an interrupted run if it is there."""
    kept = job.folder / f"{entry.kind}.json"
    if kept.exists():
        return _load(job, before, kept)
    candidate = _tried(job, trained, before, entry, recipe)
    _save(candidate, kept)
    return candidate


def _tried(
    job: Job, trained: Candidate, before: Candidate, entry: Entry, recipe: Compress
) -> Candidate:
    """Run the step; with `exclude: auto` again without its costliest layers, while it costs more
    accuracy than the budget has."""
    work, settings = _STEPS[entry.kind], entry.settings
    if getattr(settings, "exclude", None) != "auto":
        return work(before, job, settings)
    limit = recipe.budget.limits.get("accuracy_drop")
    reached = accuracy(job, trained.model) if limit else 0.0
    ranking: list[str] = []
    for attempt in range(_MOST_TRIES):
        excluded = ranking[: 2**attempt // 2]
        trying = replace(job, attempt=f"-{len(excluded)}" if excluded else "")
        candidate = work(before, trying, settings.model_copy(update={"exclude": excluded}))
        candidate = replace(candidate, facts={**candidate.facts, "excluded": excluded})
        if limit is None or job.out_of_time:
            break
        lost, allowed = reached - accuracy(job, candidate.model), limit.allowed(reached)
        if lost <= allowed:
            break
        progress.info("%s costs %.4f accuracy, %.4f is allowed", entry.kind, lost, allowed)
        ranking = ranking or costliest(job, before.model, entry)
    return candidate


def _save(candidate: Candidate, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    hdf5.save_weights(candidate.model, file.with_suffix(".h5"))
    facts = {
        "layers": candidate.layers,
        "formats": dict(candidate.formats),
        "tflite": str(candidate.tflite) if candidate.tflite else None,
        "facts": candidate.facts,
    }
    write_whole(file, json.dumps(facts))  # last: with it, the step is whole


def _load(job: Job, before: Candidate, file: Path) -> Candidate:
    progress.info("%s was finished before", file.stem)
    facts = json.loads(file.read_text(encoding="utf-8"))
    model = job.build(facts["layers"])
    model.load_weights(str(file.with_suffix(".h5")))
    tflite = Path(facts["tflite"]) if facts["tflite"] else None
    return replace(
        before, name=file.stem, model=model, layers=facts["layers"], formats=facts["formats"],
        tflite=tflite, facts=facts["facts"],
    )  # fmt: skip


def _count(candidate: Candidate) -> tuple[int, int]:
    """(numbers in the model's weights, of them not zero)."""
    import numpy as np

    arrays = [weight.numpy() for weight in candidate.model.weights]
    return sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays)


def _check_reachable(job: Job, trained: Candidate, recipe: Compress, version: Path) -> None:
    """Say before anything is trained that the size cannot be met: how small the weights become is
    known, and the graph and its assets stay."""
    limit = recipe.budget.limits.get("size")
    if limit is None:
        return
    by_kind = {entry.kind: entry.settings for entry in recipe.steps}
    layers = getattr(by_kind.get("distill"), "layers", None)
    model = job.build(layers) if layers else trained.model
    quantize_ = by_kind.get("quantize")
    bytes_of = BYTES_OF[quantize_.to] if quantize_ else 4  # type: ignore[union-attr]
    packed = sum(int(v.shape.num_elements()) for v in kernels(model).values())
    all_of = sum(int(w.shape.num_elements()) for w in model.weights)
    least = packed * bytes_of + (all_of - packed) * 4
    before = sizes(version)[0]
    allowed = limit.allowed(before)
    if least > allowed:
        raise ConfigError(
            f"compress.budget: size {limit.words} is {allowed / 1e6:.2f} MB, and after these "
            f"steps the weights alone take {least / 1e6:.2f} MB ({least / before:.3g} of the "
            f"trained model's). Nothing was trained. Allow more, or distill to fewer layers."
        )


def _report(
    recipe: Compress, candidates: Sequence[Candidate], figures: Mapping[str, Figures],
    seconds: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    ranked = budgets.rank(recipe.budget, figures)
    chosen = ranked[0]
    trained = figures[TRAINED]
    kept, sentence = budgets.verdict(recipe.budget, trained, figures[chosen])
    last = candidates[-1].name
    if chosen != last and kept:
        over = budgets.verdict(recipe.budget, trained, figures[last])[1]
        sentence = f"{sentence} It is the model after {chosen}; after {last} it is not so: {over}"
    rows = [
        {
            "name": one.name,
            "figures": asdict(figures[one.name]),
            "budget": budgets.as_json(budgets.lines(recipe.budget, trained, figures[one.name])),
            "facts": one.facts,
            "seconds": round(seconds[one.name], 1),
            "layers": layer_report(one),
        }
        for one in candidates
    ]
    return {
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "candidates": rows,
        "ranked": ranked,
        "chosen": chosen,
        "kept": kept,
        "verdict": sentence,
    }
