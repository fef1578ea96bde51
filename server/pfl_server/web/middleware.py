"""The layers around all endpoints, as plain ASGI so that they cost little.

`Observe` is outside: it names the request, measures it, logs it, and answers what nobody foresaw. `RequestGuard` is
inside: how often requests come and how many are open, the length of bodies before they are read, and their pace while
they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from math import ceil
from typing import TYPE_CHECKING

from pfl_mobile.protocol.answers import HEADER
from pfl_mobile.protocol.bodies import PROBLEM_JSON, PROTOCOL
from pfl_server import problems
from pfl_server.problems import Problem, encode
from pfl_server.web.answers import problem_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pfl_server.services import Services

log = logging.getLogger("pfl_server.requests")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
#: Answered however often they are asked: load balancers ask them.
_UNLIMITED = {"/healthz", "/readyz"}
_ENROLLING = {("POST", "/v1/devices"), ("POST", "/v1/challenges")}
_HEADERS = [
    (HEADER.lower().encode(), str(PROTOCOL).encode()),  # devices tell the aggregator's answers by it
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
#: In the scope: bytes of the body that were read.
_RECEIVED = "pfl_server.received"
#: Seconds and bytes for which a refused body is still read, so that the client sees the answer before the connection
#: ends (a connection that is closed with unread bytes is reset, and the answer may be lost).
_LINGER_S, _LINGER_BYTES = 2.0, 4 << 20
#: Seconds after which a client asks again that has too many requests open.
_AGAIN_S = "1"


class Observe:
    """Request id, metrics, log line, and an answer to what nobody foresaw."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, number = time.perf_counter(), secrets.token_hex(8)
        status, sent = 0, 0

        async def naming_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in _HEADERS if header[0] not in given),
                    (b"x-request-id", number.encode()),
                ]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, naming_send)
        except Exception as error:
            problem = problem_of(error)
            self._services.refusals.count(problem.code)
            if status:  # too late for an answer: the broken connection tells the client
                raise
            await send_problem(naming_send, problem)
        finally:
            self._note(scope, number, status, time.perf_counter() - begin, sent)

    def _note(self, scope: Scope, number: str, status: int, seconds: float, sent: int) -> None:
        received = scope.get(_RECEIVED, 0)
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self._services.metrics
        metrics.requests.labels(method=method, route=route, status=str(status)).inc()
        metrics.seconds.labels(route=route).observe(seconds)
        if received:
            metrics.body_bytes.labels(route=route, direction="in").inc(received)
        if sent:
            metrics.body_bytes.labels(route=route, direction="out").inc(sent)
        if scope["path"] not in _UNLIMITED:
            fields = {
                "request": number,
                "method": method,
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 2),
                "bytes_in": received,
                "bytes_out": sent,
            }
            log.info("request", extra=fields)


class RequestGuard:
    """Refuses requests that come too often or too many at once, and bodies that are too long or too slow.

    Bodies are read whole here, so that they cost no more than their bytes, in however small pieces they come; but for
    uploads. The body of an upload that turns out too long or too slow while it is read raises the problem out of
    ``receive``, so that the endpoint can keep what has arrived.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body = _Body(self._services, scope, headers, receive)
        if scope["path"] in _UNLIMITED:  # these read no body
            await self._app(scope, body.receive, body.closing(send))
            return
        problem = self._too_often(scope, headers) or body.refused()
        if problem is not None:
            await self._refuse(body.closing(send), problem)
            return
        client = scope.get("client")
        limits = self._services.limits
        sender, most = limits.sender(headers.get(b"authorization"), client[0] if client else None)
        if (begun := limits.open.begin(sender, most)) != "begun":
            await self._refuse(body.closing(send), _too_many(most if begun == "own" else None))
            return
        try:
            await self._serve(scope, receive, send, body)
        finally:
            limits.open.end(sender)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, body: _Body) -> None:
        if not body.expected:
            await self._app(scope, receive, send)
            return
        try:
            if body.is_update:
                await self._app(scope, body.receive, body.closing(send))
                return
            try:
                content = await body.whole()
            except Problem as problem:
                await self._refuse(body.closing(send), problem)
                return
            if content is not None:  # else nobody is left to read an answer
                await self._app(scope, _first(content, receive), send)
        finally:
            scope[_RECEIVED] = body.received
            body.stop_watching()

    async def _refuse(self, send: Send, problem: Problem) -> None:
        self._services.refusals.count(problem.code)
        await send_problem(send, problem)

    def _too_often(self, scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
        client = scope.get("client")
        wait = self._services.limits.wait(
            headers.get(b"authorization"),
            client[0] if client else None,
            enrolling=(scope["method"], scope["path"]) in _ENROLLING,
        )
        if not wait:
            return None
        return problems.RateLimited(
            "too many requests came from here", mend="wait", headers={"Retry-After": str(max(1, ceil(wait)))}
        )


def _too_many(most: int | None) -> Problem:
    """The problem of a request beside too many: ``most`` of its own sender's, or those of all."""
    if most is not None:
        return problems.RateLimited(
            f"{most} requests from here are open already",
            mend="wait until one is over",
            headers={"Retry-After": _AGAIN_S},
        )
    return problems.Unavailable(
        "too many requests are open", mend="ask again", headers={"Retry-After": _AGAIN_S}
    )


