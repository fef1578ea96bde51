"""HTTP connections that are bounded: uvicorn with httptools takes heads of any length, however slowly they come.

Without this, one stranger's endless header, or endless requests whose answers it does not read, fill the memory, and
many half heads keep all file descriptors. What is no HTTP is answered with a problem, like every other mistake.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pfl_mobile.protocol.answers import HEADER
from pfl_mobile.protocol.bodies import PROBLEM_JSON, PROTOCOL
from pfl_server.counting.rate_limits import network
from pfl_server.problems import BadRequest, HeadTooLarge, Problem, Unavailable, encode
from pfl_server.settings import LimitsConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from uvicorn._types import ASGIReceiveEvent
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

#: Bytes of a request beside its body: line and headers; besides, as many as the body has for the framing of its chunks.
HEAD_BYTES = 16 << 10
#: Headers of a request: short ones cost many times their bytes.
HEADERS = 100
#: Seconds until the head of a request must be whole.
HEAD_S = 20.0
#: Requests that may wait on a connection while one before them is answered.
PIPELINED = 8
#: Seconds between two looks at how far answers were read.
LOOK_S = 1.0
#: Bytes of answers that the system takes beyond those under way: with megabytes, as it likes to take, a client that
#: reads slowly would seem not to read at all.
_UNSENT_BYTES = 16 << 10
_UNSENT_OPTION: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
#: File descriptors that are left for all but connections: the database, uploads, downloads.
_OTHER_FILES = 256


class Connections:
    """The connections of one process: how many there may be, and whether answers are read.

    Args:
        limits: of this server.
        trusted: addresses of proxies, which bring the connections of many.
    """

    def __init__(self, limits: LimitsConfig, trusted: tuple[str, ...] = ()) -> None:
        self.limits, self._trusted = limits, frozenset(trusted)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = limits.connections
        if files != resource.RLIM_INFINITY:
            self._most = min(self._most, max(files - _OTHER_FILES, files // 2))
        self._open: dict[BoundedHttp, str] = {}
        self._by_place: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: BoundedHttp, address: str | None) -> bool:
        """Count a connection; False where there are too many, and none waits for a request."""
        place = "" if address in self._trusted else network(address)
        if place and self._by_place[place] >= self.limits.address_connections:
            mine = [c for c, other in self._open.items() if other == place]
        elif len(self._open) >= self._most:
            mine = list(self._open)
        else:
            mine = None
        if mine is not None and not self._give_way(mine):
            return False
        self._open[connection] = place
        self._by_place[place] += 1
        if self._timer is None:
            self._timer = connection.loop.call_later(LOOK_S, self._look, connection.loop)
        return True

    def leave(self, connection: BoundedHttp) -> None:
        """A connection is over."""
        place = self._open.pop(connection, None)
        if place is None:
            return
        self._by_place[place] -= 1
        if not self._by_place[place]:
            del self._by_place[place]

    def _give_way(self, connections: list[BoundedHttp]) -> bool:
        """End the connection that has waited longest for a request; False where none does."""
        waiting = [(c.waits_since, n, c) for n, c in enumerate(connections) if c.waits_since is not None]
        if not waiting:
            return False
        _, _, connection = min(waiting)
        self.leave(connection)
        connection.transport.abort()
        return True

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._open):
            if connection.is_stuck(now):
                connection.transport.abort()
        self._timer = loop.call_later(LOOK_S, self._look, loop) if self._open else None


_CONNECTIONS: WeakKeyDictionary[ServerState, Connections] = WeakKeyDictionary()


class _Closed(Exception):
    """Nothing more is read from this connection; it ends the parser's work."""


