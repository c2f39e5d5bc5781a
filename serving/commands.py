"""The commands of serving: `serve`, `predict`, `smoke`, `load`. They parse, call and print."""

import contextlib
import logging
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from .. import cpu
from ..errors import ConfigError
from ..terminal import AsJson, AsMarkdown, Output, Screen, errors

commands = typer.Typer()

TokenFile = Annotated[
    Path | None, typer.Option("--api-token-file", help="Of a server that asks for a token.")
]
Authority = Annotated[
    Path | None, typer.Option("--ca", metavar="PEM", help="Speak TLS; who signed the server.")
]

Certificate = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--cert", metavar="PEM KEY", help="For mTLS: this client's certificate and key."),
]

# TensorFlow Serving takes --flag, --flag=true and --flag=false.
Flag = Literal["true", "false", "1", "0"]
_FLAGS: set[str] = set()


class _Serve(TyperCommand):
    """Takes a flag alone as true, as TensorFlow Serving does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell out the flags that stand alone."""
        return super().parse_args(ctx, [f"{one}=true" if one in _FLAGS else one for one in args])


def _on(value: Flag) -> bool:
    return value in ("true", "1")


def _flag(name: str, words: str) -> Any:
    _FLAGS.add(f"--{name}")
    return typer.Option(f"--{name}", help=words, metavar="BOOL", case_sensitive=False)


