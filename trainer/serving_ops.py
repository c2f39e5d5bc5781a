"""The ops that stock TensorFlow Serving knows, and whether a SavedModel uses any other.

TensorFlow Serving 2.13 to 2.19 is built with TF Text 2.12.1. A graph with an op of a newer TF
Text loads there and fails on every request, and a process with today's TF Text does not notice.
`serving_ops.txt` is what all of those servers have: the core ops that TensorFlow 2.13.1 and
2.16.2 share, and TF Text 2.12.1's. To remake it, run this file by its path, with the Python of
three environments (tensorflow-cpu==2.13.1; tensorflow-cpu==2.12.1, tensorflow-text==2.12.1 and
setuptools<70; Espalier's own), and join what they print:

    $TF213/bin/python trainer/serving_ops.py core > a
    .venv/bin/python trainer/serving_ops.py core > b
    $TEXT212/bin/python trainer/serving_ops.py text > c
    export LC_ALL=C; comm -12 a b | sort -u - c > trainer/serving_ops.txt
"""

import functools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_LIST = Path(__file__).with_suffix(".txt")


@functools.cache
def load() -> frozenset[str]:
    """Return the names of the ops in `serving_ops.txt`."""
    return frozenset(_LIST.read_text(encoding="utf-8").split())


def unknown_ops(saved_model_dir: str) -> list[str]:
    """Return the sorted names of a SavedModel's ops that TensorFlow Serving may not know.

    Every graph and function of every MetaGraph is read; nothing is loaded or run. Raises OSError
    or protobuf's DecodeError if `saved_model.pb` cannot be read.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    file = os.path.join(saved_model_dir, "saved_model.pb")
    with open(file, "rb") as stream:
        model = saved_model_pb2.SavedModel.FromString(stream.read())
    unknown: set[str] = set()
    for meta in model.meta_graphs:
        graph = meta.graph_def
        # A function is called by a node that bears its name as an op.
        own = {function.signature.name for function in graph.library.function}
        unknown |= {node.op for node in _nodes(graph)} - own - load()
    return sorted(unknown)


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def registered(which: str) -> list[str]:
    """Return the sorted ops of this TensorFlow (`core`), or those that TF Text adds (`text`)."""
    core = _registry()
    if which == "core":
        return sorted(core)
    import tensorflow_text  # noqa: F401 (imported for the ops that it registers)

    return sorted(set(_registry()) - set(core))


def _registry() -> Iterable[str]:
    import tensorflow as tf  # noqa: F401 (first: it loads the libraries that register ops)
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    ops = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return [op.name for op in op_def_pb2.OpList.FromString(ops).op]


if __name__ == "__main__":
    if sys.argv[1:] not in (["core"], ["text"]):
        sys.exit(f"usage: {sys.argv[0]} core|text")
    print("\n".join(registered(sys.argv[1])))
