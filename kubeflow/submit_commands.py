"""The commands of a cluster: `submit`, `runs`, `schedule`. They parse, call and print."""

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import ConfigError
from ..terminal import AsJson, AsMarkdown, Output, Overrides, Screen, console, errors

commands = typer.Typer()

Host = Annotated[
    str,
    typer.Option(
        metavar="URL", envvar="KF_PIPELINES_ENDPOINT", help="Where Kubeflow Pipelines' UI answers."
    ),
]
ConfigPath = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The YAML file.")]
SpecPath = Annotated[
    Path | None,
    typer.Option("--spec", metavar="FILE", help="A compiled PipelineSpec instead of CONFIG."),
]
Image = Annotated[
    str | None, typer.Option(help="The container image; else the configuration's cluster.image.")
]
Root = Annotated[
    str, typer.Option(metavar="URI", help="Where artifacts go: minio://, s3:// or gs://.")
]
Experiment = Annotated[str, typer.Option(metavar="NAME", help="Created if there is none.")]
Namespace = Annotated[
    str, typer.Option("--namespace", metavar="NS", help="Yours, where Kubeflow has several users.")
]
Token = Annotated[
    str, typer.Option("--token", help="Others on this machine can see it; a file is better.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Read anew for each call.")
]
Authority = Annotated[
    Path | None, typer.Option("--ca", metavar="PEM", help="Who signed the server's certificate.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every component.")]

_MARKS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red"}


@commands.command()
@errors
def submit(
    host: Host,
    config: ConfigPath = None,
    spec: SpecPath = None,
    image: Image = None,
    root: Root = "",
    experiment: Experiment = "Default",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    namespace: Namespace = "",
    token: Token = "",
    token_file: TokenFile = None,
    ca: Authority = None,
    no_cache: NoCache = False,
    set_: Overrides = None,
) -> None:
    """Upload the pipeline to Kubeflow Pipelines and run it there.

    A pipeline of that name gets a new version, unless it has the same one already. Exit codes:
    0 submitted, or with --wait succeeded, 2 something given cannot be used, 3 the run failed,
    5 the server refused or does not answer.
    """
    from .server import Server

    compiled = _compiled(config, spec, image, root, no_cache, set_)
    server = Server(_named(host), **_access(token, token_file, ca, namespace))
    where = server.experiment(experiment, create=True)
    version = server.upload(compiled)
    run = server.run(compiled, version, experiment=where, root=root)
    _tell_version(compiled.name, version)
    _print(f"run       {server.link(run)}")
    if wait:
        raise typer.Exit(_follow(server, run, compiled.tasks))


