"""The peers of benchmarks/serving.py: a SavedModel of pictures behind FastAPI and behind Flask.

Needs: a Python with tensorflow, fastapi, uvicorn, flask and waitress.

    python http_apps.py fastapi|flask VERSION PORT

What most people write: the signature is called on the bytes that were sent, in a thread for each
request; the answer is JSON. FastAPI runs in uvicorn (with uvloop and httptools where they are),
Flask in waitress with 32 threads.
"""

import sys
from typing import Any

import tensorflow as tf

THREADS = 32


def main(kind: str, version: str, port: str) -> None:
    """Serve POST /predict until killed."""
    {"fastapi": fastapi, "flask": flask}[kind](Model(version), int(port))


class Model:
    """The loaded SavedModel."""

    def __init__(self, version: str) -> None:
        """Load it."""
        self._loaded = tf.saved_model.load(version)
        self._serve = self._loaded.signatures["serving_default"]

    def answer(self, picture: bytes) -> dict[str, Any]:
        """A picture's label and scores."""
        found = self._serve(image_bytes=tf.constant([picture]))
        label, scores = found["label"].numpy()[0], found["scores"].numpy()[0]
        return {"label": label.decode(), "scores": scores.tolist()}


def fastapi(model: Model, port: int) -> None:
    """FastAPI: the body is read by the event loop, a thread of its pool computes."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(model.answer, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def flask(model: Model, port: int) -> None:
    """Flask in waitress; its own server closes each connection, and is not meant for more."""
    from flask import Flask, request
    from waitress import serve

    app = Flask(__name__)

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        return model.answer(request.get_data())

    serve(app, host="127.0.0.1", port=port, threads=THREADS)


if __name__ == "__main__":
    main(*sys.argv[1:])