class _Counted:
    """A transport that counts what is written to it, and drops what comes too late.

    A connection may be closed here while a request of it is being answered, and some transports raise then.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = 0

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport.is_closing():
            return
        self.written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedHttp(HttpToolsProtocol):
    """One connection.

    It ends when a head is longer than ``HEAD_BYTES`` or ``HEADERS``, or takes longer than ``HEAD_S``; when more than
    ``PIPELINED`` requests come before the first is answered; and when its client does not read the answer, as slowly
    as bodies may come at most.

    Args:
        limits: of this server; None: the usual ones.
        trusted: addresses of proxies.
    """

    cycle: RequestResponseCycle
    transport: Any

    def __init__(
        self,
        *arguments: Any,
        limits: LimitsConfig | None = None,
        trusted: tuple[str, ...] = (),
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._beside = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        found = _CONNECTIONS.get(self.server_state)
        if found is None:
            found = _CONNECTIONS[self.server_state] = Connections(limits or LimitsConfig(), trusted)
        self._connections = found
        #: Since when it waits for a request, by the loop's clock; None while one is being answered.
        self.waits_since: float | None = None
        self._sending: _Sending | None = None
        self._unread_since: float | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client must send a head from now on."""
        super().connection_made(_Counted(transport))  # type: ignore[arg-type]
        sock = transport.get_extra_info("socket")
        if _UNSENT_OPTION is not None and sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, _UNSENT_BYTES)
        self.waits_since = self.loop.time()
        if not self._connections.enter(self, self.client[0] if self.client else None):
            self._answer(
                Unavailable("too many connections are open", mend="ask again", headers={"Retry-After": "1"})
            )
            self.transport.close()
            return
        self._wait_for_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._connections.leave(self)
        self._stop_waiting()
        super().connection_lost(exc)

    def is_stuck(self, now: float) -> bool:
        """Whether the client reads too slowly what is sent, or sends a body too slowly whose answer it has.

        Args:
            now: by the loop's clock.
        """
        limits = self._connections.limits
        if self._is_idle() and not self._in_head:
            self._unread_since = now if self._unread_since is None else self._unread_since
            if now - self._unread_since > limits.silence_s:
                return True
        else:
            self._unread_since = None
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._sending = None
            return False
        sent = self.transport.written - waiting
        if self._sending is None:
            self._sending = _Sending(now, sent)
        return self._sending.is_stuck(now, sent, limits)

    @override
    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the request has too much beside its body."""
        if self.transport.is_closing():
            return  # what comes after a refusal
        self._beside += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._beside > HEAD_BYTES:
            self._refuse()
        elif self._is_idle():
            self._wait_for_head()
        self._note_waiting()

    @override
    def on_message_begin(self) -> None:
        """A new request.

        Raises:
            _Closed: it came with one that was refused.
        """
        if self.transport.is_closing():
            raise _Closed
        self._beside, self._in_head = 0, True
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one more than there may be is as good as a thousand."""
        if len(self.headers) <= HEADERS:
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        """The head is whole, and maybe came at once."""
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEADERS or len(self.pipeline) >= PIPELINED:
            self._refuse()
            return
        super().on_headers_complete()
        self.cycle.receive = _all_that_came(self.cycle)  # type: ignore[method-assign]
        self._in_head = False
        self.waits_since = None

    @override
    def on_response_complete(self) -> None:
        """The next request is waited for."""
        super().on_response_complete()
        self._note_waiting()

    @override
    def on_body(self, body: bytes) -> None:
        """Bytes of the body count for themselves, and permit as many of framing."""
        self._beside -= 2 * len(body)
        if not self._in_head:  # of a refused head otherwise
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        """The request is whole; a head may follow."""
        if not self._in_head:
            super().on_message_complete()
        self._in_head = True

    @override
    def send_400_response(self, msg: str) -> None:
        """End a connection on which something came that is no HTTP; uvicorn calls it.

        Args:
            msg: uvicorn's words, which it logs.
        """
        # Of a body that goes wrong, the request has no other answer yet, and none is on its way before it.
        in_body = not self._in_head and not self.pipeline and not self.cycle.response_started
        if in_body or (self._in_head and self._is_idle()):
            self._answer(BadRequest("what came is not valid HTTP", mend="send requests as HTTP/1.1 says"))
        self.transport.close()

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _note_waiting(self) -> None:
        if not (self._is_idle() and self._in_head) or self.pipeline:
            self.waits_since = None
        elif self.waits_since is None:
            self.waits_since = self.loop.time()

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        """End the connection, with an answer where none is on its way."""
        if self._in_head and self._is_idle():
            self._answer(
                HeadTooLarge(
                    f"the head of a request may have {HEAD_BYTES} bytes and {HEADERS} headers",
                    mend="send fewer and shorter headers",
                )
            )
        self.transport.close()

    def _answer(self, problem: Problem) -> None:
        content, headers = encode(problem)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"{HEADER.lower()}: {PROTOCOL}\r\ncontent-type: {PROBLEM_JSON}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n"
        )
        head += "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"{head}\r\n".encode() + content)


def _all_that_came(cycle: RequestResponseCycle) -> Callable[[], Coroutine[Any, Any, ASGIReceiveEvent]]:
    """What a request receives, to the last byte: where its connection ends before it asks, uvicorn drops what came."""
    receive = cycle.receive

    async def received() -> ASGIReceiveEvent:
        message = await receive()
        if message["type"] == "http.disconnect" and cycle.body and not cycle.response_complete:
            body, cycle.body = bytes(cycle.body), bytearray()
            return {"type": "http.request", "body": body, "more_body": cycle.more_body}
        return message

    return received


class _Sending:
    """How a client reads what waits to be sent to it.

    Args:
        now: when there was something first.
        sent: bytes that were sent until then.
    """

    def __init__(self, now: float, sent: int) -> None:
        self._began, self._before = now, sent
        self._moved, self._sent = now, sent

    def is_stuck(self, now: float, sent: int, limits: LimitsConfig) -> bool:
        """Whether nothing went for too long, or too little in all."""
        if sent > self._sent:
            self._moved, self._sent = now, sent
        silent = now - self._moved > limits.silence_s
        return silent or now - self._began > limits.grace_s + (sent - self._before) / limits.min_rate
