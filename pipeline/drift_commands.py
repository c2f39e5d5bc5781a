"""The command that watches what comes in: `drift`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..terminal import AsJson, AsMarkdown, ConfigPath, Output, Overrides, errors, hush

if TYPE_CHECKING:
    from .drift import Drift

commands = typer.Typer()
_STYLES = {"ok": "green", "alarm": "bold red", "too few": "yellow"}


@commands.command()
@errors
def drift(
    config: ConfigPath,
    log: Annotated[
        str, typer.Argument(metavar="LOG", help="Logged requests: a file, a folder or a glob.")
    ],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The largest distance that is no alarm.")
    ] = 0.1,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Compare requests that a server has logged with the rows that the model was trained on.

    LOG is what `espalier serve --request_log` writes. Exit codes: 0 no alarm, 2 something given
    cannot be used, 6 an alarm.
    """
    from .config import Config
    from .drift import compare

    output = Output(as_json, as_md)
    hush()
    found = compare(Config.load(config, set_ or ()), log, threshold)
    features = [{**vars(one), "verdict": one.verdict} for one in found.features]
    output.show(
        {**vars(found), "features": features, "alarms": found.alarms, "verdict": found.verdict},
        table(found),
        f"\n{escape(found.verdict)}",
    )
    raise typer.Exit(found.exit_code)


def table(found: "Drift") -> RenderableType:
    """What was compared, a line each."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("feature", "training rows", "logged rows"):
        table.add_column(name)
    table.add_column("measure", no_wrap=True)
    for name in ("distance", "noise", "threshold"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in found.features:
        words = (escape(word) for word in (one.name, one.training, one.log))
        numbers = (f"{one.distance:.3f}", f"{one.noise:.3f}", f"{one.threshold:g}")
        style = _STYLES[one.verdict]
        table.add_row(*words, one.measure, *numbers, f"[{style}]{one.verdict}[/]")
    return table
