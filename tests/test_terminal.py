"""How commands speak: tables as JSON and Markdown; and what a shell completes."""

import ast
import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from espalier import ConfigError
from espalier.terminal import Output, Screen, errors, markdown


def table(title: str | None = None, header: bool = True) -> Table:
    """Two columns, one of numbers, and a cell with marks of Rich and of Markdown."""
    made = Table(title=title, show_header=header, box=None)
    made.add_column("what")
    made.add_column("how\nmany", justify="right")
    made.add_row("[green]a | *b*[/]", "1,000")
    made.add_row("\\[c] <d>")
    return made


def test_a_table_in_markdown() -> None:
    assert markdown(table("a title")).splitlines() == [
        "**a title**",
        "",
        "| what | how many |",
        "| --- | ---: |",
        "| a \\| \\*b\\* | 1,000 |",
        "| [c] \\<d> |  |",
    ]
    assert markdown(table(header=False)).startswith("|  |  |\n| --- | ---: |\n")


def test_a_tree_and_a_group_in_markdown() -> None:
    tree = Tree("[bold]reviews[/] version 7")
    tree.add("made by").add("Trainer [dim](done)[/]")
    tree.add("settings").add("a: 1\nb: 2")
    whole = markdown(Group(Text(""), tree, "\n[red]refused[/]"))
    assert whole.splitlines() == [
        "reviews version 7", "",
        "- made by", "  - Trainer (done)",
        "- settings", "  ```", "  a: 1", "  b: 2", "  ```", "",
        "refused",
    ]  # fmt: skip


@dataclass
class Found:
    name: str
    where: Path
    value: float


def test_json_has_raw_values_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(True, False)
    output.show([Found("é", Path("a/b"), float("nan"))], table(), "a sentence")
    output.tell("[bold]beside it[/]")
    out, err = capsys.readouterr()
    assert json.loads(out) == [{"name": "é", "where": "a/b", "value": None}]
    assert err == "beside it\n"


def test_a_person_gets_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(False, False)
    assert output.progress() is None
    output.show({}, table(), "\n[red]a sentence[/]")
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == ["", "a sentence"] and "a | *b*" in out
    assert err == ""


def test_one_of_the_two() -> None:
    with pytest.raises(ConfigError, match="--json or --md, not both"):
        Output(True, True)


# --- completion -----------------------------------------------------------------------------------

COMPLETE = (
    "import sys; from espalier.cli import app\n"
    "try: app(prog_name='espalier')\n"
    "finally: print({'tensorflow', 'tfx', 'ruamel', 'numpy'} & set(sys.modules), file=sys.stderr)"
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("espalier do", ["doctor"]),
        ("espalier run --fr", ["--from"]),
        ("espalier run --runner b", ["beam"]),
        ("espalier run reviews.yaml --js", ["--json"]),
    ],
)
def test_a_shell_completes_and_nothing_heavy_is_loaded(words: str, found: list[str]) -> None:
    asked = {"_ESPALIER_COMPLETE": "complete_bash", "COMP_WORDS": words}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        env={**os.environ, **asked, "COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == found, done.stderr
    assert done.stderr == "set()\n"


def test_the_shells_script_is_shown() -> None:
    command = [sys.executable, "-c", COMPLETE, "--show-completion", "bash"]
    # Else the shell is the one that started the tests, if there is one.
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "complete -o default -F _espalier_completion espalier" in done.stdout, done.stderr


# Writes to the clipboard (OSC 52), moves the cursor, rings, turns the direction of what follows.
STEERS = "\x1b]52;c;aGk=\x1b\\ \x1b[2J \x9b31m \a \u202eabc\u2066"
OBEYED = {"\x1b", "\x9b", "\a", "\u202e", "\u2066"}


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_cannot_steer_the_terminal(terminal: bool) -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=terminal, color_system=None, width=100)
    drawn = Table(STEERS, title=STEERS)
    drawn.add_row(Text(STEERS))
    tree = Tree(STEERS)
    tree.add(STEERS)
    for part in (STEERS, Text(STEERS), drawn, tree):
        screen.print(part)
    assert OBEYED.isdisjoint(out.getvalue())
    assert "␛]52;c;aGk=" in out.getvalue()


def test_colours_of_our_own_stay() -> None:
    out = io.StringIO()
    Screen(file=out, force_terminal=True, color_system="standard").print("[red]a[/]")
    assert out.getvalue() == "\x1b[31ma\x1b[0m\n"


def test_texts_cannot_steer_what_shows_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = Table("what")
    drawn.add_row(Text(f"{STEERS} ![a](http://elsewhere) [b](javascript:c) <script>"))
    Output(as_json=False, as_md=True).show({}, drawn)
    shown = capsys.readouterr().out
    assert OBEYED.isdisjoint(shown)
    for mark in ("!\\[a](", " \\[b](", "\\<script>"):
        assert mark in shown


def test_no_command_has_a_console_that_obeys() -> None:
    root = Path(__file__).parents[1]
    found = [
        f"{file}: {node.lineno}"
        for folder in ("pipeline", "kubeflow", "serving", "components", "trainer")
        for file in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    ]
    assert not found, "terminal.Screen is the console for texts from anywhere"


def test_a_full_disk_behind_the_output_is_a_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-m", "espalier.cli", "schema"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "No space left on device. To go on, make room" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "another place"), (errno.EACCES, "permissions")],
)
def test_what_the_system_refuses_is_a_sentence(
    code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @errors
    def command() -> None:
        raise OSError(code, os.strerror(code), "out.csv")

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: out.csv: {os.strerror(code)}. ") and words in said


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    @errors
    def command() -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file"):
        command()
