"""The notebook of the documentation runs from its first cell to its last, on less of everything."""

import ast
import re
import socket
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def parameters(notebook: Any) -> Any:
    """The cell whose values a test may change."""
    (cell,) = [one for one in notebook.cells if "parameters" in one.metadata.get("tags", [])]
    return cell


def printed(notebook: Any) -> str:
    """What all cells print or end with, without colours."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [o.get("text") or str(o.get("data", {}).get("text/plain")) for o in outputs]
    return re.sub(r"\x1b\[\d*m", "", "\n".join(texts))


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_it_runs(job: Any, small_bert: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = parameters(notebook)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    less = {
        "DATA": str(job.folder / "data"),
        "START": str(small_bert),
        "EPOCHS": 1,
        "AT_LEAST": 0.1,
        "PORT": port,
    }
    names = [node.targets[0].id for node in ast.parse(cell.source).body]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(less)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in less.items())
    (tmp_path / "examples").mkdir()  # where it looks for the checkout: here
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    text = printed(notebook)
    assert re.search(r"Pusher +done", text)
    assert "Blessed: accuracy" in text and "category=home" in text
    assert f"gRPC 0.0.0.0:{port}" in text
    assert "array(['" in text
    assert list((tmp_path / "models" / "tour").glob("*/saved_model.pb"))
    assert list((tmp_path / "runs" / "tour" / "reports").glob("*.html"))
