"""Where the code of others comes from: every package locked with its hash, and nothing beside."""

import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-setup.lock")
UV = ROOT / ".uv" / "bin" / "uv"


def pins(text: str) -> dict[str, tuple[str, int]]:
    """Of a lock: each package's version, and how many hashes it has."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if head := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", block):
            hashes = len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block))
            found[canonicalize_name(head[1])] = (head[2], hashes)
    return found


def odd_lines(text: str) -> list[str]:
    """The lines of a lock that are neither a pin, nor its hashes, nor a remark."""
    pin = r"[A-Za-z0-9._-]+(\[[^]]*\])?==\S+( ;[^\\]+)? \\"
    form = rf"{pin}|    --hash=sha256:[0-9a-f]{{64}}( \\)?|\s*#.*|"
    return [line for line in text.splitlines() if not re.fullmatch(form, line)]


def unlocked(wanted: Iterable[str], locked: dict[str, tuple[str, int]]) -> list[str]:
    """The requirements that no pin of the lock meets."""
    lacks = []
    for line in wanted:
        need = Requirement(line)
        pin = locked.get(canonicalize_name(need.name))
        if need.name != "espalier" and (pin is None or pin[0] not in need.specifier):
            lacks.append(line)
    return lacks


def differing(locked: dict[str, tuple[str, int]]) -> list[str]:
    """The packages that are installed in another version than the lock's."""
    # Not all of sys.path: setuptools puts packages of its own there when it is imported.
    place = [sysconfig.get_path("purelib")]
    found = importlib.metadata.distributions(path=place)
    here = {canonicalize_name(one.metadata["Name"]): one.version for one in found}
    return [name for name, (version, _) in locked.items() if here.get(name, version) != version]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_has_its_hashes(name: str) -> None:
    text = read(name)
    assert odd_lines(text) == []
    assert [one for one, (_, hashes) in pins(text).items() if not hashes] == []


def test_a_line_without_a_hash_is_found() -> None:
    text = read("requirements-setup.lock")
    assert pins(text.splitlines()[0].rstrip(" \\")) == {"uv": (pins(text)["uv"][0], 0)}
    for line in ("six", "six==1.17.0", "-e .", "six @ https://elsewhere/six.whl", "--index-url x"):
        assert odd_lines(f"{text}\n{line}\n") == [line]


def test_what_pyproject_names_is_locked() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    extras = project["project"]["optional-dependencies"]
    needed = [*project["project"]["dependencies"], *extras["serve"], *extras["pipeline"]]
    locked = pins(read("requirements.lock"))
    assert unlocked(needed, locked) == []
    assert unlocked(project["dependency-groups"]["dev"], pins(read("requirements-dev.lock"))) == []
    assert unlocked([*needed, "left-pad", "numpy==2.0.0"], locked) == ["left-pad", "numpy==2.0.0"]


def test_what_is_installed_is_what_is_locked() -> None:
    locked = pins(read("requirements.lock")) | pins(read("requirements-dev.lock"))
    assert differing(locked) == [], "run ./setup.sh"
    assert differing({**locked, "numpy": ("2.0.0", 1)}) == ["numpy"]


def wheel(folder: Path, content: str) -> Path:
    """A package of one module, as pip and uv install it."""
    file = folder / "strange-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("strange.py", content)
        info = "strange-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return file


def test_setup_refuses_a_package_that_is_not_the_locked_one(tmp_path: Path) -> None:
    if not UV.exists():
        pytest.skip("not set up by setup.sh")
    setup = read("setup.sh")
    asked = re.findall(r"(?:uv pip sync|pip install)[^\n]*--require-hashes", setup)
    assert len(asked) == 2, "uv itself, and all that it installs"
    lock, target = tmp_path / "a.lock", tmp_path / "target"

    def install() -> str:
        command = [UV, "pip", "sync", "--require-hashes", "--no-index", "--no-cache", "--target",
                   target, "--find-links", tmp_path, "--python", sys.executable, lock]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr

    digest = hashlib.sha256(wheel(tmp_path, "good = 1").read_bytes()).hexdigest()
    lock.write_text(f"strange==1.0 --hash=sha256:{digest}\n")
    assert install() == ""
    wheel(tmp_path, "good = 0")
    (target / "strange.py").unlink()
    subprocess.run([UV, "pip", "uninstall", "-q", "--target", target, "strange"], check=True)
    assert "Hash mismatch" in install()
    lock.write_text("strange==1.0\n")
    assert "--require-hashes" in install()
    assert not (target / "strange.py").exists()


# --- what is known of the packages --------------------------------------------------------------


def test_a_weakness_that_the_audit_passes_over_has_a_reason_and_a_package() -> None:
    locked = pins(read("requirements.lock")) | pins(read("requirements-dev.lock"))
    for line in read("audit.txt").splitlines():
        if line and not line.startswith("#"):
            found = re.fullmatch(r"((?:CVE|GHSA|PYSEC)-[\w-]+) (\S+): (\S.{20,})", line)
            assert found, line
            assert found[2] in locked, f"{line}: take it out"


def test_protobuf_does_not_parse_in_python() -> None:
    from google.protobuf.internal import api_implementation

    assert api_implementation.Type() == "cpp"  # what audit.txt says of CVE-2025-4565


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_licences_is_up_to_date(licences: ModuleType) -> None:
    assert licences.licences() == read("docs/licences.md"), "run `python docs/licences.py`"


def test_no_package_is_under_a_strong_copyleft(licences: ModuleType) -> None:
    assert "Under a GPL, an LGPL or an AGPL: none." in licences.licences()
    for words in ("GPL-3.0-only", "LGPL v2", "GNU General Public License v3", "MPL-2.0"):
        assert licences.is_copyleft(words)
    assert not licences.is_copyleft("MIT")
