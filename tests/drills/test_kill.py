"""kill -9 or a cut of the power at any moment, then the same command again: nothing is lost, and
nothing is left over."""

import importlib.util
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from espalier.components.pusher import publish
from espalier.pipeline import versions
from espalier.pipeline.store import Store

TESTS = Path(__file__).parents[1]


def _load(file: Path) -> Any:
    found = importlib.util.spec_from_file_location(f"espalier_tests_{file.stem}", file)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


killing = _load(Path(__file__).with_name("killing.py"))
jobs = _load(TESTS / "e2e" / "conftest.py")
pictures = _load(TESTS / "e2e" / "test_images.py")
simulated = _load(TESTS / "pipeline" / "simulated.py")
after, ended, once, runs = killing.after, killing.ended, killing.once, killing.runs
published, staging = killing.published, killing.staging
Place, When, Times = Any, Callable[..., None], Callable[[int, int], int]

COMPRESS = {
    "steps": [{"distill": {"layers": 1, "epochs": 3}}, {"quantize": {}}],
    "budget": {"accuracy_drop": 0.6, "size": 0.95},
}
LATE = 1.5  # seconds in which a name has come to the disk, and bytes have not
TUNE = {"search": "random", "trials": 3, "over": {"train.learning_rate": [1e-3, 3e-3, 1e-2]}}
RATES = {"train.learning_rate": [1e-3, 3e-3]}


@pytest.fixture
def seeded() -> random.Random:
    return random.Random(11)


@pytest.fixture
def make(tmp_path: Path, make_bert: Callable[..., Path]) -> Callable[..., tuple[Place, str]]:
    start = make_bert(tmp_path / "bert")

    def make(name: str, **sections: Any) -> tuple[Place, str]:
        """A job without dropout, whose draws a resumed training does not repeat."""
        job, yaml = jobs._make_job(tmp_path / name, start, 300), YAML(typ="safe")
        given = yaml.load(job.yaml)
        given["model"]["dropout"] = 0.0
        yaml.dump({**given, **sections}, job.yaml)
        return killing.Place(job.folder), str(job.yaml)

    return make


# --- a run --------------------------------------------------------------------------------------


def moments(place: Place, seeded: random.Random) -> list[tuple[str, When]]:
    """One in every component, and some between, in their order."""
    found = [("at start-up", after(seeded.uniform(0.05, killing.LOADING)))]
    for name in killing.LINE:
        share = seeded.uniform(0, 1.1)
        found.append((f"in {name}, after {share:.2f} of its time", runs(name, share)))
        if name == "Trainer":
            found.append(("in Trainer, late", runs(name, seeded.uniform(0.5, 1))))
    between = seeded.choice(killing.LINE[:-1])
    found.insert(2 + killing.LINE.index(between), (f"behind {between}", ended(between, 0.02)))
    found.append(("while it publishes", once(staging, seeded.uniform(0, 0.02))))
    found.append(("behind the publishing", once(published)))
    found.append(("behind the Pusher", ended("Pusher", seeded.uniform(0, 0.6))))
    return found


def kill_all(
    place: Place, command: list[str], line: Any, seeded: random.Random,
    moments: list[tuple[str, When]],
) -> None:  # fmt: skip
    """The same command again and again, killed at each of the moments."""
    for what, when in moments:
        with line.attempt(what), place.watched():
            if not place.killed(when, *command):
                line.tries -= 1  # it had ended before
                print(f"not killed {what}")
            killing.check_served(place)
            killing.check_metadata(place)
            killing.check_commands(place, command[1], seeded.choice(["ls", "plan", "report", "gc"]))


def check_end(place: Place, yaml: str, other: Place | None) -> None:
    """The same command once more, undisturbed."""
    with place.watched():
        place.done("run", yaml)
    assert killing.latest(place).status == "pushed"
    killing.check_served(place)
    killing.check_metadata(place)
    killing.check_nothing_is_left(place)
    if other:
        killing.check_like(place, other)
    killing.check_commands(place, yaml)
    assert place.done("plan", yaml).startswith("nothing")


