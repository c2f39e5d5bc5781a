"""The command that looks before anything runs: `check`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..terminal import AsJson, AsMarkdown, ConfigPath, Output, Overrides, Screen, errors
from .places import size_in_words

if TYPE_CHECKING:
    from .check import Check

commands = typer.Typer()
_LABELS_SHOWN = 6


@commands.command()
@errors
def check(
    config: ConfigPath,
    trial: Annotated[
        bool, typer.Option(help="Train for a few steps, for an estimate of the time.")
    ] = True,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Look at a configuration and its data without running, and say everything that is wrong.

    Also what is odd: copies, labels that contradict each other, rows of one split in another;
    and about what a run will take. Exit codes: 0 it can run, 2 something given cannot be used.
    """
    from .check import check as look

    output = Output(as_json, as_md)
    screen = output.progress() or Screen()
    progress = lambda line: screen.print(escape(line), style="dim", highlight=False)  # noqa: E731
    found = look(config, set_ or (), trial=trial, progress=progress)
    output.show(found, *parts(found))
    raise typer.Exit(found.exit_code)


def parts(found: "Check") -> list[RenderableType]:
    """What was found, for a person to read."""
    said: list[RenderableType] = [_splits(found), ""] if found.rows else []
    said += [f"{name:<11} {escape(words)}" for name, words in _lines(found)]
    said += [f"[yellow]warning:[/] {escape(warning)}" for warning in found.warnings]
    said += [f"[bold red]error:[/] {escape(fault)}" for fault in found.faults]
    return said if found.faults else [*said, "[green]It can run.[/]"]


def _splits(found: "Check") -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("split")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("labels")
    first = next(iter(found.labels.values()))
    for split, rows in found.rows.items():
        labels = found.labels[split]
        names = dict.fromkeys([*first, *labels])  # as the first split has them, for the eye
        shown = [
            f"{name} {labels.get(name, 0):,} ({labels.get(name, 0) / rows:.0%})" for name in names
        ]
        more = len(shown) - _LABELS_SHOWN
        words = ", ".join(shown[:_LABELS_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        table.add_row(split, f"{rows:,}", escape(words))
    return table


def _lines(found: "Check") -> list[tuple[str, str]]:
    lines = []
    if found.words:
        lines.append(
            (
                "words",
                f"{found.words[50]} a row in the middle, {found.words[95]} or fewer in 95 % of "
                f"the rows; about {found.cut:.1%} of the rows are cut",
            )
        )
    if found.rows:
        leaks = ", ".join(f"{n:,} in {pair}" for pair, n in found.leaks.items()) or "0"
        lines.append(
            (
                "copies",
                f"{found.duplicates:,} with the same label, {found.conflicts:,} with another; "
                f"across splits: {leaks}",
            )
        )
    lines += [
        (
            "disk",
            f"about {size_in_words(place.needed)} in {place.path}; "
            f"{size_in_words(place.free)} are free",
        )
        for place in found.places
    ]
    if found.estimate:
        estimate = found.estimate
        lines.append(
            (
                "time",
                f"about {_time(estimate.run)}, {_time(estimate.training)} of it training: "
                f"{estimate.steps:,} steps of {estimate.step:.2g} s on this machine",
            )
        )
    return lines


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
