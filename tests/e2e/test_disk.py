"""A full disk and an unwritable folder end in a sentence; what was there before stays."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)])
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_little_room_is_said_before_the_run(
    small_disk: Path, tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=100)
    done = job.cli("run", str(job.yaml), "--set", f"runs={small_disk}/runs")
    assert done.returncode == 2
    assert str(small_disk) in done.stderr
    assert "free" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_during_the_run_is_a_sentence(
    small_disk: Path,
    tmp_path: Path,
    small_bert: Path,
    make_job: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from espalier import ComponentError, Config, ConfigError, run
    from espalier.pipeline import places

    job = make_job(tmp_path, small_bert, count=100)
    monkeypatch.setattr(places, "check_writable", lambda *args, **options: None)
    (small_disk / "filler").write_bytes(b"x" * 2_600_000)
    config = Config.load(job.yaml, [f"runs={small_disk}/runs"])
    with pytest.raises((ComponentError, ConfigError)) as caught:
        run(config, to_node="Transform")
    assert "No space left" in str(caught.value) or "disk is full" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_said_before_the_run(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=100)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = job.cli("run", str(job.yaml), "--set", f"push.to={closed}/models")
    assert done.returncode == 2
    assert str(closed) in done.stderr
