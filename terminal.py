"""How every command speaks: errors as one sentence, tables wide enough."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from .errors import EspalierError

_WIDE = 160  # characters


def errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print a user's error as its message alone, and exit with its code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except EspalierError as error:
            fail(str(error), error.exit_code)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRAS:
                raise
            fail(
                f"this command needs {missing}, which is not installed. Install it with: pip "
                f"install 'espalier[{_EXTRAS[missing]}]'",
                2,
            )
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped; the next run goes on from here")
            raise typer.Exit(130) from None

    return wrapped


# What the light installation lacks, and what brings it.
_EXTRAS = {
    **dict.fromkeys(
        ("grpc_health", "prometheus_client", "tensorflow", "tensorflow_serving", "tornado"), "serve"
    ),
    **dict.fromkeys(
        (
            "kfp_server_api",
            "matplotlib",
            "ml_metadata",
            "pydantic",
            "ruamel",
            "tensorflow_data_validation",
            "tfx",
            "yaml",
        ),
        "pipeline",
    ),
}


def fail(message: str, code: int) -> None:
    """Print an error and exit."""
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(code) from None


def console() -> Console:
    """Standard output, wide enough for any table where no terminal bounds it."""
    found = Console()
    return found if found.is_terminal else Console(width=max(_WIDE, found.width))


def hush() -> None:
    """Keep TensorFlow's greeting and its kin's warnings off the screen, before they are loaded."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
