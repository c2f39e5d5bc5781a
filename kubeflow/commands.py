"""The command that needs no cluster: `compile`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..terminal import ConfigPath, Overrides, Screen, errors

commands = typer.Typer()


@commands.command("compile")
@errors
def compile_(
    config: ConfigPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it, as YAML.")
    ] = Path("pipeline.yaml"),
    image: Annotated[
        str, typer.Option(help="The container image, by tag or digest; else cluster.image.")
    ] = "",
    root: Annotated[
        str, typer.Option(metavar="URI", help="Where artifacts go; else cluster.root.")
    ] = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every component.")] = False,
    set_: Overrides = None,
) -> None:
    """Compile the job for Kubeflow Pipelines 2.x, and check it by the backend's own rules.

    The rows are looked at as before a run. Exit codes: 0 written, 2 the configuration, the data
    or the compiled pipeline cannot be used.
    """
    from ..pipeline.config import Config
    from .compiling import compile_pipeline, write

    job = Config.load(config, set_ or ())
    write(compile_pipeline(job, image=image, root=root, cache=not no_cache), output)
    Screen().print(
        f"wrote {escape(str(output))}; next: espalier submit --spec {escape(str(output))} --host "
        "URL, or upload it in the dashboard",
        highlight=False,
        soft_wrap=True,
    )
