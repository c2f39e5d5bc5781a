"""Bytes on the sockets that are no HTTP, or all too much of it: refused, cut off, and forgotten."""

import contextlib
import random
import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE = 60.0  # seconds until an answer, or the end of the connection
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUED = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
PREDICT = "/tensorflow.serving.PredictionService/Predict"
ROW = b'{"instances": [1.0]}'
POST = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: a\r\n"
BROKEN = [
    b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", HELLO, b"\r\n" * 9999,
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \xff\x00\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
    b"GET /" + b"a" * 10**6, b"GET http://a/b HTTP/1.1\r\nHost: c\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    POST + b"Content-Length: -1\r\n\r\n", POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 99\r\n\r\n" + ROW, POST + b"Content-Length: 5000000\r\n\r\n" + ROW,
    POST + b"Transfer-Encoding: gzip\r\n\r\nabc",
    POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", POST + b"Expect: 100-continue\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXY0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 9999,
    POST + b"Content-Length: 20\r\n\r\n" + ROW + POST + b"Content-Length: 20\r\n\r\n" + ROW,
]  # fmt: skip


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """A frame of HTTP/2, which may lie about its length."""
    size = len(payload) if length < 0 else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header of HPACK, spelt out."""
    found = b"\x00"
    for text in (name, value):
        size = len(text)
        if size < 127:
            found += bytes([size])
        else:
            found, size = found + b"\x7f", size - 127
            while size >= 128:
                found, size = found + bytes([size % 128 + 128]), size // 128
            found += bytes([size])
        found += text
    return found


def heading(path: str = PREDICT, *more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call."""
    usual = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
        (b":authority", b"a"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    return b"".join(literal(*one) for one in (*usual, *more))


def opened(port: int, *frames: bytes) -> socket.socket:
    """A connection that has said hello, and sent these frames."""
    found = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    found.sendall(HELLO + frame(SETTINGS, 0, 0) + b"".join(frames))
    return found


def exchange(port: int, data: bytes) -> bytes:
    """Send bytes and nothing more; what comes until the connection ends, which it must."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
        got = b""
        with contextlib.suppress(OSError):  # cut off amid what it sent; but time must not run out
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        try:
            while part := connection.recv(2**16):
                got += part
        except ConnectionResetError:
            pass
        return got


class Fuzzer:
    """Makes one broken connection after the other.

    Args:
        ports: gRPC's and REST's.
        secret: what no answer may hold.
        seed: of all chances.
    """

    def __init__(self, ports: tuple[int, int], secret: bytes, seed: int) -> None:
        self.grpc, self.rest = ports
        self.secret, self.random = secret, random.Random(seed)
        self.floods: list[Callable[[], bytes]] = [
            lambda: frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x01") * 5000,
            lambda: frame(PING, 0, 0, b"12345678") * 5000,
            lambda: b"".join(
                frame(HEADERS, END_HEADERS, n, heading()) + frame(RESET, 0, n, b"\0\0\0\x08")
                for n in range(1, 1001, 2)
            ),
            lambda: frame(HEADERS, 0, 1, heading()) + frame(CONTINUED, 0, 1, b"\x00") * 5000,
            lambda: frame(HEADERS, END_HEADERS, 1, heading(PREDICT, (b"big", b"v" * 10**6))),
            lambda: frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3,
            lambda: frame(PRIORITY, 0, 3, b"\0\0\0\x03\x10") * 5000,
            lambda: frame(DATA, 0, 1, b"") * 5000,
            lambda: b"".join(frame(HEADERS, END_HEADERS, n, heading()) for n in range(1, 401, 2)),
        ]

    def one(self, place: int) -> None:
        """Send the next: to REST and to gRPC in turn."""
        if place % 2:
            answer = exchange(self.rest, self.http())
            assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]
        else:
            answer = exchange(self.grpc, self.http2())
        assert self.secret not in answer and b"Traceback" not in answer, answer

    def mutated(self, data: bytes) -> bytes:
        """Some bytes of it changed, cut off, or put in."""
        found = bytearray(data)
        for _ in range(self.random.choice([0, 1, 3, 20])):
            place = self.random.randrange(len(found) + 1)
            change = self.random.random()
            if change < 0.5:
                found[place : place + 1] = self.random.randbytes(1)
            elif change < 0.75:
                found[place:place] = self.random.randbytes(self.random.choice([1, 5, 500]))
            else:
                del found[place : place + self.random.choice([1, 9, 200])]
        return bytes(found)

    def http(self) -> bytes:
        good = POST + b"Content-Length: 20\r\nConnection: close\r\n\r\n" + ROW
        return self.mutated(self.random.choice([*BROKEN, *[good] * 10]))

    def http2(self) -> bytes:
        number = struct.pack(">I", self.random.choice([0, 1, 3, 2**31 - 1]))
        call = frame(HEADERS, END_HEADERS, 1, heading()) + frame(
            DATA, END_STREAM, 1, self.random.choice([b"\0\0\0\0\0", b"\x01\xff\xff\xff\xff", b"\0"])
        )
        random_frame = frame(
            self.random.randrange(16), self.random.randrange(256), self.random.choice([0, 1, 2, 3]),
            self.random.randbytes(self.random.choice([0, 4, 6, 8, 100])),
            self.random.choice([-1, -1, 0, 2**14 + 1, 2**24 - 1]),
        )  # fmt: skip
        odd = frame(
            HEADERS, END_HEADERS | END_STREAM, 1,
            heading(
                self.random.choice([PREDICT, "", "a", PREDICT * 99, "/\xff/\x00"]),
                (b"grpc-timeout", self.random.choice([b"1S", b"-1S", b"99999999999999H", b"\xff"])),
                (b"grpc-encoding", self.random.choice([b"gzip", b"identity", b"brotli"])),
                (self.random.choice([b"", b":path", b"UPPER", b"x-bin"]), b"***"),
            ),
        )  # fmt: skip
        shut = frame(GOAWAY, 0, 0, number + number)
        body = self.random.choice(
            [call, call, call + random_frame, random_frame, odd, odd + call, shut + call,
             self.random.choice(self.floods)()]
        )  # fmt: skip
        start = self.random.choice([HELLO, HELLO, HELLO, HELLO[:9], b"", HELLO * 2])
        whole = start + frame(SETTINGS, 0, 0) + body
        return self.mutated(whole) if len(whole) < 5000 else whole


def test_malformed_bytes(running: Any, models: Path, drill: Any, times: Any) -> None:
    fuzzer = Fuzzer(running.ports(), str(models.parent).encode(), seed=12)
    running.endure(drill("malformed bytes on the sockets"), times(150, 3000), fuzzer.one)


def silent(grpc_port: int, rest_port: int, count: int) -> list[socket.socket]:
    """So many connections at each port that say nothing, and calls that never send a message."""
    found = [
        socket.create_connection(("127.0.0.1", port))
        for port in (grpc_port, rest_port)
        for _ in range(count)
    ]
    for path in (PREDICT, "/grpc.health.v1.Health/Check", PREDICT):
        heads = (frame(HEADERS, END_HEADERS, n, heading(path)) for n in range(1, 160, 2))
        found.append(opened(grpc_port, *heads))
    # Half a message: its length, and a part of it.
    half = frame(HEADERS, END_HEADERS, 1, heading()) + frame(DATA, 0, 1, b"\0\0\0\xff\xffa")
    return found + [opened(grpc_port, half) for _ in range(20)]


def test_slow_and_silent_callers(running: Any, drill: Any, times: Any) -> None:
    """Hundreds send a byte now and then, a thousand nothing; good callers do not notice."""
    line, before = drill("good calls beside slow and silent callers"), running.held()["files"]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ports = running.ports()
    crowd = silent(*ports, times(100, 500))
    call = HELLO + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, heading())
    dripping = [
        (socket.create_connection(("127.0.0.1", port)), text)
        for port, text in zip(ports, (call, POST), strict=True)
        for _ in range(times(50, 200))
    ]
    for turn in range(times(5, 60)):
        for connection, text in dripping:
            with contextlib.suppress(OSError):  # it was cut off, as it may be
                connection.sendall(text[turn % len(text) :][:1])
        with line.attempt(f"turn {turn}"):
            running.check()
        time.sleep(0.2)
    for connection in [*crowd, *(one for one, _ in dripping)]:
        connection.close()
    with line.attempt("afterwards"):
        running.check()
        running.settle("files", before + 10)
