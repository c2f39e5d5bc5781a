"""The other process of benchmarks/serving.py: a worker of `rounds` that loads servers, or calls
models in this process.

Each line of JSON on standard input is a job, and is answered with what came of it:

    {"grpc": "HOST:PORT", "model", "csv", "images", "batch", "concurrency", "seconds"}
    {"http": PORT, "path", "body" (base64), "type", "concurrency", "seconds"}
    {"signature" or "session": VERSION, "csv", "images", "batch", "seconds"}
"""

import asyncio
import base64
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from espalier.serving.client import Client
from espalier.serving.load_requests import Given, bodies
from espalier.serving.load_test import Plan, Result, run
from espalier.serving.protos import message
from espalier.serving.tensors import to_numpy

WARMUP = 1.0  # seconds
PATIENCE = 30.0  # seconds for the last answers


def main() -> None:
    """Be a worker."""
    asked = (json.loads(line) for line in sys.stdin)
    for job in asked:
        result = grpc_load(job) if "grpc" in job else http(job) if "http" in job else direct(job)
        said = {f"p{percent:g}": result.percentile(percent) for percent in (50, 99)}
        answer = {
            "per_second": result.per_second, "requests": result.requests,
            "failed": result.errors.total(), "errors": dict(result.errors), **said,
        }  # fmt: skip
        print(json.dumps(answer), flush=True)


def given(job: Mapping[str, Any]) -> Given:
    """What is sent."""
    images = [Path(one) for one in job.get("images", ())]
    return Given(images=images, data=Path(job["csv"]) if job.get("csv") else None)


def plan(job: Mapping[str, Any]) -> Plan:
    """How."""
    batch, warmup = job.get("batch", 1), job.get("warmup", WARMUP)
    return Plan(job.get("concurrency", 1), None, job["seconds"], warmup, batch)


def grpc_load(job: Mapping[str, Any]) -> Result:
    """The closed loop of `espalier load`."""
    with Client(job["grpc"], job["model"]) as client:
        sent = bodies(client, given(job), job.get("batch", 1))
    return run(job["grpc"], sent, plan(job))


def http(job: Mapping[str, Any]) -> Result:
    """The same closed loop over HTTP/1.1: bytes as they are, on connections that stay open."""
    return asyncio.run(http_loop(job))


async def http_loop(job: Mapping[str, Any]) -> Result:
    """Load a server of HTTP with POSTs of one body."""
    body = base64.b64decode(job["body"])
    head = (
        f"POST {job['path']} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {job['type']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    start = time.perf_counter() + WARMUP
    end = start + job["seconds"]
    done: list[tuple[float, float]] = []
    errors: Counter[str] = Counter()

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", job["http"])
        while (begin := time.perf_counter()) < end:
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = answer.lower().partition(b"content-length:")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            now, code = time.perf_counter(), answer.split(b" ", 2)[1].decode()
            if begin >= start and code == "200":
                done.append((now - start, now - begin))
            elif begin >= start:
                errors[code] += 1
        writer.close()

    callers = asyncio.gather(*(caller() for _ in range(job["concurrency"])))
    await asyncio.wait_for(callers, WARMUP + job["seconds"] + PATIENCE)
    ended, took = np.array(done, np.float64).reshape(-1, 2).T
    return Result(ended, took, errors, seconds=job["seconds"])


class InProcess:
    """A version in this process, called with what a server would be sent."""

    loaded: dict[str, Any] = {}

    @classmethod
    def call(cls, job: Mapping[str, Any]) -> Any:
        """A function of {input: array}: the loaded signature, or the server's own session."""
        kind = "signature" if "signature" in job else "session"
        key = f"{kind} {job[kind]}"
        if key not in cls.loaded:
            cls.loaded[key] = getattr(cls, kind)(Path(job[kind]))
        return cls.loaded[key]

    @staticmethod
    def signature(version: Path) -> Any:
        """What most people call: the signature of tf.saved_model.load."""
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 - registers ops

        model = tf.saved_model.load(str(version))
        serve = model.signatures["serving_default"]

        def call(arrays: Mapping[str, np.ndarray]) -> Any:
            answer = serve(**{name: tf.constant(one) for name, one in arrays.items()})
            return model and {name: one.numpy() for name, one in answer.items()}

        return call

    @staticmethod
    def session(version: Path) -> Any:
        """What the server calls."""
        from espalier.serving.servable import LoadOptions, load

        servable = load(version, LoadOptions())
        signature = servable.signatures["serving_default"]
        fetches = tuple(info.name for _, info in sorted(signature.outputs.items()))

        def call(arrays: Mapping[str, np.ndarray]) -> Any:
            feeds = {signature.inputs[name].name: one for name, one in arrays.items()}
            return servable.run(feeds, fetches)

        return call


def direct(job: Mapping[str, Any]) -> Result:
    """One call after the other; the arrays are made before."""
    call = InProcess.call(job)
    requests = [message("PredictRequest").FromString(one) for one in _bodies(job)]
    inputs = itertools.cycle(
        [{name: to_numpy(proto) for name, proto in one.inputs.items()} for one in requests]
    )
    start = time.perf_counter() + WARMUP
    end = start + job["seconds"]
    done = []
    while (begin := time.perf_counter()) < end:
        call(next(inputs))
        now = time.perf_counter()
        if begin >= start:
            done.append((now - start, now - begin))
    ended, took = np.array(done, np.float64).reshape(-1, 2).T
    return Result(ended, took, seconds=job["seconds"])


def _bodies(job: Mapping[str, Any]) -> list[bytes]:
    with Client(job["like"], job["model"]) as client:  # the server knows the inputs' types
        return bodies(client, given(job), job.get("batch", 1))


if __name__ == "__main__":
    main()