@commands.command(cls=_Serve)
@errors
def serve(
    model_dir: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL_DIR", help="Folders of versions; each serves by its name."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="For gRPC; 0 opens none.")] = 8500,
    rest_api_port: Annotated[
        int,
        typer.Option(
            "--rest_api_port", "--rest-port", min=0, max=65535, help="For REST; 0 opens none."
        ),
    ] = 8501,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "0.0.0.0",
    model_name: Annotated[
        str | None, typer.Option("--model_name", help="Of a single model; else its folder's name.")
    ] = None,
    model_base_path: Annotated[
        Path | None, typer.Option("--model_base_path", help="The same as one MODEL_DIR.")
    ] = None,
    model_config_file: Annotated[
        Path | None,
        typer.Option("--model_config_file", help="A ModelServerConfig: several models, versions."),
    ] = None,
    model_config_file_poll_wait_seconds: Annotated[
        float,
        typer.Option("--model_config_file_poll_wait_seconds", help="0 reads it only once."),
    ] = 0,
    file_system_poll_wait_seconds: Annotated[
        float, typer.Option("--file_system_poll_wait_seconds", help="Between looks for versions.")
    ] = 1,
    max_num_load_retries: Annotated[
        int, typer.Option("--max_num_load_retries", help="Of a version that cannot be loaded.")
    ] = 5,
    load_retry_interval_micros: Annotated[
        int, typer.Option("--load_retry_interval_micros", help="Between those.")
    ] = 60_000_000,
    allow_version_labels_for_unavailable_models: Annotated[
        Flag,
        _flag("allow_version_labels_for_unavailable_models", "Labels for what comes later."),
    ] = "false",
    enable_batching: Annotated[
        Flag, _flag("enable_batching", "Compute requests together that wait together.")
    ] = "false",
    batching_parameters_file: Annotated[
        Path | None, typer.Option("--batching_parameters_file", help="BatchingParameters.")
    ] = None,
    enable_per_model_batching_parameters: Annotated[
        Flag,
        _flag(
            "enable_per_model_batching_parameters", "Read batching_params.pbtxt of each version."
        ),
    ] = "false",
    tensorflow_intra_op_parallelism: Annotated[
        int,
        typer.Option(
            "--tensorflow_intra_op_parallelism",
            min=0,
            help="Threads for one op; 0: all cores, 1: the most requests a second.",
        ),
    ] = 0,
    tensorflow_inter_op_parallelism: Annotated[
        int,
        typer.Option(
            "--tensorflow_inter_op_parallelism",
            min=-1,
            help="Ops at once; -1: the request's own thread.",
        ),
    ] = -1,
    saved_model_tags: Annotated[
        str, typer.Option("--saved_model_tags", help="Tags of the graph, with commas between.")
    ] = "serve",
    enable_model_warmup: Annotated[
        Flag, _flag("enable_model_warmup", "Send a version its warm-up requests first.")
    ] = "true",
    num_request_iterations_for_warmup: Annotated[
        int, typer.Option("--num_request_iterations_for_warmup", help="How often each.")
    ] = 1,
    prefer_tflite_model: Annotated[
        Flag, _flag("prefer_tflite_model", "Serve model.tflite of versions that have one.")
    ] = "false",
    num_tflite_interpreters_per_pool: Annotated[
        int, typer.Option("--num_tflite_interpreters_per_pool", help="As many pools as CPUs.")
    ] = 1,
    enable_serialization_as_tensor_content: Annotated[
        Flag, _flag("enable_serialization_as_tensor_content", "Answers as bytes; faster.")
    ] = "false",
    rest_api_num_threads: Annotated[
        int | None,
        typer.Option("--rest_api_num_threads", min=1, help="4 for each CPU if left out."),
    ] = None,
    rest_api_timeout_in_ms: Annotated[
        int, typer.Option("--rest_api_timeout_in_ms", help="For a REST call.")
    ] = 30_000,
    rest_api_enable_cors_support: Annotated[
        Flag, _flag("rest_api_enable_cors_support", "Let pages of other origins call.")
    ] = "false",
    grpc_max_threads: Annotated[
        int | None,
        typer.Option("--grpc_max_threads", help="Calls at once: 4 for each CPU, 64 with batching."),
    ] = None,
    grpc_socket_path: Annotated[
        str, typer.Option("--grpc_socket_path", help="A UNIX socket to listen at too.")
    ] = "",
    grpc_channel_arguments: Annotated[
        str,
        typer.Option("--grpc_channel_arguments", help="grpc.max_connection_age_ms=2000,..."),
    ] = "",
    max_message_bytes: Annotated[
        int, typer.Option("--max_message_bytes", help="Of a request; larger ones are refused.")
    ] = 64 * 2**20,
    ssl_config_file: Annotated[
        Path | None, typer.Option("--ssl_config_file", help="An SSLConfig, for both ports.")
    ] = None,
    monitoring_config_file: Annotated[
        Path | None,
        typer.Option("--monitoring_config_file", help="A MonitoringConfig."),
    ] = None,
    api_token_file: Annotated[
        Path | None,
        typer.Option("--api_token_file", "--api-token-file", help="Callers must show this token."),
    ] = None,
    request_log: Annotated[
        str,
        typer.Option(
            "--request_log",
            "--request-log",
            metavar="PREFIX",
            help="Write a sample of requests to PREFIX-*.tfrecord.",
        ),
    ] = "",
    request_log_rate: Annotated[
        float,
        typer.Option(
            "--request_log_rate", "--request-log-rate", min=0, max=1, help="How many of them."
        ),
    ] = 0.01,
) -> None:
    """Serve models over gRPC and REST, as TensorFlow Serving does; its flags have its names.

    For laptops, CI and checks. In production, run TensorFlow Serving itself.
    """  # fmt: skip
    _log_plainly()
    _open_many_files()
    from . import config_files
    from .batching import Parameters
    from .grpc_door import DoorOptions
    from .manager import Policy
    from .metrics import PATH
    from .rest_door import RestOptions
    from .servable import LoadOptions
    from .server import Options, Server

    folders = [*(model_dir or []), *([model_base_path] if model_base_path else [])]
    models = (
        config_files.read_models(model_config_file)
        if model_config_file
        else config_files.of_folders(folders, model_name)
    )
    if model_config_file and (folders or model_name):
        raise ConfigError(
            "--model_config_file names the models; leave MODEL_DIR, --model_name and "
            "--model_base_path out."
        )
    if not port and not grpc_socket_path:
        raise ConfigError("give gRPC a --port or a --grpc_socket_path.")
    parameters: Parameters | None = None
    if _on(enable_batching):
        parameters = config_files.batching(batching_parameters_file)
    elif batching_parameters_file:
        raise ConfigError("--batching_parameters_file is set without --enable_batching.")
    ssl = config_files.ssl(ssl_config_file) if ssl_config_file else None
    threads = grpc_max_threads or (max(64, 4 * cpu.count()) if parameters else 4 * cpu.count())
    server = Server(
        Options(
            models=models,
            request_log=request_log,
            request_log_rate=request_log_rate,
            grpc=DoorOptions(
                host=host, port=port, socket_path=grpc_socket_path, max_threads=threads,
                max_message_bytes=max_message_bytes, ssl=ssl,
                channel_arguments=config_files.channel_arguments(grpc_channel_arguments),
            ),
            rest=RestOptions(
                host=host, port=rest_api_port, ssl=ssl, max_message_bytes=max_message_bytes,
                threads=rest_api_num_threads or threads,
                timeout_seconds=rest_api_timeout_in_ms / 1000,
                cors=_on(rest_api_enable_cors_support),
                metrics_path=config_files.monitoring_path(monitoring_config_file, PATH),
            ),
            policy=Policy(
                poll_seconds=file_system_poll_wait_seconds,
                max_num_load_retries=max_num_load_retries,
                load_retry_seconds=load_retry_interval_micros / 1e6,
                labels_for_unavailable=_on(allow_version_labels_for_unavailable_models),
            ),
            load=LoadOptions(
                inter_op=tensorflow_inter_op_parallelism,
                intra_op=tensorflow_intra_op_parallelism,
                tags=tuple(saved_model_tags.split(",")),
                prefer_tflite=_on(prefer_tflite_model),
                tflite_interpreters=cpu.count() * num_tflite_interpreters_per_pool,
            ),
            batching=parameters,
            per_model_batching=_on(enable_per_model_batching_parameters),
            as_content=_on(enable_serialization_as_tensor_content),
            warmup=_on(enable_model_warmup),
            warmup_iterations=num_request_iterations_for_warmup,
            token_file=api_token_file,
            config_file=model_config_file,
            config_poll_seconds=model_config_file_poll_wait_seconds,
        )
    )  # fmt: skip
    server.start()
    scheme = "https" if ssl else "http"
    doors = [f"gRPC {host}:{port}"] if port else []
    doors += [f"gRPC unix:{grpc_socket_path}"] if grpc_socket_path else []
    doors += [f"REST {scheme}://{host}:{rest_api_port}"] if rest_api_port else []
    names = ", ".join(model.name for model in models)
    waiting = "" if server.manager.ready() else " (not all have a version yet)"
    words = f"serving {escape(names)}{waiting}: {'; '.join(doors)}"
    with contextlib.suppress(OSError):  # a full disk behind the log is no reason not to serve
        Screen().print(words, highlight=False, soft_wrap=True)
    server.wait()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(0)  # a thread in a request that never ends would keep Python here


