"""How every command speaks: errors as one sentence; results as tables, JSON or Markdown."""

import dataclasses
import errno
import functools
import json
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from . import masking
from .errors import ConfigError, EspalierError

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key for this call: train.epochs=1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and only that.")]
AsMarkdown = Annotated[bool, typer.Option("--md", help="The same as GitHub's Markdown.")]

_WIDE = 160  # characters

# Texts, labels and names come from anywhere. What would move a terminal's cursor, write to its
# clipboard or turn the direction of what follows is shown as a picture of itself.
_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_SHOWN |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
_SHOWN |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def harmless(text: str) -> str:
    """The text without anything that a terminal or a reader of bidirectional text would obey."""
    return text.translate(_SHOWN)


class Screen(Console):
    """Rich's console, on which the texts that are shown cannot steer the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """See `rich.console.Console.render`; control codes of Rich's own come marked as such."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


def errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print a user's error as its message alone, and exit with its code."""

    @functools.wraps(command)
    @masking.streams()
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()  # here, where a full disk behind it is still told in a sentence
        except EspalierError as error:
            fail(str(error), error.exit_code)
        except OSError as error:
            if error.errno not in _NO_FAULT_OF_OURS:
                raise
            fail(_sentence(error), 2)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRAS:
                raise
            fail(
                f"this command needs {missing}, which is not installed. Install it with: pip "
                f"install 'espalier[{_EXTRAS[missing]}]'",
                2,
            )
        except KeyboardInterrupt:
            Screen(stderr=True).print("stopped; the next run goes on from here")
            raise typer.Exit(130) from None

    return wrapped


# What the system may answer wherever something is written, and what to do.
_NO_FAULT_OF_OURS = {
    errno.ENOSPC: "make room there (`espalier gc` shows what of earlier runs can go)",
    errno.EDQUOT: "make room there (`espalier gc` shows what of earlier runs can go)",
    errno.EROFS: "name another place",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
}


def _sentence(error: OSError) -> str:
    advice = _NO_FAULT_OF_OURS[error.errno or 0]
    # A write that fails does not name its file, which is most often where the output goes.
    place = error.filename or "what the command writes, or its output"
    return f"{place}: {error.strerror}. To go on, {advice}, and give the command again."


# What the light installation lacks, and what brings it.
_EXTRAS = {
    **dict.fromkeys(
        ("grpc_health", "prometheus_client", "tensorflow", "tensorflow_serving", "tornado"), "serve"
    ),
    **dict.fromkeys(
        (
            "kfp_server_api",
            "matplotlib",
            "ml_metadata",
            "pydantic",
            "ruamel",
            "tensorflow_data_validation",
            "tfx",
            "yaml",
        ),
        "pipeline",
    ),
}


def fail(message: str, code: int) -> None:
    """Print an error and exit."""
    Screen(stderr=True).print(
        f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(code) from None


def console() -> Console:
    """Standard output, wide enough for any table where no terminal bounds it."""
    found = Screen()
    return found if found.is_terminal else Screen(width=max(_WIDE, found.width))


def hush() -> None:
    """Keep TensorFlow's greeting and its kin's warnings off the screen, before they are loaded."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")


class Output:
    """A command's result: for a person, or alone on standard output, as JSON or Markdown.

    Args:
        as_json, as_md: of --json and --md.

    Raises:
        ConfigError: both are given.
    """

    def __init__(self, as_json: bool, as_md: bool) -> None:
        if as_json and as_md:
            raise ConfigError("give --json or --md, not both.")
        self._as_json, self.alone = as_json, as_json or as_md

    def progress(self) -> Console | None:
        """Where progress goes: standard error beside a result that stands alone, else None."""
        if not self.alone:
            return None
        # A copy: during a run, what libraries write to standard error goes to the log. The process
        # ends soon, and closes it.
        copy = open(os.dup(2), "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        masked: Any = masking.Stream(copy)
        return Screen(file=masked)

    def show(self, data: Any, *parts: RenderableType, screen: Console | None = None) -> None:
        """Print the result.

        Args:
            data: for JSON: mappings, lists, dataclasses, strings, paths, numbers, None.
            parts: for a person and for Markdown: tables, trees, and sentences in Rich's markup.
            screen: of a person; `console()` if None.
        """
        if self._as_json:
            sys.stdout.write(json.dumps(_plain(data), indent=1) + "\n")
        elif self.alone:
            sys.stdout.write(harmless(markdown(Group(*parts))) + "\n")
        else:
            for part in parts:
                if isinstance(part, str):
                    self.tell(part)
                else:
                    (screen or console()).print(part)

    def tell(self, words: str) -> None:
        """A sentence beside the result, in Rich's markup: for people alone."""
        Screen(stderr=self.alone).print(words, highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """As JSON takes it; a number that it has no word for is null."""
    if dataclasses.is_dataclass(value):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def markdown(part: Any) -> str:
    """A table, a tree, a sentence or a group of them, as GitHub's Markdown."""
    if isinstance(part, Group):
        return "\n\n".join(filter(None, map(markdown, part.renderables)))
    if isinstance(part, Table):
        return "\n".join(_table_lines(part))
    if isinstance(part, Tree):
        return "\n".join([_marked(part.label), "", *_bullets(part)])
    return _marked(part)


def _table_lines(table: Table) -> Iterator[str]:
    if table.title:
        yield f"**{_marked(table.title)}**"
        yield ""
    columns = table.columns
    heads = [_marked(one.header) if table.show_header else "" for one in columns]
    rule = ["---:" if one.justify == "right" else "---" for one in columns]
    rows = zip(*(map(_marked, one.cells) for one in columns), strict=True)
    for row in (heads, rule, *rows):
        yield f"| {' | '.join(row)} |"


def _bullets(tree: Tree, indent: str = "") -> Iterator[str]:
    for child in tree.children:
        if "\n" in (words := _words(child.label)):  # a file's text
            yield textwrap.indent(f"```\n{words}\n```", indent)
        else:
            yield f"{indent}- {_marked(child.label)}"
        yield from _bullets(child, indent + "  ")


def _marked(part: Any) -> str:
    """One line of text in which Markdown finds no marks of its own."""
    return re.sub(r"([\\|*`<]|\[(?=[^\]]*\]\())", r"\\\1", " ".join(_words(part).split()))


def _words(part: Any) -> str:
    return Text.from_markup(part).plain if isinstance(part, str) else str(part or "")
