"""The command line `espalier`, whole: `pipeline/cli.py`, and the commands for clusters.

It stands here because `pipeline` may not import `kubeflow`, which is built on it.
"""

from .kubeflow.commands import commands as compile_commands
from .kubeflow.manifest_commands import commands as manifest_commands
from .kubeflow.submit_commands import commands as submit_commands
from .pipeline.cli import app

for commands in (compile_commands, submit_commands, manifest_commands):
    app.add_typer(commands)

__all__ = ["app"]

if __name__ == "__main__":
    app()