def _log_plainly() -> None:
    """Our lines alone: TensorFlow greets with a dozen of its own, its errors come to ours too."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("espalier").setLevel(logging.INFO)


def _open_many_files() -> None:
    """Each connection is a file, and a shell's usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@commands.command()
@errors
def predict(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A server's HOST:PORT/MODEL, or a folder of versions."
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text; give it several times for more.")
    ] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option("--pair", help="The second text of a pair, in step.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture's file, for a model of those.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="A CSV with a header.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Its column that the model reads; two for pairs. Else text, or path."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the CSV goes.")
    ] = None,
    token_file: TokenFile = None,
    ca: Authority = None,
    cert: Certificate = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Predict from a server, or in this process from the newest pushed version.

    Texts come from --text or, a line each, from stdin; pictures from --image. With --csv, its
    rows come back with `predicted` and `score` added, in their order.
    """
    _log_plainly()
    from .predictor import Predictor

    result = Output(as_json, as_md)
    if file is not None and result.alone:
        raise ConfigError("--csv writes a CSV; leave --json and --md out.")
    rows: list[Any] = [*(image or text or [])]
    predictor = Predictor(target, **_connection(token_file, ca, cert))
    if file is not None:
        if rows or text_pair:
            raise ConfigError("give --csv, or --text and --image; not both.")
        _predict_csv(predictor, file, column or [], output)
        return
    if predictor.takes_images != bool(image):
        wanted = "--image FILE" if predictor.takes_images else "--text TEXT"
        raise ConfigError(f"{target}: give what this model reads, with {wanted}.")
    rows = rows or [line.rstrip("\n") for line in sys.stdin]
    predictions = predictor.predict(rows, text_pair)
    kind, table = "image" if image else "text", Table(box=None, padding=(0, 2, 0, 0))
    for name in (kind, "label", "score"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for one, prediction in zip(rows, predictions, strict=True):
        table.add_row(escape(str(one)), escape(prediction.label), f"{prediction.score:.4f}")
    pairs = [{"text_pair": one} for one in text_pair] if text_pair else [{}] * len(rows)
    data = [
        {kind: row, **pair, **vars(one)}
        for row, pair, one in zip(rows, pairs, predictions, strict=True)
    ]
    result.show(data, table, screen=Screen())


@commands.command()
@errors
def smoke(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A server's HOST:PORT/MODEL.")],
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The model's folder of versions, or a version.")
    ],
    token_file: TokenFile = None,
    ca: Authority = None,
    cert: Certificate = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Send a server the request that a pushed version carries, and compare the answer.

    Exit codes: 0 alike, 2 something given cannot be used, 5 it differs or there is no answer.
    """
    from .client import Client
    from .predictor import parse_address
    from .smoke import smoke as replay

    result = Output(as_json, as_md)
    if (address := parse_address(target)) is None:
        raise ConfigError(f"{target}: a server's HOST:PORT/MODEL is expected.")
    with Client(*address, **_connection(token_file, ca, cert)) as client:
        compared = replay(client, model)
    table = Table("output", "expected", "found", "", box=None, padding=(0, 2, 0, 0))
    for one in compared:
        verdict = "[green]alike[/]" if one.alike else "[red]differs[/]"
        table.add_row(one.output, escape(one.expected), escape(one.found), verdict)
    result.show(compared, table)
    raise typer.Exit(0 if all(one.alike for one in compared) else 5)


