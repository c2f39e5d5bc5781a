"""A model's folder swapped, deleted and filled with junk while callers ask: nobody notices."""

import os
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from espalier import Client
from espalier.serving.manager import ModelConfig, Policy

Put = Callable[[Path, int], Path]


def empty(base: Path, number: int, good: Put) -> None:
    (base / str(number)).mkdir()


def a_file(base: Path, number: int, good: Put) -> None:
    (base / str(number)).write_bytes(b"no folder")


def odd_names(base: Path, number: int, good: Put) -> None:
    for name in ("99999999999999999999", "-7", f"{number}.5", "٣", " 9", "0x10", "9" * 250, "²"):
        (base / name).mkdir()
        (base / name / "saved_model.pb").write_bytes(b"junk")


def leading_zeros(base: Path, number: int, good: Put) -> None:
    (base / "0001" / "saved_model.pb").mkdir(parents=True)


def nothing_in_it(base: Path, number: int, good: Put) -> None:
    (good(base, number) / "saved_model.pb").write_bytes(b"")


def junk(base: Path, number: int, good: Put) -> None:
    (good(base, number) / "saved_model.pb").write_bytes(random.Random(number).randbytes(5000))


def cut(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "saved_model.pb"
    os.truncate(file, file.stat().st_size // 2)


def a_pipe(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "saved_model.pb"
    file.unlink()
    os.mkfifo(file)


def a_pipe_of_weights(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "variables" / "variables.index"
    file.unlink()
    os.mkfifo(file)


def a_pipe_of_words(base: Path, number: int, good: Put) -> None:
    extra = good(base, number) / "assets.extra"
    extra.mkdir()
    os.mkfifo(extra / "espalier.json")


def a_socket(base: Path, number: int, good: Put) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(good(base, number))  # a socket's path may have 107 characters
        try:
            end.bind("socket")
        finally:
            os.chdir(here)


def an_endless_device(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "variables" / "variables.index"
    file.unlink()
    file.symlink_to("/dev/zero")


def a_folder_for_a_file(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "saved_model.pb"
    file.unlink()
    file.mkdir()


def cut_weights(base: Path, number: int, good: Put) -> None:
    (file,) = (good(base, number) / "variables").glob("variables.data-*")
    os.truncate(file, 3)


def no_weights(base: Path, number: int, good: Put) -> None:
    shutil.rmtree(good(base, number) / "variables")


def words_nested_deep(base: Path, number: int, good: Put) -> None:
    extra = good(base, number) / "assets.extra"
    extra.mkdir()
    (extra / "espalier.json").write_bytes(b'{"graph": ' + b"[" * 100_000)


def a_text_nested_deep(base: Path, number: int, good: Put) -> None:
    file = good(base, number) / "saved_model.pb"
    file.unlink()
    deeper, depth = 'attr { key: "a" value { func { ', 200_000
    text = "meta_graphs { graph_def { node { " + deeper * depth + "} } } " * (depth + 1)
    file.with_suffix(".pbtxt").write_text(text)


def junk_to_warm_up_with(base: Path, number: int, good: Put) -> None:
    extra = good(base, number) / "assets.extra"
    extra.mkdir()
    (extra / "tf_serving_warmup_requests").write_bytes(b"junk" * 999)


def no_permission(base: Path, number: int, good: Put) -> None:
    good(base, number).chmod(0)


def a_loop(base: Path, number: int, good: Put) -> None:
    (base / str(number)).symlink_to(str(number))


def dangling(base: Path, number: int, good: Put) -> None:
    (base / str(number)).symlink_to("/nowhere")


def a_link_to_elsewhere(base: Path, number: int, good: Put) -> None:
    """It is followed, as TensorFlow Serving follows it, and served."""
    (base / str(number)).symlink_to(good(base.parent / "elsewhere", number))


def links_within_a_version(base: Path, number: int, good: Put) -> None:
    version = good(base, number)
    (version / "up").symlink_to(base)
    (version / "variables" / "self").symlink_to(".")


def thousands(base: Path, number: int, good: Put) -> None:
    for one in range(3000):
        (base / f"{number}{one:05}").mkdir()


def gone_and_back(base: Path, number: int, good: Put) -> None:
    base.rename(base.with_name("away"))
    threading.Event().wait(0.2)  # a few looks
    base.with_name("away").rename(base)


JUNK = [
    empty, a_file, odd_names, leading_zeros, nothing_in_it, junk, cut, a_pipe, a_pipe_of_weights,
    a_pipe_of_words, a_socket, an_endless_device, a_folder_for_a_file, cut_weights, no_weights,
    words_nested_deep, a_text_nested_deep, junk_to_warm_up_with, no_permission, a_loop, dangling,
    a_link_to_elsewhere, links_within_a_version, thousands, gone_and_back,
]  # fmt: skip


def clear(base: Path, kept: str) -> None:
    """Remove all but one version."""
    for one in base.iterdir():
        if one.name == kept:
            continue
        if one.is_dir() and not one.is_symlink():
            one.chmod(0o755)
            shutil.rmtree(one)
        else:
            one.unlink()


@contextmanager
def asking(target: str) -> Iterator[list[str]]:
    """Ask for half of 1 and 2 more without a pause; yields what went wrong."""
    wrong: list[str] = []
    over = threading.Event()

    def ask() -> None:
        with Client(target, "half_plus_two", timeout=60) as client:
            while not over.is_set():
                try:
                    answer = client.predict([1.0])["y"].tolist()
                except Exception as error:  # each is a loss
                    answer = repr(error)
                if answer != [2.5]:
                    wrong.append(str(answer))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_the_folder_is_vandalised(
    tmp_path: Path, half_models: Put, open_door: Any, tools: Any, drill: Any, times: Any
) -> None:
    base = tmp_path / "hidden" / "half_plus_two"
    half_models(base, 1)
    door = open_door(ModelConfig("half_plus_two", base), policy=Policy(poll_seconds=0.02))
    line = drill("junk in a model's folder, under load")
    number, together = 1, times(4, 1)
    with asking(door.target) as wrong:
        for place in range(0, len(JUNK) * times(1, 10), together):
            kinds = [JUNK[at % len(JUNK)] for at in range(place, place + together)]
            with line.attempt(", ".join(kind.__name__ for kind in kinds)):
                for vandalise in kinds:
                    number += 1
                    vandalise(base, number, half_models)
                number += 1
                half_models(base, number)  # and the server goes on looking
                tools.until(lambda number=number: door.half(1)[0] >= number)
                clear(base, str(number))
                tools.until(lambda number=number: door.half(1)[0] == number)
                lost, wrong[:] = wrong[:], []
                assert not lost, lost[:3]
                states = door.get("/v1/models/half_plus_two").text
                assert "hidden" not in states, states


def test_versions_with_broken_bytes(
    tmp_path: Path, half_models: Put, open_door: Any, drill: Any, times: Any
) -> None:
    """Whatever loads or does not, the process lives, and the version beside it answers."""
    base = tmp_path / "hidden" / "half_plus_two"
    half_models(base, 1)
    config = ModelConfig("half_plus_two", base, latest=0)
    door = open_door(config, policy=Policy(poll_seconds=0))
    line, chance = drill("versions with broken bytes"), random.Random(13)
    for number in range(2, 2 + times(10, 300)):
        with line.attempt(f"version {number}"):
            version = half_models(base, number)
            files = sorted(one for one in version.rglob("*") if one.is_file())
            file = chance.choice([version / "saved_model.pb", *files])
            data = bytearray(file.read_bytes())
            for _ in range(chance.choice([1, 2, 10])):
                place = chance.randrange(len(data) + 1)
                data[place : place + chance.choice([0, 1, 1, 1, 1000])] = chance.randbytes(1)
            file.write_bytes(data)
            door.server.manager.configure([config])
            assert door.half(1, version=1) == (1, [2.5])
            assert "hidden" not in door.get("/v1/models/half_plus_two").text
            shutil.rmtree(version)


def test_a_swap_now_and_then(
    tmp_path: Path, half_models: Put, open_door: Any, tools: Any, drill: Any, times: Any
) -> None:
    base = tmp_path / "half_plus_two"
    half_models(base, 1)
    door = open_door(ModelConfig("half_plus_two", base), policy=Policy(poll_seconds=0.02))
    line = drill("versions swapped and deleted, under load")
    with asking(door.target) as wrong:
        for number in range(2, 2 + times(5, 200)):
            with line.attempt(f"version {number}"):
                half_models(base, number)
                tools.until(lambda number=number: door.half(1)[0] == number)
                shutil.rmtree(base / str(number - 1))
                if number % 5 == 0:  # the newest goes, and the one before comes back
                    half_models(base, number - 1)
                    shutil.rmtree(base / str(number))
                    tools.until(lambda number=number: door.half(1)[0] == number - 1)
                    half_models(base, number)
                    tools.until(lambda number=number: door.half(1)[0] == number)
                    shutil.rmtree(base / str(number - 1))
                lost, wrong[:] = wrong[:], []
                assert not lost, lost[:3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path, half_models: Put, open_door: Any) -> None:
    base = tmp_path / "half_plus_two"
    half_models(base, 1)
    (half_models(base, 2) / "saved_model.pb").chmod(0)
    assert open_door(ModelConfig("half_plus_two", base)).half(1) == (1, [2.5])
