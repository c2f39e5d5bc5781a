"""The commands for pushed versions: `ls`, `show`, `rollback` and `rm`."""

from typing import Annotated

import typer
from rich.markup import escape

from ..terminal import AsJson, AsMarkdown, ConfigPath, Output, Overrides, Screen, errors

commands = typer.Typer()


@commands.command()
@errors
def ls(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """List the pushed versions, and the runs that pushed none; the newest first.

    A run that came to a version which was there already has no line of its own.
    """
    from . import versions
    from .config import Config

    output = Output(as_json, as_md)
    job = Config.load(config, set_ or ())
    rows, metric = versions.rows(job), job.evaluate.measured[0]
    data = [{**vars(row), "metric": metric, "value": row.metric} for row in rows]
    output.show(data, versions.table(rows, metric))


@commands.command()
@errors
def show(
    config: ConfigPath,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="A pushed version's number; else the newest."),
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show which data, settings and checkpoint gave a pushed version, and its verdict."""
    from .config import Config
    from .lineage import find, tree

    output = Output(as_json, as_md)
    found = find(Config.load(config, set_ or ()), version)
    output.show(found, tree(found))


@commands.command()
@errors
def rollback(
    config: ConfigPath,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]",
            help="Which to serve again; else the one before the one served now.",
        ),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Serve an earlier version again: a copy of it is published under a higher number.

    Servers go over to it as to any new version, and the next run is compared with it. Nothing is
    deleted. Exit codes: 0 it is served, 2 it cannot be, 3 its files cannot be read.
    """
    from . import versions
    from .config import Config

    new = versions.rollback(Config.load(config, set_ or ()), version)
    Screen().print(
        f"served now: {escape(new.folder)}, a copy of version {new.copy_of}",
        highlight=False,
        soft_wrap=True,
    )


@commands.command()
@errors
def rm(
    config: ConfigPath,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Its number; not of the one served now.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    set_: Overrides = None,
) -> None:
    """Delete a version from push.to; what is known of it stays.

    Exit codes: 0 deleted, 1 you said no, 2 it cannot be deleted.
    """
    from . import versions
    from .config import Config

    job = Config.load(config, set_ or ())
    folder = versions.find_removable(job, version)
    if not yes:
        size = versions.size_of(folder) / 1e6
        typer.confirm(f"Delete {folder} ({size:.1f} MB)?", abort=True)
    versions.remove(job, version)
    Screen().print(f"deleted {escape(str(folder))}", highlight=False, soft_wrap=True)
