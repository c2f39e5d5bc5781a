"""The command line `espalier`. Commands parse, call the library and print; nothing else."""

import json
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from ..errors import ConfigError
from ..serving.commands import commands as serving_commands
from ..terminal import AsJson, AsMarkdown, ConfigPath, Output, Overrides, Screen, errors, hush
from .check_commands import commands as check_commands
from .diff_commands import commands as diff_commands
from .doctor_commands import commands as doctor_commands
from .drift_commands import commands as drift_commands
from .explain_commands import commands as explain_commands
from .gc_commands import commands as gc_commands
from .version_commands import commands as version_commands

app = typer.Typer(
    name="espalier",
    help="Customise an open model, make it small, and put it behind TensorFlow Serving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(serving_commands)
app.add_typer(version_commands)
app.add_typer(check_commands)
app.add_typer(diff_commands)
app.add_typer(gc_commands)
app.add_typer(drift_commands)
app.add_typer(explain_commands)
app.add_typer(doctor_commands)

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model's folder of versions, or one version.")
]
Rows = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Rows: a CSV with the model's columns (a file, folder or glob), or pictures.",
    ),
]


@app.command()
@errors
def run(
    config: ConfigPath,
    set_: Overrides = None,
    from_node: Annotated[
        str | None, typer.Option("--from", metavar="NODE", help="Begin at this component.")
    ] = None,
    to_node: Annotated[
        str | None, typer.Option("--to", metavar="NODE", help="Stop after this component.")
    ] = None,
    runner: Annotated[
        Literal["local", "beam"],
        typer.Option(help="TFX's LocalDagRunner or its BeamDagRunner."),
    ] = "local",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every component.")] = False,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Take the model without comparing it with the blessed one."),
    ] = False,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Take the data through the whole line and publish the model if it is blessed.

    With train.distribute: multi_worker, every worker calls it: worker 0 does all of this, the
    others wait for its Trainer and train beside it.

    Exit codes: 0 pushed, 2 the configuration or the data cannot be used, 3 a component
    failed, 4 the model was not blessed.
    """
    from .config import Config
    from .results import table
    from .runner import follow, is_follower
    from .runner import run as run_config

    output = Output(as_json, as_md)
    job = Config.load(config, set_ or ())
    if is_follower(job):
        follow(job, console=output.progress())
        return
    result = run_config(
        job, runner=runner, from_node=from_node, to_node=to_node, cache=not no_cache,
        accept=accept, console=output.progress(),
    )  # fmt: skip
    output.show(result.model_dump(), table(result))
    raise typer.Exit(result.exit_code)


@app.command()
@errors
def plan(
    config: ConfigPath,
    set_: Overrides = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="As of `run`.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="As of `run`.")] = False,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Say which components a run would execute, which come from the cache, and why.

    Looks at the data as `run` does, and changes nothing. Exit codes: 0 said, 2 the configuration or
    the data cannot be used.
    """
    from .config import Config
    from .plan import lines
    from .runner import foresee

    output = Output(as_json, as_md)
    planned = foresee(Config.load(config, set_ or ()), cache=not no_cache, accept=accept)
    said = lines(planned) or ["nothing to do: the last run had the same to go by"]
    told = [{"component": one.name, "runs": one.runs, "why": one.why} for one in planned]
    output.show(told, *map(escape, said))