@commands.command()
@errors
def runs(
    host: Host,
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this experiment only.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    namespace: Namespace = "",
    token: Token = "",
    token_file: TokenFile = None,
    ca: Authority = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show the newest runs on Kubeflow Pipelines."""
    from .server import Server

    output = Output(as_json, as_md)
    server = Server(_named(host), **_access(token, token_file, ca, namespace))
    found = server.recent(limit, server.experiment(experiment, create=False) if experiment else "")
    rows = [_described(server, run) for run in found]
    if not rows:
        output.show(rows, "no runs")
        return
    table = Table("name", "state", "begun", "took", "link", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        begun = f"{row['begun'].astimezone():%Y-%m-%d %H:%M}" if row["begun"] else ""
        name, link = escape(row["name"]), escape(row["link"])
        table.add_row(name, _word(row["state"]), begun, _took(row["seconds"]), link)
    # A link that is broken in two opens nothing.
    wide = max(console().width, Screen(width=10_000).measure(table).maximum)
    output.show(rows, table, screen=Screen(width=wide))


def _described(server: Any, run: dict[str, Any]) -> dict[str, Any]:
    from .server import instant, seconds

    return {
        "id": run["run_id"],
        "name": run.get("display_name", ""),
        "state": run.get("state", ""),
        "begun": instant(run.get("created_at")),
        "seconds": seconds(run.get("created_at"), run.get("finished_at")),
        "link": server.link(run["run_id"]),
    }


@commands.command()
@errors
def schedule(
    host: Host,
    cron: Annotated[
        str,
        typer.Option(help='Minute, hour, day, month, weekday: "0 3 * * *"; or with seconds first.'),
    ],
    config: ConfigPath = None,
    spec: SpecPath = None,
    image: Image = None,
    root: Root = "",
    experiment: Experiment = "Default",
    namespace: Namespace = "",
    token: Token = "",
    token_file: TokenFile = None,
    ca: Authority = None,
    no_cache: NoCache = False,
    set_: Overrides = None,
) -> None:
    """Run the pipeline on Kubeflow Pipelines again and again, one run at a time."""
    from .cron import six_fields
    from .server import Server

    fields = six_fields(cron)
    compiled = _compiled(config, spec, image, root, no_cache, set_)
    server = Server(_named(host), **_access(token, token_file, ca, namespace))
    where = server.experiment(experiment, create=True)
    version = server.upload(compiled)
    made, before = server.schedule(compiled, version, fields, experiment=where, root=root)
    _tell_version(compiled.name, version)
    _print(f"schedule  {server.link(made, 'recurringrun')}")
    seconds = " (with 0 for the seconds in front, which KFP reads first)"
    _print(f"cron      {fields}{seconds if fields != ' '.join(cron.split()) else ''}")
    _print("times     the cluster's; UTC, unless its CRON_SCHEDULE_TIMEZONE is set")
    if before:
        _print(
            f"note      {before} older schedule(s) of {compiled.name} go on; disable them in the "
            f"UI: {server.host}/#/recurringruns"
        )


def _compiled(
    config: Path | None,
    spec: Path | None,
    image: str | None,
    root: str,
    no_cache: bool,
    overrides: list[str] | None,
) -> Any:
    """The Spec, compiled from a configuration or read from a file."""
    from .spec import MOST_BYTES, read_spec

    if (config is None) == (spec is None):
        raise ConfigError("give a CONFIG, or a compiled pipeline with --spec FILE; one of them.")
    if config is not None:
        from ..pipeline.config import Config
        from .compiling import compile_pipeline

        job = Config.load(config, overrides or ())
        text = compile_pipeline(job, image=image or "", root=root, cache=not no_cache)
        return read_spec(text, str(config))
    assert spec is not None
    given = {"--image": image, "--no-cache": no_cache, "--set": overrides}
    if useless := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{', '.join(useless)}: says how a CONFIG is compiled; {spec} is compiled already."
        )
    try:
        with spec.open("rb") as file:
            return read_spec(file.read(MOST_BYTES + 1).decode("utf-8"), str(spec))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{spec}: cannot be read as UTF-8 text: {error}.") from None


def _named(host: str) -> str:
    """The address, and a word about a scheme that was left out."""
    from .server import full_address

    full = full_address(host)
    if "://" not in host:
        Screen(stderr=True).print(
            f"--host has no scheme; taken as {escape(full)}", highlight=False, soft_wrap=True
        )
    return full


def _access(token: str, file: Path | None, ca: Path | None, namespace: str) -> dict[str, Any]:
    if token and file:
        raise ConfigError("give --token or --token-file, not both.")
    return {"token": token, "token_file": file, "ca": ca, "namespace": namespace}


def _follow(server: Any, run: str, names: tuple[str, ...]) -> int:
    """Print the tasks as they change, then how the run ended; its exit code."""
    from .watching import Task, watch

    wide = max((len(name) for name in names), default=0)

    def told(name: str, task: Task) -> None:
        took = _took(task.seconds)
        word = _word(task.state) + " " * (9 - len(task.state))
        _print(f"{escape(name)}{' ' * (wide - len(name))}  {word}  {took}".rstrip(), markup=True)

    try:
        end = watch(server, run, names, told, said=lambda words: _print(words, stderr=True))
    except KeyboardInterrupt:
        _print(f"stopped waiting; the run goes on on the cluster: {server.link(run)}", stderr=True)
        return 130
    for name, task in end.failed.items():
        why = task.error or f"the server does not say why; the task's log is at {server.link(run)}"
        _print(f"{name} failed: {why}", stderr=True)
    took = _took(end.seconds)
    _print(f"the run {_word(end.state)}{' after ' + took if took else ''}", markup=True)
    return end.exit_code


def _tell_version(name: str, version: Any) -> None:
    known = "" if version.new else " (it was there already)"
    _print(f"pipeline  {name}, version {version.name}{known}")


def _word(state: str) -> str:
    """A state as the user reads it; "" has not begun, or is one that KFP has no name for."""
    mark = _MARKS.get(state)
    word = escape(state.lower() or "unknown")
    return f"[{mark}]{word}[/]" if mark else word


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 3600 else str(datetime.timedelta(seconds=int(seconds)))


def _print(words: str, *, stderr: bool = False, markup: bool = False) -> None:
    """A line, whole however long: a link that is broken in two opens nothing."""
    Screen(stderr=stderr).print(words, highlight=False, soft_wrap=True, markup=markup)
