"""`python -m espalier.serving serve ...`: the server and its tools, without the pipeline's."""

from .commands import commands

commands()
