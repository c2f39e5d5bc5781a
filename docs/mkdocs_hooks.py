"""What mkdocs has to be told: the README is the first page, the notebook is a page too.

On a forge the pages link to files outside docs/. The site has none of these, so there such a link
is its text alone.
"""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent


def on_files(files: Files, config: Any) -> Files:
    """Add the two pages that are made of files which are no Markdown of docs/."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\]\(docs/", "](", re.sub(r"\]\((?!docs/|#|\w+:)", "](../", readme))
    notebook = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
    for name, text in {"index.md": readme, "tour.md": _markdown(notebook)}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that leave docs/ become their text, unless the site has a page of that file."""
    markdown = markdown.replace("(tour.ipynb)", "(tour.md)").replace("(../README.md", "(index.md")
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _markdown(notebook: dict[str, Any]) -> str:
    """A notebook's texts and code, without outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)
