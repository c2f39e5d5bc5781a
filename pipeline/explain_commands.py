"""The command that says why a model answers as it does: `explain`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import ConfigError
from ..terminal import AsJson, AsMarkdown, Output, errors, hush

commands = typer.Typer()


@commands.command()
@errors
def explain(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model's folder of versions, or one version.")
    ],
    text: Annotated[str | None, typer.Option("--text", help="A text.")] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text of a pair.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="A picture's file.")
    ] = None,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="A row of the data; the first one is 1.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Where that row is; else the test rows.",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Whose score is explained; else the likeliest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; of pictures explanation.html."
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show which words or pixels gave a model's answer, by integrated gradients.

    Blue speaks for the label, orange against it. Exit codes: 0 explained, 2 something given
    cannot be used.
    """
    from . import explain as work

    if [text, image, row].count(None) != 2:
        raise ConfigError("give one of --text, --image and --row.")
    texts = [one for one in (text, pair) if one is not None]
    out = Output(as_json, as_md)
    hush()
    explained = work.explain(model, texts=texts, image=image, row=row, data=data, label=label)
    found = explained.found
    words = (work.coloured(found), "", work.table(found), "") if found.words else ()
    out.show(work.told(explained), *words, escape(explained.verdict))
    if output is None and (open_ or (found.pixels is not None and not out.alone)):
        output = Path("explanation.html")
    if output is not None:
        file = work.write(explained, output)
        out.tell(f"page: {escape(str(file))}")
        if open_:
            typer.launch(str(file))
