"""The command that looks at the machine: `doctor`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..components.faults import counted
from ..terminal import AsJson, AsMarkdown, Output, Overrides, Screen, errors

commands = typer.Typer()
_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


@commands.command()
@errors
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Look at its places, too.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Look at this machine: Python, CPU, memory, disk, packages, GPUs, ports, folders.

    Imports the heavy packages in another process, which takes half a minute. Prints what it
    found, what to do, and a text for a bug report without names, home paths and secrets. Exit
    codes: 0 all well, or warnings alone, 2 a fault.
    """
    from . import doctor as work

    output = Output(as_json, as_md)
    with Screen(stderr=True).status("looking, and importing packages: half a minute"):
        lines = work.examine(config, set_ or ())
    table = Table("", "what", "found", "what to do", box=None, padding=(0, 2, 0, 0))
    for one in lines:
        state = f"[{_STYLES[one.state]}]{one.state}[/]"
        table.add_row(state, one.what, escape(one.found), escape(one.advice))
    count = Counter(one.state for one in lines)
    verdict = f"{counted(count['fault'], 'fault')}, {counted(count['warning'], 'warning')}"
    data = {"faults": count["fault"], "warnings": count["warning"], "lines": lines}
    output.show(data, table, f"\n{verdict}")
    if not output.alone:
        output.tell(f"\nFor a bug report:\n\n{escape(work.bug_report(lines))}")
    raise typer.Exit(2 if count["fault"] else 0)