@app.command()
@errors
def sweep(
    config: ConfigPath,
    set_: Overrides = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Run every combination of the values in `sweep:` up to the Evaluator, and compare them.

    Nothing is pushed. Call it again after a kill, and it goes on. Exit codes: 0 all ran, 2 the
    configuration or the data cannot be used, 3 a run failed.
    """
    from . import sweep as work
    from .config import Config

    output = Output(as_json, as_md)
    swept = work.sweep(Config.load(config, set_ or ()), output.progress())
    parts: list[Any] = ["", work.table(swept)]
    if best := swept.groups[:1]:
        found = [f"{key}={json.dumps(value)}" for key, value in best[0].values.items()]
        given = [word for one in (*(set_ or ()), *found) for word in ("--set", one)]
        command = shlex.join(["espalier", "run", str(config), *given])
        words = f"the best {swept.metric}; to publish it: {command}"
        parts += ["", work.groups_table(swept), "", escape(words)]
    output.show({"runs": swept.rows, "groups": swept.groups}, *parts)
    raise typer.Exit(swept.exit_code)


@app.command()
@errors
def report(
    config: ConfigPath,
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Its id or a version; else the last.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="RUN", help="Set it beside this earlier run.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    set_: Overrides = None,
) -> None:
    """Draw a run's report anew: one page of HTML, which needs no network.

    Every run writes its own, a run that failed too. Exit codes: 0 drawn, 2 there is no such run.
    """
    from . import comparison
    from . import report as one_run
    from .config import Config

    home = Config.load(config, set_ or ()).home
    hush()  # data that have changed are compared by TFDV
    page = comparison.write(home, compare, run_id) if compare else one_run.write(home, run_id)
    Screen().print(escape(str(page)), highlight=False, soft_wrap=True)
    if open_:
        typer.launch(str(page))


@app.command()
@errors
def tensorboard(
    config: ConfigPath,
    port: Annotated[int, typer.Option(help="Where it listens, on this machine alone.")] = 6006,
    set_: Overrides = None,
) -> None:
    """Show the curves of all trainings of a job in TensorBoard, until Ctrl-C."""
    from .config import Config

    folder = Config.load(config, set_ or ()).home / "artifacts" / "Trainer" / "model_run"
    if not folder.exists():
        raise ConfigError(f"{folder}: no training of this job yet. Run `espalier run` first.")
    command = ["-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    raise typer.Exit(subprocess.call([sys.executable, *command]))


@app.command()
@errors
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A CSV or Parquet file or folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")
    ] = None,
) -> None:
    """Look at the data and write a commented configuration for it."""
    from .init import propose

    text = propose(data)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output}: exists already; name another file with -o.") from None
    except OSError as error:
        with suppress(OSError):  # half a file, which would stand in the way the next time
            output.unlink(missing_ok=True)
        raise ConfigError(f"{output}: cannot be written: {error.strerror}.") from None
    Screen().print(escape(f"wrote {output}; next: espalier run {output}"), highlight=False)


@app.command()
@errors
def compress(
    model: Model,
    recipe: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="`steps:`, `budget:`, `time_limit:`, or a configuration with them."
        ),
    ],
    data: Rows,
    to: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where to publish; the model's folder with -small."),
    ] = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Make a pushed version small by a recipe, and publish it if it keeps to the budget.

    A tenth of the rows is measured on, the rest trained on. Run it again after a kill, and it
    goes on. Exit codes: 0 published, 2 something given cannot be used, 3 it failed, 4 over the
    budget.
    """
    from .compress import compress as work
    from .results import compression_table

    output = Output(as_json, as_md)
    done = work(model, recipe, data, to, output.progress())
    words = "[green]published[/]:" if done.kept else "[red]not published[/]; the best candidate is"
    output.show(
        {"published": done.kept, "version": done.version, "report": done.report},
        compression_table(done.report),
        f"\n{escape(done.report['verdict'])}",
        f"{words} {escape(str(done.version))}",
    )
    output.tell(f"report: {escape(str(done.work / 'report.json'))}")
    raise typer.Exit(done.exit_code)


@app.command()
@errors
def sensitivity(
    model: Model,
    data: Rows,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Whose steps to try; else prune 0.5, cluster 32 and int8."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The picture: SVG, PNG or PDF.")
    ] = Path("sensitivity.svg"),
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Show what each layer costs when it alone is pruned, clustered or quantized.

    Nothing is trained and nothing is changed; `exclude:` in a recipe takes the layers' names.
    """
    from . import charts
    from .compress import sensitivity as work

    result = Output(as_json, as_md)
    charts.check_picture(output)
    found = work(model, data, recipe, result.progress())
    result.show(found, charts.sensitivity_table(found))
    charts.sensitivity_picture(found, output)
    result.tell(f"\npicture: {escape(str(output))}")


@app.command()
@errors
def recipes(
    model: Model,
    data: Rows,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the `budget:` to keep to; else none."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0, metavar="MINUTES", help="Then the best recipe so far is taken."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The best recipe; a picture beside."),
    ] = Path("best-recipe.yaml"),
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Search for the recipe that suits a pushed version: all on few steps, the better half on more.

    Prints every recipe tried, and which no other beats in accuracy, size and latency. Run it
    again after a kill, and it goes on.
    """
    from . import charts
    from .compress import check_new, write_recipe
    from .compress import recipes as work

    result = Output(as_json, as_md)
    check_new(output)
    picture = output.with_suffix(".svg")
    charts.check_picture(picture)
    found = work(model, data, recipe, time_limit, result.progress())
    best = found.best.model_dump(mode="json", exclude_unset=True)
    result.show({**vars(found), "best": best}, charts.recipes_table(found))
    write_recipe(found, output)
    charts.recipes_picture(found, model.resolve().name, picture)
    result.tell(
        f"\npicture: {escape(str(picture))}\nbest recipe: {escape(str(output))}; next: espalier "
        f"compress {escape(str(model))} --recipe {escape(str(output))} --data {escape(data)}"
    )


@app.command()
@errors
def schema() -> None:
    """Print the configuration's JSON Schema; editors complete from it."""
    from .config import Config

    sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    app()
