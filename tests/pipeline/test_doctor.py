"""`espalier doctor`: what is broken is a line, whoever breaks it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from espalier import masking
from espalier.pipeline import doctor, imports, machine
from espalier.pipeline.cli import app
from espalier.pipeline.doctor import Line

GOOD_TENSORFLOW = """
class Gpu: name = "H100"
class Keras:
    class Model: __module__ = "tf_keras.src.training"
class Config:
    class experimental:
        def get_device_details(gpu): return {"device_name": gpu.name}
    def list_physical_devices(kind): return [Gpu]
import tf_keras
keras, config = Keras, Config
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts packages, name=source, before those that are installed."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    def put(**packages: str) -> None:
        for name, source in packages.items():
            (tmp_path / "fake" / name).mkdir(parents=True)
            (tmp_path / "fake" / name / "__init__.py").write_text(source, encoding="utf-8")

    return put


def test_this_machine_as_the_command_tells_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (tmp_path / "job.yaml").write_text(
        "name: reviews\ndata: {csv: rows.csv, text: text, label: label}\n"
        "model: {family: bert, start: tiny}\npush: {to: gs://bucket/reviews}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "espalier.pipeline.cli", "doctor", "job.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = json.loads(done.stdout)
    lines = {line["what"]: line for line in told["lines"]}
    assert told["faults"] == sum(line["state"] == "fault" for line in told["lines"])
    assert done.returncode == (2 if told["faults"] else 0)
    for package in ("tensorflow", "tf-keras", "keras-nlp", "apache-beam", "tfx"):
        assert "imported in" in lines[package]["found"], lines[package]
    assert lines["Keras of TensorFlow"]["found"].startswith("2.16")
    assert lines["Keras of TensorFlow"]["state"] == "ok"
    assert "packages are as locked" in lines["requirements.lock"]["found"]
    assert lines["configuration"]["found"] == "job.yaml; its data: 1 file, 0.0 MB"
    assert lines["runs"]["found"].startswith("runs/reviews: can be written")
    assert lines["models"]["found"] == "gs://bucket/reviews: remote, not looked at"
    assert not (tmp_path / "runs").exists()


# --- packages -------------------------------------------------------------------------------------


def test_a_broken_package_is_told_from_the_others(fake: Callable[..., None]) -> None:
    fake(
        a="print('noise')",
        b="raise ImportError('libfoo.so: cannot open\\nmore of it')",
        c="import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        d="import sys; sys.exit(3)",
        e="import os; os._exit(7)",
        f="",
    )
    found = imports.try_out(list("abcdefg"), 120)
    assert set(found) == set("abcdefg")
    assert [name for name in found if "seconds" in found[name]] == ["a", "f"]
    assert found["b"]["error"] == "its import raises ImportError: libfoo.so: cannot open"
    assert found["c"]["error"] == (
        "its import ends the process by SIGILL (an instruction that this CPU has not)"
    )
    assert found["d"]["error"] == "its import raises SystemExit: 3"
    assert found["e"]["error"] == "its import ends the process with the exit code 7"
    assert found["g"]["error"].startswith("its import raises ModuleNotFoundError")


def test_a_package_that_hangs_is_left(fake: Callable[..., None]) -> None:
    fake(a="", b="import time; time.sleep(600)", c="")
    found = imports.try_out(list("abc"), 5)
    assert "seconds" in found["a"]
    assert "its import hangs: not done after" in found["b"]["error"]
    assert "c" not in found


def test_a_file_of_the_current_folder_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('mine')")
    monkeypatch.chdir(tmp_path)
    assert "seconds" in imports.try_out(["json"], 60)["json"]


def test_keras_and_gpus_are_asked_of_tensorflow(fake: Callable[..., None]) -> None:
    fake(tensorflow=GOOD_TENSORFLOW, tf_keras="__version__ = '2.16.0'")
    found = imports.try_out(["tensorflow", "tf_keras"], 60)
    assert found["keras"] == {"found": "2.16.0"}
    assert found["gpus"] == {"found": ["H100"]}


def test_after_a_broken_tensorflow_nothing_is_tried(fake: Callable[..., None]) -> None:
    fake(tensorflow="raise OSError('no AVX')", tf_keras="")
    found = imports.try_out(["tensorflow", "tf_keras"], 60)
    assert found == {"tensorflow": {"error": "its import raises OSError: no AVX"}}
    lines = {line.what: line for line in doctor._packages("pipeline", found)}
    assert lines["tensorflow"].state == "fault" and "no AVX" in lines["tensorflow"].found
    assert "not tried, after the fault above" in lines["tf-keras"].found
    assert "GPUs" not in lines


@pytest.mark.parametrize(
    ("outcome", "state"),
    [({"found": "2.16.0"}, "ok"), ({"found": "3.12.4"}, "fault"), ({"error": "none"}, "fault")],
)
def test_keras_has_to_be_of_version_2(outcome: dict[str, str], state: str) -> None:
    lines = {line.what: line for line in doctor._packages("serve", {"keras": outcome})}
    assert lines["Keras of TensorFlow"].state == state


LOCK = """\
absl-py[x]==1.4.0 \\
    --hash=sha256:00
    # via
rich==0.1 \\
    --hash=sha256:00
no-such-package==1.0 \\
    --hash=sha256:00
"""


def test_the_lock_is_compared_with_what_is_installed(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    assert only(doctor.compare_lock(lock, "pipeline")).found.startswith("not here")
    lock.write_text(LOCK)
    line = only(doctor.compare_lock(lock, "pipeline"))
    assert line.state == "fault"
    assert line.found.startswith("missing: no-such-package; other versions: rich ")
    assert line.found.endswith(" for 0.1")
    lock.write_text(LOCK.partition("no-such")[0])
    assert only(doctor.compare_lock(lock, "pipeline")).state == "warning"
    lock.write_text(LOCK.partition("rich")[0])
    assert only(doctor.compare_lock(lock, "pipeline")).found == "all 1 packages are as locked"


def only(lines: Any) -> Line:
    """The one line of them."""
    (line,) = lines
    return line


CLIENT_ALONE = """
import sys
for name in ("tensorflow", "tfx", "ruamel", "ruamel.yaml", "platformdirs", "jinja2"):
    sys.modules[name] = None
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name in ("tfx", "tensorflow"):
        raise metadata.PackageNotFoundError
    return real(name)
metadata.version = version
from espalier.cli import app
app(["doctor", "some.yaml"])
"""


def test_where_the_client_alone_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLIENT_ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "the client alone" in done.stdout
    assert "pip install 'espalier[serve]'" in " ".join(done.stdout.split())
    assert "Only the extra `pipeline` can read it." in done.stdout
    assert "0 faults, 1 warning" in done.stdout
    assert "tensorflow" not in done.stdout.partition("For a bug report")[2]


# --- the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "files", "bytes_", "cpus"),
    [
        ("0::/a/b", {"a/memory.max": "5000", "a/b/memory.max": "max"}, 5000, None),
        ("0::/a", {"a/cpu.max": "150000 100000", "memory.max": "max"}, None, 1.5),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "7000"}, 7000, None),
        ("2:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "50000",
                             "cpu/cpu.cfs_period_us": "100000"}, None, 0.5),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ("", {}, None, None),
    ],
)  # fmt: skip
def test_a_containers_limits(
    own: str, files: dict[str, str], bytes_: int | None, cpus: float | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory() == (bytes_ or whole)
    assert machine.cpu_quota() == cpus


def test_a_port_that_is_taken() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not machine.port_is_free(server.getsockname()[1])


# --- what is told ---------------------------------------------------------------------------------


def test_no_ones_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr(masking, "_names", {})
    masking.hide("TOKEN", "s3cret")
    given = "/home/alice/runs, /home/alice2, /data/alice/x: s3cret"
    assert doctor._tidy(given) == "~/runs, /home/alice2, /data/USER/x: ${TOKEN}"


def test_a_report_is_plain_text() -> None:
    lines = [Line("CPU", "[an] EPYC"), Line("memory", "2.0 GB", "warning", "Take less.")]
    assert doctor.bug_report(lines) == "ok       CPU     [an] EPYC\nwarning  memory  2.0 GB"


def test_a_fault_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line("disk", "[full]", "fault", "Make room."), Line("CPU", "fast")]
    monkeypatch.setattr(doctor, "examine", lambda config, overrides: lines)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 2
    assert "Make room." in done.stdout and "1 fault, 0 warnings" in done.stdout
    assert done.stdout.endswith("\nfault  disk  [full]\nok     CPU   fast\n")
    assert CliRunner().invoke(app, ["doctor", "--md"]).stdout.splitlines()[-1] == (
        "1 fault, 0 warnings"
    )


def test_places_of_a_configuration_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imports, "try_out", lambda modules, seconds: {})
    (tmp_path / "file").write_text("")
    (tmp_path / "job.yaml").write_text(
        "name: reviews\ndata: {csv: none.csv, text: text, label: label}\n"
        "model: {family: bert, start: tiny}\npush: {to: file/models}\n"
    )
    lines = {line.what: line for line in doctor.examine(Path("job.yaml"))}
    assert lines["configuration"].state == "fault" and "none.csv" in lines["configuration"].found
    assert lines["models"].state == "fault"
    assert "file is a file, and a folder is needed" in lines["models"].found
    lines = {line.what: line for line in doctor.examine(Path("none.yaml"))}
    assert "none.yaml: no such file" in lines["configuration"].found
    assert lines["models"].found.startswith("models: can be written")