def test_a_run(drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random) -> None:
    line = drill("kill -9 of a run")
    place, yaml = make("killed")
    if times(0, 1):
        return _whole_rounds(line, place, yaml, make, seeded)
    place.usual = {"Trainer": 8.0}
    few = [("in Trainer", runs("Trainer", seeded.uniform(0, 1)))]
    few += [("behind the publishing", once(published))]
    kill_all(place, ["run", yaml], line, seeded, few)
    with line.attempt("the end"):
        check_end(place, yaml, None)


def _whole_rounds(line: Any, place: Place, yaml: str, make: Any, seeded: random.Random) -> None:
    calm, its_yaml = make("calm")
    for number in range(3):
        for one in (place, calm):  # other rows, and all is done anew
            jobs.write_csv(one.folder / "data" / "reviews.csv", jobs.rows(300, seed=number))
        calm.done("run", its_yaml)
        place.usual = killing.usual(calm.log())
        kill_all(place, ["run", yaml], line, seeded, moments(place, seeded))
        with line.attempt(f"the end of round {number + 1}"):
            check_end(place, yaml, calm)


def test_a_run_of_pictures(
    drill: Callable[[str], Any], times: Times, tmp_path: Path, seeded: random.Random
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("kill -9 of a run of pictures")
    train = {"epochs": 3, "batch_size": 16, "optimizer": "sgd", "precision": "float32"}
    for name in ("calm", "killed"):
        pictures.write_folders(tmp_path / name / "data")
        config = pictures.image_config(tmp_path / name, train=train, evaluate={})
        (tmp_path / name / "job.yaml").write_text(config.to_yaml())
    calm, place = (killing.Place(tmp_path / one, name="textures") for one in ("calm", "killed"))
    calm.done("run", "job.yaml")
    place.usual = killing.usual(calm.log())
    names = ["ExampleGen"] * 5 + ["StatisticsGen", "Transform", "Trainer", "Trainer", "Evaluator"]
    shares = [seeded.uniform(0, 1.05) for _ in names]
    found = [(f"in {n}, after {s:.2f}", runs(n, s)) for n, s in zip(names, shares, strict=True)]
    found += [("behind the publishing", once(published))]
    kill_all(place, ["run", "job.yaml"], line, seeded, found)
    with line.attempt("the end"):
        check_end(place, "job.yaml", calm)


def test_a_run_that_searches_and_compresses(
    drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("kill -9 of a search and a recipe")
    calm, its_yaml = make("calm", tune=TUNE, compress=COMPRESS)
    place, yaml = make("killed", tune=TUNE, compress=COMPRESS)
    calm.done("run", its_yaml)
    place.usual = killing.usual(calm.log())
    names = ["Tuner"] * 4 + ["Trainer"] + ["Compressor"] * 4 + ["Evaluator"]
    shares = [seeded.uniform(0, 1.05) for _ in names]
    found = [(f"in {n}, after {s:.2f}", runs(n, s)) for n, s in zip(names, shares, strict=True)]
    found += [("behind the Compressor", ended("Compressor", seeded.uniform(0, 0.05)))]
    kill_all(place, ["run", yaml], line, seeded, found)
    with line.attempt("the end"):
        check_end(place, yaml, None)
        one, two = killing.latest(place), killing.latest(calm)
        assert one.compression and two.compression
        names = [[c["name"] for c in each.compression["candidates"]] for each in (one, two)]
        assert names[0] == names[1] == ["trained", "distill", "quantize"]
        assert _trials(place) == _trials(calm)


def _trials(place: Place) -> list[Any]:
    """Each trial's values, and how it did."""
    (file,) = place.home.glob("artifacts/Tuner/tuner_results/*/trials.json")
    found = json.loads(file.read_text())["trials"]
    return [(one["values"], one["epochs"], round(one["accuracy"], 2)) for one in found]


def test_a_sweep(
    drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("kill -9 of a sweep")
    place, yaml = make("swept", sweep=RATES)
    place.usual = {"Trainer": 8.0, "Evaluator": 6.0}

    def second(name: str) -> When:
        words = f"Component {name} is running."
        return once(lambda place: place.log().count(words) == 2, seeded.uniform(0, 6))

    found = [("in the first one's Trainer", runs("Trainer", seeded.uniform(0, 1)))]
    found += [
        (f"in the second one's {n}", second(n)) for n in ("Transform", "Trainer", "Evaluator")
    ]
    kill_all(place, ["sweep", yaml], line, seeded, found)
    with line.attempt("the end"):
        said = place.done("sweep", yaml)
        assert "0.001" in said and "0.003" in said and "failed" not in said
        assert not place.versions()
        place.models.mkdir(exist_ok=True)
        killing.check_nothing_is_left(place)


# --- the power goes -----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    found = killing.Disk(tmp_path / "disk.img", tmp_path / "dark")
    if not found.make():
        pytest.skip("a disk cannot be made and mounted here")
    yield found
    found.off()


def cut_all(place: Place, yaml: str, line: Any, disk: Any, moments: list[tuple[str, When]]) -> None:
    """A run again and again, whose power goes at each of the moments."""
    os.sync()
    for what, when in moments:
        with line.attempt(what):
            try:
                place.killed(killing.dark(disk, when), "run", yaml)
            finally:
                disk.again()
            killing.check_served(place)
            killing.check_metadata(place)
            killing.check_commands(place, yaml)
            killing.check_artifacts(place)


def test_the_power_goes_in_a_run(
    drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random, disk: Any
) -> None:
    line = drill("the power goes in a run")
    place, yaml = make(disk.folder.name)
    early = [("behind StatisticsGen", ended("StatisticsGen", LATE))]
    if not times(0, 1):
        return cut_all(place, yaml, line, disk, early)
    calm, its_yaml = make("calm")
    calm.done("run", its_yaml)
    place.usual = killing.usual(calm.log())
    late = [("long behind the publishing", once(published, LATE))]
    cut_all(place, yaml, line, disk, early + moments(place, seeded) + late)
    with line.attempt("the end"):
        check_end(place, yaml, calm)


def test_the_power_goes_in_a_search_and_a_recipe(
    drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random, disk: Any
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("the power goes in a search and a recipe")
    calm, its_yaml = make("calm", tune=TUNE, compress=COMPRESS)
    place, yaml = make(disk.folder.name, tune=TUNE, compress=COMPRESS)
    calm.done("run", its_yaml)
    place.usual = killing.usual(calm.log())
    names = ["Tuner"] * 3 + ["Trainer"] * 2 + ["Compressor"] * 6
    shares = [seeded.uniform(0.2, 1.05) for _ in names]
    found = [(f"in {n}, after {s:.2f}", runs(n, s)) for n, s in zip(names, shares, strict=True)]
    found += [("behind the Compressor", ended("Compressor", LATE))]
    cut_all(place, yaml, line, disk, found)
    with line.attempt("the end"):
        check_end(place, yaml, None)
        assert _trials(place) == _trials(calm)


def test_the_power_goes_behind_a_push(
    drill: Callable[[str], Any], times: Times, tmp_path: Path, disk: Any
) -> None:
    line = drill("the power goes behind a push")
    model, base = tmp_path / "model", disk.folder / "models"
    model.mkdir()
    for number in range(1, times(2, 10)):
        with line.attempt(f"push {number}"):
            for name in (publish.SAVED_MODEL, "weights"):
                (model / name).write_bytes(os.urandom(3_000_000))
            publish.publish(str(model), str(base), keep=None, now=number)
            time.sleep(LATE)
            try:
                disk.cut()
            finally:
                disk.again()
            assert publish.is_copy(str(base / str(number)), str(model))


# --- the other commands -------------------------------------------------------------------------


def test_compress(
    drill: Callable[[str], Any], times: Times, make: Any, seeded: random.Random
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("kill -9 of compress")
    place, yaml = make("compressed")
    place.done("run", yaml)
    (place.folder / "recipe.yaml").write_text(json.dumps(COMPRESS))
    small = killing.Place(place.folder, models_name="models-small")
    command = ["compress", "models", "--recipe", "recipe.yaml", "--data", "data"]
    work = place.folder / "runs" / "compress"

    def there(pattern: str) -> When:
        return once(lambda _: any(work.glob(pattern)), seeded.uniform(0, 1))

    found = [
        ("at start-up", after(seeded.uniform(0, 8))),
        ("behind the rows", there("*/scratch/rows/raw*")),
        ("in a step", there("*/scratch/distill/state.json")),
        ("as candidates are written", there("*/scratch/versions/*")),
        ("while it publishes", once(staging)),
        ("behind the publishing", once(published)),
    ]
    for what, when in found:
        with line.attempt(what), small.watched():
            if not small.killed(when, *command):
                line.tries -= 1  # it had ended before, and another call publishes anew
                shutil.rmtree(small.models)
            killing.check_served(small)
    with line.attempt("the end"):
        small.done(*command)
        assert len(small.versions()) == 1
        killing.check_served(small)
        (folder,) = work.iterdir()
        assert set(os.listdir(folder)) == {"report.json", "log.txt", ".lock"}
        assert set(os.listdir(small.models)) == {publish.LAST_PUSH, *small.versions()}
        assert not os.listdir(small.temporary)


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[[int], tuple[Any, Place]]:
    def simulate(number: int) -> tuple[Any, Place]:
        """A pipeline whose runs are written down; large enough for what deletes or copies it."""
        folder = tmp_path / str(number)
        folder.mkdir()
        line = simulated.Line(folder)
        for change in range(5):
            line.run(settings=change)
        for place in line.places.values():
            for name in range(100):
                (place / f"more-{name}").touch()
        for version in line.models.glob("[0-9]*"):
            (version / "assets.extra").mkdir()
            (version / "assets.extra" / "config.yaml").touch()
            (version / "variables").write_bytes(os.urandom(20_000_000))
        return line, killing.Place(folder, name="reviews")

    return simulate


def test_gc(
    drill: Callable[[str], Any], times: Times, simulate: Any, seeded: random.Random
) -> None:
    drilled = drill("kill -9 of gc")
    for number in range(times(1, 10)):
        line, place = simulate(number)
        last = line.runs[-1]
        folders = {one: line.places[one] for one in line.needed([last])}
        count = len(line.folders())
        begun = once(lambda _, count=count, line=line: len(line.folders()) < count,
                     seeded.uniform(0, 0.05))  # fmt: skip
        command = ["gc", "job.yaml", "--keep", "1", "--yes"]
        with drilled.attempt(f"kill {number + 1}"):
            place.killed(begun if number % 3 != 2 else after(seeded.uniform(0, 3)), *command)
            killing.check_metadata(place)
            for one in line.live():
                assert len(os.listdir(line.places[one])) == 101, "a live artifact is not whole"
            assert folders.keys() <= line.live()
            place.done(*command)
            assert line.folders() == {line.places[one] for one in line.live()}
            assert folders.keys() <= line.live()
            assert "Nothing can go" in place.done("gc", "job.yaml", "--keep", "1")


def test_rollback(
    drill: Callable[[str], Any], times: Times, simulate: Any, seeded: random.Random
) -> None:
    drilled = drill("kill -9 of rollback")
    for number in range(times(1, 10)):
        line, place = simulate(number)
        old, new = place.versions()
        when = [
            once(published),
            once(staging, seeded.uniform(0, 0.02)),
            after(seeded.uniform(0, 3)),
        ][number % 3]
        with drilled.attempt(f"kill {number + 1}"), place.watched():
            place.killed(when, "rollback", "job.yaml")
            noted = set(versions.read(line.config).versions)
            if not set(place.versions()) - {old, new} & noted:
                place.done("rollback", "job.yaml")
            found = place.versions()
            assert found[:2] == [old, new] and len(found) == 3
            assert publish.is_copy(str(place.models / found[2]), str(place.models / old))
            assert versions.read(line.config).versions[found[2]].copy_of == old
            assert not [name for name in os.listdir(place.models) if killing.is_left(name)]
            assert f"copy of {old}" in place.done("ls", "job.yaml")


def test_plan(
    drill: Callable[[str], Any], times: Times, simulate: Any, seeded: random.Random
) -> None:
    drilled = drill("kill -9 of plan and report")
    line, place = simulate(0)
    jobs.write_csv(line.folder / "reviews.csv", jobs.rows(300))
    before = Store(line.home).history()
    for number in range(times(1, 8)):
        with drilled.attempt(f"kill {number + 1}"):
            for command in ("plan", "report"):
                place.killed(after(seeded.uniform(0.3, 2)), command, "job.yaml")
                place.done(command, "job.yaml")
            killing.check_metadata(place)
            assert Store(line.home).history() == before
