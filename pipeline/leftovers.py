"""What a run that was killed has left, put in order before the next one begins."""

import shutil
from pathlib import Path

from ..trainer import states
from .store import Store, database

STATES = ("training", "compression", "tuning")


def clear(home: Path) -> None:
    """Remove what killed components had half made, and record that they do not run any more.

    Only while `store.alone` is held: what seems to run then is dead.
    """
    if not database(home).exists():
        return
    store = Store(home)
    killed = store.running()
    half = ["*/.system/stateful_working_dir/*"]  # TFX removes it when a component ends
    for execution in killed:
        half += [f"*/[!.]*/{execution}", f"*/.system/executor_execution/{execution}"]
    for folder in (folder for pattern in half for folder in (home / "artifacts").glob(pattern)):
        shutil.rmtree(folder, ignore_errors=True)
    store.mark_failed(killed)  # last: a kill before it, and the next call does it all again
    clear_states(home)


def clear_states(home: Path) -> None:
    """Remove the states of trainings whose results are in the metadata."""
    recorded: set[str] | None = None
    for kind in STATES:
        states.clear(home / kind)
        for folder in (home / kind).glob("*/"):
            if made := states.made(folder):
                recorded = Store(home).places() if recorded is None else recorded
                if made in recorded:
                    states.discard(folder)
