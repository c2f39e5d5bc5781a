"""The reference pages are what the code says, each page is linked from the README, the site builds.

What the pages' commands do is tested in e2e/test_docs.py.
"""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration", "commands"])
def test_the_reference_is_up_to_date(generate: ModuleType, page: str) -> None:
    written = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert getattr(generate, page)() == written, "run `python docs/generate.py`"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme


def test_links_to_other_files_of_the_repository_lead_somewhere() -> None:
    # The site has none of these; links between pages are checked when it is built.
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_comparison_has_only_numbers_that_were_measured() -> None:
    measured, told = (
        set(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", (ROOT / "docs" / name).read_text("utf-8")))
        for name in ("measurements.md", "comparison.md")
    )
    files = ("benchmarks/peer/stock_tfx.py", "examples/reviews-tiny.yaml")
    texts = [(ROOT / name).read_text("utf-8").splitlines() for name in files]
    lines = [[line for line in text if line.strip() and line.strip()[0] != "#"] for text in texts]
    assert told - measured - {str(len(one)) for one in lines} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; no page or anchor that is linked is missing, no page is left out of nav."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """Gathers what a browser fetches by itself to show a page, and the text that it shows."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.places: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            return
        for name, value in attrs:
            if name in ("src", "srcset", "href", "data", "poster"):
                self.places.append(value or "")
            elif name == "style":
                self.places += re.findall(r"url\((.*?)\)", value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    elsewhere = re.compile(r"\s*[\"']?(\w+:)?//")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        places = Loaded(page).places
        assert len(places) > 3
        assert [place for place in places if elsewhere.match(place)] == [], page.name
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s*)([^)\s;]+)", sheet.read_text(encoding="utf-8"))
        assert [place for place in found if elsewhere.match(place)] == [], sheet.name


def test_the_site_reads_as_the_pages_do(site: Path) -> None:
    for page in site.glob("*.html"):
        text = Loaded(page).text
        # Markdown that the forge knows and mkdocs does not would stand there as it was typed.
        assert not re.search(r"^(```|- \S|\| .* \|$)|\]\(\w", text, re.M), page.name
