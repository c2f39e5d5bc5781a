"""The server killed under load and started again: callers wait for it, and lose no request."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from espalier import AsyncClient, Client

DEADLINE = (
    300.0  # seconds that a request may take: a start takes most of a minute on a busy machine
)


class Load:
    """Callers of both clients, over TCP and a UNIX socket, until it is left.

    `answered` counts; `wrong` holds what failed.
    """

    def __init__(self, *targets: str) -> None:
        self.answered, self.wrong = 0, list[str]()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=run, args=(target,))
            for target in targets
            for run in (
                self._ask,
                self._ask,
                lambda target: asyncio.run(self._ask_together(target)),
            )
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _see(self, number: float, answer: Any) -> None:
        self.answered += 1
        if isinstance(answer, Exception) or answer["y"].tolist() != [number / 2 + 3]:
            self.wrong.append(repr(answer))

    def _ask(self, target: str) -> None:
        with Client(target, "half_plus_two", timeout=DEADLINE) as client:
            while not self._over.is_set():
                try:
                    self._see(1.0, client.predict([1.0]))
                except Exception as error:  # each is a loss
                    self._see(1.0, error)

    async def _ask_together(self, target: str) -> None:
        async def ask(client: AsyncClient, number: float) -> None:
            while not self._over.is_set():
                try:
                    self._see(number, await client.predict([number]))
                except Exception as error:
                    self._see(number, error)

        async with AsyncClient(target, "half_plus_two", timeout=DEADLINE) as client:
            await asyncio.gather(*(ask(client, float(number)) for number in range(3)))


def test_killed_under_load(
    models: Path, tmp_path: Path, serve: Any, tools: Any, drill: Any, times: Any
) -> None:
    line, port, place = drill("server killed -9 under load, and started"), tools.free_port(), "s"
    flags = ("--port", port, "--rest_api_port", 0, "--grpc_socket_path", tmp_path / place)
    targets = f"127.0.0.1:{port}", f"unix:{tmp_path / place}"
    door = tools.Door(targets[0], "")
    with contextlib.ExitStack() as stack:

        def start() -> Any:
            arguments = (models / "half_plus_two", *flags)
            return stack.enter_context(serve(tmp_path / "log", *arguments))

        process = start()
        tools.await_health(door)
        with Load(*targets) as load:  # left before the server ends
            for number in range(times(1, 10)):
                with line.attempt(f"kill {number}"):
                    tools.until(lambda: load.answered > 100)
                    process.kill()
                    process.wait()
                    time.sleep(0.1)
                    load.answered = 0
                    process = start()
                    tools.until(lambda: load.answered > 100)
                    lost, load.wrong[:] = load.wrong[:], []
                    assert not lost, lost[:3]
        door.close()
