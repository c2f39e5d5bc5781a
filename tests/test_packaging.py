"""The package is what its folders are, imports run one way, and nothing names one machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import espalier

ROOT = Path(__file__).parents[1]
FOLDERS = ("components", "kubeflow", "pipeline", "serving", "trainer")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# Which other folders a folder's modules may import; the root's errors are open to all.
MAY_IMPORT = {
    "trainer": set(),
    "serving": set(),
    "components": {"trainer", "serving"},
    "pipeline": {"components", "trainer", "serving"},
    "kubeflow": {"components", "trainer", "serving", "pipeline"},
}


def dotted(path: Path) -> str:
    """The package that a module's relative imports count from: `espalier.trainer` for run.py."""
    return ".".join(("espalier", *path.relative_to(ROOT).parent.parts))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolute, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = dotted(path).split(".")
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def tracked() -> list[Path]:
    """Every file that git knows of, as text or not."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_every_folder_with_modules_is_listed_as_a_package() -> None:
    # setuptools checks the other half: it refuses to build a package that has no folder.
    listed = re.search(r"\npackages = \[\n(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    assert listed
    names = re.findall(r'"(.+)"', listed[1])
    assert sorted(names) == sorted({"espalier", *map(dotted, MODULES)})
    for name in names:
        assert (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        first, _, rest = name.partition(".")
        assert first not in FOLDERS, f"import {name}: a bare import of a folder; make it relative"
        other = rest.partition(".")[0]
        if first == "espalier" and other in FOLDERS and other != own:
            assert other in MAY_IMPORT[own], f"{own} must not import {name}"


def test_imports_between_folders_are_relative() -> None:
    bare = re.compile(r"^\s*(from|import) espalier\b", re.M)
    assert [p for p in MODULES if bare.search(p.read_text(encoding="utf-8"))] == []


def test_public_names_are_importable_and_cheap() -> None:
    for name in espalier.__all__:
        assert getattr(espalier, name).__name__ == name
    assert sorted(espalier.__all__) == espalier.__all__
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = espalier.Nonsense
    code = (
        "import sys, espalier, espalier.pipeline.config, espalier.pipeline.cli;"
        "early = {'tensorflow', 'tfx', 'tf_keras', 'apache_beam'} & set(sys.modules);"
        "sys.exit(', '.join(early) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported too early: {done.stderr}"


def test_no_file_names_one_machine() -> None:
    # Spelled so that this file does not hold what it looks for.
    places = re.compile(rb"(?<![\w.])/(?:root|work|tmp/w)/")
    assert [p for p in tracked() if places.search(p.read_bytes())] == []


def test_no_file_names_a_package_registry() -> None:
    # The machine's own settings say where packages come from.
    hosts = re.compile(rb"(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)")
    assert [p for p in tracked() if hosts.search(p.read_bytes())] == []
