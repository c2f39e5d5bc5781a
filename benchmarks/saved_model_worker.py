"""A worker of `rounds`: a SavedModel in a session, as TensorFlow Serving runs it.

python saved_model_worker.py VERSION TEST.csv THREADS
"""

import sys
from pathlib import Path

import numpy as np
from rounds import serve

from espalier.trainer.compression.measure import Served


def main(version: str, test: str, threads: str) -> None:
    """Load, then answer."""
    ask = Served(Path(version), int(threads)).function("serving_default", "scores")
    serve(lambda texts: ask(np.array(texts, object)).argmax(axis=1), test)


if __name__ == "__main__":
    main(*sys.argv[1:])
