"""How fast, and how steadily, the server answers: one table for each question.

Needs: for `flask` and `batching` a model of pictures (`make digits`), for `bert` one of texts
(`make run`); for the peers of `flask` a Python with tensorflow, fastapi, uvicorn, flask and
waitress. Takes: twelve minutes on two cores, which must be idle; `soak` three more.

    .venv/bin/python benchmarks/serving.py [overhead|flask|bert|batching|swaps|soak ...]
        [--peer PEER/bin/python] [--resnet models/digits] [--bert models/reviews]

Server and load are processes of their own, started as a user would. What is compared is measured
in turn, round by round, and the medians count; ratios are of one run.
"""

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rounds
from rich.console import Console, Group
from rich.table import Table

from espalier.errors import ServerError
from espalier.serving.client import Client
from espalier.serving.predictor import newest_version

ROOT = Path(__file__).parents[1]
LOAD, APPS = Path(__file__).with_name("serving_load.py"), ROOT / "benchmarks/peer/http_apps.py"
REVIEWS = ROOT / "examples" / "reviews" / "data" / "reviews.csv"
DIGITS = ROOT / "examples" / "digits" / "data"
MEBIBYTE = 2**20
BATCHED = "ours, gRPC, batching"
Measured = dict[str, Any]  # per_second, p50 and p99 in ms, requests, failed


def main() -> None:
    """Measure what is asked for, print a table each."""
    parts = {
        "overhead": overhead, "flask": flask, "bert": bert, "batching": batching, "swaps": swaps,
        "soak": soak,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--resnet", type=Path, default=Path("models/digits"))
    parser.add_argument("--bert", type=Path, default=Path("models/reviews"))
    parser.add_argument(
        "--peer", help="a Python with tensorflow, fastapi, uvicorn, flask, waitress"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a measurement")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--requests", type=int, default=200_000, help="of the soak")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(parts)}")
    console = Console(width=150)
    chosen = [name for name in parts if name in (args.parts or set(parts) - {"soak"})]
    with tempfile.TemporaryDirectory() as work, loader() as load:
        for name in chosen:
            console.print(parts[name](args, Path(work), load), "")


# ---- the parts


