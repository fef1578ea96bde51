"""Many devices that ask at the same time: one process, one connection for each device.

Raw sockets rather than an HTTP library, so that it takes as little of the machine as possible away from the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        target: path.
        headers: beside Host and Content-Length.
        parts: the body, sent one after another; shared by requests where it can be.
        method: of HTTP.
    """

    target: str
    headers: Mapping[str, str]
    parts: Sequence[bytes]
    method: str = "PUT"


class _Client(asyncio.Protocol):
    """Sends calls from a queue over one connection, and counts the answers."""

    def __init__(self, queue: list[Call], host: str, done: asyncio.Future[None], statuses: list[int]) -> None:
        self.queue, self.host, self.done, self.statuses = queue, host, done, statuses
        self.transport: Any = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._next()

    def _next(self) -> None:
        if not self.queue:
            self.transport.close()
            return
        call = self.queue.pop()
        length = sum(len(part) for part in call.parts)
        lines = [f"{call.method} {call.target} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in call.headers.items()]
        # The transport sends what the socket takes at once and keeps a reference to the rest, no copy.
        self.transport.writelines([("\r\n".join(lines) + "\r\n\r\n").encode(), *call.parts])

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(body) < (int(lengths[0].split(b":")[1]) if lengths else 0):
            return
        self.statuses.append(int(head.split(b" ", 2)[1]))
        self.received = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


async def _run(host: str, port: int, calls: list[Call], connections: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    queue, statuses = list(reversed(calls)), list[int]()
    waiting = []
    began = time.perf_counter()
    for _ in range(min(connections, len(calls))):
        done: asyncio.Future[None] = loop.create_future()
        waiting.append(done)
        await loop.create_connection(
            lambda done=done: _Client(queue, f"{host}:{port}", done, statuses),  # type: ignore[misc]
            host,
            port,
        )
    await asyncio.gather(*waiting)
    seconds = time.perf_counter() - began
    size = sum(len(part) for call in calls for part in call.parts)
    return {
        "seconds": seconds,
        "per_s": len(statuses) / seconds,
        "mb_per_s": size / seconds / 1e6,
        "statuses": {str(s): statuses.count(s) for s in sorted(set(statuses))},
    }


def run(host: str, port: int, calls: list[Call], connections: int) -> dict[str, Any]:
    """Send all calls over so many connections.

    Returns:
        ``seconds``, ``per_s``, ``mb_per_s`` (10^6 bytes of body), ``statuses`` (how many of each).

    Raises:
        OSError: a connection failed.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(host, port, calls, connections))
