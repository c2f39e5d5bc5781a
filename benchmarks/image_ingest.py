"""Ingest of 6,000 and 60,000 pictures: time per picture, and peak memory.

Needs: `make setup` and Fashion-MNIST's idx files. Takes: 3 minutes on two cores.

    .venv/bin/python benchmarks/image_ingest.py [--idx FOLDER]

The training pictures are written out as PNG files, a folder a class. The pre-flight check and
ImageExampleGen then run on them, in a process of their own each.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

SHARED = Path(__file__).parents[2] / "shared" / "data" / "fashion_mnist"
SIZES = (6_000, 60_000)


def main() -> None:
    """Measure both steps at both sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idx", type=Path, default=SHARED, help="folder of Fashion-MNIST")
    parser.add_argument("--measure", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.folder)
        return
    table = Table(title="ingest of 28 x 28 PNG files", box=None, padding=(0, 2, 0, 0))
    table.add_column("step")
    for name in ("pictures", "seconds", "ms per 1,000", "peak memory in MB", "of it imports"):
        table.add_column(name, justify="right")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write(asked.idx, Path(folder) / "pictures", size)
            for step in STEPS:
                seconds, peak, before = in_a_child(step, folder)
                row = (f"{seconds:.1f}", f"{seconds / size * 1e6:.0f}", f"{peak:.0f}")
                table.add_row(step, f"{size:,}", *row, f"{before:.0f}")
    Console().print(table)


def write(idx_folder: Path, folder: Path, size: int) -> None:
    """The first `size` training pictures as files, a folder a class."""
    from espalier.components.faults import Faults
    from espalier.components.image_example_gen.listing import list_pictures
    from espalier.components.image_example_gen.sample import read

    faults = Faults()
    found = list_pictures(
        {"all": str(idx_folder)},
        label="label",
        multi_label=False,
        skip_missing=False,
        faults=faults,
        warnings=[],
    )
    faults.raise_if_any()
    for number, picture in enumerate(itertools.islice(found["train"], size)):
        file = folder / picture.labels[0] / f"{number:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read(picture))


def in_a_child(step: str, folder: str) -> tuple[float, float, float]:
    """Return seconds, the peak of resident memory, and what it was after the imports, in MB."""
    command = [sys.executable, __file__, "--measure", step, "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak, before = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, before


def measure(step: str, folder: Path) -> None:
    """Run one step and print what it took, as JSON."""
    work = STEPS[step](folder)
    before, start = peak_memory(), time.perf_counter()
    work()
    print(json.dumps([time.perf_counter() - start, peak_memory(), before]))


def peak_memory() -> float:
    """The process's peak of resident memory in MB (getrusage would count its parent's, too)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def preflight(folder: Path) -> Callable[[], object]:
    """The pre-flight check, imported and ready to run."""
    from espalier.pipeline.image_rows import check_images

    return lambda: check_images(
        {"all": str(folder / "pictures")}, label="label", multi_label=False, on_bad_image="fail"
    )


def example_gen(folder: Path) -> Callable[[], object]:
    """ImageExampleGen's executor, imported and ready to run."""
    from tfx.types import standard_artifacts

    import espalier.components.image_example_gen.component as component

    generator = component.ImageExampleGen(
        {"all": str(folder / "pictures")},
        label="label",
        multi_label=False,
        on_bad_image="fail",
        fingerprint="",
    )
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "examples")
    outputs, settings = {"examples": [examples]}, dict(generator.exec_properties)
    return lambda: component.executor.Executor().Do({}, outputs, settings)


STEPS = {"pre-flight": preflight, "ExampleGen": example_gen}

if __name__ == "__main__":
    main()
