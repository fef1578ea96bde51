"""The layers around all endpoints, without a server: limits, bodies, names of requests, and unforeseen errors."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from pfl_server.counting.rate_limits import RequestLimits
from pfl_server.settings import LimitsConfig
from pfl_server.web.middleware import Observe, RequestGuard


class Refusals:
    def __init__(self):
        self.codes = []

    def count(self, code):
        self.codes.append(code)


def services(max_update_bytes=1 << 20, **limits):
    return SimpleNamespace(
        limits=RequestLimits(LimitsConfig(**limits)),
        refusals=Refusals(),
        runtime=SimpleNamespace(max_update_bytes=max_update_bytes),
        metrics=SimpleNamespace(**counters()),
    )


def counters():
    class Counter:
        def __init__(self):
            self.seen = []

        def labels(self, **labels):
            self.seen.append(labels)
            return self

        def inc(self, amount=1):
            self.seen[-1] = self.seen[-1] | {"by": amount}

        observe = inc

    return {name: Counter() for name in ("requests", "seconds", "body_bytes")}


async def reading(scope, receive, send):
    """An endpoint that answers with the body that it read."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(app, *, method="POST", path="/v1/check-in", body=(b"",), headers=(), pause=0.0, hangs=False):
    """The status, headers and body of an answer."""
    sent, pieces = [], list(body)

    async def receive():
        if not pieces:
            await asyncio.sleep(60 if hangs else 0)
            return {"type": "http.disconnect"}
        if pause:
            await asyncio.sleep(pause)
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or hangs}

    async def send(message):
        sent.append(message)

    given = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "client": ("10.0.0.1", 1)}
    asyncio.run(app(scope, receive, send))
    start = sent[0]
    content = b"".join(m.get("body", b"") for m in sent[1:])
    return start["status"], {n.decode(): v.decode() for n, v in start["headers"]}, content


def length(body):
    return [("Content-Length", str(sum(map(len, body))))]


def code(answer):
    return json.loads(answer[2])["code"]


class TestRequestGuard:
    def test_a_body_reaches_the_endpoint_whole(self):
        body = [b"ab", b"", b"cd"]
        assert ask(RequestGuard(reading, services()), body=body, headers=length(body))[2] == b"abcd"

    def test_a_request_without_a_body_is_passed_on(self):
        assert ask(RequestGuard(reading, services()))[0] == 200

    def test_a_body_that_says_it_is_too_long_is_not_read(self):
        found = services(json_bytes=1024)
        answer = ask(RequestGuard(reading, found), body=[b"x"], headers=[("Content-Length", "1025")])
        assert (answer[0], code(answer)) == (413, "body-too-large")
        assert found.refusals.codes == ["body-too-large"]

    def test_a_body_that_turns_out_too_long_is_refused(self):
        body = [b"x" * 1000] * 2
        answer = ask(
            RequestGuard(reading, services(json_bytes=1024)),
            body=body,
            headers=[("Transfer-Encoding", "chunked")],
        )
        assert code(answer) == "body-too-large"

    def test_updates_may_be_as_long_as_an_update(self):
        found = services(json_bytes=1024, max_update_bytes=3000)
        for size, status in ((3000, 200), (3001, 413)):
            body = [b"x" * size]
            answer = ask(
                RequestGuard(reading, found),
                method="PUT",
                path="/v1/tasks/t/update",
                body=body,
                headers=length(body),
            )
            assert answer[0] == status

    def test_a_body_that_stops_coming_is_refused(self):
        found = services(silence_s=0.05, grace_s=0.05)
        answer = ask(RequestGuard(reading, found), body=[b"x"], headers=[("Content-Length", "9")], hangs=True)
        assert code(answer) == "body-too-slow"

    def test_a_steady_body_is_no_slow_one(self):
        body = [b"x"] * 8
        found = services(silence_s=5.0, grace_s=5.0)
        assert ask(RequestGuard(reading, found), body=body, headers=length(body), pause=0.005)[0] == 200

    def test_requests_that_come_too_often_are_told_when_to_come_again(self):
        app = RequestGuard(reading, services(address_rate=0.5, address_burst=2))
        assert [ask(app)[0] for _ in range(2)] == [200, 200]
        answer = ask(app)
        assert (answer[0], code(answer), answer[1]["retry-after"]) == (429, "rate-limited", "2")

    def test_health_checks_are_answered_however_often(self):
        app = RequestGuard(reading, services(address_rate=0.5, address_burst=1))
        assert {ask(app, method="GET", path="/healthz")[0] for _ in range(5)} == {200}

    def test_only_so_many_requests_are_open_at_a_time(self):
        found = services(address_open=1)
        inner = []

        async def asking_again(scope, receive, send):
            messages = []

            async def collect(message):
                messages.append(message)

            await app(scope, receive, collect)
            inner.append(messages[0]["status"])
            await reading(scope, receive, send)

        app = RequestGuard(asking_again, found)
        assert ask(app)[0] == 200
        assert inner == [429]
        assert ask(RequestGuard(reading, found))[0] == 200, "an ended request is open no more"

    def test_a_request_that_fails_is_open_no_more(self):
        found = services(address_open=1)

        async def failing(scope, receive, send):
            raise RuntimeError

        for _ in range(2):
            with pytest.raises(RuntimeError):
                ask(RequestGuard(failing, found))

    def test_the_connection_ends_where_much_was_not_read(self):
        async def early(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 409, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})

        body = [b"x" * 1000] * 4
        answer = ask(
            RequestGuard(early, services(json_bytes=1024)),
            method="PUT",
            path="/v1/tasks/t/update",
            body=body,
            headers=length(body),
        )
        assert (answer[0], answer[1].get("connection"), answer[2]) == (409, "close", b"no")


class TestObserve:
    def test_every_answer_has_a_name_and_may_not_be_stored(self):
        one, other = (ask(Observe(reading, services()))[1] for _ in range(2))
        assert one["x-request-id"] != other["x-request-id"]
        assert (one["cache-control"], one["x-content-type-options"], one["pfl-protocol"]) == (
            "no-store",
            "nosniff",
            "1",
        )

    def test_headers_of_the_endpoint_stay(self):
        async def cached(scope, receive, send):
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=1")]}
            )
            await send({"type": "http.response.body", "body": b""})

        assert ask(Observe(cached, services()))[1]["cache-control"] == "max-age=1"

    def test_what_nobody_foresaw_is_a_problem_that_tells_nothing(self):
        async def failing(scope, receive, send):
            raise RuntimeError("the secret is 7")

        found = services()
        answer = ask(Observe(failing, found))
        assert answer[0] == 500
        assert b"secret" not in answer[2]
        assert found.refusals.codes == [code(answer)]
        assert found.metrics.requests.seen[0]["status"] == "500"

    def test_an_error_after_the_answer_began_breaks_the_connection(self):
        async def failing(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError

        found = services()
        with pytest.raises(RuntimeError):
            ask(Observe(failing, found))
        assert found.metrics.requests.seen[0]["status"] == "200"

    def test_metrics_have_a_bounded_number_of_labels(self):
        found = services()
        ask(Observe(reading, found), method="BREW", path="/whatever/1")
        assert found.metrics.requests.seen[0] | {"by": 1} == {
            "method": "other",
            "route": "unmatched",
            "status": "200",
            "by": 1,
        }