def _first(content: bytes, receive: Receive) -> Receive:
    """``receive`` that gives a body which was read already, before what follows."""
    left: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def giving() -> Message:
        return left.pop() if left else await receive()

    return giving


class _Body:
    """The body of one request: how long it may be, how fast it must come, how much of it was read."""

    def __init__(
        self, services: Services, scope: Scope, headers: dict[bytes, bytes], receive: Receive
    ) -> None:
        self._receive = receive
        self._limits = services.limits.config
        self.is_update = scope["method"] == "PUT" and scope["path"].endswith("/update")
        self._most = services.runtime.max_update_bytes if self.is_update else self._limits.json_bytes
        self._length = _length(headers.get(b"content-length"))
        self.expected = bool(self._length) or b"transfer-encoding" in headers
        self.received = 0
        self._left = self.expected
        self._closes = False
        # one timer for the whole body: one for every part would cost more than the part
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[object] | None = None
        self._since = 0.0
        self._waited = 0.0
        self._too_slow = False

    def refused(self) -> Problem | None:
        """The problem of a body whose head says already that it is too long."""
        return self._too_large() if self._length is not None and self._length > self._most else None

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            BodyTooLarge, BodyTooSlow: it is.
        """
        if not self._left:
            return await self._receive()
        loop = asyncio.get_running_loop()
        self._since, self._waiting = loop.time(), asyncio.current_task()
        if self._timer is None:
            self._timer = loop.call_at(self._latest(), self._watch)
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._too_slow or (self._waiting is not None and self._waiting.uncancel() > 0):
                raise
            raise problems.BodyTooSlow(
                f"nothing arrived for {self._limits.silence_s:g} s, or less than {self._limits.min_rate:.0f} bytes a "
                "second",
                mend="send it again, or go on later",
            ) from None
        finally:
            self._waiting = None
        self._waited += loop.time() - self._since
        self.received += len(message.get("body", b""))
        self._left = bool(message.get("more_body", False))
        if not self._left:
            self.stop_watching()
        if self.received > self._most:
            raise self._too_large()
        return message

    async def whole(self) -> bytes | None:
        """The whole body; None when the client is gone.

        Raises:
            BodyTooLarge, BodyTooSlow: it is.
        """
        found = bytearray()
        while self._left:
            message = await self.receive()
            if message["type"] != "http.request":
                return None
            found += message.get("body", b"")
        return bytes(found)

    def stop_watching(self) -> None:
        """Watch the pace no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _latest(self) -> float:
        """When the part that is waited for has to be there; what the endpoint takes between parts does not count."""
        limits = self._limits
        pace = self._since + limits.grace_s + self.received / limits.min_rate - self._waited
        return min(pace, self._since + limits.silence_s)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._waiting is None:  # the endpoint is at work
            self._timer = loop.call_at(now + min(self._limits.grace_s, self._limits.silence_s), self._watch)
        elif now < self._latest():
            self._timer = loop.call_at(self._latest(), self._watch)
        else:
            self._too_slow = True
            self._waiting.cancel()

    def closing(self, send: Send) -> Send:
        """``send`` that announces the end of the connection when much of the body was not read."""

        async def announcing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._left:
                unread = _LINGER_BYTES if self._length is None else self._length - self.received
                if unread > self._limits.json_bytes:
                    self._closes = True
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            if self._closes and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return announcing

    async def _linger(self) -> None:
        """Read a part of what the client still sends, and drop it."""
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while self._left and read < _LINGER_BYTES:
                    message = await self._receive()
                    read += len(message.get("body", b""))
                    self._left = bool(message.get("more_body", False))

    def _too_large(self) -> Problem:
        return problems.BodyTooLarge(f"the body may have {self._most} bytes", mend="send less")


def _length(header: bytes | None) -> int | None:
    """The length that a header tells; far too long where it has more digits than any length."""
    if header is None or not header.isdigit():
        return None
    return int(header[:20])


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer with a problem, outside of FastAPI."""
    content, headers = encode(problem)
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