def overhead(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """What the server adds to a model that computes nothing."""
    base = trivial(work)
    with served(base) as server:
        job = server.job(csv=str(numbers(work)), seconds=args.seconds)
        alone = {"like": job["grpc"], "signature": str(base / "1")}
        found = in_turn(
            load, args.rounds,
            {
                "signature, in process": {**job, **alone, "grpc": None},
                "server, 1 at once": {**job, "concurrency": 1},
                "server, 8 at once": {**job, "concurrency": 8},
            },
        )  # fmt: skip
    added = found["server, 1 at once"]["p50"] - found["signature, in process"]["p50"]
    pace = found["server, 8 at once"]["per_second"]
    title = f"y = x + 1: {added:.2f} ms added (goal 0.6), {pace:,.0f} requests/s (goal 1,500)"
    return table(title, found)


def flask(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """Our server beside what most people write, with 32 callers."""
    version, picture = newest_version(args.resnet), next(DIGITS.rglob("*.png"))
    every = {"concurrency": 32, "seconds": args.seconds}
    encoded = base64.b64encode(picture.read_bytes()).decode()
    row = json.dumps({"instances": [{"b64": encoded}]}).encode()
    raw = {"path": "/predict", "type": "application/octet-stream", "body": encoded}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(args.resnet))
        batched = stack.enter_context(served(args.resnet, "--enable_batching=true"))
        jobs: dict[str, Any] = {
            BATCHED: {**batched.job(images=[str(picture)]), **every},
            "ours, gRPC": {**server.job(images=[str(picture)]), **every},
            "ours, REST": {
                "http": server.rest, "path": f"/v1/models/{server.model}:predict",
                "type": "application/json", "body": base64.b64encode(row).decode(), **every,
            },
        }  # fmt: skip
        titles = {"fastapi": "FastAPI, uvicorn", "flask": "Flask, waitress"}
        for kind, title in titles.items() if args.peer else ():
            port = stack.enter_context(peer(args.peer, kind, version))
            jobs[title] = {"http": port, **raw, **every}
        found = in_turn(load, args.rounds, jobs)
    return table("ResNet, 32 at once; goal: 2 x the peers' requests/s", found, BATCHED)


def bert(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """What the server adds to a model that computes."""
    version, rows = str(newest_version(args.bert)), texts(work)
    found = {}
    with served(args.bert) as server:
        for batch, seconds in ((1, args.seconds), (32, 2 * args.seconds)):
            job = server.job(csv=str(rows), seconds=seconds, batch=batch)
            alone = {**job, "grpc": None, "like": job["grpc"]}
            jobs = {
                f"{batch} row(s): server": job,
                f"{batch} row(s): session, in process": {**alone, "session": version},
                f"{batch} row(s): signature, in process": {**alone, "signature": version},
            }
            found |= in_turn(load, args.rounds, jobs)
    words = []
    for batch in (1, 32):
        ours, *others = (v["p50"] for n, v in found.items() if n.startswith(f"{batch} row"))
        added = "/".join(f"{100 * (ours / other - 1):+.1f}" for other in others)
        words.append(f"{batch} row(s) {added} %")
    title = f"BERT, the server beside session/signature: {', '.join(words)} (goal 5)"
    return table(title, found)


def batching(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """What batching brings when many wait, and costs when nobody does."""
    picture = next(DIGITS.rglob("*.png"))
    found: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        jobs = {}
        for threads in (0, 1):
            for flags in ((), ("--enable_batching=true",)):
                intra = f"--tensorflow_intra_op_parallelism={threads}"
                server = stack.enter_context(served(args.resnet, intra, *flags))
                name = f"intra_op {threads}, {'batching' if flags else 'alone'}"
                jobs[name] = server.job(images=[str(picture)], seconds=args.seconds)
        for at_once in (1, 32):
            these = {
                f"{name}, {at_once} at once": {**job, "concurrency": at_once}
                for name, job in jobs.items()
            }
            found |= in_turn(load, args.rounds, these)
    words = []
    for threads in (0, 1):
        name = f"intra_op {threads}"
        together, alone = (
            {
                "per_second": found[f"{name}, {how}, 32 at once"]["per_second"],
                "p50": found[f"{name}, {how}, 1 at once"]["p50"],
            }
            for how in ("batching", "alone")
        )
        times = together["per_second"] / alone["per_second"]
        slower = 100 * (together["p50"] / alone["p50"] - 1)
        words.append(f"{name} x {times:.2f}, p50 {slower:+.0f} %")
    return table(f"ResNet, {'; '.join(words)} (goal x 1.5, +10 %)", found)


def swaps(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """New versions under load: does a request fail, does memory grow?"""
    version = newest_version(args.resnet)
    base = work / "swapped"
    put(version, base, 1)
    picture = next(DIGITS.rglob("*.png"))
    memory = []
    with served(base, "--file_system_poll_wait_seconds=0.1") as server:
        load.tell(**server.job(images=[str(picture)], seconds=3600, concurrency=8))
        time.sleep(3)
        begin = time.monotonic()
        for number in range(2, args.swaps + 2):
            put(version, base, number)
            server.wait_for(number)
            shutil.rmtree(base / str(number - 1))
            memory.append(server.memory())
        took = time.monotonic() - begin
        load.interrupt()
        found = load.hear()
    tenth, last = memory[min(9, len(memory) - 1)], memory[-1]
    title = (
        f"{args.swaps} swaps in {took:.0f} s: {found['failed']} requests failed (goal 0), "
        f"{tenth:.0f} MiB after the tenth, {last:.0f} at the end: x {last / tenth:.2f} (goal 1.1)"
    )
    return table(title, {"while it swaps": found})


def soak(args: argparse.Namespace, work: Path, load: rounds.Worker) -> Group:
    """Very many requests: does memory grow?"""
    base, memory, total, failed = trivial(work), [], 0, 0
    found: dict[str, Measured] = {}
    with served(base) as server:
        job = server.job(csv=str(numbers(work)), seconds=args.seconds, concurrency=8)
        in_turn(load, 0, {"warm": job})
        memory.append((0, server.memory()))
        while total < args.requests:
            load.tell(**job, warmup=0)
            found["the last seconds"] = load.hear()
            total += found["the last seconds"]["requests"]
            failed += found["the last seconds"]["failed"]
            memory.append((total, server.memory()))
    middle = min(memory, key=lambda one: abs(one[0] - total / 2))
    words = ", ".join(f"{n:,}: {size:.0f} MiB" for n, size in (memory[0], middle, memory[-1]))
    return table(f"{total:,} requests, {failed} failed; memory after {words}", found)


# ---- servers


class Served:
    """A server that answers.

    `target` is gRPC's HOST:PORT, `rest` the port of REST, `model` the name of its one model.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, rest: int, model: str):
        self._process, self.rest, self.model = process, rest, model
        self.target = f"127.0.0.1:{port}"
        self.client = Client(self.target, model)

    def job(self, **more: Any) -> dict[str, Any]:
        """What a worker needs to load it."""
        return {"grpc": self.target, "model": self.model, **more}

    def wait_for(self, number: int | None = None, seconds: float = 120.0) -> None:
        """Wait until a version, or any, answers, and the others have gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(ServerError):
                states = self.client.status()
                up = [n for n, state in states.items() if state not in ("END", "START")]
                if up == [number or max(up, default=0)] and states[up[0]] == "AVAILABLE":
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"{self.model}: the server does not answer with version {number}")

    def memory(self) -> float:
        """What it holds of the machine's memory, in MiB."""
        status = Path("/proc", str(self._process.pid), "status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / MEBIBYTE


@contextmanager
def served(base: Path, *flags: str) -> Iterator[Served]:
    """`espalier serve` of one model, as a user starts it."""
    port, rest = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("espalier")), "serve", str(base)]
    addresses = ["--host=127.0.0.1", f"--port={port}", f"--rest_api_port={rest}"]
    with ended([*command, *addresses, *flags]) as process:
        server = Served(process, port, rest, base.name)
        server.wait_for()
        yield server


@contextmanager
def peer(python: str, kind: str, version: Path) -> Iterator[int]:
    """A peer's server; yields its port."""
    port = free_port()
    with ended([python, str(APPS), kind, str(version), str(port)]) as process:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"{kind} does not answer. Has --peer all that it needs?")
        yield port


@contextmanager
def ended(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends with the block."""
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nothing, stderr=nothing, env=quiet)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def loader() -> Iterator[rounds.Worker]:
    """The process that loads servers."""
    worker = rounds.Worker([sys.executable, str(LOAD)])
    try:
        yield worker
    finally:
        worker.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- models and rows


def trivial(work: Path) -> Path:
    """A model y = x + 1, float32 [None]."""
    base = work / "plus_one"
    if not base.exists():
        code = (
            "import sys, tensorflow as tf\n"
            "module = tf.Module()\n"
            "spec = tf.TensorSpec([None], tf.float32, name='x')\n"
            "module.call = tf.function(lambda x: {'y': x + 1.0}, input_signature=[spec])\n"
            "tf.saved_model.save(module, sys.argv[1], {'serving_default': module.call})\n"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(base / "1")], check=True, stderr=subprocess.DEVNULL
        )
    return base


def numbers(work: Path) -> Path:
    """A CSV with one number."""
    file = work / "numbers.csv"
    file.write_text("x\n1.5\n", encoding="utf-8")
    return file


def texts(work: Path) -> Path:
    """64 reviews, so that each measurement sends all of them several times."""
    file = work / "texts.csv"
    with REVIEWS.open(encoding="utf-8") as rows, file.open("w", encoding="utf-8") as out:
        out.writelines(line for _, line in zip(range(65), rows, strict=False))
    return file


def put(version: Path, base: Path, number: int) -> None:
    """Copy a version into a base path as the Pusher does: by a rename, whole at once."""
    base.mkdir(exist_ok=True)
    shutil.copytree(version, base / ".arriving")
    (base / ".arriving").rename(base / str(number))


# ---- numbers


def in_turn(
    load: rounds.Worker, count: int, jobs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Measured]:
    """Each job once in every round; the medians over the rounds, failures added up.

    One more round comes before them: the first calls of a graph take seconds.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in jobs}
    for number in range(count + 1):
        for name, job in jobs.items():
            load.tell(**{key: value for key, value in job.items() if value is not None})
            heard = load.hear()
            if number:
                measured[name].append(heard)
    found: dict[str, Measured] = {}
    for name, all_ in measured.items() if count else ():
        found[name] = {
            key: statistics.median(one[key] for one in all_) for key in ("per_second", "p50", "p99")
        }
        found[name] |= {key: sum(one[key] for one in all_) for key in ("requests", "failed")}
    return found


def table(title: str, found: Mapping[str, Measured], beside: str = "") -> Group:
    """A title, and a line for each; `beside` names the one that is shown as a multiple of each."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("")
    titles = ["requests/s", *([f"{beside}, x"] if beside else []), "p50, ms", "p99, ms", "requests"]
    for name in (*titles, "failed"):
        shown.add_column(name, justify="right")
    for name, one in found.items():
        cells = [f"{one['per_second']:,.1f}"]
        if beside:
            cells.append(f"{found[beside]['per_second'] / one['per_second']:.2f}")
        cells += [f"{one['p50']:.3f}", f"{one['p99']:.2f}", f"{one['requests']:,}"]
        shown.add_row(name, *cells, f"{one['failed']:,}")
    return Group(title, shown)


if __name__ == "__main__":
    main()
