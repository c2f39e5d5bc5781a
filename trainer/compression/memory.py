"""What a version's loading and one batch add to a process: run as a script, in a clean process.

Reads {"versions": {name: folder}, "rows": [base64]} from standard input and prints {name: bytes}.
It imports TensorFlow once and forks for each version, before anything has run.
"""

import base64
import json
import os
import resource
import sys


def added(version: str, rows: "list[bytes]") -> int:
    """The growth of this process's largest resident size, in bytes."""
    import numpy as np
    import tensorflow as tf

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], version)
        signature = meta.signature_def["serve_examples"]
        (given,) = signature.inputs.values()
        session.run(signature.outputs["scores"].name, {given.name: np.array(rows, object)})
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    """Read the request, measure each version in a child, print the answer."""
    import tensorflow  # noqa: F401 - once, for all children
    import tensorflow_text  # noqa: F401

    request = json.load(sys.stdin)
    rows = [base64.b64decode(row) for row in request["rows"]]
    found = {}
    for name, version in request["versions"].items():
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, str(added(version, rows)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            found[name] = int(answer.read() or 0)
        os.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
