"""The command `diff`: two runs or versions side by side, for a pull request or a program."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from ..terminal import ConfigPath, Overrides, errors

commands = typer.Typer()


@commands.command()
@errors
def diff(
    config: ConfigPath,
    first: Annotated[
        str, typer.Argument(metavar="A", help="A run's id, its beginning, or a version.")
    ],
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="Another; else the last run.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json/--md", help="JSON, or Markdown for a pull request.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Show what differs between two runs: settings, data, metrics, size and speed, packages.

    Exit codes: 0 shown, 2 there is no such run.
    """
    from .config import Config
    from .diff import compare, markdown

    found = compare(Config.load(config, set_ or ()), first, second)
    text = json.dumps(dataclasses.asdict(found), indent=1) if as_json else markdown(found)
    sys.stdout.write(text.rstrip("\n") + "\n")
