"""HTTP connections whose heads are bounded: uvicorn with httptools takes heads of any length, however slowly they come.

Without this, one stranger's endless header fills the memory, and many half heads keep all file descriptors. What is no
HTTP is answered with a problem, like every other mistake.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pfl_mobile.protocol.answers import HEADER
from pfl_mobile.protocol.bodies import PROBLEM_JSON, PROTOCOL
from pfl_server.answers import encode
from pfl_server.problems import BadRequest, HeadTooLarge, Problem

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

#: Bytes of a request beside its body: line and headers; besides, as many as the body has for the framing of its chunks.
HEAD_BYTES = 64 << 10
#: Seconds until the head of a request must be whole.
HEAD_S = 20.0


class BoundedHttp(HttpToolsProtocol):
    """One connection: it ends when a head is longer than ``HEAD_BYTES`` or takes longer than ``HEAD_S``."""

    cycle: RequestResponseCycle

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._beside = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client must send a head from now on."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

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

    def on_message_begin(self) -> None:
        """A new request."""
        self._beside, self._in_head = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole, and maybe came at once."""
        self._stop_waiting()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse()
            return
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """Bytes of the body count for themselves, and permit as many of framing."""
        self._beside -= 2 * len(body)
        if not self._in_head:  # of a refused head otherwise
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; a head may follow."""
        if not self._in_head:
            super().on_message_complete()
        self._in_head = True

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
                    f"the head of a request may have {HEAD_BYTES} bytes", mend="send shorter headers"
                )
            )
        self.transport.close()

    def _answer(self, problem: Problem) -> None:
        content, _ = encode(problem)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"{HEADER.lower()}: {PROTOCOL}\r\ncontent-type: {PROBLEM_JSON}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