@commands.command()
@errors
def load(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A server's HOST:PORT/MODEL.")],
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests always under way; 8 if left out.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Instead, requests that begin in a second, at random times."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long it counts.")] = 10,
    warmup_seconds: Annotated[float, typer.Option(min=0, help="Before that.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Rows in a request.")] = 1,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="What is sent; several are sent in turn.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture's file, in turn too.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="CSV", help="Rows to send, in turn.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Of the CSV, for each of the model's inputs in alphabetical order."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Draw it: .svg, .png or .pdf."),
    ] = None,
    token_file: TokenFile = None,
    ca: Authority = None,
    cert: Certificate = None,
    as_json: AsJson = False,
    as_md: AsMarkdown = False,
) -> None:
    """Measure how many requests a server answers, and how fast: a load test over gRPC.

    With --rate, times count from when a request was due, so that a server that stands still is
    not flattered. Models of Espalier's get a plain sentence or a grey picture if nothing is given.
    Exit codes: 0 all was answered, 2 something given cannot be used, 5 a request failed.
    """
    from . import load_test
    from .client import Client, Connection
    from .load_requests import Given, bodies
    from .predictor import parse_address

    shown = Output(as_json, as_md)
    if (address := parse_address(target)) is None:
        raise ConfigError(f"{target}: a server's HOST:PORT/MODEL is expected.")
    if concurrency and rate:
        raise ConfigError("give --concurrency or --rate, not both.")
    if output is not None:
        load_test.check_picture(output)
    known = _connection(token_file, ca, cert)
    given = Given(text or (), image or (), data, column or ())
    with Client(*address, **known) as client:
        sent = bodies(client, given, batch)
    plan = load_test.Plan(concurrency or 8, rate, seconds, warmup_seconds, batch)
    with _progress(plan.warmup_seconds + plan.seconds) as told:
        result = load_test.run(address[0], sent, plan, Connection(**known), told)
    shown.show(load_test.facts(result), load_test.table(result))
    if result.first_error:
        shown.tell(f"the first error: {escape(result.first_error)}")
    if output is not None:
        pace = f"{rate:g} requests/s" if rate else f"{plan.concurrency} requests at once"
        load_test.picture(result, f"{address[1]}, {pace}, {batch} row(s) each", output)
    raise typer.Exit(5 if result.errors else 0)


@contextlib.contextmanager
def _progress(seconds: float) -> Iterator[Callable[[float, int, int], None]]:
    """A bar of so many seconds, on standard error; yields what moves it."""
    from rich.progress import BarColumn, Progress, TextColumn

    words = TextColumn("{task.fields[requests]:,} requests, {task.fields[failed]:,} failed")
    # Drawn when it moves alone: a thread that draws would take time from the load.
    with Progress(
        BarColumn(), words, console=Screen(stderr=True), transient=True, auto_refresh=False
    ) as bar:
        task = bar.add_task("", total=seconds, requests=0, failed=0)

        def told(now: float, requests: int, failed: int) -> None:
            bar.update(task, completed=now, requests=requests, failed=failed, refresh=True)

        yield told


def _connection(
    token_file: Path | None, ca: Path | None, cert: tuple[Path, Path] | None
) -> dict[str, Any]:
    from .token_file import read_token

    return {"token": read_token(token_file), "ca": ca, "certificate": cert}


def _predict_csv(predictor: Any, file: Path, columns: list[str], output: Path | None) -> None:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from .csv_stream import predict_csv

    columns = columns or (["path"] if predictor.takes_images else predictor.inputs)
    told = Screen(stderr=True)
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if output is not None:
            try:
                out = stack.enter_context(output.open("x", encoding="utf-8", newline=""))
            except FileExistsError:
                raise ConfigError(f"{output}: exists already; name another with -o.") from None
            except OSError as error:
                raise ConfigError(f"{output}: cannot be written: {error.strerror}.") from None
        rate = TextColumn("{task.completed:,.0f} rows")
        bar = stack.enter_context(
            Progress(SpinnerColumn(), rate, TimeElapsedColumn(), console=told, transient=True)
        )
        task = bar.add_task("", total=None)
        rows = predict_csv(predictor, file, columns, out, lambda n: bar.advance(task, n))
    told.print(f"{rows:,} rows predicted", highlight=False)
