"""The command `gc`: where the disk went, and what of it nothing needs."""

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..terminal import AsJson, AsMarkdown, ConfigPath, Output, Overrides, errors

if TYPE_CHECKING:
    from .collecting import Beside, Disk, Piece

commands = typer.Typer()


@commands.command()
@errors
def gc(
    config: ConfigPath,
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest runs stay.")] = 3,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A run or version that stays from now on."),
    ] = None,
    unpin: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="One that need not stay any more.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else nothing is touched.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show what a pipeline takes on the disk, and remove what nothing needs any more.

    The newest runs stay, those whose versions lie in push.to, and pinned ones, with all that they
    were made from. Versions in push.to are not touched, nor is anything remote. Exit codes: 0 done,
    2 it cannot be, as while a run is going on.
    """
    from .collecting import collect
    from .config import Config

    output = Output(as_json, as_md)
    job = Config.load(config, set_ or ())
    disk = collect(job, keep, pin=pin or (), unpin=unpin or (), remove=yes)
    said = [_beside(one) for one in disk.beside]
    said.append(escape(_verdict(disk, removed=yes)))
    output.show({"removed": yes, **vars(disk)}, by_kind(disk), "", by_run(disk), "", *said)


def _beside(one: "Beside") -> str:
    size = "" if one.size is None else f"{_mb(one.size)} MB, "
    return escape(f"{one.path}: {size}{one.words}")


def _verdict(disk: "Disk", removed: bool) -> str:
    if not disk.goes:
        return f"Nothing can go; {disk.home} takes {_mb(disk.size)} MB."
    gone = _mb(sum(piece.size for piece in disk.goes))
    if removed:
        return f"Removed {gone} of the {_mb(disk.size)} MB in {disk.home}."
    return (
        f"{gone} of the {_mb(disk.size)} MB in {disk.home} can go: the same command with --yes "
        f"removes them."
    )


def by_kind(disk: "Disk") -> Table:
    """What each component and each kind of files takes, the largest first."""
    kinds = defaultdict(list)
    for piece in disk.pieces:
        kinds[piece.kind].append(piece)
    table = _table("kind")
    for kind, pieces in sorted(kinds.items(), key=lambda item: -_sum(item[1])):
        table.add_row(kind, *_sizes(pieces))
    return table


def by_run(disk: "Disk") -> Table:
    """What each run made, the newest first, and why it is kept."""
    runs = defaultdict(list)
    for piece in disk.pieces:
        if piece.run:
            runs[piece.run].append(piece)
    table = _table("run")
    table.add_column("kept as")
    for run in sorted({*runs, *disk.kept}, reverse=True):
        shared = "in part: other runs use it" if any(p.kept for p in runs[run]) else "-"
        table.add_row(run[:19], *_sizes(runs[run]), escape(disk.kept.get(run, shared)))
    return table


def _table(first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in ("MB", "can go"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _sizes(pieces: "list[Piece]") -> tuple[str, str]:
    going = _sum([piece for piece in pieces if not piece.kept])
    return _mb(_sum(pieces)), _mb(going) if going else "-"


def _sum(pieces: "list[Piece]") -> int:
    return sum(piece.size for piece in pieces)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
