"""The command that writes what Kubernetes needs: `manifests`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..terminal import ConfigPath, Overrides, Screen, errors

commands = typer.Typer()


@commands.command()
@errors
def manifests(
    config: ConfigPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is not there yet.")
    ] = Path("manifests"),
    image: Annotated[
        str, typer.Option(help="The image that trains; else the configuration's cluster.image.")
    ] = "",
    canary: Annotated[
        int | None,
        typer.Option(
            metavar="PERCENT", help="KServe: how many calls this revision gets; 0 to 100."
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(metavar="N", help="Pods that serve at least; four times that at most.")
    ] = 2,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Pods that train; 2 with train.distribute: multi_worker, else 1."
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option(metavar="NS", help="Where it goes; else where kubectl points.")
    ] = "",
    set_: Overrides = None,
) -> None:
    """Write the Kubernetes manifests that serve the model: TensorFlow Serving's and KServe's.

    And a TFJob that trains it. Nothing is sent to a cluster. Exit codes: 0 written, 2 something
    given cannot be used.
    """
    from ..pipeline.config import Config
    from . import manifests as work

    job = Config.load(config, set_ or ())
    files = work.render(
        job, image=image, canary=canary, replicas=replicas, workers=workers, namespace=namespace
    )
    needed = work.needs(job)
    work.write(files, output)
    screen = Screen()

    def say(text: str) -> None:
        screen.print(escape(text), highlight=False, soft_wrap=True)

    if needed.labels:
        where = "alone" if needed.certain else "where there are any"
        say(f"{needed.reason} Pods go to nodes labelled {' and '.join(needed.labels)} {where}.")
    if job.secrets:
        say(f"Set {', '.join(job.secrets)} in the TFJob's pods, from a Secret of yours.")
    way, others = "serving", "or KServe with kserve; training is a TFJob"
    if "serving/kustomization.yaml" not in files:
        say("TensorFlow Serving does not read s3:// itself: only KServe's manifest was written.")
        way, others = "kserve", "which needs KServe"
    say(f"wrote {output}; next: kubectl apply -k {output / way}  ({others})")
